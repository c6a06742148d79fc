package runtime

import (
	"io"
	"net"
	"strings"
	"testing"
)

// clientStream is a client's end: it sends what in has, and keeps what comes.
type clientStream struct {
	in     io.Reader
	out    strings.Builder
	closed chan struct{}
}

func (s *clientStream) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *clientStream) Write(p []byte) (int, error) { return s.out.Write(p) }

func (s *clientStream) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}

// untilClosed is the input of a client who sends nothing and waits.
type untilClosed struct{ closed chan struct{} }

func (r untilClosed) Read([]byte) (int, error) {
	<-r.closed
	return 0, io.EOF
}

// relayTo relays between a client and a server on the loopback, which serve answers.
func relayTo(t *testing.T, client *clientStream, serve func(*net.TCPConn)) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		serve(conn.(*net.TCPConn))
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	err = relay(conn.(*net.TCPConn), client)
	<-served
	return err
}

// A client may say that it has sent all and still wait for the answer.
func TestRelayPassesTheHalfCloseOn(t *testing.T) {
	client := &clientStream{in: strings.NewReader("question"), closed: make(chan struct{})}
	err := relayTo(t, client, func(conn *net.TCPConn) {
		question, err := io.ReadAll(conn) // ends with the client's half close
		if err != nil {
			t.Error(err)
		}
		if _, err := conn.Write([]byte("answer to " + string(question))); err != nil {
			t.Error(err)
		}
	})
	if err != nil || client.out.String() != "answer to question" {
		t.Errorf("got %q, %v", client.out.String(), err)
	}
}

// When the pod has closed, a client that waits is not kept waiting.
func TestRelayEndsWithThePod(t *testing.T) {
	closed := make(chan struct{})
	client := &clientStream{in: untilClosed{closed}, closed: closed}
	err := relayTo(t, client, func(conn *net.TCPConn) {
		if _, err := conn.Write([]byte("bye")); err != nil {
			t.Error(err)
		}
	})
	if err != nil || client.out.String() != "bye" {
		t.Errorf("got %q, %v", client.out.String(), err)
	}
}
