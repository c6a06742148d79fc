package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/network/netns"
)

// dialLimit is how long a port of a pod may take to accept a connection from its own loopback.
const dialLimit = 10 * time.Second

// PortForward connects stream to a port on the loopback of the sandbox, over IPv4 or, where nobody listens there, over
// IPv6. It returns when both directions have ended, or ctx has. It closes stream.
func (r *Runtime) PortForward(ctx context.Context, sandboxID string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	sb, err := r.index.findSandbox(sandboxID)
	if err != nil {
		return err
	}
	if !sb.ready() {
		return fmt.Errorf("forward port %d: sandbox %s is not ready: %w", port, sandboxID, errdefs.ErrFailedPrecondition)
	}
	conn, err := dialSandbox(ctx, sb.record.Anchors.NetNS, port)
	if err != nil {
		return fmt.Errorf("forward port %d of sandbox %s: %w", port, sandboxID, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() {
		conn.Close()
		stream.Close()
	})
	defer stop()
	return relay(conn, stream)
}

// dialSandbox connects from inside the namespace; "" is the host's.
func dialSandbox(ctx context.Context, netnsPath string, port int32) (*net.TCPConn, error) {
	var failed error
	for _, to := range []unix.Sockaddr{
		&unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}},
		&unix.SockaddrInet6{Port: int(port), Addr: netip.IPv6Loopback().As16()},
	} {
		conn, err := dialLoopback(ctx, netnsPath, to)
		if err == nil {
			return conn, nil
		}
		failed = errors.Join(failed, err)
	}
	return nil, failed
}

// dialLoopback begins the connection on a thread in the namespace, and awaits it on none: a client can ask for any number
// of connections to a port that does not answer.
func dialLoopback(ctx context.Context, netnsPath string, to unix.Sockaddr) (*net.TCPConn, error) {
	var f *os.File
	begin := func() (err error) {
		f, err = beginConnection(to)
		return err
	}
	var err error
	if netnsPath == "" {
		err = begin()
	} else {
		err = netns.Do(netnsPath, begin)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // net.FileConn has its own
	_ = f.SetWriteDeadline(time.Now().Add(dialLimit))
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := awaitConnection(f); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// beginConnection makes a socket in the namespace of its thread, and has it connect.
func beginConnection(to unix.Sockaddr) (*os.File, error) {
	family := unix.AF_INET
	if _, ok := to.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return os.NewFile(uintptr(fd), "port forward"), nil
}

// awaitConnection returns when the socket is connected, cannot be, or has reached its deadline.
func awaitConnection(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || code != 0 {
			if failed = err; err == nil {
				failed = syscall.Errno(code)
			}
			return true
		}
		_, err = unix.Getpeername(int(fd)) // ENOTCONN while it is under way
		return err == nil
	})
	return errors.Join(failed, err)
}

// relay copies both ways. The end of the client's direction is passed on as a half close; the end of the pod's ends all,
// for nobody would send an answer any more.
func relay(conn *net.TCPConn, stream io.ReadWriteCloser) error {
	var wg sync.WaitGroup
	var toPod error
	wg.Go(func() {
		_, toPod = io.Copy(conn, stream)
		_ = conn.CloseWrite() // the pod may have closed already
	})
	_, fromPod := io.Copy(stream, conn)
	stream.Close()
	conn.Close()
	wg.Wait()
	if errors.Is(toPod, net.ErrClosed) || errors.Is(toPod, io.ErrClosedPipe) {
		toPod = nil // we closed it
	}
	return errors.Join(fromPod, toPod)
}
