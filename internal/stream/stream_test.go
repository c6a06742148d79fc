package stream

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/spdystream"
	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/berth-node/berth/internal/errdefs"
)

// patience bounds what a test waits for; reaching it is a failure.
const patience = time.Minute

// serve runs a Server for b until the end of the test.
func serve(t *testing.T, cfg Config, b Backend) *Server {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, cfg, b)
}

func serveOn(t *testing.T, l net.Listener, cfg Config, b Backend) *Server {
	t.Helper()
	s, err := New(cfg, l, b)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s
}

// dial connects a WebSocket client to one of the Server's URLs.
func dial(t *testing.T, url string, protocols ...string) (*websocket.Conn, error) {
	t.Helper()
	cfg, err := websocket.NewConfig(strings.Replace(url, "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Protocol = protocols
	ws, err := cfg.DialContext(t.Context())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = ws.Close() })
	if err := ws.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return ws, nil
}

func send(t *testing.T, ws *websocket.Conn, channel byte, data string) {
	t.Helper()
	if err := websocket.Message.Send(ws, append([]byte{channel}, data...)); err != nil {
		t.Fatal(err)
	}
}

// receive collects what comes on each channel until the server closes.
func receive(ws *websocket.Conn) map[byte]string {
	got := map[byte]string{}
	for {
		var m []byte
		if websocket.Message.Receive(ws, &m) != nil {
			return got
		}
		got[m[0]] += string(m[1:])
	}
}

// shell is a fake command: it prints the terminal's first size, then its input in capitals, then "done" to the error
// output, and exits with the code.
func shell(code int32) func(context.Context, string, []string, Streams) (int32, error) {
	return func(_ context.Context, id string, cmd []string, s Streams) (int32, error) {
		if s.Resize != nil {
			size := <-s.Resize
			fmt.Fprintf(s.Stdout, "%dx%d ", size.Width, size.Height)
		}
		fmt.Fprintf(s.Stdout, "%s %s:", id, strings.Join(cmd, " "))
		if s.Stdin != nil {
			in, err := io.ReadAll(s.Stdin)
			if err != nil {
				return 0, err
			}
			fmt.Fprint(s.Stdout, strings.ToUpper(string(in)))
		}
		if s.Stderr != nil {
			fmt.Fprint(s.Stderr, "done")
		}
		return code, nil
	}
}

func wantStatus(t *testing.T, text, wantStatus, wantCode string) {
	t.Helper()
	var st status
	if err := json.Unmarshal([]byte(text), &st); err != nil {
		t.Fatalf("status %q: %v", text, err)
	}
	code := ""
	if st.Details != nil && len(st.Details.Causes) == 1 && st.Details.Causes[0].Type == remotecommand.ExitCodeCauseType {
		code = st.Details.Causes[0].Message
	}
	if st.Status != wantStatus || code != wantCode {
		t.Errorf("status %s: got %s with exit code %q, want %s with %q", text, st.Status, code, wantStatus, wantCode)
	}
}

func TestExecWebSocketV5(t *testing.T) {
	s := serve(t, Config{}, Backend{Exec: shell(7)})
	url, err := s.Exec(ExecRequest{ContainerID: "c1", Cmd: []string{"sh", "-c"}, Connect: Connect{Stdin: true, Stdout: true, Stderr: true}})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := dial(t, url, remotecommand.StreamProtocolV5Name)
	if err != nil {
		t.Fatal(err)
	}
	send(t, ws, remotecommand.StreamStdIn, "hello ")
	send(t, ws, remotecommand.StreamStdIn, "world")
	send(t, ws, remotecommand.StreamClose, string([]byte{remotecommand.StreamStdIn})) // the half close: the rest stays open
	got := receive(ws)
	if want := "c1 sh -c:HELLO WORLD"; got[remotecommand.StreamStdOut] != want {
		t.Errorf("stdout %q, want %q", got[remotecommand.StreamStdOut], want)
	}
	if got[remotecommand.StreamStdErr] != "done" {
		t.Errorf("stderr %q, want done", got[remotecommand.StreamStdErr])
	}
	wantStatus(t, got[remotecommand.StreamErr], "Failure", "7")
}

