package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/network"
	"github.com/berth-node/berth/network/netns"
	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/sandboxns"
	"github.com/berth-node/berth/runtime/spec"
)

// Recover reads the records, asks the keeper and the kernel what of it is still true, finishes or undoes what was cut
// off, and begins to follow the keeper. It fails only if nothing can work: one damaged record is set aside.
func (r *Runtime) Recover(ctx context.Context) error {
	r.loadSandboxes()
	r.loadContainers()
	failpoint.Here(failpoint.RecoverLoaded)
	k, states, err := r.reachKeeper(ctx)
	if err != nil {
		return err
	}
	known := map[string]keeper.State{}
	for _, s := range states {
		known[s.ID] = s
	}
	for _, c := range r.index.allContainers() {
		r.resume(c, known)
	}
	failpoint.Here(failpoint.RecoverResumed)
	// From here on exits come in, also those that the keeper has kept for us.
	r.following.Go(func() { r.follow(k) })

	r.resumeSandboxes(ctx, known)
	r.restoreNetwork(ctx)
	failpoint.Here(failpoint.RecoverConnected)
	r.finishCut(ctx)
	failpoint.Here(failpoint.RecoverFinished)
	r.sweep(ctx, known)
	failpoint.Here(failpoint.RecoverSwept)
	if err := r.cfg.Images.Collect(ctx); err != nil {
		r.log.Warn("unused layers could not be deleted, ignoring", "err", err)
	}
	return nil
}

// keeperTries is how many keepers may die while a daemon starts until that fails.
const keeperTries = 10

