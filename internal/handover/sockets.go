package handover

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
)

// Sockets are the listening sockets of a node. They stay open when who serves them stops: a client that connects meanwhile
// waits to be accepted by the next one, in this process or in another.
type Sockets struct {
	mu     sync.Mutex
	byName map[string]*socket
}

type socket struct {
	address string // as in the configuration; a path begins with "/"
	file    *os.File
	used    bool
	// open makes the socket anew; listener is who accepts on it. Both are nil before Listen.
	open     func() (net.Listener, error)
	listener *listener
}

// A listener goes on with another socket of the same address when the one before has lost its name.
type listener struct {
	mu     sync.Mutex
	now    net.Listener
	closed bool
}

func (l *listener) current() (now net.Listener, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now, l.closed
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		on, _ := l.current()
		conn, err := on.Accept()
		if now, closed := l.current(); err == nil || closed || now == on {
			return conn, err
		}
	}
}

func (l *listener) Addr() net.Addr {
	now, _ := l.current()
	return now.Addr()
}

func (l *listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return l.now.Close()
}

// goOnWith has Accept go on with next. After Close that is closed too.
func (l *listener) goOnWith(next net.Listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.now
	l.now = next
	_ = before.Close() // nobody can connect to it any more
	if l.closed {
		_ = next.Close()
	}
}

// NewSockets returns the sockets of an estate, whose files are its own from now on; an empty estate has none.
func NewSockets(e Estate) *Sockets {
	s := &Sockets{byName: map[string]*socket{}}
	for name, address := range e.Addresses {
		if f := e.Files[name]; f != nil {
			s.byName[name] = &socket{address: address, file: f}
		}
	}
	return s
}

// Listen returns a listener on the socket of that name and address, which open makes if there is none. Closing it does
// not close the socket, nor remove its file.
func (s *Sockets) Listen(name, address string, open func() (net.Listener, error)) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.byName[name]; old != nil && old.address == address {
		old.used = true
		l, err := net.FileListener(old.file)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		old.open, old.listener = open, &listener{now: l}
		return old.listener, nil
	}
	l, err := open()
	if err != nil {
		return nil, err
	}
	file, err := fileOf(l)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", address, err), l.Close())
	}
	if old := s.byName[name]; old != nil {
		old.remove()
	}
	to := &listener{now: l}
	s.byName[name] = &socket{address: address, file: file, used: true, open: open, listener: to}
	return to, nil
}

// Mend makes those anew that somebody has removed the files of, and has their listeners go on with them. It returns their
// names.
func (s *Sockets) Mend() (mended []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var failed []error
	for name, socket := range s.byName {
		if socket.open == nil || socket.path() == "" {
			continue
		}
		if _, err := os.Lstat(socket.path()); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := socket.mend(); err != nil {
			failed = append(failed, err)
			continue
		}
		mended = append(mended, name)
	}
	return mended, errors.Join(failed...)
}

func (s *socket) mend() error {
	l, err := s.open()
	if err != nil {
		return err
	}
	file, err := fileOf(l)
	if err != nil {
		return errors.Join(fmt.Errorf("listen on %s: %w", s.address, err), l.Close())
	}
	s.file.Close()
	s.file = file
	s.listener.goOnWith(l)
	return nil
}

// Empty reports whether there are none.
func (s *Sockets) Empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byName) == 0
}

func fileOf(l net.Listener) (*os.File, error) {
	switch l := l.(type) {
	case *net.UnixListener:
		l.SetUnlinkOnClose(false)
		return l.File()
	case *net.TCPListener:
		return l.File()
	default:
		return nil, fmt.Errorf("a %T has no descriptor", l)
	}
}

// Estate puts the sockets into e.
func (s *Sockets) Estate(e *Estate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Addresses = map[string]string{}
	for name, socket := range s.byName {
		e.Addresses[name], e.Files[name] = socket.address, socket.file
	}
}

// RemoveUnused closes those that nobody has listened on: the configuration has them no more.
func (s *Sockets) RemoveUnused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, socket := range s.byName {
		if !socket.used {
			socket.remove()
			delete(s.byName, name)
		}
	}
}

// Remove closes all of them and removes their files: the end of the node's daemon.
func (s *Sockets) Remove() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, socket := range s.byName {
		socket.remove()
		delete(s.byName, name)
	}
}

// Leave closes this process's copies: they are another's now.
func (s *Sockets) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, socket := range s.byName {
		socket.file.Close()
		delete(s.byName, name)
	}
}

func (s *socket) remove() {
	if path := s.path(); path != "" {
		_ = os.Remove(path) // the next one takes the place of what is left
	}
	s.file.Close()
}

// path is the name of a Unix socket; "" for another one.
func (s *socket) path() string {
	if path := strings.TrimPrefix(s.address, "unix://"); strings.HasPrefix(path, "/") {
		return path
	}
	return ""
}
