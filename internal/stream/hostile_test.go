package stream

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// Whoever can reach the port may open any number of connections and say nothing, or a word now and then. The descriptors
// that this takes are bounded, and a client with a token is served meanwhile; its session is not one of those that go.
func TestSilentConnections(t *testing.T) {
	s := serve(t, Config{}, Backend{Exec: shell(0)})
	exec := ExecRequest{ContainerID: "c", Cmd: []string{"x"}, Connect: Connect{Stdin: true, Stdout: true}}
	url, err := s.Exec(exec)
	if err != nil {
		t.Fatal(err)
	}
	early, err := dial(t, url, remotecommand.StreamProtocolV5Name)
	if err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	for i := range 2 * maxSilent {
		c, err := net.Dial("tcp", s.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 { // a slow loris
			_, _ = io.WriteString(c, "POST /exec/")
		}
	}
	// Both ends are this process's: as many descriptors for the clients, and the bound for the server.
	deadline := time.Now().Add(patience)
	for openFiles(t) > before+2*maxSilent+maxSilent+10 {
		if time.Now().After(deadline) {
			t.Fatalf("%d files are open, %d were before", openFiles(t), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if url, err = s.Exec(exec); err != nil {
		t.Fatal(err)
	}
	late, err := dial(t, url, remotecommand.StreamProtocolV5Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, ws := range []*websocket.Conn{early, late} {
		send(t, ws, remotecommand.StreamStdIn, "abc")
		if err := websocket.Message.Send(ws, []byte{255, remotecommand.StreamStdIn}); err != nil {
			t.Fatal(err)
		}
		if got := receive(ws); !strings.Contains(got[remotecommand.StreamStdOut], "ABC") {
			t.Errorf("got %q", got)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// endless is a text of JSON that does not end, and counts what is read of it.
type endless struct{ n int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	if e.n == 0 {
		p[0] = '"'
	}
	e.n += len(p)
	if e.n > 64<<20 {
		return 0, io.EOF
	}
	return len(p), nil
}

// A client that floods the channel of sizes with a text that is none does not fill the memory with it.
func TestSizesAreBounded(t *testing.T) {
	var in endless
	out := make(chan Size)
	go decodeSizes(t.Context(), &in, out)
	for range out {
		t.Error("a size")
	}
	if in.n > 1<<20 {
		t.Errorf("%d bytes were read", in.n)
	}
}

// A token is for one client and hard to guess, and nothing else leads to a session.
func TestTokenIsForOne(t *testing.T) {
	s := serve(t, Config{}, Backend{Exec: func(context.Context, string, []string, Streams) (int32, error) { return 0, nil }})
	seen := map[string]bool{}
	for range 500 {
		url, err := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"x"}, Connect: Connect{Stdout: true}})
		if err != nil {
			t.Fatal(err)
		}
		token := url[strings.LastIndex(url, "/")+1:]
		if len(token) < 26 || seen[token] {
			t.Fatalf("token %q", token)
		}
		seen[token] = true
	}
	for token := range seen {
		url := fmt.Sprintf("http://%s/exec/%s", s.Address(), token)
		first, err := dial(t, url, remotecommand.StreamProtocolV5Name)
		if err != nil {
			t.Fatal(err)
		}
		receive(first)
		if _, err := dial(t, url, remotecommand.StreamProtocolV5Name); err == nil {
			t.Fatal("a token was good for two sessions")
		}
		break
	}
	for _, path := range []string{"/exec/", "/exec/../exec/x", "/attach/x", "/", "/exec/" + strings.Repeat("A", 26)} {
		if _, err := dial(t, "http://"+s.Address()+path, remotecommand.StreamProtocolV5Name); err == nil {
			t.Errorf("a session at %s", path)
		}
	}
	if !strings.HasPrefix(s.Address(), "127.0.0.1:") {
		t.Errorf("it listens at %s", s.Address())
	}
}
