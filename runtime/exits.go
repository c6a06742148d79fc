package runtime

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/runtime/keeper"
)

// Exits come from the keeper and through here alone: nothing else sets FinishedAt of a container that ran.

// exitUnknown is the exit code of a container of whose end nothing is known.
const exitUnknown = 255

// exitWaiters are those who wait for the exit of something that is not a container in the index.
type exitWaiters struct {
	mu      sync.Mutex
	waiting map[chan struct{}]string
}

// await returns a channel that is closed at the next exit of id. Who has no use for it any more calls forget.
func (w *exitWaiters) await(id string) (exited <-chan struct{}, forget func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = map[chan struct{}]string{}
	}
	ch := make(chan struct{})
	w.waiting[ch] = id
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiting, ch)
	}
}

func (w *exitWaiters) tell(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch, waited := range w.waiting { // few: those who have just killed something
		if waited == id {
			close(ch)
			delete(w.waiting, ch)
		}
	}
}

// onExit takes one exit that the keeper reports, and says whether the keeper may forget it: when it returns true the exit is
// on record. What another daemon waits for is left to that one.
func (r *Runtime) onExit(e keeper.Exit) (taken bool) {
	if e.ExecID != "" {
		return r.execs.exited(e) || !r.parted.Load() && !r.servedElsewhere()[e.ExecID]
	}
	if r.parted.Load() {
		return false
	}
	defer r.exits.tell(e.ID)
	if c := r.index.anyContainer(e.ID); c != nil {
		r.finish(c, e)
	} else if sb := r.index.sandbox(e.ID); sb != nil {
		r.pauseExited(sb, e.At)
	} else if id := r.held.exited(e.ID); id != "" {
		r.background(func() { r.heldEnded(id) })
	}
	return true
}

// finish records the end of a container. That of one in the making is kept until it is made, and forgotten with it
// if it is undone: what nobody has seen does not end.
func (r *Runtime) finish(c *container, e keeper.Exit) {
	c.life.Lock()
	defer c.life.Unlock()
	if c.making {
		c.early = &e
		return
	}
	if c.state() == Exited {
		return
	}
	code, reason, message := int32(e.Code), "Completed", ""
	switch {
	case e.Unknown:
		code, reason, message = exitUnknown, "Unknown", "the container ended while nobody could see how"
	case r.oomKilled(c):
		reason = "OOMKilled"
	case code != 0:
		reason = "Error"
	}
	r.becomeExited(c, e.At, code, reason, message)
}

// becomeExited is the one way into the state exited: on record, then told to everybody, then cleared up after. It needs
// c.life, and that the container has not exited.
func (r *Runtime) becomeExited(c *container, at time.Time, code int32, reason, message string) {
	end := func(f *containerFacts) { f.FinishedAt, f.ExitCode, f.Reason, f.Message = at, code, reason, message }
	failpoint.Here(failpoint.ExitHeard)
	if err := c.note(end); err != nil {
		// Without room for the record the exit is still true. The next daemon hears of it from the keeper, or finds no
		// process.
		r.log.Error("exit could not be recorded", "container", c.id(), "err", err)
	}
	failpoint.Here(failpoint.ExitRecorded)
	close(c.exited)
	r.announce(EventStopped, c.record.SandboxID, c.id(), at)
	r.background(func() { r.release(c) })
}

// oomKilled asks the cgroup, which is still there, whether the kernel killed anything in it for want of memory.
func (r *Runtime) oomKilled(c *container) bool {
	if r.oom.Killed(c.id()) {
		return true
	}
	group, err := r.cfg.Cgroups.Open(c.record.CgroupsPath)
	if err != nil {
		return false
	}
	kills, err := group.OOMKills()
	return err == nil && kills > 0
}

// watchOOM has the kernel's word on a lack of memory noted as it comes: with the systemd driver the cgroup, and the count
// in it, is gone with the last process.
func (r *Runtime) watchOOM(c *container) {
	group, err := r.cfg.Cgroups.Open(c.record.CgroupsPath)
	if err == nil {
		err = r.oom.Add(c.id(), group)
	}
	if err != nil {
		r.log.Warn("a container's lack of memory may go unnoticed, ignoring", "container", c.id(), "err", err)
	}
}

// pauseExited takes a pod whose shared PID namespace has ended, and all its containers with it, out of service.
func (r *Runtime) pauseExited(sb *sandbox, at time.Time) {
	wasReady := sb.ready()
	err := sb.note(func(f *sandboxFacts) {
		f.Pause = procfs.Process{}
		if f.StoppedAt.IsZero() {
			f.StoppedAt = at
		}
	})
	if errors.Is(err, errErased) {
		return
	}
	if err != nil {
		r.unrecorded("end of a pause process", sb.record.ID, err)
	}
	if wasReady {
		r.announce(EventStopped, sb.record.ID, "", at)
	}
}

// lost records the end of a container that the keeper does not know, at a time when nobody can tell how it ended.
func (r *Runtime) lost(c *container) {
	r.finish(c, keeper.Exit{ID: c.id(), Unknown: true, At: time.Now()})
}

// release removes what is left of an exited container: processes that it left behind, its cgroup, its mounts.
func (r *Runtime) release(c *container) {
	ctx, cancel := r.detached(releaseLimit)
	defer cancel()
	r.tellStopped(ctx, c)
	if err := r.dismantle(ctx, c.id(), c.record.CgroupsPath); err != nil {
		if r.ctx.Err() == nil { // a daemon that stops leaves the rest to the next one
			r.log.Error("exited container could not be cleared up; its removal will try again", "container", c.id(), "err", err)
		}
	} else {
		failpoint.Here(failpoint.Released)
		if err := c.note(func(f *containerFacts) { f.Released = true }); err != nil && !errors.Is(err, errErased) {
			r.unrecorded("release of a container", c.id(), err)
		}
	}
	r.oom.Remove(c.id())
	close(c.released)
}

// tellStopped tells the plugins of the end of a container, and does what they want of others.
func (r *Runtime) tellStopped(ctx context.Context, c *container) {
	sb := r.index.sandbox(c.record.SandboxID)
	if sb == nil {
		return
	}
	c.telling.Lock()
	defer c.telling.Unlock()
	release := r.cfg.NRI.Block()
	defer release()
	updates, err := r.cfg.NRI.StopContainer(ctx, r.nriPod(sb), r.nriContainer(c))
	if err == nil {
		_, err = r.applyUpdates(ctx, updates)
	}
	if err != nil {
		r.log.Warn("NRI plugin failed on the end of a container, ignoring", "container", c.id(), "err", err)
	}
}

// isLiving reports whether err says that the keeper still has a living process of that name.
func isLiving(err error) bool { return errors.Is(err, errdefs.ErrFailedPrecondition) }

// heldEnded clears up after a held thing whose processes have ended by themselves.
func (r *Runtime) heldEnded(id string) {
	ctx, cancel := r.detached(teardownLimit)
	defer cancel()
	if err := r.giveUp(ctx, id); err != nil && r.ctx.Err() == nil {
		r.log.Error("what ran with a damaged record has ended and could not be cleared up", "id", id, "err", err)
	}
}

// unrecorded is for a step towards the end for whose record there was no room: it is done all the same, since nothing
// would free that room otherwise. A next daemon finds less than is on record, and goes on from there.
func (r *Runtime) unrecorded(what, id string, err error) {
	r.log.Error(what+" could not be recorded, it goes on", "id", id, "err", err)
}
