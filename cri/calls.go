package cri

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/berth-node/berth/internal/errdefs"
)

// errReplaced is for calls that another daemon will have to answer.
var errReplaced = fmt.Errorf("another daemon takes this one's place, call again: %w", errdefs.ErrUnavailable)

var (
	// patientCalls are the calls that do little but wait, as long as it takes; repeated at the next daemon they go on where they
	// were. A hand-over cuts them off at once.
	patientCalls = []string{"StopContainer", "PullImage", "GetContainerEvents"}
	// sessionCalls are the calls that a hand-over leaves alone: what they run would run twice.
	sessionCalls = []string{"ExecSync"}
)

// calls are those that are under way.
type calls struct {
	mu      sync.Mutex
	leaving bool // HandOver was called
	over    bool // and only sessions are left
	running map[*underWay]struct{}
	last    time.Time // when one ended
}

type underWay struct {
	method string
	cut    context.CancelCauseFunc
}

// begin notes a call, whose context ends with cause errReplaced when it is cut off. The caller calls end.
func (c *calls) begin(ctx context.Context, method string) (within context.Context, end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	within, cut := context.WithCancelCause(ctx)
	one := &underWay{method, cut}
	if c.running == nil {
		c.running = map[*underWay]struct{}{}
	}
	c.running[one] = struct{}{}
	if c.over || c.leaving && slices.Contains(patientCalls, method) {
		cut(errReplaced)
	}
	return within, func() {
		cut(nil)
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.running, one)
		c.last = time.Now()
	}
}

// leave cuts off the calls that wait, gives the others until the end of ctx and cuts them off then. It returns when none is
// left but sessions, or after the limit.
func (c *calls) leave(ctx context.Context, limit time.Duration) {
	c.mu.Lock()
	c.leaving, c.last = true, time.Now()
	c.cut(func(method string) bool { return slices.Contains(patientCalls, method) })
	c.mu.Unlock()
	c.await(ctx)
	c.mu.Lock()
	c.over = true
	c.cut(func(method string) bool { return !slices.Contains(sessionCalls, method) })
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	c.await(ctx)
}

// cut needs c.mu.
func (c *calls) cut(which func(method string) bool) {
	for one := range c.running {
		if which(one.method) {
			one.cut(errReplaced)
		}
	}
}

// await returns when no call but sessions has been under way for a moment, in which a client learns that it has to connect
// anew, or at the end of ctx.
func (c *calls) await(ctx context.Context) {
	const moment = 20 * time.Millisecond
	for {
		c.mu.Lock()
		quiet := time.Since(c.last) >= moment
		for one := range c.running {
			quiet = quiet && slices.Contains(sessionCalls, one.method)
		}
		c.mu.Unlock()
		if quiet {
			return
		}
		select {
		case <-time.After(moment / 4):
		case <-ctx.Done():
			return
		}
	}
}

// count is how many sessions are under way.
func (c *calls) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for one := range c.running {
		if slices.Contains(sessionCalls, one.method) {
			n++
		}
	}
	return n
}

// HandOver lets the calls of g, which serves s, end for the good of another daemon: clients are told to connect anew, calls
// that only wait are cut off as Unavailable, the others when ctx ends. Calls of ExecSync go on; the channel that it returns
// is closed when the last of them has ended. Nobody may serve g any more, on any listener.
func (s *Server) HandOver(ctx context.Context, g *grpc.Server) (ended <-chan struct{}) {
	const limit = 5 * time.Second // for a call that was cut off to notice
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.GracefulStop()
	}()
	s.calls.leave(ctx, limit)
	return done
}

// Sessions is how many calls of ExecSync are under way.
func (s *Server) Sessions() int { return s.calls.count() }

// boundStream gives a streaming call a context of ours.
type boundStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (b *boundStream) Context() context.Context { return b.ctx }
