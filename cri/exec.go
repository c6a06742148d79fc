package cri

import (
	"context"
	"fmt"
	"io"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/stream"
	"github.com/berth-node/berth/runtime"
)

// ExecSync runs a command in a container and returns what it printed. That it fails is not an error; that it is killed
// at its timeout is DeadlineExceeded.
func (s *Server) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	err := first(
		checkName("container_id", r.GetContainerId()),
		checkCommand("cmd", r.GetCmd()),
		checkSeconds("timeout", r.GetTimeout()),
	)
	if err != nil {
		return nil, err
	}
	res, err := s.cfg.Runtime.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), seconds(r.GetTimeout()))
	if err != nil {
		return nil, err
	}
	return &cri.ExecSyncResponse{Stdout: res.Stdout, Stderr: res.Stderr, ExitCode: res.ExitCode}, nil
}

// Exec returns a URL where a client can run a command in a container.
func (s *Server) Exec(ctx context.Context, r *cri.ExecRequest) (*cri.ExecResponse, error) {
	if err := first(checkName("container_id", r.GetContainerId()), checkCommand("cmd", r.GetCmd())); err != nil {
		return nil, err
	}
	id, connect, err := s.connection(ctx, r)
	if err != nil {
		return nil, err
	}
	url, err := s.cfg.Streams.Exec(stream.ExecRequest{ContainerID: id, Cmd: r.GetCmd(), Connect: connect})
	if err != nil {
		return nil, err
	}
	return &cri.ExecResponse{Url: url}, nil
}

// Attach returns a URL where a client can connect to the process of a container.
func (s *Server) Attach(ctx context.Context, r *cri.AttachRequest) (*cri.AttachResponse, error) {
	id, connect, err := s.connection(ctx, r)
	if err != nil {
		return nil, err
	}
	url, err := s.cfg.Streams.Attach(stream.AttachRequest{ContainerID: id, Connect: connect})
	if err != nil {
		return nil, err
	}
	return &cri.AttachResponse{Url: url}, nil
}

// connection is what ExecRequest and AttachRequest have in common.
type connection interface {
	GetContainerId() string
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

// connection checks a request for a connection to a running container, and returns that one's whole ID.
func (s *Server) connection(ctx context.Context, r connection) (id string, connect stream.Connect, err error) {
	err = first(
		checkName("container_id", r.GetContainerId()),
		checkConnect(r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()),
	)
	if err != nil {
		return "", stream.Connect{}, err
	}
	c, err := s.cfg.Runtime.CheckRunning(ctx, r.GetContainerId())
	if err != nil {
		return "", stream.Connect{}, err
	}
	return c.ID, stream.Connect{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}, nil
}

// PortForward returns a URL where a client can connect to ports of a sandbox.
func (s *Server) PortForward(ctx context.Context, r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	if err := checkName("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	for i, p := range r.GetPort() {
		if err := checkPort(fmt.Sprintf("port[%d]", i), p, 1); err != nil {
			return nil, err
		}
	}
	sb, err := s.cfg.Runtime.Sandbox(ctx, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if !sb.Ready {
		return nil, notReady(sb.ID)
	}
	url, err := s.cfg.Streams.PortForward(stream.PortForwardRequest{SandboxID: sb.ID, Ports: r.GetPort()})
	if err != nil {
		return nil, err
	}
	return &cri.PortForwardResponse{Url: url}, nil
}

// StreamBackend connects the sessions of a stream.Server to rt.
func StreamBackend(rt *runtime.Runtime) stream.Backend {
	return stream.Backend{
		Exec: func(ctx context.Context, id string, cmd []string, st stream.Streams) (int32, error) {
			ctx, done := context.WithCancel(ctx)
			defer done()
			return rt.Exec(ctx, id, cmd, fromStreams(ctx, st))
		},
		Attach: func(ctx context.Context, id string, st stream.Streams) error {
			ctx, done := context.WithCancel(ctx)
			defer done()
			return rt.Attach(ctx, id, fromStreams(ctx, st))
		},
		PortForward: func(ctx context.Context, id string, port int32, conn io.ReadWriteCloser) error {
			return rt.PortForward(ctx, id, port, conn)
		},
	}
}

// fromStreams passes a session on. ctx has to end with the session.
func fromStreams(ctx context.Context, st stream.Streams) runtime.Streams {
	return runtime.Streams{
		Stdin:    st.Stdin,
		Stdout:   st.Stdout,
		Stderr:   st.Stderr,
		Terminal: st.TTY,
		Resize:   fromSizes(ctx, st.Resize),
	}
}

// fromSizes passes the sizes on until there are no more, or ctx ends; nil for nil.
func fromSizes(ctx context.Context, in <-chan stream.Size) <-chan runtime.Size {
	if in == nil {
		return nil
	}
	out := make(chan runtime.Size)
	go func() {
		defer close(out)
		for {
			select {
			case size, more := <-in:
				if !more {
					return
				}
				select {
				case out <- runtime.Size(size):
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
