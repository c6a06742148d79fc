package server

import (
	"os"
	"sync"
	"time"

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
	id   string        // of the container
	file *os.File      // our end of the socket
	poke chan struct{} // capacity 1: many frames, one look

	mu     sync.Mutex
	queue  [][]byte // the first may be sent in part
	queued int
	ended  bool
}

// roster has every viewer of the keeper, also of containers that are forgotten: their last words may be on their way.
type roster struct {
	mu  sync.Mutex
	all map[*viewer]struct{}
}

// add makes a viewer and returns the client's end; false if there is nothing to view any more.
func (c *container) addViewer() (theirs *os.File, ok bool, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, false, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "attachment")
	w := newViewer(c.id, os.NewFile(uintptr(fds[0]), "attachment"))
	if !c.viewers.put(w) {
		w.file.Close()
		theirs.Close()
		return nil, false, nil
	}
	c.k.show(w, &c.viewers)
	return theirs, true, nil
}

func newViewer(id string, file *os.File) *viewer {
	return &viewer{id: id, file: file, poke: make(chan struct{}, 1)}
}

// put is false if there is nothing to view any more.
func (v *viewers) put(w *viewer) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return false
	}
	if v.all == nil {
		v.all = make(map[*viewer]struct{})
	}
	v.all[w] = struct{}{}
	return true
}

// show runs w, which is among those of v, until it has all or goes.
func (k *Keeper) show(w *viewer, v *viewers) {
	k.roster.mu.Lock()
	k.roster.all[w] = struct{}{}
	k.roster.mu.Unlock()
	go func() {
		w.run(&k.flow)
		v.remove(w)
		k.roster.mu.Lock()
		defer k.roster.mu.Unlock()
		delete(k.roster.all, w)
	}()
	go func() {
		w.file.Read(make([]byte, 1)) // a client sends nothing: this is its end, or ours
		v.remove(w)
		w.cut()
	}()
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
	if len(v.all) == 0 || v.ended {
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

// cut ends the viewer now. It does not close the file, which would wait for run, and run may wait for the gate that the
// caller is in.
func (w *viewer) cut() {
	w.finish()
	w.file.SetDeadline(time.Unix(1, 0)) // unblocks both goroutines
}

func (w *viewer) wake() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// run sends what is queued until all is, after finish, or until the client has gone or was cut off.
func (w *viewer) run(flow *gate) {
	defer w.file.Close()
	raw, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	for range w.poke {
		for {
			var left, ended bool
			var failed error
			err := raw.Write(func(fd uintptr) bool {
				flow.enter()
				defer flow.leave()
				left, ended, failed = w.step(int(fd))
				return failed != unix.EAGAIN
			})
			if err != nil || failed != nil {
				return // it has gone, or was cut off
			}
			if !left && ended {
				return
			}
			if !left {
				break
			}
		}
	}
}

// step sends one piece of what is queued. It says whether something is left, and whether that will be all.
func (w *viewer) step(fd int) (left, ended bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) > 0 {
		n, err := unix.SendmsgN(fd, w.queue[0], nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if err != nil {
			return true, false, err
		}
		w.queued -= n
		if w.queue[0] = w.queue[0][n:]; len(w.queue[0]) == 0 {
			w.queue[0] = nil
			w.queue = w.queue[1:]
		}
	}
	return len(w.queue) > 0, w.ended, nil
}
