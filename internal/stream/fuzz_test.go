package stream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// FuzzSizes decodes what a client sends as sizes of its terminal.
func FuzzSizes(f *testing.F) {
	f.Add([]byte(`{"Width":80,"Height":24}{"Width":-1}`))
	f.Add([]byte(`"aaaa`))
	f.Fuzz(func(t *testing.T, data []byte) {
		out := make(chan Size)
		go decodeSizes(t.Context(), bytes.NewReader(data), out)
		n := 0
		for range out {
			n++
		}
		if n > len(data) {
			t.Errorf("%d sizes of %d bytes", n, len(data))
		}
	})
}

// FuzzSession sends any bytes behind the upgrade of each kind of session. The server answers the next client as before, and
// nothing of the session goes on.
func FuzzSession(f *testing.F) {
	upgrades := []string{
		"Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n",
		"Upgrade: websocket\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n",
		"Upgrade: websocket\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n",
		"Upgrade: websocket\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\nOrigin: http://x\r\nSec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n",
		"",
	}
	f.Add(byte(0), []byte("\x80\x03\x00\x01\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Add(byte(0), []byte("\x80\x03\x00\x01\x01\xff\xff\xff"))
	f.Add(byte(1), []byte("\x82\x83\x00\x00\x00\x00\x00ab"))
	f.Add(byte(2), []byte("\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Add(byte(3), []byte("\x82\x88\x00\x00\x00\x00\x80\x03\x00\x06\x00\x00\x00\x04"))
	f.Add(byte(4), []byte("GET / HTTP/1.1\r\n\r\n"))

	open := make(chan struct{}, 1000)
	use := func(ctx context.Context, s io.ReadWriter) {
		open <- struct{}{}
		defer func() { <-open }()
		done := make(chan struct{})
		go func() { defer close(done); _, _ = io.Copy(io.Discard, s) }()
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	s, err := New(Config{CreationTimeout: 20 * time.Millisecond, IdleTimeout: time.Second, MaxPending: 1 << 20}, l, Backend{
		Exec: func(ctx context.Context, _ string, _ []string, st Streams) (int32, error) {
			use(ctx, struct {
				io.Reader
				io.Writer
			}{st.Stdin, st.Stdout})
			return 0, nil
		},
		Attach: func(context.Context, string, Streams) error { return nil },
		PortForward: func(ctx context.Context, _ string, _ int32, conn io.ReadWriteCloser) error {
			use(ctx, conn)
			return nil
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	go func() { _ = s.Serve() }()
	f.Cleanup(func() { _ = s.Close() })
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		n := int(kind) % len(upgrades)
		var url string
		if n == 3 || kind&0x40 != 0 {
			url, err = s.PortForward(PortForwardRequest{SandboxID: "s", Ports: []int32{80}})
		} else {
			url, err = s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"x"}, Connect: Connect{Stdin: true, Stdout: true, TTY: kind&0x80 != 0}})
		}
		if err != nil {
			t.Fatal(err)
		}
		path := url[strings.Index(url, s.Address())+len(s.Address()):]
		conn, err := net.Dial("tcp", s.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n%s\r\n", path, upgrades[n])
		_, _ = conn.Write(data)
		_ = conn.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("the session goes on without its client")
		}
		conn.Close()
		for deadline := time.Now().Add(patience); len(open) > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the backend goes on without its client")
			}
		}
	})
}
