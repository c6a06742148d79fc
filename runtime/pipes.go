package runtime

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pipes connect a client's streams to a process without a terminal.
type pipes struct {
	theirs execIO // the process's ends
	ours   execIO // ours: stdin to write, stdout and stderr to read
	output sync.WaitGroup
}

// newPipes makes a pipe for each stream that the client has.
func newPipes(s Streams) (*pipes, error) {
	p := &pipes{}
	var err error
	if s.Stdin != nil {
		p.theirs.stdin, p.ours.stdin, err = inputPipe()
	}
	if s.Stdout != nil && err == nil {
		p.ours.stdout, p.theirs.stdout, err = outputPipe()
	}
	if s.Stderr != nil && err == nil {
		p.ours.stderr, p.theirs.stderr, err = outputPipe()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// outputPipe makes a pipe for a process to write to. Its end blocks, as programs expect of their outputs; ours is the
// poller's, so that reads can have a deadline.
func outputPipe() (ours, theirs *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(int(w.Fd()), false); err != nil {
		r.Close()
		w.Close()
		return nil, nil, err
	}
	return r, w, nil
}

// inputPipe is outputPipe the other way round.
func inputPipe() (theirs, ours *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(int(r.Fd()), false); err != nil {
		r.Close()
		w.Close()
		return nil, nil, err
	}
	return r, w, nil
}

// pump begins to copy.
func (p *pipes) pump(s Streams) {
	if p.ours.stdin != nil {
		go func() {
			_, _ = io.Copy(p.ours.stdin, s.Stdin)
			p.ours.stdin.Close() // the client's half close
		}()
	}
	for _, out := range []struct {
		from *os.File
		to   io.Writer
	}{{p.ours.stdout, s.Stdout}, {p.ours.stderr, s.Stderr}} {
		if out.from == nil {
			continue
		}
		p.output.Go(func() { passOn(out.to, out.from) })
	}
}

// passOn copies what a process writes until all who could write have closed, or from's deadline. A client that has gone,
// or nil, takes nothing any more: the process shall not wait for anybody to read.
func passOn(to io.Writer, from *os.File) {
	if to == nil {
		to = io.Discard
	}
	_, err := io.Copy(to, from)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// The deadline is for those who hold the other end and may never write. A client who reads slowly gets all the
		// same what the process itself has written, which has been in the pipe or the terminal since then.
		_, _ = io.CopyN(to, impatient{from}, maxBuffered)
		return
	}
	if err != nil {
		_, _ = io.Copy(io.Discard, from)
	}
}

// maxBuffered is more than a pipe or a terminal holds, in bytes.
const maxBuffered = 128 << 10

// impatient reads what is there and does not wait for more, but for the moment that a terminal takes to refill.
type impatient struct{ f *os.File }

func (r impatient) Read(p []byte) (int, error) {
	if err := r.f.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		return 0, err
	}
	return r.f.Read(p)
}

// drain waits until the outputs are passed on, at most until the deadline.
func (p *pipes) drain(deadline time.Time) {
	for _, f := range []*os.File{p.ours.stdout, p.ours.stderr} {
		if f != nil {
			_ = f.SetReadDeadline(deadline) // a pipe always has one
		}
	}
	p.output.Wait()
}

func (p *pipes) closeTheirs() {
	p.theirs.close()
	p.theirs = execIO{}
}

func (p *pipes) close() {
	p.theirs.close()
	p.ours.close()
}

func (s execIO) close() {
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if f != nil {
			f.Close()
		}
	}
}
