package cgroups

import (
	"context"
	"errors"
	"fmt"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// stopSlice lets systemd know that a slice is not needed any more. It would make the cgroup of an active one anew, with
// all limits, when its configuration is loaded again.
//
// The job ignores dependencies, so it is about the slice alone: stopped as usual, it would take along what another node
// has just started in it.
func stopSlice(ctx context.Context, name string) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("stop %s: systemd: %w", name, err)
	}
	defer conn.Close()
	done := make(chan string, 1)
	if _, err := conn.StopUnitContext(ctx, name, "ignore-dependencies", done); err != nil {
		var known godbus.Error
		if errors.As(err, &known) && known.Name == "org.freedesktop.systemd1.NoSuchUnit" {
			return nil
		}
		return fmt.Errorf("stop %s: systemd: %w", name, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("stop %s: systemd says %q", name, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: systemd: %w", name, ctx.Err())
	}
}
