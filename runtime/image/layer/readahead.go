package layer

import (
	"io"
	"sync/atomic"
)

const (
	aheadChunk  = 256 << 10
	aheadChunks = 4
)

// readAhead reads r in a goroutine, a few chunks ahead of its own reader, so that what r does (receive, decompress, hash)
// goes on beside what is done with it. Close has to be called; after it r is not used any more.
type readAhead struct {
	full    chan chunk
	free    chan []byte
	closed  atomic.Bool
	done    chan struct{} // closed when the goroutine has ended
	current chunk
	rest    []byte
}

type chunk struct {
	data []byte
	err  error // what followed data
}

func newReadAhead(r io.Reader) *readAhead {
	a := &readAhead{full: make(chan chunk, aheadChunks), free: make(chan []byte, aheadChunks), done: make(chan struct{})}
	for range aheadChunks {
		a.free <- nil // made when it is needed
	}
	go a.run(r)
	return a
}

func (a *readAhead) run(r io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for buffer := range a.free {
		if a.closed.Load() {
			return
		}
		if buffer == nil {
			buffer = make([]byte, aheadChunk)
		}
		n, err := readSome(r, buffer)
		a.full <- chunk{buffer[:n], err} // has room: there are no more buffers
		if err != nil {
			return
		}
	}
}

// readSome fills the buffer unless r ends before.
func readSome(r io.Reader, buffer []byte) (n int, err error) {
	for n < len(buffer) && err == nil {
		var m int
		m, err = r.Read(buffer[n:])
		n += m
	}
	return n, err
}

// Read returns the error of r when all that came before it was read, and again from then on.
func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.current.err != nil {
			return 0, a.current.err
		}
		if a.current.data != nil {
			a.free <- a.current.data[:cap(a.current.data)] // has room: it was taken from there
		}
		a.current = <-a.full
		a.rest = a.current.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close waits until r is not read any more: its Read must return in time.
func (a *readAhead) Close() {
	a.closed.Store(true)
	close(a.free)
	<-a.done
}
