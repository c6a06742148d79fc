package stream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"
)

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, request any) bool {
	req, ok := request.(ExecRequest)
	if !ok { // the token is of another kind of session
		http.NotFound(w, r)
		return false
	}
	e := &remote{connect: req.Connect, run: func(ctx context.Context, st Streams) (int32, error) {
		return s.backend.Exec(ctx, req.ContainerID, req.Cmd, st)
	}}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveV5(w, r, e)
		return e.ran
	}
	remotecommand.ServeExec(w, r, e, "", "", req.ContainerID, req.Cmd, req.options(),
		s.cfg.IdleTimeout, s.cfg.CreationTimeout, remotecommand.SupportedStreamingProtocols)
	return e.ran
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, request any) bool {
	req, ok := request.(AttachRequest)
	if !ok {
		http.NotFound(w, r)
		return false
	}
	e := &remote{connect: req.Connect, run: func(ctx context.Context, st Streams) (int32, error) {
		return 0, s.backend.Attach(ctx, req.ContainerID, st)
	}}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		s.serveV5(w, r, e)
		return e.ran
	}
	remotecommand.ServeAttach(w, r, e, "", "", req.ContainerID, req.options(),
		s.cfg.IdleTimeout, s.cfg.CreationTimeout, remotecommand.SupportedStreamingProtocols)
	return e.ran
}

func (c Connect) options() *remotecommand.Options {
	return &remotecommand.Options{Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr, TTY: c.TTY}
}

// remote is one exec or attach session in the library's words.
type remote struct {
	connect Connect
	run     func(context.Context, Streams) (int32, error)
	// ran is true once the client's streams were there and run was called.
	ran bool
}

// streams leaves out what the client did not ask for: over WebSocket the library makes all channels in any case.
func (e *remote) streams(in io.Reader, out, err io.Writer, resize <-chan Size) Streams {
	st := Streams{TTY: e.connect.TTY}
	if e.connect.Stdin {
		st.Stdin = in
	}
	if e.connect.Stdout {
		st.Stdout = out
	}
	if e.connect.Stderr {
		st.Stderr = err
	}
	if e.connect.TTY {
		st.Resize = resize
	}
	return st
}

// ExecInContainer is called by the library with the streams of the client.
func (e *remote) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errw io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	e.ran = true
	code, err := e.run(ctx, e.streams(in, out, errw, resize))
	if err != nil {
		return unlessGone(ctx, err)
	}
	if code != 0 {
		// The library looks for this very type, unwrapped, to send the code to the client.
		return exec.CodeExitError{Err: fmt.Errorf("exit status %d", code), Code: int(code)}
	}
	return nil
}

// AttachContainer is called by the library with the streams of the client.
func (e *remote) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errw io.WriteCloser,
	_ bool, resize <-chan remotecommand.TerminalSize) error {
	e.ran = true
	_, err := e.run(ctx, e.streams(in, out, errw, resize))
	return unlessGone(ctx, err)
}
