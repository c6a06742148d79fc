package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/runtime/image/layer"
	"github.com/berth-node/berth/runtime/keeper"
)

// StopContainer asks the container to end, by the signal that its creator or its image chose, and kills it with
// everything in its cgroup after grace. It returns when the exit is on record; at once if the container does not run or
// does not exist. If ctx ends first, the stop goes on, also in a daemon that is started anew. Of several stops the one
// with the earliest deadline counts.
func (r *Runtime) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := r.index.findContainer(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	if c.state() != Running {
		return nil
	}
	if err := r.beginStop(c, grace); err != nil {
		if c.state() == Exited {
			return nil // and was removed, or there is no room for a record: it has ended all the same
		}
		return err
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s has not ended yet: %w", c.id(), ctx.Err())
	}
}

// beginStop puts the stop on record and sets it going. It does not wait, neither for the keeper.
func (r *Runtime) beginStop(c *container, grace time.Duration) error {
	now := clocks{time.Now(), uptime()}
	left := grace
	err := c.note(func(f *containerFacts) {
		if earlier := f.stopLeft(now); f.StopBy.IsZero() || grace < earlier {
			f.StopBy, f.StopUptime = now.wall.Add(grace), now.uptime+grace
		} else {
			left = earlier
		}
	})
	if errors.Is(err, errErased) {
		return err
	}
	if err != nil {
		r.unrecorded("stop of a container", c.id(), err)
	}
	failpoint.Here(failpoint.StopRecorded)
	deadline := now.wall.Add(left)
	failpoint.Here(failpoint.StopRecorded)
	r.background(func() { r.killAt(c, deadline) })
	if grace > 0 && c.signalOnce() {
		r.background(func() { r.sendStopSignal(c, deadline) })
	}
	return nil
}

// clocks are the time of day, which may be set, and the time since the boot.
type clocks struct {
	wall   time.Time
	uptime time.Duration
}

// uptime is the time since the boot, time asleep included.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every kernel has it
	}
	return time.Duration(ts.Nano())
}

// stopLeft is what is left of the grace of a stop. A daemon that is started anew has to get it right also where the time of
// day was set in between; a container does not outlive the boot.
func (f containerFacts) stopLeft(now clocks) time.Duration {
	if f.StopUptime != 0 {
		return f.StopUptime - now.uptime
	}
	return f.StopBy.Sub(now.wall)
}

// signalOnce reports whether the stop signal is still to be sent: a program may take a second one for impatience.
func (c *container) signalOnce() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.signaled && !c.facts.StopSignaled
	c.signaled = true
	return first
}

func (r *Runtime) sendStopSignal(c *container, deadline time.Time) {
	ctx, cancel := context.WithDeadline(r.ctx, deadline) // then the kill makes it pointless
	defer cancel()
	err := r.signal(ctx, c, c.record.StopSignal)
	failpoint.Here(failpoint.StopSignaled)
	if err == nil {
		err = c.update(func(f *containerFacts) { f.StopSignaled = true })
	}
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) && r.ctx.Err() == nil {
		r.log.Warn("stop signal could not be sent, the container is killed at its deadline", "container", c.id(), "err", err)
	}
}

// signal sends a signal to init, by the next keeper if one dies over it.
func (r *Runtime) signal(ctx context.Context, c *container, sig int) error {
	for {
		k, err := r.keeper.client(ctx)
		if err != nil {
			return err
		}
		if err = k.Signal(ctx, c.id(), "", sig); err == nil || k.Err() == nil {
			return err
		}
	}
}

// killAt kills the container at the deadline unless it has ended.
func (r *Runtime) killAt(c *container, deadline time.Time) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-c.exited:
		return
	case <-r.ctx.Done():
		return // the deadline is on record
	case <-timer.C:
	}
	failpoint.Here(failpoint.StopDeadline)
	ctx, cancel := r.detached(teardownLimit)
	defer cancel()
	if err := r.killProcesses(ctx, c); err != nil && r.ctx.Err() == nil {
		r.log.Error("container could not be killed", "container", c.id(), "err", err)
	}
	failpoint.Here(failpoint.StopKilled)
}

// killProcesses kills everything in the container's cgroup, and its init by pidfd in case that it was moved elsewhere.
func (r *Runtime) killProcesses(ctx context.Context, c *container) error {
	group, err := r.cfg.Cgroups.Open(c.record.CgroupsPath)
	if err == nil {
		err = group.Kill(ctx)
	}
	k, kerr := r.keeper.client(ctx)
	if kerr == nil {
		kerr = ignoreNotFound(k.Signal(ctx, c.id(), "", int(unix.SIGKILL)))
	}
	return errors.Join(err, kerr)
}

// kill ends the container whatever its state, and waits until nothing is left of it but records and writable layer.
func (r *Runtime) kill(ctx context.Context, c *container) error {
	select {
	case <-c.exited:
	default:
		if f := c.factsNow(); f.Process.Pid == 0 {
			// It never had a process: its command cannot be started.
			c.life.Lock()
			_ = r.failStart(c, errors.New("it was stopped before it was started"))
			c.life.Unlock()
		} else if err := r.killProcesses(ctx, c); err != nil {
			return fmt.Errorf("kill container %s: %w", c.id(), err)
		}
	}
	for _, step := range []<-chan struct{}{c.exited, c.released} {
		select {
		case <-step:
		case <-ctx.Done():
			return fmt.Errorf("container %s has not ended yet: %w", c.id(), ctx.Err())
		}
	}
	return nil
}

