package server

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/berth-node/berth/runtime/keeper"
)

// exitLog has every exit that was not acknowledged, in order, and knows who is to hear of it: the daemon in charge, or the
// one that asked for the exec while it is connected.
type exitLog struct {
	mu      sync.Mutex
	last    uint64
	pending []pendingExit
	charge  *conn // the daemon in charge; nil if none is connected
	more    chan struct{}
}

// pendingExit is an exit that was not acknowledged.
type pendingExit struct {
	keeper.Exit
	owner *conn // who asked for the exec, and gets its exit; nil for all else
	sent  *conn // who got it
}

// newExitLog numbers exits from the time on, so that the numbers of a next keeper are above those of this one whatever
// of them it can still read.
func newExitLog() *exitLog {
	return &exitLog{last: uint64(time.Now().UnixNano()), more: make(chan struct{})}
}

// add numbers e and makes it known to owner, or to the daemon in charge. Before that, record is called with the numbered
// exit; exits wait for each other there, so that their numbers come in order.
func (l *exitLog) add(e keeper.Exit, owner *conn, record func(keeper.Exit)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e.Seq = l.last
	record(e)
	if owner != nil && owner.left {
		owner = nil
	}
	l.pending = append(l.pending, pendingExit{Exit: e, owner: owner})
	l.wake()
}

// wake has everyone look for what is theirs; l.mu is held.
func (l *exitLog) wake() {
	close(l.more)
	l.more = make(chan struct{})
}

// adopt takes over an exit that a keeper before has recorded. It is called before the first connection.
func (l *exitLog) adopt(e keeper.Exit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = max(l.last, e.Seq)
	at, _ := slices.BinarySearchFunc(l.pending, e.Seq, func(p pendingExit, seq uint64) int { return cmp.Compare(p.Seq, seq) })
	l.pending = slices.Insert(l.pending, at, pendingExit{Exit: e})
}

// recipient says who is to hear of p; l.mu is held.
func (l *exitLog) recipient(p pendingExit) *conn {
	if p.owner != nil {
		return p.owner
	}
	return l.charge
}

// next returns the first exit that to has yet to get, and a channel that is closed when there may be one.
func (l *exitLog) next(to *conn) (e keeper.Exit, ok bool, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pending {
		if l.recipient(p) == to && p.sent != to {
			return p.Exit, true, l.more
		}
	}
	return keeper.Exit{}, false, l.more
}

// sent notes who got an exit.
func (l *exitLog) sent(seq uint64, to *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.pending {
		if l.pending[i].Seq == seq {
			l.pending[i].sent = to
			return
		}
	}
}

// ack drops the exit with that number; false if it is not there (any more), or not from's to acknowledge: one that was
// relieved may have read of it and not recorded it in time for its successor.
func (l *exitLog) ack(seq uint64, from *conn) (keeper.Exit, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, p := range l.pending {
		if p.Seq == seq && l.recipient(p) == from {
			l.pending = slices.Delete(l.pending, i, i+1)
			return p.Exit, true
		}
	}
	return keeper.Exit{}, false
}

// forget drops the exit of a container that was deleted. Those of its execs stay: somebody waits for each of them.
func (l *exitLog) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = slices.DeleteFunc(l.pending, func(p pendingExit) bool { return p.ID == id && p.ExecID == "" })
}

// takeCharge makes c the daemon in charge and returns the one that is relieved thereby; nil if there is none.
func (l *exitLog) takeCharge(c *conn) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.charge
	if c.left || before == c {
		return nil
	}
	l.charge = c
	for i := range l.pending {
		if l.pending[i].owner == nil {
			l.pending[i].sent = nil // c may have got it when it was in charge before, and its answer was not taken
		}
	}
	l.wake()
	return before
}

// inCharge returns the daemon in charge; nil if there is none.
func (l *exitLog) inCharge() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.charge
}

// leave is for a connection that has ended: what was for it is now for the daemon in charge.
func (l *exitLog) leave(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.left = true
	if l.charge == c {
		l.charge = nil
	}
	for i := range l.pending {
		if l.pending[i].owner == c {
			l.pending[i].owner = nil
		}
	}
	l.wake()
}
