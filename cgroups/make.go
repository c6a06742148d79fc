package cgroups

import (
	"context"
	"fmt"
)

// Make makes the cgroup of a pod or of many pods, and all above it, without limits; what is there stays as it is. With the
// systemd driver it is a slice, whose controllers are enabled like those of a container's scope; if ctx ends while systemd
// has not answered, Make returns, and the slice may still come.
func (g *Group) Make(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, err := g.manager()
	if err != nil {
		return fmt.Errorf("make cgroup %s: %w", g, err)
	}
	make := func() error { return m.Apply(-1) } // no process is put into it
	if g.unit == nil {
		err = make()
	} else {
		err = await(ctx, make)
	}
	if err != nil {
		return fmt.Errorf("make cgroup %s: %w", g, err)
	}
	return nil
}
