package runtime

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

func newTestRuntime(t *testing.T) *Runtime {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return &Runtime{index: newIndex(), ctx: ctx, cancel: cancel}
}

func TestEventsComeInOrderToEverybody(t *testing.T) {
	r := newTestRuntime(t)
	a, b := r.Subscribe(), r.Subscribe()
	defer a.Close()
	defer b.Close()
	for i := range 10 {
		r.events.publish(&Event{ContainerID: fmt.Sprint(i)})
	}
	for _, s := range []*Subscription{a, b} {
		for i := range 10 {
			if ev, err := s.Next(t.Context()); err != nil || ev.ContainerID != fmt.Sprint(i) {
				t.Fatalf("event %d is of %q, %v", i, ev.ContainerID, err)
			}
		}
	}
}

func TestASlowSubscriberIsCutOffNotSkipped(t *testing.T) {
	r := newTestRuntime(t)
	slow, quick := r.Subscribe(), r.Subscribe()
	defer slow.Close()
	defer quick.Close()
	for i := range maxEventLag + 5 {
		r.events.publish(&Event{ContainerID: fmt.Sprint(i)})
		if _, err := quick.Next(t.Context()); err != nil {
			t.Fatalf("the quick one was cut off at %d: %v", i, err)
		}
	}
	for i := range maxEventLag {
		if ev, err := slow.Next(t.Context()); err != nil || ev.ContainerID != fmt.Sprint(i) {
			t.Fatalf("event %d before the gap: %q, %v", i, ev.ContainerID, err)
		}
	}
	for range 2 {
		if ev, err := slow.Next(t.Context()); !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Errorf("after the gap came %+v, %v", ev, err)
		}
	}
}

func TestNextEndsWithItsContext(t *testing.T) {
	r := newTestRuntime(t)
	s := r.Subscribe()
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next: %v", err)
	}
}

func TestAClosedSubscriptionGetsNothing(t *testing.T) {
	r := newTestRuntime(t)
	s := r.Subscribe()
	s.Close()
	s.Close()
	if r.events.listened() {
		t.Error("somebody still listens")
	}
}
