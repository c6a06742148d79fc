package image

import (
	"context"
	"sync"

	"github.com/berth-node/berth/internal/errdefs"
)

// flights are the pulls that are under way, by what they pull. Who asks for one that is there joins it.
type flights struct {
	mu  sync.Mutex
	all map[string]*flight
}

// flight is one pull and those who wait for it.
type flight struct {
	cancel   context.CancelFunc
	done     chan struct{} // closed when image and err are set
	image    Image
	err      error
	waiters  int // guarded by flights.mu
	progress progress
}

// join returns the flight for key, which is begun with pull if there is none. The caller calls leave in the end. The
// context of pull ends with that of the store, and when nobody waits any more.
func (s *Store) join(key string, pull func(context.Context, *flight) (Image, error)) *flight {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if f, ok := s.flights.all[key]; ok {
		f.waiters++
		return f
	}
	ctx, cancel := context.WithCancel(s.ctx)
	f := &flight{cancel: cancel, done: make(chan struct{}), waiters: 1}
	if s.flights.all == nil {
		s.flights.all = map[string]*flight{}
	}
	s.flights.all[key] = f
	s.running.Go(func() {
		defer cancel()
		f.image, f.err = guarded(ctx, f, pull)
		s.flights.mu.Lock()
		s.flights.end(key, f)
		s.flights.mu.Unlock()
		close(f.done)
	})
	return f
}

// guarded calls pull and returns a panic, such as one of a library at a manifest, as its error.
func guarded(ctx context.Context, f *flight, pull func(context.Context, *flight) (Image, error)) (_ Image, err error) {
	defer errdefs.Recover(&err)
	return pull(ctx, f)
}

// leave says that one waiter less waits.
func (s *Store) leave(key string, f *flight) {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		// Whoever asks from now on gets a new flight, not the end of this one.
		s.flights.end(key, f)
		f.cancel()
	}
}

// end takes f out of the flights. The caller holds mu.
func (fs *flights) end(key string, f *flight) {
	if fs.all[key] == f {
		delete(fs.all, key)
	}
}

// keyedLocks are locks by key that exist while somebody has them. The zero value is ready.
type keyedLocks[K comparable] struct {
	mu   sync.Mutex
	held map[K]chan struct{}
}

// lock waits for the lock of key, or for the end of ctx.
func (l *keyedLocks[K]) lock(ctx context.Context, key K) (unlock func(), err error) {
	for {
		l.mu.Lock()
		other, taken := l.held[key]
		if !taken {
			mine := make(chan struct{})
			if l.held == nil {
				l.held = map[K]chan struct{}{}
			}
			l.held[key] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, key)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