// reachKeeper connects to the keeper and asks what it knows; if it dies over that, the next one.
func (r *Runtime) reachKeeper(ctx context.Context) (*keeper.Client, []keeper.State, error) {
	for tries := 1; ; tries++ {
		k, err := r.keeper.connect(ctx)
		if err == nil {
			var states []keeper.State
			if states, err = k.List(ctx); err == nil {
				return k, states, nil
			}
		}
		if !errors.Is(err, errdefs.ErrUnavailable) || tries == keeperTries {
			return nil, nil, err
		}
		r.log.Error("no keeper, trying again", "err", err)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// setAside moves a folder whose record is damaged to where nothing looks for it but a person.
func (r *Runtime) setAside(dir string, cause error) {
	place := filepath.Join(r.paths.damaged(), filepath.Base(filepath.Dir(dir))+"-"+filepath.Base(dir))
	err := os.MkdirAll(r.paths.damaged(), 0o700)
	if err == nil {
		err = os.Rename(dir, place)
	}
	r.log.Error("a damaged record was set aside", "record", dir, "place", place, "cause", cause, "err", err)
	r.damagedMu.Lock()
	defer r.damagedMu.Unlock()
	r.damaged = append(r.damaged, fmt.Sprintf("%s: %v", place, cause))
}

func (r *Runtime) loadSandboxes() {
	for _, id := range names(r.paths.sandboxes()) {
		sb, err := loadSandbox(r.paths, id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			_ = os.RemoveAll(r.paths.sandbox(id)) // a folder without a record: its creation was cut off before it made anything
		case err != nil:
			r.setAside(r.paths.sandbox(id), err)
		default:
			r.index.addSandbox(sb)
			r.reserveLabel(sb)
		}
	}
}

// reserveLabel keeps the SELinux categories of a sandbox from being given to another one.
func (r *Runtime) reserveLabel(sb *sandbox) {
	label := sb.factsNow().ProcessLabel
	if label == "" || sb.factsNow().TornDown {
		return
	}
	if err := spec.ReserveSELinuxLabel(label); err != nil {
		r.log.Warn("SELinux label of a sandbox is in use twice", "sandbox", sb.record.ID, "err", err)
	}
}

func (r *Runtime) loadContainers() {
	for _, id := range names(r.paths.containers()) {
		c, err := loadContainer(r.paths, id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			_ = os.RemoveAll(r.paths.container(id))
		case err != nil:
			r.setAside(r.paths.container(id), err)
		default:
			r.index.addContainer(c)
		}
	}
}

// resume brings one container in line with what the keeper knows.
func (r *Runtime) resume(c *container, known map[string]keeper.State) {
	if err := r.cfg.Images.Acquire(c.record.Image.ID, c.id()); err != nil {
		r.log.Warn("image of a container is gone", "container", c.id(), "image", c.record.Image.ID, "err", err)
	}
	f := c.factsNow()
	if f.MadeAt.IsZero() {
		return // it was not complete: see finishCut
	}
	if f.state() == Exited {
		if f.Released {
			close(c.released)
		} else {
			r.background(func() { r.release(c) })
		}
		return
	}
	s, found := known[c.id()]
	if f.CommandError != "" {
		return // it never had a process
	}
	if !found {
		r.lost(c)
		return
	}
	if s.Phase != keeper.PhaseCreated && f.StartedAt.IsZero() {
		// Killed between the start and its record: the kernel knows better.
		at, err := f.Process.StartedAt()
		if err != nil {
			at = time.Now()
		}
		if at.Before(c.record.CreatedAt) {
			at = c.record.CreatedAt // the kernel counts in ticks
		}
		if err := c.update(func(f *containerFacts) { f.StartedAt = at }); err != nil {
			r.log.Error("start of a container could not be recorded", "container", c.id(), "err", err)
		}
	}
	if s.Exit != nil {
		r.finish(c, *s.Exit) // acknowledged, perhaps, but not on record
		return
	}
	r.watchOOM(c)
	r.killExecs(c)
	r.resumeStop(c)
}

// resumeStop goes on with a stop that an earlier daemon began: with what is left of the grace, and with the signal if that
// was not sent.
func (r *Runtime) resumeStop(c *container) {
	f := c.factsNow()
	if f.StopBy.IsZero() {
		return
	}
	now := clocks{time.Now(), uptime()}
	left := f.stopLeft(now)
	r.background(func() { r.killAt(c, now.wall.Add(left)) })
	if left > 0 && c.signalOnce() {
		r.background(func() { r.sendStopSignal(c, now.wall.Add(left)) })
	}
}

// killExecs ends what the daemon before this one executed in the container and nobody waits for any more: its clients are
// gone. What a command left behind on purpose stays, and so does what another daemon still serves.
func (r *Runtime) killExecs(c *container) {
	group, err := r.cfg.Cgroups.Open(c.record.CgroupsPath)
	if err != nil {
		return
	}
	served := r.servedElsewhere()
	seen := map[string]bool{}
	for _, dir := range group.Paths() {
		for _, name := range names(dir) {
			id, isExec := strings.CutPrefix(name, execCgroup)
			if !isExec || seen[name] || served[id] || fileExists(r.paths.leftBehind(c.id(), id)) {
				continue
			}
			seen[name] = true
			r.background(func() {
				ctx, cancel := r.detached(releaseLimit)
				defer cancel()
				if err := group.Sub(name).Remove(ctx); err != nil {
					r.log.Warn("exec of an earlier daemon could not be ended, ignoring", "container", c.id(), "err", err)
				}
			})
		}
	}
}

// resumeSandboxes finds the sandboxes that have lost what makes them ready.
func (r *Runtime) resumeSandboxes(ctx context.Context, known map[string]keeper.State) {
	for _, sb := range r.index.allSandboxes() {
		if !sb.ready() {
			continue
		}
		f := sb.factsNow()
		pause, found := known[sb.record.ID]
		lost := sb.record.Boot != r.boot ||
			r.holdNetNS(sb) != nil ||
			f.Pause.Pid != 0 && (!found || pause.Exit != nil)
		if lost {
			r.log.Warn("sandbox has lost its namespaces, it is not ready any more", "sandbox", sb.record.ID)
			if err := sb.update(func(f *sandboxFacts) { f.StoppedAt = time.Now() }); err != nil {
				r.log.Error("loss of a sandbox could not be recorded", "sandbox", sb.record.ID, "err", err)
			}
		}
	}
}

// restoreNetwork tells the network which sandboxes are attached: those whose namespaces are there. A stop that was cut off
// may have dropped one already, and a reboot drops all.
func (r *Runtime) restoreNetwork(ctx context.Context) {
	var live []network.Request
	for _, sb := range r.index.allSandboxes() {
		if f := sb.factsNow(); !f.ReadyAt.IsZero() && !f.TornDown && netns.IsNS(f.Anchors.NetNS) {
			live = append(live, networkRequest(sb))
		}
	}
	if err := r.cfg.Network.Restore(ctx, live); err != nil {
		// All that could be restored was. The rest is no reason to leave every pod of the node without its daemon.
		r.log.Error("not everything of the network could be restored", "err", err)
	}
}

// finishCut undoes the creations and goes on with the removals that the death of a daemon cut off.
func (r *Runtime) finishCut(ctx context.Context) {
	var wg sync.WaitGroup
	for _, c := range r.index.allContainers() {
		f := c.factsNow()
		complete := !f.MadeAt.IsZero()
		if complete && !f.Removing {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, teardownLimit)
			defer cancel()
			if !complete {
				r.undoCreate(ctx, c)
			} else if err := r.RemoveContainer(ctx, c.id()); err != nil {
				r.log.Error("the removal of a container was cut off and could not go on", "container", c.id(), "err", err)
			}
		})
	}
	wg.Wait()
	for _, sb := range r.index.allSandboxes() {
		f := sb.factsNow()
		if !f.ReadyAt.IsZero() && !f.Removing {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, teardownLimit)
			defer cancel()
			if err := r.undoSandbox(ctx, sb); err != nil {
				r.log.Error("a sandbox that was cut off in the making could not be undone", "sandbox", sb.record.ID, "err", err)
			}
		})
	}
	wg.Wait()
}

