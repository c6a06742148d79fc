package stream

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// hangups tells which clients have gone without reading from them. A session whose process does not read its input does
// not read from its client either, once the buffers between are full, and would see the end of the connection only
// behind all that. The kernel says it at once (EPOLLRDHUP).
//
// It is one epoll instance that waits in Go's own poller: no thread, and one goroutine for all connections.
type hangups struct {
	epoll *os.File
	raw   syscall.RawConn

	mu   sync.Mutex
	next int32
	ends map[int32]func() // by the number that the kernel gives back; a descriptor's is used again too soon
}

func newHangups() (*hangups, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	// Non-blocking, so that os.File takes it into the poller.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	h := &hangups{epoll: os.NewFile(uintptr(fd), "epoll"), ends: map[int32]func(){}}
	if h.raw, err = h.epoll.SyscallConn(); err != nil {
		_ = h.epoll.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	go h.run()
	return h, nil
}

// close ends the watching.
func (h *hangups) close() { _ = h.epoll.Close() }

// watch calls end when the peer of c has closed or is lost, unless forget is called before.
func (h *hangups) watch(c syscall.Conn, end func()) (forget func(), err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.next++
	id := h.next
	h.ends[id] = end
	h.mu.Unlock()
	forget = func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.ends, id)
	}
	// The registration goes with the descriptor: nothing has to be undone when that is closed.
	add := func(epoll uintptr) error {
		var err error
		cerr := raw.Control(func(fd uintptr) {
			event := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: id}
			err = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_ADD, int(fd), &event)
		})
		if cerr != nil {
			return cerr
		}
		return err
	}
	if cerr := h.raw.Control(func(epoll uintptr) { err = add(epoll) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		forget()
		return nil, fmt.Errorf("watch a connection: %w", err)
	}
	return forget, nil
}

// run ends with close.
func (h *hangups) run() {
	var events [64]unix.EpollEvent
	for {
		n := 0
		err := h.raw.Read(func(epoll uintptr) bool {
			var err error
			n, err = unix.EpollWait(int(epoll), events[:], 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err != nil || n < 0 {
			return
		}
		for _, e := range events[:n] {
			h.mu.Lock()
			end := h.ends[e.Fd]
			h.mu.Unlock()
			if end != nil {
				end()
			}
		}
	}
}
