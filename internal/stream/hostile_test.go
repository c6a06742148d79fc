package stream

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
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

// A text of sizes that does not end does not fill the memory; what comes is read and forgotten.
func TestSizesAreBounded(t *testing.T) {
	var in endless
	out := make(chan Size)
	peak := peakHeap(t)
	go decodeSizes(t.Context(), &in, out)
	for range out {
		t.Error("a size")
	}
	if most := peak(); most > 8<<20 {
		t.Errorf("%d MiB of memory", most>>20)
	}
}

// peakHeap samples the memory in use until the test asks for the most there was, beyond what there is now.
func peakHeap(t *testing.T) func() uint64 {
	t.Helper()
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	percent := debug.SetGCPercent(10) // what is garbage does not count
	runtime.GC()
	before := inUse()
	stop, most := make(chan struct{}), make(chan uint64)
	go func() {
		var peak uint64
		for {
			peak = max(peak, inUse())
			select {
			case <-stop:
				most <- max(peak, before) - before
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() uint64 {
		debug.SetGCPercent(percent)
		close(stop)
		return <-most
	}
}

// stalled calls f again and again until one call has not returned for a second, f has returned an error, or it was called
// that many times.
func stalled(t *testing.T, times int, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		for range times {
			err := f()
			done <- err
			if err != nil {
				return
			}
		}
		close(done)
	}()
	for {
		select {
		case err, more := <-done:
			if err != nil || !more {
				return
			}
		case <-time.After(time.Second):
			go func() {
				for range done { // the last call returns with the connection
				}
			}()
			return
		}
	}
}

// A client of SPDY that floods a process that does not read with frames as large as there are does not fill the memory.
func TestSPDYFlood(t *testing.T) {
	s := serve(t, Config{}, Backend{
		Exec: func(ctx context.Context, _ string, _ []string, _ Streams) (int32, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		},
		PortForward: func(ctx context.Context, _ string, _ int32, _ io.ReadWriteCloser) error {
			<-ctx.Done()
			return ctx.Err()
		},
	})
	defer func() { _ = s.Close() }() // the client's library waits for what it writes, else
	execURL, err := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"x"}, Connect: Connect{Stdin: true}})
	if err != nil {
		t.Fatal(err)
	}
	forwardURL, err := s.PortForward(PortForwardRequest{SandboxID: "s"})
	if err != nil {
		t.Fatal(err)
	}
	tunnelURL, err := s.PortForward(PortForwardRequest{SandboxID: "s"})
	if err != nil {
		t.Fatal(err)
	}
	exec := spdyDial(t, execURL, remotecommand.StreamProtocolV4Name)
	open(t, exec, remotecommand.StreamType, remotecommand.StreamTypeError)
	ws, err := dial(t, tunnelURL, portforward.WebsocketsSPDYTunnelingPortForwardV1)
	if err != nil {
		t.Fatal(err)
	}
	ws.PayloadType = websocket.BinaryFrame
	tunnel, err := spdy.NewClientConnection(ws)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tunnel.Close() })
	for name, in := range map[string]httpstream.Stream{
		"exec":    open(t, exec, remotecommand.StreamType, remotecommand.StreamTypeStdin),
		"forward": openForward(t, spdyDial(t, forwardURL, portforward.PortForwardV1Name), 0),
		"tunnel":  openForward(t, tunnel, 0),
	} {
		t.Run(name, func(t *testing.T) {
			large := make([]byte, 15<<20)
			peak := peakHeap(t)
			stalled(t, 20, func() error { _, err := in.Write(large); return err })
			// The tunnel's client masks a copy of each frame, twice.
			if most := peak(); most > 64<<20 {
				t.Errorf("%d MiB of memory", most>>20)
			}
		})
	}
}

// openForward opens one connection of a session of port-forward and returns its data.
func openForward(t *testing.T, conn httpstream.Connection, id int) httpstream.Stream {
	t.Helper()
	headers := []string{portforward.PortHeader, "80", portforward.PortForwardRequestIDHeader, fmt.Sprint(id)}
	open(t, conn, append(headers, portforward.StreamType, portforward.StreamTypeError)...)
	return open(t, conn, append(headers, portforward.StreamType, portforward.StreamTypeData)...)
}

