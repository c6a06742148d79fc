package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// maxRequest bounds a request. The largest are configurations of pods with much in their environment, and the API server
// does not let an object be larger than 3 MiB.
const maxRequest = 16 << 20

// NewGRPCServer returns a gRPC server with both services of s registered and what every call needs around them: Unavailable until
// s is ready, panics as Internal (those of
// work that runs on behalf of several calls come as errdefs.Panic), classes of errors as codes, one line in the log for each failure, metrics. The caller
// serves and stops it.
func NewGRPCServer(s *Server, opts ...grpc.ServerOption) *grpc.Server {
	d := door{s}
	g := grpc.NewServer(append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxRequest),
		// The lists grow with the node; clients bound what they receive.
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.ChainUnaryInterceptor(d.unary),
		grpc.ChainStreamInterceptor(d.stream),
		// A kubelet that pings is not to be cut off.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}, opts...)...)
	s.Register(g)
	return g
}

// door is what every call goes through.
type door struct{ s *Server }

func (d door) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	err = d.call(ctx, info.FullMethod, subject(req), func(ctx context.Context) error {
		var err error
		resp, err = next(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (d door) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return d.call(ss.Context(), info.FullMethod, slog.Attr{}, func(ctx context.Context) error { return next(srv, &boundStream{ss, ctx}) })
}

// call does the work of a call and returns its error as a gRPC status.
func (d door) call(ctx context.Context, fullMethod string, about slog.Attr, work func(context.Context) error) (err error) {
	method := path.Base(fullMethod)
	begun := time.Now()
	ended := d.s.cfg.Metrics.CallBegun(method)
	defer func() {
		took := time.Since(begun)
		ended(status.Code(err).String(), took)
		d.report(ctx, method, about, took, err)
	}()
	if !d.s.ready.Load() {
		return status.Error(codes.Unavailable, "berth is starting: it is still looking at the pods that were here before")
	}
	within, end := d.s.calls.begin(ctx, method)
	defer end()
	err = guarded(within, work)
	if p := (*errdefs.Panic)(nil); errors.As(err, &p) {
		d.s.log.Error("panic in a CRI call", "method", method, about, "panic", p.Value, "stack", string(p.Stack))
		return status.Error(codes.Internal, fmt.Sprintf("%s: %v", method, err))
	}
	if err != nil && errors.Is(context.Cause(within), errReplaced) {
		err = errReplaced
	}
	return toStatus(err)
}

// guarded calls work and returns its panic as an error. Work on a goroutine of its own returns its panic itself.
func guarded(ctx context.Context, work func(context.Context) error) (err error) {
	defer errdefs.Recover(&err)
	return work(ctx)
}

// report logs a failure once. What a healthy cluster sees now and then is not a warning.
func (d door) report(ctx context.Context, method string, about slog.Attr, took time.Duration, err error) {
	level := slog.LevelWarn
	switch status.Code(err) {
	case codes.OK:
		d.s.log.LogAttrs(ctx, slog.LevelDebug, "CRI call", slog.String("method", method), about, slog.Duration("took", took))
		return
	case codes.NotFound, codes.Canceled, codes.Unavailable:
		level = slog.LevelInfo
	case codes.Internal, codes.Unknown:
		level = slog.LevelError
	}
	d.s.log.LogAttrs(ctx, level, "CRI call failed",
		slog.String("method", method), about, slog.Duration("took", took),
		slog.String("code", status.Code(err).String()), slog.String("err", status.Convert(err).Message()))
}

// subject says what a request is about, for the log.
func subject(req any) slog.Attr {
	switch r := req.(type) {
	case interface{ GetContainerId() string }:
		return slog.String("container", r.GetContainerId())
	case *cri.RunPodSandboxRequest:
		m := r.GetConfig().GetMetadata()
		return slog.String("pod", m.GetNamespace()+"/"+m.GetName())
	case *cri.CreateContainerRequest:
		return slog.Group("", slog.String("sandbox", r.GetPodSandboxId()), slog.String("name", r.GetConfig().GetMetadata().GetName()))
	case interface{ GetPodSandboxId() string }:
		return slog.String("sandbox", r.GetPodSandboxId())
	case interface{ GetImage() *cri.ImageSpec }:
		return slog.String("image", r.GetImage().GetImage())
	}
	return slog.Attr{}
}
