//go:build integration

package chaos

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/berth-node/berth/internal/failpoint"
)

// A breaker hears of every point that a node's programs come to, lets them go on, and holds them where a test has laid a
// trap.
type breaker struct {
	socket string
	l      net.Listener
	done   sync.WaitGroup

	mu    sync.Mutex
	traps map[failpoint.Point]*trap
}

// A trap holds the first program that comes to its point after skip others, and no more.
type trap struct {
	skip   int
	sprung chan *held // has room for one
}

// held is a program that waits at a point.
type held struct {
	program string
	pid     int
	conn    net.Conn
}

// release lets it go on, if it lives.
func (h *held) release() {
	_, _ = h.conn.Write([]byte{0})
	h.conn.Close()
}

func newBreaker(t testing.TB) *breaker {
	t.Helper()
	b := &breaker{socket: filepath.Join(t.TempDir(), "breaker"), traps: map[failpoint.Point]*trap{}}
	var err error
	if b.l, err = net.Listen("unix", b.socket); err != nil {
		t.Fatal(err)
	}
	b.done.Go(func() { b.serve(t) })
	t.Cleanup(func() {
		b.l.Close()
		b.done.Wait()
	})
	return b
}

// environment is what a node gets to report here.
func (b *breaker) environment() []string { return []string{failpoint.SocketVariable + "=" + b.socket} }

func (b *breaker) serve(t testing.TB) {
	for {
		conn, err := b.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		b.done.Go(func() { b.arrived(conn) })
	}
}

func (b *breaker) arrived(conn net.Conn) {
	h := &held{conn: conn}
	var p failpoint.Point
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil {
		_, err = fmt.Sscanf(line, "%s %d %s\n", &h.program, &h.pid, &p)
	}
	if err != nil { // it was killed on the way here
		conn.Close()
		return
	}
	b.mu.Lock()
	tr := b.traps[p]
	switch {
	case tr != nil && tr.skip > 0:
		tr.skip--
		tr = nil
	case tr != nil:
		delete(b.traps, p)
	}
	b.mu.Unlock()
	if tr == nil {
		h.release()
		return
	}
	tr.sprung <- h
}

// trap lays a trap at p.
func (b *breaker) trap(p failpoint.Point, skip int) *trap {
	b.mu.Lock()
	defer b.mu.Unlock()
	tr := &trap{skip: skip, sprung: make(chan *held, 1)}
	b.traps[p] = tr
	return tr
}

// disarm takes a trap away that nobody came to.
func (b *breaker) disarm(p failpoint.Point) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.traps, p)
}
