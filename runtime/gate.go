package runtime

import (
	"context"
	"errors"
	"sync"
)

// A gate knows the work that is under way behind it, and can be shut: then nobody comes in any more, and those inside are
// asked to leave. Its zero value is open.
type gate struct {
	mu     sync.Mutex
	why    error // nil while the gate is open
	inside map[*visit]struct{}
	empty  chan struct{} // closed when the gate is shut and nobody is inside
}

// visit is one piece of work behind a gate.
type visit struct{ leave context.CancelCauseFunc }

// enter lets a piece of work in. Its context is ctx until the gate is shut; then it ends with what shut says as its
// cause. done must be called at the end of the work. A shut gate returns the reason.
func (g *gate) enter(ctx context.Context) (within context.Context, done func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.why != nil {
		return nil, nil, g.why
	}
	v := &visit{}
	within, v.leave = context.WithCancelCause(ctx)
	if g.inside == nil {
		g.inside = map[*visit]struct{}{}
	}
	g.inside[v] = struct{}{}
	return within, sync.OnceFunc(func() { g.left(v) }), nil
}

func (g *gate) left(v *visit) {
	v.leave(nil)
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.inside, v)
	if g.why != nil && len(g.inside) == 0 {
		close(g.empty)
	}
}

// shut lets nobody in any more, asks those inside to leave because of why, and waits until they have, or ctx ends. It may
// be called again; the first reason stands.
func (g *gate) shut(ctx context.Context, why error) error {
	g.mu.Lock()
	if g.why == nil {
		g.why, g.empty = why, make(chan struct{})
		for v := range g.inside {
			v.leave(why)
		}
		if len(g.inside) == 0 {
			close(g.empty)
		}
	}
	empty := g.empty
	g.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// becauseOf returns err, or why the context of the work was canceled where err says no more than that it was.
func becauseOf(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
