package runtime

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestAShutGateLetsNobodyIn(t *testing.T) {
	var g gate
	why := errors.New("why")
	if err := g.shut(t.Context(), why); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.enter(t.Context()); err != why {
		t.Errorf("entered a shut gate: %v", err)
	}
	if err := g.shut(t.Context(), errors.New("other")); err != nil {
		t.Errorf("shut again: %v", err)
	}
	if _, _, err := g.enter(t.Context()); err != why {
		t.Errorf("the first reason does not stand: %v", err)
	}
}

func TestShuttingAsksThoseInsideToLeaveAndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		why := errors.New("why")
		first, firstDone, err := g.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, secondDone, err := g.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		shut := make(chan error, 1)
		go func() { shut <- g.shut(t.Context(), why) }()
		<-first.Done()
		if got := context.Cause(first); got != why {
			t.Errorf("asked to leave because of %v", got)
		}
		for _, done := range []func(){firstDone, firstDone, secondDone} {
			synctest.Wait()
			select {
			case <-shut:
				t.Fatal("shut while somebody is inside")
			default:
			}
			done()
		}
		if err := <-shut; err != nil {
			t.Error(err)
		}
	})
}

func TestShuttingEndsWithItsContext(t *testing.T) {
	var g gate
	_, done, err := g.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.shut(ctx, errors.New("why")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
