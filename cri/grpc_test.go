package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/metrics"
)

// connect serves s on a socket and returns a connection to it.
func connect(t *testing.T, s *Server) *grpc.ClientConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "berth.sock")
	l, err := Listen(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	g := NewGRPCServer(s)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func TestNotReady(t *testing.T) {
	s := New(Config{Version: "1.2.3"})
	conn := connect(t, s)
	rt := cri.NewRuntimeServiceClient(conn)
	if _, err := rt.Version(t.Context(), &cri.VersionRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("Version before SetReady: %v, want Unavailable", err)
	}
	events, err := rt.StreamContainers(t.Context(), &cri.StreamContainersRequest{})
	if err == nil {
		_, err = events.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("StreamContainers before SetReady: %v, want Unavailable", err)
	}

	s.SetReady()
	v, err := rt.Version(t.Context(), &cri.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if v.GetRuntimeName() != "berth" || v.GetRuntimeVersion() != "1.2.3" || v.GetRuntimeApiVersion() != "v1" || v.GetVersion() == "" {
		t.Errorf("Version: %v", v)
	}
}

// A failure is logged once, with what it was about; a panic does not end the daemon.
func TestDoor(t *testing.T) {
	for name, tc := range map[string]struct {
		work func() error
		code codes.Code
		log  []string
	}{
		"success":   {func() error { return nil }, codes.OK, nil},
		"not found": {func() error { return fmt.Errorf("container c1: %w", errdefs.ErrNotFound) }, codes.NotFound, []string{"level=INFO", "container c1: not found"}},
		"failure":   {func() error { return errors.New("oh") }, codes.Unknown, []string{"level=ERROR", "err=oh", "code=Unknown"}},
		"refused":   {func() error { return invalid("config", "must be set") }, codes.InvalidArgument, []string{"level=WARN", "config: must be set"}},
		"panic":     {func() error { panic("at the disco") }, codes.Internal, []string{"panic in a CRI call", "at the disco", "CRI call failed"}},
		"panic of joined work": {func() error {
			return fmt.Errorf("pull: %w", &errdefs.Panic{Value: "at the manifest", Stack: []byte("goroutine 7")})
		}, codes.Internal, []string{"panic in a CRI call", "at the manifest", "goroutine 7", "CRI call failed"}},
	} {
		t.Run(name, func(t *testing.T) {
			var logged bytes.Buffer
			s := New(Config{Log: slog.New(slog.NewTextHandler(&logged, nil)), Metrics: metrics.New("test")})
			s.SetReady()
			_, err := door{s}.unary(t.Context(), &cri.StopContainerRequest{ContainerId: "c1"},
				&grpc.UnaryServerInfo{FullMethod: "/runtime.v1.RuntimeService/StopContainer"},
				func(context.Context, any) (any, error) { return nil, tc.work() })
			if status.Code(err) != tc.code {
				t.Errorf("got %v, want %s", err, tc.code)
			}
			if tc.log == nil && logged.Len() > 0 {
				t.Errorf("logged: %s", &logged)
			}
			for _, want := range tc.log {
				if strings.Count(logged.String(), want) == 0 {
					t.Errorf("log %q has no %q", &logged, want)
				}
			}
			if n := strings.Count(logged.String(), "CRI call failed"); tc.log != nil && n != 1 {
				t.Errorf("logged %d times: %s", n, &logged)
			}
			if tc.log != nil && !strings.Contains(logged.String(), "method=StopContainer container=c1") {
				t.Errorf("log %q does not say what failed", &logged)
			}
		})
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b", "berth.sock")
	l, err := Listen(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Mode().Perm(); got != 0o600 {
		t.Errorf("the socket has mode %o, want 600", got)
	}

	// Somebody answers.
	if _, err := Listen(path, 0); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a second server on the socket: %v, want ErrAlreadyExists", err)
	}

	// A dead process leaves its socket behind.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = Listen(path, 0)
	if err != nil {
		t.Fatalf("a stale socket is in the way: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	// A file is not ours to remove.
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, 0); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a file at the path: %v, want ErrAlreadyExists", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file is gone: %v", err)
	}
}
