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

// chunks are the buffers of all pumps; 64 KiB is what a pipe holds. A pump has one only while it has data in hand: an
// idle container costs a goroutine per output and no buffer.
var chunks = sync.Pool{New: func() any { b := make([]byte, keeper.MaxFrame); return &b }}

// pump moves one output of a workload to emit, until finish or the end of the output.
type pump struct {
	file     *os.File
	stream   keeper.Stream
	terminal bool
	emit     func(stream keeper.Stream, now time.Time, data []byte)
	flow     *gate
	ending   chan struct{}
	done     chan struct{}
}

func startPump(file *os.File, stream keeper.Stream, terminal bool, flow *gate, emit func(keeper.Stream, time.Time, []byte)) *pump {
	p := &pump{file: file, stream: stream, terminal: terminal, flow: flow, emit: emit, ending: make(chan struct{}), done: make(chan struct{})}
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
	p.flow.enter()
	defer p.flow.leave()
	chunk := chunks.Get().(*[]byte)
	defer chunks.Put(chunk)
	n, err := read(fd, *chunk)
	if n == 0 && err == nil {
		err = io.EOF
	}
	if n > 0 {
		p.emit(p.stream, time.Now(), (*chunk)[:n])
	}
	return n, err
}

// drain moves what is in the pipe now and no more: a process that the workload left behind may go on writing.
func (p *pump) drain() {
	chunk := chunks.Get().(*[]byte)
	defer chunks.Put(chunk)
	_ = control(p.file, func(fd int) error {
		left, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // FIONREAD by its other name
		for err == nil && left > 0 {
			var n int
			n, err = read(fd, (*chunk)[:min(left, len(*chunk))])
			if n <= 0 {
				break
			}
			p.emit(p.stream, time.Now(), (*chunk)[:n])
			left -= n
		}
		return err
	})
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
