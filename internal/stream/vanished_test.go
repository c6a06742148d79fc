package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// deaf is a Backend whose attachments read nothing. One to "talks" or "stays" writes without end. ended gets the container of each that
// has ended.
func deaf() (b Backend, ended chan string) {
	ended = make(chan string, 10)
	return Backend{Attach: func(ctx context.Context, container string, s Streams) error {
		if container == "talks" || container == "stays" {
			for ctx.Err() == nil {
				if _, err := s.Stdout.Write(make([]byte, 4<<10)); err != nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		<-ctx.Done()
		ended <- container
		return ctx.Err()
	}}, ended
}

func attachURL(t *testing.T, s *Server, container string) string {
	t.Helper()
	url, err := s.Attach(AttachRequest{ContainerID: container, Connect: Connect{Stdin: true, Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// stuff sends until nothing more can be sent.
func stuff(t *testing.T, conn net.Conn, frame []byte) {
	t.Helper()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	stalled(t, 1<<20, func() error { _, err := conn.Write(frame); return err })
}

// Clients that have gone, and left so much unsent for a process that does not read that the word of their going is behind it, do
// not keep their sessions, nor for the minutes after which their kernel gives up. A client that sent as much and is there does.
func TestVanishedClient(t *testing.T) {
	inHalfAMinute(t)
	backend, ended := deaf()
	s := serve(t, Config{}, backend)
	message := append(binary.BigEndian.AppendUint16([]byte{0x82, 0xfe}, 32<<10), make([]byte, 4+32<<10)...)
	webSocket := func(container string) net.Conn {
		conn := upgrade(t, s, attachURL(t, s, container), "websocket", remotecommand.StreamProtocolV5Name)
		// What comes first is read: a kernel that closes a connection with something unread says so at once.
		if _, err := io.ReadFull(conn, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		stuff(t, conn, message)
		return conn
	}
	webSocket("stays")
	gone := map[string]net.Conn{"websocket": webSocket("websocket"), "spdy": stuffedSPDY(t, s, "spdy")}
	for _, conn := range gone {
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range gone {
		select {
		case container := <-ended:
			if gone[container] == nil {
				t.Errorf("the session of %q has ended", container)
			}
		case <-time.After(3*lookPeriod + patience):
			t.Fatal("a session goes on without its client")
		}
	}
	select {
	case container := <-ended:
		t.Errorf("the session of %q has ended", container)
	case <-time.After(lookPeriod + time.Second):
	}
}

// stuffedSPDY is the connection of a client of SPDY that has sent what it can.
func stuffedSPDY(t *testing.T, s *Server, container string) net.Conn {
	t.Helper()
	conn := upgrade(t, s, attachURL(t, s, container), "SPDY/3.1", remotecommand.StreamProtocolV4Name)
	if err := conn.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	client, err := spdy.NewClientConnection(conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{remotecommand.StreamTypeError, remotecommand.StreamTypeStdout} {
		open(t, client, remotecommand.StreamType, kind)
	}
	in := open(t, client, remotecommand.StreamType, remotecommand.StreamTypeStdin)
	stalled(t, 1<<20, func() error { _, err := in.Write(make([]byte, 32<<10)); return err })
	return conn
}

// A client whose machine has gone in the middle of a process's output, or of silence, is missed before its kernel's silence has
// lasted a quarter of an hour. A client that only reads no more is there.
func TestVanishedMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("networks need root")
	}
	inHalfAMinute(t)
	here, there := twoNetworks(t)
	backend, ended := deaf()
	var l net.Listener
	here.do(t, func() (err error) {
		l, err = Listen("192.0.2.1:0")
		return err
	})
	s := serveOn(t, l, Config{}, backend)
	connect := func(container string, from network) {
		var conn net.Conn
		from.do(t, func() (err error) {
			conn, err = net.Dial("tcp", s.Address())
			return err
		})
		upgradeOn(t, conn, s, attachURL(t, s, container), "websocket", remotecommand.StreamProtocolV5Name)
	}
	connect("stays", here) // and does not read
	connect("talks", there)
	connect("silent", there)
	there.do(t, func() error {
		link, err := netlink.LinkByName("there")
		if err != nil {
			return err
		}
		return netlink.AddrDel(link, address(t, "192.0.2.2/24")) // what comes for it is nobody's
	})
	for range 2 {
		select {
		case container := <-ended:
			if container == "stays" {
				t.Fatal("the session of a client that is there has ended")
			}
		case <-time.After(silentPeer + 3*lookPeriod + 2*patience):
			t.Fatal("a session goes on without its client")
		}
	}
}

// inHalfAMinute is for a test that takes that long, and waits.
func inHalfAMinute(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("it takes long")
	}
	t.Parallel()
}

// network is a network namespace with a thread in it, for as long as the test runs.
type network struct{ jobs chan func() }

func (n network) do(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	n.jobs <- func() { done <- f() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func newNetwork(t *testing.T) (n network, tid int) {
	t.Helper()
	n.jobs = make(chan func())
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		tid = unix.Gettid()
		ready <- err
		for f := range n.jobs {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.jobs) })
	return n, tid
}

// twoNetworks are connected: 192.0.2.1 is here, 192.0.2.2 there.
func twoNetworks(t *testing.T) (here, there network) {
	t.Helper()
	here, _ = newNetwork(t)
	there, tid := newNetwork(t)
	here.do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "here"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "there", PeerNamespace: netlink.NsPid(tid)}); err != nil {
			return err
		}
		return raise(t, "here", "192.0.2.1/24")
	})
	there.do(t, func() error { return raise(t, "there", "192.0.2.2/24") })
	return here, there
}

func raise(t *testing.T, name, with string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, address(t, with)), netlink.LinkSetUp(link))
}

func address(t *testing.T, cidr string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Error(err)
	}
	return a
}
