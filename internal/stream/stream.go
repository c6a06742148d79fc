// Package stream serves the URLs that the CRI's Exec, Attach and PortForward answer with.
//
// A caller asks the Server for a URL; whoever connects to it, within a minute and once, gets the session that the URL
// stands for. The sessions are not encrypted and their only proof of identity is the token in the URL: the listener should be
// on a loopback address. The wire protocols are those of Kubernetes' clients: SPDY v1 to v4 and the WebSocket channel protocols up to
// v5 for exec and attach, and for port-forward those of k8s.io/cri-streaming and SPDY tunnelled in a WebSocket.
//
//	GET /exec/{token}          SPDY (spdy.go) | WebSocket (websocket.go)
//	GET /attach/{token}        the same
//	GET /portforward/{token}   SPDY | WebSocket v4 (cri-streaming) | SPDY in WebSocket (portforward.go)
//
// Clients are not trusted: what one sends is kept for some MiB at the most until somebody reads it.
//
// What a session is connected to is not known here: the Backend's functions do the work. Their context ends when the
// client's connection is gone, so that no process and no goroutine is left waiting for a client who will not come back.
package stream

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"

	"github.com/berth-node/berth/internal/errdefs"
)

// A Size is a terminal's, in characters.
type Size = remotecommand.TerminalSize

// Streams are a client's end of a session. What the client did not ask for is nil. They are closed by the Server, after
// the Backend's function has returned.
type Streams struct {
	// Stdin gives io.EOF when the client has closed its half, or has gone.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// TTY makes Stdout carry both outputs; Stderr is nil then.
	TTY bool
	// Resize delivers the terminal's sizes; closed when there will be no more. Nil without a TTY.
	Resize <-chan Size
}

// A Backend does what the sessions are for. All three functions are required; they return when the session is over, and
// soon after ctx is done, which is when the client has gone or the Server is closed.
type Backend struct {
	// Exec runs cmd and returns its exit code. An error says that there is none.
	Exec func(ctx context.Context, containerID string, cmd []string, s Streams) (int32, error)
	// Attach connects to the container's own process until that ends or the client leaves.
	Attach func(ctx context.Context, containerID string, s Streams) error
	// PortForward connects conn, which it may close, to a port of the sandbox.
	PortForward func(ctx context.Context, sandboxID string, port int32, conn io.ReadWriteCloser) error
}

// Config of a Server. Zero durations and counts stand for the defaults.
type Config struct {
	// TokenTTL is how long a URL waits for its client; 1 minute.
	TokenTTL time.Duration
	// IdleTimeout ends a session that carries no byte for so long; 4 hours.
	IdleTimeout time.Duration
	// CreationTimeout is how long a connected SPDY client may take to open its streams; 30 seconds.
	CreationTimeout time.Duration
	// MaxPending bounds the URLs that wait; 1000. More are refused with ErrResourceExhausted.
	MaxPending int
	// MaxSessions bounds the connections served at once; 1000. More are refused with 429.
	MaxSessions int
	// Log gets what goes wrong in a session; nil discards it.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.TokenTTL == 0 {
		c.TokenTTL = time.Minute
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = 4 * time.Hour
	}
	if c.CreationTimeout == 0 {
		c.CreationTimeout = remotecommand.DefaultStreamCreationTimeout
	}
	if c.MaxPending == 0 {
		c.MaxPending = 1000
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = 1000
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// An ExecRequest is what an exec URL stands for.
type ExecRequest struct {
	ContainerID string
	Cmd         []string
	Connect
}

// An AttachRequest is what an attach URL stands for.
type AttachRequest struct {
	ContainerID string
	Connect
}

// A PortForwardRequest is what a port-forward URL stands for.
type PortForwardRequest struct {
	SandboxID string
	// Ports are used by WebSocket clients of the channel protocol only; others name the port with each connection.
	Ports []int32
}

// Connect says which streams the client wants.
type Connect struct{ Stdin, Stdout, Stderr, TTY bool }

func (c Connect) check() error {
	if c.TTY && c.Stderr {
		return fmt.Errorf("tty and stderr cannot both be true: a terminal has one output: %w", errdefs.ErrInvalidArgument)
	}
	if !c.Stdin && !c.Stdout && !c.Stderr {
		return fmt.Errorf("one of stdin, stdout, stderr must be true: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// RouteKlog sends what the Kubernetes libraries log to log. The setting is the process's and klog does not guard it: call
// it once, before any Server exists.
func RouteKlog(log *slog.Logger) { klog.SetSlogLogger(log) }