// The older protocols cannot close a half; two of them are in base64, and the first tell only what went wrong.
func TestExecWebSocketOlder(t *testing.T) {
	s := serve(t, Config{}, Backend{Exec: func(_ context.Context, _ string, _ []string, st Streams) (int32, error) {
		var in [5]byte
		_, err := io.ReadFull(st.Stdin, in[:])
		fmt.Fprint(st.Stdout, strings.ToUpper(string(in[:])))
		return 7, err
	}})
	for _, protocol := range []string{"", "channel.k8s.io", "base64.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"} {
		t.Run(protocol, func(t *testing.T) {
			url, err := s.Exec(ExecRequest{ContainerID: "c1", Cmd: []string{"sh"}, Connect: Connect{Stdin: true, Stdout: true}})
			if err != nil {
				t.Fatal(err)
			}
			var protocols []string
			if protocol != "" {
				protocols = []string{"nonsense", protocol}
			}
			ws, err := dial(t, url, protocols...)
			if err != nil {
				t.Fatal(err)
			}
			channel, in, out := byte(0), "hello", "HELLO"
			if strings.Contains(protocol, "base64") {
				channel, in, out = '0', "aGVsbG8=", "SEVMTE8="
			}
			send(t, ws, channel, in)
			got := receive(ws)
			if got[channel+1] != out {
				t.Errorf("got %q", got)
			}
			text := got[channel+3]
			if channel != 0 {
				decoded, err := base64.StdEncoding.DecodeString(text)
				if err != nil {
					t.Error(err)
				}
				text = string(decoded)
			}
			if strings.HasPrefix(protocol, "v4.") {
				wantStatus(t, text, "Failure", "7")
			} else if text != "command terminated with non-zero exit code: exit status 7" {
				t.Errorf("got %q", text)
			}
		})
	}
	url, err := s.Exec(ExecRequest{ContainerID: "c1", Cmd: []string{"sh"}, Connect: Connect{Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, url, "nonsense"); err == nil {
		t.Error("a protocol that there is not")
	}
}

func TestExecWebSocketTTY(t *testing.T) {
	for _, protocol := range []string{remotecommand.StreamProtocolV5Name, remotecommand.StreamProtocolV4Name} {
		t.Run(protocol, func(t *testing.T) {
			s := serve(t, Config{}, Backend{Exec: shell(0)})
			url, err := s.Exec(ExecRequest{ContainerID: "c1", Cmd: []string{"top"}, Connect: Connect{Stdout: true, TTY: true}})
			if err != nil {
				t.Fatal(err)
			}
			ws, err := dial(t, url, protocol)
			if err != nil {
				t.Fatal(err)
			}
			send(t, ws, remotecommand.StreamResize, `{"Width":80,"Height":25}`)
			got := receive(ws)
			if want := "80x25 c1 top:"; got[remotecommand.StreamStdOut] != want {
				t.Errorf("stdout %q, want %q", got[remotecommand.StreamStdOut], want)
			}
			wantStatus(t, got[remotecommand.StreamErr], "Success", "")
		})
	}
}

func TestAttachFailure(t *testing.T) {
	s := serve(t, Config{}, Backend{Attach: func(context.Context, string, Streams) error { return errors.New("no such luck") }})
	url, err := s.Attach(AttachRequest{ContainerID: "c1", Connect: Connect{Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := dial(t, url, remotecommand.StreamProtocolV5Name)
	if err != nil {
		t.Fatal(err)
	}
	got := receive(ws)[remotecommand.StreamErr]
	if !strings.Contains(got, "no such luck") || !strings.Contains(got, "Failure") {
		t.Errorf("status %q does not tell the error", got)
	}
}

// spdyDial connects a SPDY client to one of the Server's URLs.
func spdyDial(t *testing.T, url string, protocols ...string) httpstream.Connection {
	t.Helper()
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range protocols {
		req.Header.Add(httpstream.HeaderProtocolVersion, p)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	conn, err := rt.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func open(t *testing.T, conn httpstream.Connection, headers ...string) httpstream.Stream {
	t.Helper()
	h := http.Header{}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	st, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	// The library ends the streams of a port-forward with a reset; what came before it is what counts.
	if err != nil && !errors.Is(err, spdystream.ErrReset) {
		t.Error(err)
	}
	return string(b)
}

func TestExecSPDY(t *testing.T) {
	s := serve(t, Config{}, Backend{Exec: shell(3)})
	url, err := s.Exec(ExecRequest{ContainerID: "c1", Cmd: []string{"cat"}, Connect: Connect{Stdin: true, Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	conn := spdyDial(t, url, remotecommand.StreamProtocolV4Name)
	errs := open(t, conn, remotecommand.StreamType, remotecommand.StreamTypeError)
	in := open(t, conn, remotecommand.StreamType, remotecommand.StreamTypeStdin)
	out := open(t, conn, remotecommand.StreamType, remotecommand.StreamTypeStdout)
	fmt.Fprint(in, "hello")
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := readAll(t, out), "c1 cat:HELLO"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	wantStatus(t, readAll(t, errs), "Failure", "3")
}

// echo is a fake port: it sends back what it gets, with the port's number before it.
func echo(_ context.Context, sandboxID string, port int32, conn io.ReadWriteCloser) error {
	if port == 81 {
		// Not before the client knows that its streams are open: a reset that comes with that word can overtake it in
		// the client's library.
		_, err := conn.Read(make([]byte, 1))
		return errors.Join(errors.New("nobody listens"), err)
	}
	in, err := io.ReadAll(conn)
	if err == nil {
		_, err = fmt.Fprintf(conn, "%s:%d %s", sandboxID, port, in)
	}
	return err
}

func TestPortForwardSPDY(t *testing.T) {
	s := serve(t, Config{}, Backend{PortForward: echo})
	url, err := s.PortForward(PortForwardRequest{SandboxID: "sb"})
	if err != nil {
		t.Fatal(err)
	}
	forwardTwice(t, spdyDial(t, url, portforward.PortForwardV1Name))
}

func TestPortForwardTunnel(t *testing.T) {
	s := serve(t, Config{}, Backend{PortForward: echo})
	url, err := s.PortForward(PortForwardRequest{SandboxID: "sb"})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := dial(t, url, portforward.WebsocketsSPDYTunnelingPortForwardV1)
	if err != nil {
		t.Fatal(err)
	}
	ws.PayloadType = websocket.BinaryFrame
	conn, err := spdy.NewClientConnection(ws)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	forwardTwice(t, conn)
}

// forwardTwice makes a connection that works and one that fails, over one session.
func forwardTwice(t *testing.T, conn httpstream.Connection) {
	t.Helper()
	for i, tc := range []struct{ port, out, err string }{
		{"80", "sb:80 ping", ""},
		{"81", "", "nobody listens"},
	} {
		id := fmt.Sprint(i)
		errs := open(t, conn, portforward.StreamType, portforward.StreamTypeError,
			portforward.PortHeader, tc.port, portforward.PortForwardRequestIDHeader, id)
		data := open(t, conn, portforward.StreamType, portforward.StreamTypeData,
			portforward.PortHeader, tc.port, portforward.PortForwardRequestIDHeader, id)
		fmt.Fprint(data, "ping")
		if tc.err == "" {
			if err := data.Close(); err != nil {
				t.Fatal(err)
			}
			if got := readAll(t, data); got != tc.out {
				t.Errorf("port %s gave %q, want %q", tc.port, got, tc.out)
			}
		}
		if got := readAll(t, errs); !strings.Contains(got, tc.err) {
			t.Errorf("port %s: error %q, want %q in it", tc.port, got, tc.err)
		}
	}
}

// A client that goes away ends the context, whatever the protocol.
func TestClientGone(t *testing.T) {
	ended := make(chan error)
	wait := func(ctx context.Context) {
		<-ctx.Done()
		ended <- ctx.Err()
	}
	s := serve(t, Config{}, Backend{
		Exec: func(ctx context.Context, _ string, _ []string, _ Streams) (int32, error) {
			wait(ctx)
			return 0, ctx.Err()
		},
		PortForward: func(ctx context.Context, _ string, _ int32, _ io.ReadWriteCloser) error {
			wait(ctx)
			return ctx.Err()
		},
	})
	request := ExecRequest{ContainerID: "c", Cmd: []string{"sleep"}, Connect: Connect{Stdout: true}}
	for name, connect := range map[string]func(t *testing.T) io.Closer{
		"websocket v5": func(t *testing.T) io.Closer {
			url, _ := s.Exec(request)
			ws, err := dial(t, url, remotecommand.StreamProtocolV5Name)
			if err != nil {
				t.Fatal(err)
			}
			return ws
		},
		"websocket v5, its input unread": func(t *testing.T) io.Closer {
			url, _ := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"sleep"}, Connect: Connect{Stdin: true}})
			ws, err := dial(t, url, remotecommand.StreamProtocolV5Name)
			if err != nil {
				t.Fatal(err)
			}
			for range 64 {
				send(t, ws, remotecommand.StreamStdIn, strings.Repeat("x", 1024))
			}
			return ws
		},
		"spdy": func(t *testing.T) io.Closer {
			url, _ := s.Exec(request)
			conn := spdyDial(t, url, remotecommand.StreamProtocolV4Name)
			open(t, conn, remotecommand.StreamType, remotecommand.StreamTypeError)
			open(t, conn, remotecommand.StreamType, remotecommand.StreamTypeStdout)
			return conn
		},
		"port forward": func(t *testing.T) io.Closer {
			url, _ := s.PortForward(PortForwardRequest{SandboxID: "sb"})
			conn := spdyDial(t, url, portforward.PortForwardV1Name)
			for _, kind := range []string{portforward.StreamTypeError, portforward.StreamTypeData} {
				open(t, conn, portforward.StreamType, kind, portforward.PortHeader, "80", portforward.PortForwardRequestIDHeader, "0")
			}
			return conn
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn := connect(t)
			select {
			case <-ended:
				t.Fatal("the session ended with its client there")
			default:
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatal("the session goes on without its client")
			}
		})
	}
}

// A SPDY client that opens no streams is sent away.
func TestCreationTimeout(t *testing.T) {
	s := serve(t, Config{CreationTimeout: 50 * time.Millisecond}, Backend{Exec: shell(0)})
	url, err := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"id"}, Connect: Connect{Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	conn := spdyDial(t, url, remotecommand.StreamProtocolV4Name)
	select {
	case <-conn.CloseChan():
	case <-time.After(patience):
		t.Fatal("a connection without streams stays")
	}
}

// A closed Server ends the sessions that are under way.
func TestClose(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	s := serve(t, Config{}, Backend{Exec: func(ctx context.Context, _ string, _ []string, _ Streams) (int32, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	}})
	url, err := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"sleep"}, Connect: Connect{Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, url, remotecommand.StreamProtocolV5Name); err != nil {
		t.Fatal(err)
	}
	<-began
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("Close left a session")
	}
}

func TestRefused(t *testing.T) {
	s := serve(t, Config{MaxPending: 2}, Backend{Exec: shell(0), Attach: func(context.Context, string, Streams) error { return nil }})
	for name, err := range map[string]error{
		"tty and stderr": func() error {
			_, err := s.Exec(ExecRequest{Connect: Connect{TTY: true, Stdout: true, Stderr: true}})
			return err
		}(),
		"no stream": func() error { _, err := s.Attach(AttachRequest{}); return err }(),
	} {
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %v, want ErrInvalidArgument", name, err)
		}
	}

	url, err := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"id"}, Connect: Connect{Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	// A token of an exec is nothing at /attach/, and used up by the try.
	for _, u := range []string{strings.Replace(url, "/exec/", "/attach/", 1), url, strings.Replace(url, "/exec/", "/exec/x", 1)} {
		resp, err := http.Get(u)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: %s, want 404", u, resp.Status)
		}
	}

	for range 2 {
		if _, err := s.PortForward(PortForwardRequest{SandboxID: "sb"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.PortForward(PortForwardRequest{SandboxID: "sb"}); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("a request too many: got %v, want ErrResourceExhausted", err)
	}
}

func TestTooManySessions(t *testing.T) {
	began, end := make(chan struct{}), make(chan struct{})
	s := serve(t, Config{MaxSessions: 1}, Backend{Exec: func(context.Context, string, []string, Streams) (int32, error) {
		close(began)
		<-end
		return 0, nil
	}})
	defer close(end)
	request := ExecRequest{ContainerID: "c", Cmd: []string{"sleep"}, Connect: Connect{Stdout: true}}
	url, err := s.Exec(request)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, url, remotecommand.StreamProtocolV5Name); err != nil {
		t.Fatal(err)
	}
	<-began
	url, err = s.Exec(request)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests || !bytes.Contains(body, []byte("too many")) {
		t.Errorf("got %s %q, want 429", resp.Status, body)
	}
}

func TestTokens(t *testing.T) {
	now := time.Unix(0, 0)
	tk := newTokens(2, time.Minute, func() time.Time { return now })
	a, err := tk.add("a")
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(40 * time.Second)
	b, err := tk.add("b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tk.add("c"); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("a third of two: %v", err)
	}
	now = now.Add(21 * time.Second) // a is too old now, and makes room
	if _, ok := tk.take(a); ok {
		t.Error("a token outlived its time")
	}
	if _, err := tk.add("d"); err != nil {
		t.Errorf("no room after the time of another: %v", err)
	}
	if got, ok := tk.take(b); !ok || got != "b" {
		t.Errorf("took %v, %v; want b", got, ok)
	}
	if _, ok := tk.take(b); ok {
		t.Error("a token worked twice")
	}
	if len(tk.byName) != tk.oldest.Len() {
		t.Errorf("%d names for %d requests", len(tk.byName), tk.oldest.Len())
	}
}
