package keeper

import (
	"os"
	"sync"

	"github.com/berth-node/berth/internal/wire"
)

// spares are the duplicates of the keeper's descriptors that the daemon holds, by process.
type spares struct {
	mu     sync.Mutex
	held   map[Ref]spare
	closed bool
}

type spare struct {
	Spare
	names []string
	files []*os.File
	aged  bool // held since a connection before this one
}

func newSpares() *spares { return &spares{held: make(map[Ref]spare)} }

// put takes over files, in place of what is held for the same process.
func (s *spares) put(about Spare, names []string, files []*os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wire.CloseAll(s.held[about.Ref].files)
	delete(s.held, about.Ref)
	if s.closed || len(names) != len(files) {
		wire.CloseAll(files)
		return
	}
	if len(files) > 0 {
		s.held[about.Ref] = spare{Spare: about, names: names, files: files}
	}
}

// each calls f for every process, until one fails. The files stay held.
func (s *spares) each(f func(Spare, []string, []*os.File) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range s.held {
		if err := f(sp.Spare, sp.names, sp.files); err != nil {
			return err
		}
	}
	return nil
}

// age marks all that is held, and dropAged closes what is still marked: processes that ended between two connections.
func (s *spares) age() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, sp := range s.held {
		sp.aged = true
		s.held[ref] = sp
	}
}

func (s *spares) dropAged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, sp := range s.held {
		if sp.aged {
			wire.CloseAll(sp.files)
			delete(s.held, ref)
		}
	}
}

func (s *spares) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, sp := range s.held {
		wire.CloseAll(sp.files)
	}
	s.held = make(map[Ref]spare)
}

// reopen makes s hold again after close.
func (s *spares) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = false
}

// namedFiles are the descriptors of a Message with their names.
type namedFiles struct {
	names []string
	files []*os.File
}

// add appends f if it is there.
func (n *namedFiles) add(name string, f *os.File) {
	if f != nil {
		n.names, n.files = append(n.names, name), append(n.files, f)
	}
}

// take returns the file of that name, from then on the caller's; nil if there is none.
func (n *namedFiles) take(name string) *os.File {
	for i, have := range n.names {
		if have == name && n.files[i] != nil {
			f := n.files[i]
			n.files[i] = nil
			return f
		}
	}
	return nil
}

func (n *namedFiles) close() { wire.CloseAll(n.files) }
