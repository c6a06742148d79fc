package server

import (
	"context"
	"fmt"
	"sync"
)

// A gate lets everybody through until it is shut; who shuts it waits until all have left. What changes the keeper's state
// or moves data happens inside one of two gates, so that there is a moment at which nothing is half done (replace.go):
//
//	work  requests, from reading them to the answer; the end of a process; a launcher that has a job
//	flow  one read of output with its way to log and attachments; one write to an attachment; one exit sent
//
// Who is inside work may wait for somebody inside flow, never the other way round. Nobody enters a gate twice: he would
// wait for himself when it is being shut.
type gate struct {
	mu     sync.Mutex
	inside int
	// opened is not nil while the gate is shut or being shut, and closed when it opens.
	opened chan struct{}
	// empty is not nil while somebody waits for the last to leave, and closed then.
	empty chan struct{}
}

// enter waits until g is open.
func (g *gate) enter() {
	for {
		g.mu.Lock()
		opened := g.opened
		if opened == nil {
			g.inside++
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		<-opened
	}
}

// admit lets one more in with somebody who is inside, whether or not g is being shut.
func (g *gate) admit() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside++
}

// leave is called once for each enter and admit, by whoever.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// shut lets nobody in any more and waits for those inside. If ctx ends first, g is open again. Only one may shut a gate.
func (g *gate) shut(ctx context.Context) error {
	g.mu.Lock()
	g.opened = make(chan struct{})
	empty := make(chan struct{})
	if g.inside == 0 {
		close(empty)
	} else {
		g.empty = empty
	}
	g.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
	}
	g.open()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.empty = nil
	return fmt.Errorf("%d things are under way: %w", g.inside, ctx.Err())
}

// open lets in who waits.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.opened)
	g.opened = nil
}
