package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/failpoint"
)

// Remove ends what still runs in the cgroup and removes it with all below it; one that is not there is removed already.
// With the systemd driver the unit is stopped and forgotten too. Who comes in meanwhile is killed as well, until ctx ends
// (30 seconds if it has no deadline).
func (g *Group) Remove(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := g.Kill(ctx); err != nil {
		return err
	}
	failpoint.Here(failpoint.CgroupKilled)
	if g.unit != nil {
		// What a workload has made below may be more than systemd and the library can remove: they go by paths.
		for _, dir := range g.dirs() {
			_ = removeBelow(dir) // what stays is tried again below
		}
		// Also where the directory is gone: the unit of a container that was killed for lack of memory is kept as
		// "failed" until somebody resets it. The library says nothing of a unit that does not exist.
		m, err := g.manager()
		if err == nil {
			err = await(ctx, m.Destroy)
		}
		if err != nil {
			return fmt.Errorf("remove cgroup %s: %w", g, err)
		}
	}
	var delay backoff
	for {
		err := g.rmdir()
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		// Somebody came in. Kill waits until it is empty again; the pause is for an empty cgroup that was made below.
		if err := g.Kill(ctx); err != nil {
			return err
		}
		if pause(ctx, delay.next()) != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
}

// RemoveEmpty removes a [Group.Sub] with nothing in it, and reports whether it is gone. Nobody looks into it before: the kernel
// removes none in which there is a process, or another cgroup.
func (g *Group) RemoveEmpty() bool {
	for _, dir := range g.dirs() {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			return false
		}
	}
	return true
}

func (g *Group) rmdir() error {
	for _, dir := range g.dirs() {
		if err := removeTree(dir); err != nil {
			return err
		}
	}
	return nil
}

// RemoveParentIfEmpty removes a cgroup parent if nothing is in it any more. It is for a parent that this node made, its
// default one or another that nobody else had made, and does nothing while something else uses it, or is left in it. With
// the systemd driver the unit of the slice is stopped too.
func (h *Host) RemoveParentIfEmpty(ctx context.Context, parent string) error {
	p, err := h.parent(parent)
	if err != nil {
		return err
	}
	if p == "/" {
		return nil
	}
	removed := false
	for _, dir := range h.under(p) {
		err := unix.Rmdir(dir) // asks and acts in one step
		removed = removed || err == nil
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
	if !removed || h.Driver != Systemd {
		return nil
	}
	return stopSlice(ctx, filepath.Base(p))
}