// A client that sends sizes without end, or what is none, fills no memory in any protocol, and its input is still read.
func TestSizesFlood(t *testing.T) {
	s := serve(t, Config{}, Backend{Exec: func(ctx context.Context, _ string, _ []string, st Streams) (int32, error) {
		go func() {
			for range st.Resize {
			}
		}()
		_, err := io.Copy(st.Stdout, st.Stdin)
		return 0, err
	}})
	flood := `"` + strings.Repeat("a", 32<<10)
	url := func() string {
		url, err := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"x"}, Connect: Connect{Stdin: true, Stdout: true, TTY: true}})
		if err != nil {
			t.Fatal(err)
		}
		return url
	}
	check := func(t *testing.T, sizes io.Writer, in io.WriteCloser, out io.Reader) {
		peak := peakHeap(t)
		for range 1000 { // 32 MiB
			if _, err := io.WriteString(sizes, flood); err != nil {
				t.Fatal(err)
			}
		}
		if most := peak(); most > 16<<20 {
			t.Errorf("%d MiB of memory", most>>20)
		}
		if _, err := io.WriteString(in, "hello"); err != nil {
			t.Fatal(err)
		}
		var got [5]byte
		if _, err := io.ReadFull(out, got[:]); err != nil || string(got[:]) != "hello" {
			t.Errorf("got %q, %v", got, err)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Run("spdy", func(t *testing.T) {
		conn := spdyDial(t, url(), remotecommand.StreamProtocolV4Name)
		open(t, conn, remotecommand.StreamType, remotecommand.StreamTypeError)
		in := open(t, conn, remotecommand.StreamType, remotecommand.StreamTypeStdin)
		out := open(t, conn, remotecommand.StreamType, remotecommand.StreamTypeStdout)
		check(t, open(t, conn, remotecommand.StreamType, remotecommand.StreamTypeResize), in, out)
	})
	for _, protocol := range []string{remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV5Name} {
		t.Run(protocol, func(t *testing.T) {
			ws, err := dial(t, url(), protocol)
			if err != nil {
				t.Fatal(err)
			}
			check(t, toChannel{ws, remotecommand.StreamResize}, toChannel{ws, remotecommand.StreamStdIn}, fromChannels{ws})
		})
	}
}

// toChannel writes to one channel of a WebSocket.
type toChannel struct {
	*websocket.Conn
	number byte
}

func (c toChannel) Write(p []byte) (int, error) {
	return len(p), websocket.Message.Send(c.Conn, append([]byte{c.number}, p...))
}

// fromChannels reads what comes on any channel; each read has to be large enough for a message.
type fromChannels struct{ *websocket.Conn }

func (c fromChannels) Read(p []byte) (int, error) {
	var m []byte
	for {
		if err := websocket.Message.Receive(c.Conn, &m); err != nil || len(m) > 1 {
			return copy(p, m[min(1, len(m)):]), err
		}
	}
}

// A message of a WebSocket may be larger than the memory that one costs.
func TestLargeMessages(t *testing.T) {
	const large = 40 << 20
	for _, protocol := range []string{remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV5Name} {
		t.Run(protocol, func(t *testing.T) {
			read := make(chan int64, 1)
			s := serve(t, Config{}, Backend{Exec: func(ctx context.Context, _ string, _ []string, st Streams) (int32, error) {
				n, err := io.CopyN(io.Discard, st.Stdin, large)
				read <- n
				return 0, err
			}})
			url, err := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"x"}, Connect: Connect{Stdin: true}})
			if err != nil {
				t.Fatal(err)
			}
			conn := upgrade(t, s, url, "websocket", protocol)
			if _, err := conn.Write(binary.BigEndian.AppendUint64([]byte{0x82, 0xff}, large+1)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(make([]byte, 4+1)); err != nil { // no mask; the input
				t.Fatal(err)
			}
			peak := peakHeap(t)
			piece := make([]byte, 1<<20)
			for range large / len(piece) {
				if _, err := conn.Write(piece); err != nil {
					t.Fatal(err)
				}
			}
			if n := <-read; n != large {
				t.Errorf("%d bytes came", n)
			}
			if most := peak(); most > 16<<20 {
				t.Errorf("%d MiB of memory", most>>20)
			}
		})
	}
}

// upgrade connects to a session's URL as a client that may then send any bytes.
func upgrade(t *testing.T, s *Server, url, to, protocol string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Address())
	if err != nil {
		t.Fatal(err)
	}
	upgradeOn(t, conn, s, url, to, protocol)
	return conn
}

func upgradeOn(t *testing.T, conn net.Conn, s *Server, url, to, protocol string) {
	t.Helper()
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\nOrigin: http://x\r\n"+
		"X-Stream-Protocol-Version: %s\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: %[3]s\r\n\r\n",
		url[strings.Index(url, s.Address())+len(s.Address()):], to, protocol)
	var head []byte
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, b...) {
		if _, err := conn.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Contains(head, []byte(" 101 ")) {
		t.Fatalf("got %q", head)
	}
}

// A message may come in parts, with a ping in between. The channel is named in the first.
func TestFragments(t *testing.T) {
	s := serve(t, Config{}, Backend{Exec: shell(0)})
	url, err := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"x"}, Connect: Connect{Stdin: true, Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	conn := upgrade(t, s, url, "websocket", remotecommand.StreamProtocolV5Name)
	mask := "\x00\x00\x00\x00"
	for _, frame := range []string{"\x02\x83" + mask + "\x00ab", "\x89\x81" + mask + "p", "\x80\x82" + mask + "cd", "\x82\x80" + mask, "\x82\x82" + mask + "\xff\x00"} {
		if _, err := io.WriteString(conn, frame); err != nil {
			t.Fatal(err)
		}
	}
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Contains(got, []byte("\x82\x05\x01ABCD")) {
		t.Errorf("got %q, %v", got, err)
	}
}

