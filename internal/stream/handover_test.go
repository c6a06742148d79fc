package stream

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// Two servers on one socket: sessions stay where they are, a URL works once, at the server that has it.
func TestHandOver(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	again, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	// Each says its name, then copies its input until that ends.
	backend := func(name string) Backend {
		return Backend{Exec: func(_ context.Context, _ string, cmd []string, s Streams) (int32, error) {
			_, _ = io.WriteString(s.Stdout, name+" ran "+strings.Join(cmd, " ")+"\n")
			_, err := io.Copy(s.Stdout, s.Stdin)
			return 3, err
		}}
	}
	exec := func(s *Server, cmd string) string {
		t.Helper()
		url, err := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{cmd}, Connect: Connect{Stdin: true, Stdout: true}})
		if err != nil {
			t.Fatal(err)
		}
		return url
	}
	serveOn := func(l net.Listener, name string) *Server {
		t.Helper()
		s, err := New(Config{}, l, backend(name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	old := serveOn(l, "old")
	served := make(chan error, 1)
	go func() { served <- old.Serve() }()

	running, err := dial(t, exec(old, "running"), "v5.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	waiting := exec(old, "waiting")
	// One that has connected and asks only when the old one does not listen any more.
	late, err := net.Dial("tcp", old.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	lateURL := exec(old, "late")
	// It must be accepted before the end of listening, which a request on a second connection shows.
	resp, err := http.Get("http://" + old.Address() + "/exec/none")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	answered := make(chan string, 1)
	go func() {
		<-old.served
		_, _ = io.WriteString(late, "GET "+strings.TrimPrefix(lateURL, "http://"+old.Address())+" HTTP/1.1\r\nHost: x\r\n\r\n")
		buf := make([]byte, 64)
		n, _ := late.Read(buf)
		answered <- string(buf[:n])
	}()

	pending, err := old.HandOver(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	// The URL was known, so the answer is that this is no upgrade, not that there is no such page.
	if got := <-answered; !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Errorf("the client that asked late got %q", got)
	}
	if n := old.Sessions(); n != 1 {
		t.Errorf("%d sessions", n)
	}

	next := serveOn(again, "next")
	if err := next.TakeOver(pending); err != nil {
		t.Fatal(err)
	}
	go func() { _ = next.Serve() }()
	ws, err := dial(t, waiting, "v5.channel.k8s.io")
	if err != nil {
		t.Fatalf("a URL of the old server: %v", err)
	}
	send(t, ws, 255, "\x00")
	if got := receive(ws); got[1] != "next ran waiting\n" || !strings.Contains(got[3], `"message":"3"`) {
		t.Errorf("got %q", got)
	}
	if _, err := dial(t, waiting, "v5.channel.k8s.io"); err == nil {
		t.Error("a URL works twice")
	}
	send(t, running, 0, "more")
	send(t, running, 255, "\x00")
	if got := receive(running); got[1] != "old ran running\nmore" {
		t.Errorf("the session that ran: %q", got)
	}
}
