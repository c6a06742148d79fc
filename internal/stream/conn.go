package stream

import (
	"bufio"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
)

// A Listener remembers its connections, so that CloseAll ends those too that were upgraded, and makes each of them say when
// its client has gone.
type Listener struct {
	net.Listener
	log     *slog.Logger
	hangups *hangups

	mu     sync.Mutex
	over   bool // no more connections are taken
	closed bool
	conns  map[*conn]struct{}
	end    chan struct{} // closed with it
	// silent are the connections that have not shown a token, the oldest first.
	silent *list.List
}

// maxSilent bounds the connections that have not shown a token. Whoever can reach the port can open any number, and each
// costs a descriptor; a client shows its token at once. So a further connection ends the oldest of these.
const maxSilent = 256

// NewListener returns a Listener on l, a TCP or a unix socket, which is its own from now on. Close it by CloseAll.
func NewListener(l net.Listener, log *slog.Logger) (*Listener, error) {
	h, err := newHangups()
	if err != nil {
		return nil, err
	}
	n := &Listener{Listener: l, log: log, hangups: h, conns: map[*conn]struct{}{}, end: make(chan struct{}), silent: list.New()}
	go n.missVanished(n.end)
	return n, nil
}

func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		if err := tcp.SetKeepAliveConfig(keepAlive); err != nil {
			l.log.Debug("no keep-alive for a streaming connection, ignoring", "err", err)
		}
	}
	w := &conn{Conn: c, listener: l}
	w.gone, w.end = context.WithCancel(context.Background())
	oldest, err := l.add(w)
	if oldest != nil {
		_ = oldest.Close()
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return w, nil
}

// add remembers a connection, and returns the one that must go for it, if any.
func (l *Listener) add(w *conn) (oldest *conn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, net.ErrClosed
	}
	if w.unwatch, err = l.hangups.watch(w.Conn.(syscall.Conn), w.end); err != nil {
		// Its end will still be seen when somebody reads that far.
		l.log.Warn("streaming connection cannot be watched, ignoring", "err", err)
		w.unwatch = func() {}
	}
	l.conns[w] = struct{}{}
	if l.silent.Len() >= maxSilent {
		oldest = l.silent.Front().Value.(*conn)
	}
	w.silent = l.silent.PushBack(w)
	return oldest, nil
}

// Spoke says that the client of a request has shown a token, or what else it is known by.
func Spoke(r *http.Request) {
	c := r.Context().Value(connKey{}).(*conn)
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.listener.silent.Remove(c.silent)
}

// Close takes no more connections; those that there are go on. Calling it again does nothing.
func (l *Listener) Close() error {
	l.mu.Lock()
	over := l.over
	l.over = true
	l.mu.Unlock()
	if over {
		return nil
	}
	return l.Listener.Close()
}

// ended reports whether Close was called.
func (l *Listener) ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// CloseAll closes the Listener and every connection. Calling it again does nothing.
func (l *Listener) CloseAll() error {
	err := l.Close()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return err
	}
	l.closed = true
	close(l.end)
	l.mu.Unlock()

	l.hangups.close()
	for _, c := range l.open() {
		_ = c.Close()
	}
	return err
}

// open returns the connections that there are.
func (l *Listener) open() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.conns))
}

// unspoken returns the connections that have not shown a token.
func (l *Listener) unspoken() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var conns []*conn
	for e := l.silent.Front(); e != nil; e = e.Next() {
		conns = append(conns, e.Value.(*conn))
	}
	return conns
}

// conn ends the context of its session when it fails or is closed. net/http stops watching a connection once it is
// upgraded, so without this an exec would outlive its client.
type conn struct {
	net.Conn
	listener *Listener
	// gone is done when nothing more can come or go. It is a context for what context.AfterFunc does with one.
	gone    context.Context
	end     context.CancelFunc
	unwatch func()
	silent  *list.Element // of the listener's, guarded by its mu
	// silentPeer is what the last look found: see missVanished, which alone uses it.
	silentPeer bool
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	// net/http interrupts its own read by a deadline in the past when a handler takes the connection over. The idle
	// timeout's deadline needs no help: its owner closes the connection.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.end()
	}
	if errors.Is(err, net.ErrClosed) {
		// Closed at this end, as after every session: to the library, which waits in a read then, that is no failure.
		err = io.EOF
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.end()
	}
	return n, err
}

func (c *conn) Close() error {
	c.unwatch()
	c.end()
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.silent.Remove(c.silent)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// ConnContext gives a connection of a Listener, or one of TLS over it, its context, for http.Server.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	ctx, cancel := context.WithCancel(context.WithValue(ctx, connKey{}, c))
	context.AfterFunc(c.(*conn).gone, cancel)
	return ctx
}

// upgradable remembers the connection if a handler takes it over.
type upgradable struct {
	http.ResponseWriter
	spdy bool // what the client sends then, if it is not WebSocket
	conn net.Conn
}

func (u *upgradable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(u.ResponseWriter).Hijack()
	u.conn = c
	if err == nil && u.spdy {
		rw.Reader = boundedSPDY(rw.Reader)
	}
	return c, rw, err
}