// What breaks the protocol ends the session, and no goroutine is left of it.
func TestBrokenSPDY(t *testing.T) {
	s := serve(t, Config{CreationTimeout: patience}, Backend{Exec: shell(0)})
	url := func() string {
		url, err := s.Exec(ExecRequest{ContainerID: "c", Cmd: []string{"x"}, Connect: Connect{Stdin: true, Stdout: true}})
		if err != nil {
			t.Fatal(err)
		}
		return url
	}
	before, peak := runtime.NumGoroutine(), peakHeap(t)
	for name, frame := range map[string]string{
		"a large control frame": "\x80\x03\x00\x01\x00\x00\x20\x00" + strings.Repeat("x", 8<<10),
		"settings":              "\x80\x03\x00\x04\x00\xff\xff\xff\x00\x1f\xff\xff",
		"fewer than it says":    "\x80\x03\x00\x04\x00\x00\x00\x04\x08\xff\xff\xff",
		"no stream":             "\x00\x00\x00\x00\x01\x00\x00\x01x",
	} {
		t.Run(name, func(t *testing.T) {
			conn := upgrade(t, s, url(), "SPDY/3.1", remotecommand.StreamProtocolV4Name)
			_, _ = io.WriteString(conn, frame)
			if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the session goes on")
			}
		})
	}
	for _, kind := range []string{remotecommand.StreamTypeError, "nonsense"} {
		t.Run("stream "+kind, func(t *testing.T) {
			conn := spdyDial(t, url(), remotecommand.StreamProtocolV4Name)
			open(t, conn, remotecommand.StreamType, remotecommand.StreamTypeError)
			go func() { _, _ = conn.CreateStream(http.Header{remotecommand.StreamType: {kind}}) }()
			select {
			case <-conn.CloseChan():
			case <-time.After(patience):
				t.Error("the session goes on")
			}
		})
	}
	if most := peak(); most > 32<<20 {
		t.Errorf("%d MiB of memory", most>>20)
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before+5; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, were %d", runtime.NumGoroutine(), before)
		}
	}
}

// More connections in one session than there may be are refused, each with a word.
func TestTooManyForwards(t *testing.T) {
	s := serve(t, Config{}, Backend{PortForward: func(ctx context.Context, _ string, _ int32, _ io.ReadWriteCloser) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	url, err := s.PortForward(PortForwardRequest{SandboxID: "s"})
	if err != nil {
		t.Fatal(err)
	}
	conn := spdyDial(t, url, portforward.PortForwardV1Name)
	for i := range maxForwards {
		openForward(t, conn, i)
	}
	headers := []string{portforward.PortHeader, "80", portforward.PortForwardRequestIDHeader, "x"}
	errs := open(t, conn, append(headers, portforward.StreamType, portforward.StreamTypeError)...)
	go func() {
		_, _ = conn.CreateStream(http.Header{portforward.StreamType: {portforward.StreamTypeData}, portforward.PortHeader: {"80"}, portforward.PortForwardRequestIDHeader: {"x"}})
	}()
	if got := readAll(t, errs); !strings.Contains(got, "1000 connections are open") {
		t.Errorf("got %q", got)
	}
}

// What the reader of SPDY hands on is what came, but for the sizes of the pieces; the end of a stream is in the last.
func TestSPDYReader(t *testing.T) {
	var wire bytes.Buffer
	frames := []struct {
		id    uint32
		flags byte
		n     int
	}{{1, 0, 0}, {1, 0, 5}, {3, 1, maxSPDYData}, {1, 1, 3*maxSPDYData + 1}, {5, 1, 0}, {7, 0, maxSPDYData + 1}}
	want := map[uint32]string{}
	for i, f := range frames {
		data := strings.Repeat(string('a'+rune(i)), f.n)
		wire.Write(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, f.id), uint32(f.flags)<<24|uint32(f.n)))
		wire.WriteString(data)
		wire.WriteString("\x80\x03\x00\x06\x00\x00\x00\x04ping")
		if want[f.id] += data; f.flags == 1 {
			want[f.id] += "END"
		}
	}
	for name, r := range map[string]io.Reader{"whole": &wire, "in bytes": iotest.OneByteReader(bytes.NewReader(bytes.Clone(wire.Bytes())))} {
		t.Run(name, func(t *testing.T) {
			out, err := io.ReadAll(boundedSPDY(bufio.NewReader(r)))
			if err != nil {
				t.Fatal(err)
			}
			got, pings := map[uint32]string{}, 0
			for len(out) > 0 {
				id, word := binary.BigEndian.Uint32(out), binary.BigEndian.Uint32(out[4:])
				n := int(word & 0xffffff)
				data := string(out[8 : 8+n])
				out = out[8+n:]
				if id&(1<<31) != 0 {
					if pings++; data != "ping" {
						t.Errorf("control frame %q", data)
					}
					continue
				}
				if n > maxSPDYData {
					t.Errorf("a piece of %d bytes", n)
				}
				if got[id] += data; word>>24 == 1 {
					got[id] += "END"
				}
			}
			if !maps.Equal(got, want) || pings != len(frames) {
				t.Errorf("%d pings, streams of %d, %d, %d bytes", pings, len(got[1]), len(got[3]), len(got[7]))
			}
		})
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
