package server

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

const (
	// terminalGrace is how long the output of a terminal may take to arrive after the end of the workload: it goes through
	// a work queue of the kernel. It passes whole only if some process still has the terminal open.
	terminalGrace = 200 * time.Millisecond
	// hangupRetry is the pause before a terminal that nobody has open is read again: a program may open it later.
	hangupRetry = time.Second
)

// maxChunk bounds what is read at once, in bytes. If the keeper dies, at most 64 KiB are lost: this, as much as crilog holds
// back of a line, and as much as it drops of one whose beginning was lost.
const maxChunk = 32 << 10

// chunks are the buffers of all pumps. A pump has one only while it has data in hand: an idle container costs a goroutine
// per output and no buffer.
var chunks = sync.Pool{New: func() any { b := make([]byte, maxChunk); return &b }}

// pump moves one output of a container to its log and its viewers, until finish or the end of the output.
type pump struct {
	c        *container
	file     *os.File
	stream   keeper.Stream
	terminal bool
	marked   bool // see mark
	ending   chan struct{}
	done     chan struct{}
}

func startPump(c *container, file *os.File, stream keeper.Stream, terminal bool) *pump {
	p := &pump{c: c, file: file, stream: stream, terminal: terminal, ending: make(chan struct{}), done: make(chan struct{})}
	p.marked = !terminal && isMarked(file)
	go p.run()
	return p
}

// finish is called once, when the workload has ended: it moves what the workload has written and returns. It does not
// wait for other processes that have the output open.
func (p *pump) finish() {
	close(p.ending)
	if p.terminal {
		p.file.SetReadDeadline(time.Now().Add(terminalGrace))
	} else {
		p.file.SetReadDeadline(time.Unix(1, 0))
	}
	<-p.done
}

func (p *pump) run() {
	defer close(p.done)
	for {
		switch err := p.move(); {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !p.terminal {
				p.drain()
			}
			return
		case errors.Is(err, unix.EIO) && p.terminal:
			select {
			case <-p.ending:
				return
			case <-time.After(hangupRetry):
			}
		default:
			return // io.EOF: the workload closed its output, for good
		}
	}
}

// move waits for data and moves what there is, up to one chunk.
func (p *pump) move() error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		var n int
		n, failed = p.step(int(fd))
		return n > 0 || failed != unix.EAGAIN
	})
	if err != nil {
		return err
	}
	return failed
}

// step is one read with the way of what was read: inside the gate, it is in the pipe or has arrived.
func (p *pump) step(fd int) (int, error) {
	p.c.k.flow.enter()
	defer p.c.k.flow.leave()
	if !p.terminal && !p.marked {
		if !readable(fd) {
			return 0, unix.EAGAIN
		}
		mark(fd, true)
		p.marked = true
	}
	chunk := chunks.Get().(*[]byte)
	defer chunks.Put(chunk)
	n, err := read(fd, *chunk)
	if n == 0 && err == nil {
		err = io.EOF
	}
	if n > 0 {
		p.c.emit(p.stream, time.Now(), (*chunk)[:n])
	} else if p.marked && p.c.settled(p.stream) {
		mark(fd, false)
		p.marked = false
	}
	return n, err
}

// drain moves what is in the pipe now and no more: a process that the workload left behind may go on writing.
func (p *pump) drain() {
	chunk := chunks.Get().(*[]byte)
	defer chunks.Put(chunk)
	_ = control(p.file, func(fd int) error {
		mark(fd, true)                                  // for good: nobody else reads this FIFO, unless we die now
		left, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // FIONREAD by its other name
		for err == nil && left > 0 {
			var n int
			n, err = read(fd, (*chunk)[:min(left, len(*chunk))])
			if n <= 0 {
				break
			}
			p.c.emit(p.stream, time.Now(), (*chunk)[:n])
			left -= n
		}
		return err
	})
}

// mark notes on a FIFO itself, where a next keeper finds it, that more was read of it than is in the log; or that this is no
// longer so. It is the sticky bit, which means nothing for a FIFO: it costs no memory and no I/O. A keeper that dies with
// the mark set has taken lines with it, and perhaps the beginning of the next one. An error costs something only then.
func mark(fd int, on bool) {
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil {
		return
	}
	mode := stat.Mode & 0o7777 &^ unix.S_ISVTX // the rest may be the workload's doing
	if on {
		mode |= unix.S_ISVTX
	}
	_ = unix.Fchmod(fd, mode)
}

func isMarked(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeSticky != 0
}

// readable says whether there is something to read, or the end.
func readable(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}

// read is read(2); an error comes with 0 bytes.
func read(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		return max(n, 0), err
	}
}