func (r *Runtime) undoSandbox(ctx context.Context, sb *sandbox) error {
	for _, c := range r.index.containersOf(sb.record.ID) {
		if err := r.RemoveContainer(ctx, c.id()); err != nil {
			return err
		}
	}
	if err := r.teardown(ctx, sb); err != nil {
		return err
	}
	r.index.dropSandbox(sb)
	return r.eraseSandbox(sb)
}

// sweep removes what no record speaks of: containers in the keeper and folders in the run dir.
func (r *Runtime) sweep(ctx context.Context, known map[string]keeper.State) {
	ids := names(r.paths.runContainers())
	for id := range known {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if r.index.container(id) != nil || r.index.sandbox(id) != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, releaseLimit)
		if err := r.dismantle(ctx, id, r.strayCgroup(id)); err != nil {
			r.log.Error("leftover of an unknown container could not be removed", "container", id, "err", err)
		}
		cancel()
	}
	for _, id := range names(r.paths.runSandboxes()) {
		if r.index.sandbox(id) != nil {
			continue
		}
		if err := r.removeStraySandbox(ctx, id); err != nil {
			r.log.Error("leftover of an unknown sandbox could not be removed", "sandbox", id, "err", err)
		}
	}
}

// strayCgroup is where an unknown container has its cgroup, as its bundle says; "" if that cannot be told.
func (r *Runtime) strayCgroup(id string) string {
	data, err := os.ReadFile(filepath.Join(r.paths.bundle(id), "config.json"))
	if err != nil {
		return ""
	}
	var s specs.Spec
	if json.Unmarshal(data, &s) != nil || s.Linux == nil {
		return ""
	}
	return s.Linux.CgroupsPath
}

// removeStraySandbox lets go of the namespaces and files of a sandbox that has no record. Its address comes back with
// the network's own comparison of what is attached with what should be.
func (r *Runtime) removeStraySandbox(ctx context.Context, id string) error {
	if err := sandboxns.Remove(ctx, sandboxns.PathsIn(r.paths.runSandbox(id), netnsPath(id))); err != nil {
		return err
	}
	if err := unmount(r.paths.shm(id)); err != nil {
		return err
	}
	return os.RemoveAll(r.paths.runSandbox(id))
}

// names lists a folder; one that cannot be read has nothing to offer.
func names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
