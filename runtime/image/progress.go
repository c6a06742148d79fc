package image

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// Progress is how far a pull has come.
type Progress struct {
	Layers, LayersDone int
	Bytes, BytesDone   int64 // compressed
}

// reportEvery is how many bytes pass between two reports.
const reportEvery = 4 << 20

// progress counts, and reports to all who listen.
type progress struct {
	mu        sync.Mutex
	now       Progress
	reported  int64
	listeners map[*func(Progress)]bool
}

// listen has report called for what comes, until stop is called.
func (p *progress) listen(report func(Progress)) (stop func()) {
	if report == nil {
		return func() {}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listeners == nil {
		p.listeners = map[*func(Progress)]bool{}
	}
	p.listeners[&report] = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.listeners, &report)
	}
}

// update changes the numbers, and reports them if always or if enough has happened.
func (p *progress) update(always bool, change func(*Progress)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.now)
	if !always && p.now.BytesDone-p.reported < reportEvery {
		return
	}
	p.reported = p.now.BytesDone
	for report := range p.listeners {
		(*report)(p.now)
	}
}

// stallWatch ends a pull that has waited too long for a byte of the registry. While nobody waits for one (the disk is
// slow, other pulls have all slots) it sleeps.
type stallWatch struct {
	limit time.Duration

	mu      sync.Mutex
	timer   *time.Timer
	waiting int
}

// watchStalls calls cancel when a pull stalls. The caller calls stop in the end.
func watchStalls(limit time.Duration, cancel context.CancelCauseFunc) *stallWatch {
	w := &stallWatch{limit: limit}
	w.timer = time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("the registry sent nothing for %s: %w", limit, errdefs.ErrUnavailable))
	})
	w.timer.Stop()
	return w
}

func (w *stallWatch) stop() { w.timer.Stop() }

// wait says that somebody begins to wait for the registry. The function that it returns ends that; progress says
// whether something came.
func (w *stallWatch) wait() (end func(progress bool)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting++; w.waiting == 1 {
		w.timer.Reset(w.limit)
	}
	return func(progress bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.waiting--
		switch {
		case w.waiting == 0:
			w.timer.Stop()
		case progress:
			w.timer.Reset(w.limit)
		}
	}
}

// rest says that somebody who waits for the registry lets it rest for a while. The function that it returns ends that.
func (w *stallWatch) rest() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting--; w.waiting == 0 {
		w.timer.Stop()
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.waiting++; w.waiting == 1 {
			w.timer.Reset(w.limit)
		}
	}
}
