package server

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/berth-node/berth/runtime/keeper"
)

// exitLog has every exit that was not acknowledged, in order.
type exitLog struct {
	mu      sync.Mutex
	last    uint64
	pending []keeper.Exit
	more    chan struct{} // closed and replaced with every addition
}

// newExitLog numbers exits from the time on, so that the numbers of a next keeper are above those of this one whatever
// of them it can still read.
func newExitLog() *exitLog {
	return &exitLog{last: uint64(time.Now().UnixNano()), more: make(chan struct{})}
}

// add numbers e and makes it known. Before that, record is called with the numbered exit; exits wait for each other
// there, so that their numbers come in order.
func (l *exitLog) add(e keeper.Exit, record func(keeper.Exit)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e.Seq = l.last
	record(e)
	l.pending = append(l.pending, e)
	close(l.more)
	l.more = make(chan struct{})
}

// adopt takes over an exit that a keeper before has recorded. It is called before the first connection.
func (l *exitLog) adopt(e keeper.Exit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = max(l.last, e.Seq)
	at, _ := slices.BinarySearchFunc(l.pending, e.Seq, func(p keeper.Exit, seq uint64) int { return cmp.Compare(p.Seq, seq) })
	l.pending = slices.Insert(l.pending, at, e)
}

// after returns what has a higher number than seq, and a channel that is closed when there is more.
func (l *exitLog) after(seq uint64) ([]keeper.Exit, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := 0
	for i < len(l.pending) && l.pending[i].Seq <= seq {
		i++
	}
	return slices.Clone(l.pending[i:]), l.more
}

// ack drops the exit with that number; false if it is not there (any more).
func (l *exitLog) ack(seq uint64) (keeper.Exit, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, e := range l.pending {
		if e.Seq == seq {
			l.pending = slices.Delete(l.pending, i, i+1)
			return e, true
		}
	}
	return keeper.Exit{}, false
}

// forget drops the exit of a container that was deleted. Those of its execs stay: somebody waits for each of them.
func (l *exitLog) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = slices.DeleteFunc(l.pending, func(e keeper.Exit) bool { return e.ID == id && e.ExecID == "" })
}
