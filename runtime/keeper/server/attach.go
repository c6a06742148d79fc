package server

import (
	"os"
	"sync"

	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// maxBehind bounds the output that waits for one attached client, in bytes. One that falls further behind is cut off.
// It is memory only while a client is behind, and large enough for a burst to a client over a slow network.
const maxBehind = 8 << 20

// viewers are the attached clients of one container.
type viewers struct {
	mu    sync.Mutex
	all   map[*viewer]struct{}
	ended bool
}

// viewer is one attached client. A goroutine sends it what is queued, another sees it go.
type viewer struct {
	file *os.File      // our end of the socket
	poke chan struct{} // capacity 1: many frames, one look

	mu     sync.Mutex
	queue  [][]byte
	queued int
	ended  bool
}

// add makes a viewer and returns the client's end; false if there is nothing to view any more.
func (v *viewers) add() (theirs *os.File, ok bool, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, false, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "attachment")
	w := &viewer{file: os.NewFile(uintptr(fds[0]), "attachment"), poke: make(chan struct{}, 1)}
	v.mu.Lock()
	ok = !v.ended
	if ok {
		if v.all == nil {
			v.all = make(map[*viewer]struct{})
		}
		v.all[w] = struct{}{}
	}
	v.mu.Unlock()
	if !ok {
		w.file.Close()
		theirs.Close()
		return nil, false, nil
	}
	go func() {
		w.run()
		v.remove(w)
	}()
	go func() {
		w.file.Read(make([]byte, 1)) // a client sends nothing: this is its end, or ours
		v.remove(w)
		w.cut()
	}()
	return theirs, true, nil
}

func (v *viewers) remove(w *viewer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.all, w)
}

// send queues data for all. It never waits.
func (v *viewers) send(stream keeper.Stream, data []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.all) == 0 {
		return
	}
	frame := make([]byte, keeper.FrameHeader+len(data)) // one copy, which nobody changes, for all
	keeper.PutFrameHeader(frame, stream, len(data))
	copy(frame[keeper.FrameHeader:], data)
	for w := range v.all {
		if !w.put(frame) {
			delete(v.all, w)
			w.cut()
		}
	}
}

// end tells all that there is no more.
func (v *viewers) end() {
	frame := make([]byte, keeper.FrameHeader)
	keeper.PutFrameHeader(frame, keeper.StreamEnd, 0)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended = true
	for w := range v.all {
		w.put(frame)
		w.finish()
	}
}

// put queues one frame; false if the viewer is too far behind.
func (w *viewer) put(frame []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queued+len(frame) > maxBehind && len(frame) > keeper.FrameHeader { // the word that all was sent has always room
		return false
	}
	w.queue = append(w.queue, frame)
	w.queued += len(frame)
	w.wake()
	return true
}

// finish ends the viewer when its queue is sent.
func (w *viewer) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.wake()
}

// cut ends the viewer now.
func (w *viewer) cut() {
	w.finish()
	w.file.Close() // unblocks a write
}

func (w *viewer) wake() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

func (w *viewer) run() {
	defer w.file.Close()
	for range w.poke {
		w.mu.Lock()
		queue, ended := w.queue, w.ended
		w.queue = nil
		w.mu.Unlock()
		for _, frame := range queue {
			if _, err := w.file.Write(frame); err != nil {
				return // it has gone, or was cut off
			}
			w.mu.Lock()
			w.queued -= len(frame)
			w.mu.Unlock()
		}
		if ended {
			return
		}
	}
}
