package server

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// backlog bounds the connections that wait to be accepted; there is one daemon, rarely two.
const backlog = 128

// listener is the keeper's socket. It is no net.Listener because a connection has to be known to the keeper from the
// moment at which it is accepted: see gate.
type listener struct {
	file *os.File // non-blocking
	path string
}

// listen takes the place of a socket that a keeper before has left; the lock says that it is dead.
func listen(path string) (*listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	l := &listener{file: os.NewFile(uintptr(fd), path), path: path}
	// Before bind: the file gets the mode of the socket, so there is no moment at which others may connect.
	err = os.NewSyscallError("fchmod", unix.Fchmod(fd, 0o600))
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, backlog))
	}
	if err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

// close removes the socket's file.
func (l *listener) close() {
	os.Remove(l.path)
	l.file.Close()
}

// listening is the socket of now: see guard.
func (k *Keeper) listening() *listener {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.listener
}

// accept serves everybody who connects until ctx ends, when the caller closes the socket.
func (k *Keeper) accept(ctx context.Context) {
	for ctx.Err() == nil {
		l := k.listening()
		c, err := k.acceptOne(l)
		if err == nil {
			go c.serve(ctx)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if l != k.listening() {
			continue
		}
		// Out of descriptors, for one: the containers live on, and later a daemon gets through again.
		k.log.Error("accept a connection", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (k *Keeper) acceptOne(l *listener) (c *conn, err error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		k.flow.enter()
		defer k.flow.leave()
		nfd, _, err := unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch err {
		case nil:
		case unix.EAGAIN, unix.EINTR, unix.ECONNABORTED:
			return false
		default:
			failed = os.NewSyscallError("accept", err)
			return true
		}
		var uc *net.UnixConn
		if uc, failed = unixConn(os.NewFile(uintptr(nfd), "connection")); failed == nil {
			c = k.connect(uc)
		}
		return true
	})
	return c, errors.Join(err, failed)
}

// unixConn makes a connection of a socket; it takes over f.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("not a unix socket")
	}
	return uc, nil
}
