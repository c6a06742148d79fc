package runtime

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// maxEventLag is how many events a subscriber may be behind before it is cut off. A pod's life is about ten events.
const maxEventLag = 4096

// eventLog gives every change to every subscriber, in one order.
type eventLog struct {
	mu   sync.Mutex
	subs map[*Subscription]struct{}
}

// A Subscription delivers the events since its making, in order and without a gap, until it is closed. It is for one
// reader.
type Subscription struct {
	log    *eventLog
	events chan *Event   // not Event: the queue of one that keeps up is empty, and would be half a megabyte
	slow   chan struct{} // closed when the subscriber was cut off
}

// Subscribe begins a subscription; the caller closes it.
func (r *Runtime) Subscribe() *Subscription {
	s := &Subscription{log: &r.events, events: make(chan *Event, maxEventLag), slow: make(chan struct{})}
	r.events.mu.Lock()
	defer r.events.mu.Unlock()
	if r.events.subs == nil {
		r.events.subs = map[*Subscription]struct{}{}
	}
	r.events.subs[s] = struct{}{}
	return s
}

// Next waits for the next event. A subscriber that was too slow gets what was queued before the gap, then
// ErrResourceExhausted for good.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	select {
	case ev := <-s.events:
		return *ev, nil
	default:
	}
	select {
	case ev := <-s.events:
		return *ev, nil
	case <-s.slow:
		select { // what came in before the cut
		case ev := <-s.events:
			return *ev, nil
		default:
		}
		return Event{}, fmt.Errorf("subscriber is more than %d events behind: %w", maxEventLag, errdefs.ErrResourceExhausted)
	case <-ctx.Done():
		return Event{}, ctx.Err()
	}
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	delete(s.log.subs, s)
}

// publish never waits for a subscriber: nobody may hold up a pod by reading slowly.
func (l *eventLog) publish(ev *Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.subs {
		select {
		case s.events <- ev:
		default:
			delete(l.subs, s)
			close(s.slow)
		}
	}
}

// listened reports whether anybody would get an event: the picture of the pod that goes with it is not free.
func (l *eventLog) listened() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.subs) > 0
}

// announce publishes a change of a container, or of the sandbox itself if containerID is empty.
func (r *Runtime) announce(typ EventType, sandboxID, containerID string, at time.Time) {
	if !r.events.listened() {
		return
	}
	ev := &Event{Type: typ, At: at, ContainerID: containerID, SandboxID: sandboxID}
	if containerID == "" {
		ev.ContainerID = sandboxID
	}
	if sb := r.index.sandbox(sandboxID); sb != nil {
		view := sb.view()
		ev.Sandbox = &view
	}
	for _, c := range r.index.containersOf(sandboxID) {
		ev.Containers = append(ev.Containers, r.details(c))
	}
	r.events.publish(ev)
}