// RemoveContainer kills the container if need be and forgets it. It is idempotent, and nil for a container that does
// not exist. The log stays: it is the caller's.
func (r *Runtime) RemoveContainer(ctx context.Context, id string) error {
	c, err := r.index.findContainer(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	return joinErr(ctx, r, "remove "+c.id(), func() error {
		ctx, cancel := r.detached(teardownLimit)
		defer cancel()
		if err := c.op.lock(ctx); err != nil {
			return err
		}
		defer c.op.unlock()
		return r.removeContainer(ctx, c)
	})
}

// removeContainer needs c.op.
func (r *Runtime) removeContainer(ctx context.Context, c *container) error {
	if r.index.container(c.id()) == nil {
		return nil // another call was faster
	}
	if err := r.kill(ctx, c); err != nil {
		return err
	}
	if err := c.note(func(f *containerFacts) { f.Removing = true }); err != nil {
		r.unrecorded("removal of a container", c.id(), err)
	}
	failpoint.Here(failpoint.ContainerRemoving)
	release := r.cfg.NRI.Block()
	defer release()
	if sb := r.index.sandbox(c.record.SandboxID); sb != nil {
		if err := r.cfg.NRI.RemoveContainer(ctx, r.nriPod(sb), r.nriContainer(c)); err != nil {
			r.log.Warn("NRI plugin failed on the removal of a container, ignoring", "container", c.id(), "err", err)
		}
	}
	if err := r.eraseContainer(ctx, c); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id(), err)
	}
	failpoint.Here(failpoint.ContainerErased)
	r.index.dropContainer(c)
	r.usage.forget(c.id())
	r.announce(EventDeleted, c.record.SandboxID, c.id(), time.Now())
	return nil
}

// eraseContainer removes everything of a container that does not run any more, its records last.
func (r *Runtime) eraseContainer(ctx context.Context, c *container) error {
	if !c.factsNow().Released { // the release had failed
		if err := r.dismantle(ctx, c.id(), c.record.CgroupsPath); err != nil {
			return err
		}
	}
	r.oom.Remove(c.id())
	r.cfg.Images.Release(c.id())
	return c.erase()
}

// dismantle removes what the kernel, the keeper and the run dir hold of a container or of a pause process, living or
// not. Each step does nothing where nothing is.
func (r *Runtime) dismantle(ctx context.Context, id, cgroupsPath string) error {
	gone, forget := r.exits.await(id)
	defer forget()
	var group *cgroups.Group
	if cgroupsPath != "" {
		var err error
		if group, err = r.cfg.Cgroups.Open(cgroupsPath); err != nil {
			return err
		}
		if err := group.Remove(ctx); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	failpoint.Here(failpoint.DismantleUngrouped)
	if err := r.forgetInKeeper(ctx, id, gone); err != nil {
		return err
	}
	failpoint.Here(failpoint.DismantleForgotten)
	// A launcher whose keeper died may have made the cgroup behind our back. The next keeper has ended it by now.
	if group != nil && group.Exists() {
		if err := group.Remove(ctx); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	return r.removeBundle(id)
}

// forgetInKeeper makes the keeper drop the container once it has seen the exit; the next one if it dies over it.
func (r *Runtime) forgetInKeeper(ctx context.Context, id string, gone <-chan struct{}) error {
	for {
		k, err := r.keeper.client(ctx)
		if err != nil {
			return err
		}
		if err = r.forgetIn(ctx, k, id, gone); err == nil || k.Err() == nil {
			return err
		}
	}
}

// forgetLook is how often forgetIn asks the keeper again: of a container that it was still making, and undoes, no exit comes.
const forgetLook = 100 * time.Millisecond

func (r *Runtime) forgetIn(ctx context.Context, k *keeper.Client, id string, gone <-chan struct{}) error {
	for {
		err := k.Delete(ctx, id)
		if !isLiving(err) {
			return err
		}
		if err := k.Signal(ctx, id, "", int(unix.SIGKILL)); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		select {
		case <-gone:
			return k.Delete(ctx, id)
		case <-time.After(forgetLook):
		case <-k.Done():
			return fmt.Errorf("end of %s: the keeper was lost: %w", id, errdefs.ErrUnavailable)
		case <-ctx.Done():
			return fmt.Errorf("%s has not ended yet: %w", id, ctx.Err())
		}
	}
}

// removeBundle unmounts what is mounted in a bundle and deletes the folder. It deletes no folder that a mount is on:
// what is below belongs to an image, or to the host.
func (r *Runtime) removeBundle(id string) error {
	bundle := r.paths.bundle(id)
	mounts := []string{r.paths.rootfs(id)}
	images, err := os.ReadDir(r.paths.imageMounts(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, image := range images {
		mounts = append(mounts, filepath.Join(r.paths.imageMounts(id), image.Name()))
	}
	for _, path := range mounts {
		if err := layer.Unmount(path); err != nil {
			return err
		}
		// Not RemoveAll: should anything still be there, it is not ours to delete.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	failpoint.Here(failpoint.DismantleUnmounted)
	return os.RemoveAll(bundle)
}
