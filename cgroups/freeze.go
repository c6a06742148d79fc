package cgroups

import (
	"context"
	"fmt"

	"github.com/berth-node/berth/internal/errdefs"
)

const (
	frozenV1 = "FROZEN"
	thawedV1 = "THAWED"
)

// Freeze stops every process in the cgroup and below it and returns when all stand still. If it fails, or ctx ends first
// (30 seconds if it has no deadline), the cgroup is thawed again. The error is an ErrNotFound if the cgroup is not there.
func (g *Group) Freeze(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	err := g.freeze(ctx, true)
	if err != nil {
		// Never leave it half frozen; if that fails too, the first error says more.
		_ = g.writeFrozen(false)
		return fmt.Errorf("freeze cgroup %s: %w", g, err)
	}
	return nil
}

// Thaw lets the processes run on and returns when they do. A cgroup that is frozen by one above it stays so, and Thaw
// waits until ctx ends. The error is an ErrNotFound if the cgroup is not there.
func (g *Group) Thaw(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := g.freeze(ctx, false); err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", g, err)
	}
	return nil
}

func (g *Group) freeze(ctx context.Context, want bool) error {
	if err := g.writeFrozen(want); err != nil {
		return err
	}
	if !g.host.Unified {
		return g.awaitFreezeV1(ctx, want)
	}
	for {
		if done, err := awaitEvent(ctx, g.paths[""], "frozen", want); done || err != nil {
			return err
		}
	}
}

func (g *Group) writeFrozen(want bool) error {
	dir, file, data := g.paths[""], "cgroup.freeze", "0"
	if want {
		data = "1"
	}
	if !g.host.Unified {
		dir, file, data = g.paths["freezer"], "freezer.state", thawedV1
		if want {
			data = frozenV1
		}
	}
	if dir == "" {
		return fmt.Errorf("no cgroup controller freezer: %w", errdefs.ErrUnimplemented)
	}
	err := writeFile(dir, file, data)
	if gone(err) {
		return errdefs.ErrNotFound
	}
	return err
}

// awaitFreezeV1 writes the state again while it waits: v1 cannot finish to freeze a cgroup in which processes appear.
func (g *Group) awaitFreezeV1(ctx context.Context, want bool) error {
	state := thawedV1
	if want {
		state = frozenV1
	}
	var delay backoff
	for {
		r := reader{dir: g.paths["freezer"]}
		text, ok := r.text("freezer.state")
		switch {
		case r.err != nil:
			return r.err
		case !ok:
			return errdefs.ErrNotFound
		case text == state:
			return nil
		}
		if err := pause(ctx, delay.next()); err != nil {
			return err
		}
		if err := g.writeFrozen(want); err != nil {
			return err
		}
	}
}

// thawTreeV1 thaws dir and all below it: each cgroup of v1 has a freezer of its own. What is gone needs no thawing.
func thawTreeV1(dir string) {
	if dir == "" {
		return
	}
	_ = walk(dir, func(path string) error {
		_ = writeFile(path, "freezer.state", thawedV1)
		return nil
	}, nil)
}
