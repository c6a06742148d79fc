package main

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/rest"
)

// quiet is how long no pod and no container must have changed before memory is given back. The next start pays some milliseconds for
// the pages that come back, so a node on which a pod starts now and then does not rest in between.
const quiet = 30 * time.Second

// quietGC is how much garbage there may be then, in percent of what is no garbage, in place of Go's 100. The probes of a hundred
// pods make some, and what it takes to collect it is little. While pods start there is much of it.
const quietGC = 50

// giveBack gives memory back each time that changes of pods are followed by quiet; so it does after the start.
func (n *node) giveBack(ctx context.Context) {
	events := n.runtime.Subscribe()
	defer func() { events.Close() }()
	next := func(ctx context.Context) error {
		_, err := events.Next(ctx)
		if errors.Is(err, errdefs.ErrResourceExhausted) { // which is news too
			events.Close()
			events, err = n.runtime.Subscribe(), nil
		}
		return err
	}
	for {
		for changed := true; changed; {
			wait, cancel := context.WithTimeout(ctx, quiet)
			changed = next(wait) == nil
			cancel()
		}
		if ctx.Err() != nil {
			return
		}
		began := time.Now()
		if err := rest.GiveBack(); err != nil {
			n.log.Warn("memory could not be given back, ignoring", "err", err)
		}
		n.log.Debug("memory was given back", "took", time.Since(began))
		usual := debug.SetGCPercent(quietGC)
		err := next(ctx)
		debug.SetGCPercent(usual)
		if err != nil {
			return
		}
	}
}
