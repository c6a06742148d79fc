package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/network"
	"github.com/berth-node/berth/network/netns"
	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/sandboxns"
	"github.com/berth-node/berth/runtime/spec"
)

// Recover reads the records, asks the keeper and the kernel what of it is still true, finishes or undoes what was cut
// off, and begins to follow the keeper. It fails only if nothing can work: no damaged record stops it.
func (r *Runtime) Recover(ctx context.Context) error {
	k, states, err := r.reachKeeper(ctx)
	if err != nil {
		return err
	}
	known := map[string]keeper.State{}
	for _, s := range states {
		known[s.ID] = s
	}
	r.noteEarlierDamage()
	r.load(known)
	r.working()
	failpoint.Here(failpoint.RecoverLoaded)
	r.adoptMissing(ctx, k, r.index.allContainers(), r.index.allSandboxes(), known)
	for _, c := range r.index.allContainers() {
		r.resume(c, known)
		r.working()
	}
	failpoint.Here(failpoint.RecoverResumed)
	// From here on exits come in, also those that the keeper has kept for us.
	r.following.Go(func() { r.follow(k) })

	r.resumeSandboxes(ctx, known)
	if _, err := r.MendRunDir(); err != nil {
		r.log.Error("files of the run dir are missing and could not be made anew", "err", err)
	}
	r.working()
	r.restoreNetwork(ctx)
	r.working()
	failpoint.Here(failpoint.RecoverConnected)
	r.finishCut(ctx)
	failpoint.Here(failpoint.RecoverFinished)
	r.sweep(ctx, known)
	r.working()
	failpoint.Here(failpoint.RecoverSwept)
	r.cfg.Images.KeepLayers(!r.held.empty())
	if err := r.cfg.Images.Collect(ctx); err != nil {
		r.log.Warn("unused layers could not be deleted, ignoring", "err", err)
	}
	r.working()
	r.background(r.checkRunFiles)
	return nil
}

// working says that Recover gets on.
func (r *Runtime) working() {
	if r.cfg.Working != nil {
		r.cfg.Working()
	}
}

// waiting says it, until over is called, for what waits for others (CNI and NRI plugins) and has limits of its own.
func (r *Runtime) waiting() (over func()) {
	ended := make(chan struct{})
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.working()
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended) }
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

// checkRunFiles looks for damage in what is read only when it is needed: the bundles, libcontainer's states and what the
// keeper has set aside. Containers run on without them.
func (r *Runtime) checkRunFiles() {
	for _, c := range r.index.allContainers() {
		if _, mayLive := c.factsNow().process(); !mayLive {
			continue
		}
		var any json.RawMessage
		for path, lost := range map[string]string{
			r.specPath(c.id()): "no exec in this container until it is started anew; plugins do not see its spec",
			filepath.Join(r.paths.run, keeper.LibcontainerDir, c.id(), "state.json"): "no exec in this container until it is started anew",
		} {
			if err := atomicfile.ReadJSON(path, &any); err != nil && c.state() != Exited {
				r.log.Error("a file of a running container is damaged", "container", c.id(), "err", err)
				r.damaged.add(path, fmt.Sprintf("%v (%s)", err, lost))
			}
		}
		aside, _ := filepath.Glob(filepath.Join(r.paths.bundle(c.id()), "*.damaged")) // the pattern is good
		for _, path := range aside {
			r.damaged.add(path, "the keeper's record was damaged (it was written anew from what else is known)")
		}
	}
}

// load reads all records. The files of many pods are read side by side: most of the time goes into understanding them.
func (r *Runtime) load(known map[string]keeper.State) {
	sandboxes := loadAll(idsOf(r.paths.sandboxes(), r.paths.sandboxCopies()), func(id string) found[sandbox] {
		defer r.working()
		sb, faults, err := loadSandbox(r.paths, id, r.records)
		return found[sandbox]{id, sb, faults, err}
	})
	containers := loadAll(idsOf(r.paths.containers(), r.paths.containerCopies()), func(id string) found[container] {
		defer r.working()
		c, faults, err := loadContainer(r.paths, id, r.records)
		return found[container]{id, c, faults, err}
	})
	unreadable := map[string]found[sandbox]{}
	for _, f := range sandboxes {
		if !r.enterSandbox(f, known) {
			unreadable[f.id] = f
		}
	}
	members := map[string][]found[container]{}
	for _, f := range containers {
		sandboxID := f.thing.record.SandboxID
		if f.err != nil && !isFactsOnly(f.err) {
			sandboxID = r.bundleAnnotations(f.id)[spec.AnnotationSandboxID]
		}
		members[sandboxID] = append(members[sandboxID], f)
	}
	for id, f := range unreadable {
		if r.holdSandbox(f, members[id], known) {
			delete(members, id)
		}
	}
	for _, all := range members {
		for _, f := range all {
			r.enterContainer(f, known)
		}
	}
}

// found is what became of reading the record of one thing.
type found[T any] struct {
	id     string
	thing  *T
	faults []fault
	err    error
}

func isFactsOnly(err error) bool {
	var e errFacts
	return errors.As(err, &e)
}

// loadAll calls load for each ID, some at a time.
func loadAll[T any](ids []string, load func(string) found[T]) []found[T] {
	out := make([]found[T], len(ids))
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(len(ids), goruntime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(ids); i = int(next.Add(1)) - 1 {
				out[i] = load(ids[i])
			}
		})
	}
	wg.Wait()
	return out
}

// idsOf lists what has a folder in the root dir, a copy in the run dir, or both.
func idsOf(dir, copies string) []string {
	ids := names(dir)
	for _, name := range names(copies) {
		if id, whole := strings.CutSuffix(name, copySuffix); whole && !strings.HasPrefix(id, ".") {
			ids = append(ids, id)
			continue
		}
		if strings.HasPrefix(name, ".") {
			_ = os.Remove(filepath.Join(copies, name)) // a copy that was being written
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// enterSandbox puts a sandbox into the index, and is false if its record cannot be used.
func (r *Runtime) enterSandbox(f found[sandbox], known map[string]keeper.State) bool {
	sb := f.thing
	switch {
	case errors.Is(f.err, fs.ErrNotExist):
		_ = os.RemoveAll(r.paths.sandbox(f.id)) // a folder without a record: its creation was cut off before it made anything
		return true
	case isFactsOnly(f.err):
		r.rebuildSandbox(sb, known)
		r.mend(sb.twin, append(f.faults, fault{filepath.Join(sb.dir, factsFile), f.err}), sb.writeAgain)
	case f.err != nil:
		return false
	default:
		r.mend(sb.twin, f.faults, sb.writeAgain)
		r.copyLate(sb.twin, sb.writeAgain, sb.record.Boot, !sb.facts.ReadyAt.IsZero())
	}
	r.index.addSandbox(sb)
	r.reserveLabel(sb)
	return true
}

// rebuildSandbox says of a sandbox whose facts are lost what is still known: what follows from its ID is there or not.
func (r *Runtime) rebuildSandbox(sb *sandbox, known map[string]keeper.State) {
	p := r.namespacePaths(sb)
	pin := func(path string) string {
		if !netns.IsNS(path) {
			return ""
		}
		return path
	}
	sb.facts.ReadyAt = sb.record.CreatedAt // it may not have been; then it has no namespaces, or nothing runs in it
	sb.facts.IPCNS, sb.facts.UTSNS, sb.facts.UserNS = pin(p.IPC), pin(p.UTS), pin(p.User)
	if pause, ok := known[sb.record.ID]; ok && pause.Exit == nil {
		sb.facts.Pause = procfs.Process(pause.Process)
	} else if sharesPID(sb.config) {
		sb.facts.StoppedAt = time.Now()
	}
	if ips, err := network.AddrsInside(sb.facts.Anchors.NetNS); err == nil {
		sb.facts.IPs = ips
	}
}

// enterContainer puts a container into the index. One whose record cannot be used is held if it runs, else set aside.
func (r *Runtime) enterContainer(f found[container], known map[string]keeper.State) {
	c := f.thing
	switch {
	case errors.Is(f.err, fs.ErrNotExist) && !lives(known, f.id):
		_ = os.RemoveAll(c.dir)
		return
	case isFactsOnly(f.err):
		r.rebuildContainer(c, known)
		r.mend(c.twin, append(f.faults, fault{filepath.Join(c.dir, factsFile), f.err}), c.writeAgain)
	case f.err != nil && lives(known, f.id):
		r.holdContainer(f)
		return
	case f.err != nil:
		r.setAside(c.dir, f.err, "it did not run")
		_ = os.Remove(c.copy)
		return
	default:
		r.mend(c.twin, f.faults, c.writeAgain)
		r.copyLate(c.twin, c.writeAgain, c.record.Boot, !c.facts.MadeAt.IsZero())
	}
	r.index.addContainer(c)
}

// rebuildContainer says of a container whose facts are lost what is still known. Of one that the keeper does not know, or
// whose exit it has told before, nobody knows how it ended.
func (r *Runtime) rebuildContainer(c *container, known map[string]keeper.State) {
	c.making = false
	c.facts.MadeAt = c.record.CreatedAt
	s, ok := known[c.id()]
	if !ok {
		return // lost; resume says so
	}
	c.facts.Process = procfs.Process(s.Process)
	c.facts.Resources, _ = marshalProto(c.config.GetLinux().GetResources()) // encodes always: it was decoded
	if sp, err := r.specOf(c); err == nil && sp.Process != nil {
		c.facts.User, _ = marshalProto(spec.ContainerUser(sp.Process.User))
		c.facts.Limits = limitsOf(sp)
		c.facts.Hooks = sp.Hooks != nil && len(sp.Hooks.Poststop) > 0
	}
	if mounts, err := r.statusMounts(c); err == nil {
		c.facts.Mounts = mounts
	}
}

// copyLate makes the copy of what was made by an earlier version, or of which the copy is gone.
func (r *Runtime) copyLate(t twin, write func() error, boot string, complete bool) {
	if _, err := os.Lstat(t.copy); err == nil || !complete || boot != r.boot {
		return
	}
	if err := write(); err != nil {
		r.log.Warn("record could not be copied into the run dir, ignoring", "record", t.dir, "err", err)
	}
}

func lives(known map[string]keeper.State, id string) bool {
	s, ok := known[id]
	return ok && s.Exit == nil
}

// adoptMissing has the keeper take over containers and pause processes that live and that it does not know: its own
// record of them was damaged, or lost with the run dir.
func (r *Runtime) adoptMissing(ctx context.Context, k *keeper.Client, containers []*container, sandboxes []*sandbox, known map[string]keeper.State) {
	adopt := func(id string, p procfs.Process, req keeper.CreateRequest) {
		if _, ok := known[id]; ok || p.Pid == 0 || !p.Alive() {
			return
		}
		s, err := k.Adopt(ctx, keeper.AdoptRequest{Request: req, Process: keeper.Process(p)})
		if err != nil {
			r.log.Error("keeper has lost a container and cannot take it over", "container", id, "err", err)
			return
		}
		r.log.Warn("keeper had lost a container and took it over again", "container", id)
		known[id] = s
	}
	for _, c := range containers {
		if f := c.factsNow(); f.FinishedAt.IsZero() {
			adopt(c.id(), f.Process, r.createRequest(c, f.Hooks))
		}
	}
	for _, sb := range sandboxes {
		adopt(sb.record.ID, sb.factsNow().Pause, r.pauseRequest(sb.record.ID))
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

// resume brings one container in line with what the keeper knows.
func (r *Runtime) resume(c *container, known map[string]keeper.State) {
	if err := r.cfg.Images.Acquire(c.record.Image.ID, c.id()); err != nil {
		r.log.Warn("image of a container is gone", "container", c.id(), "image", c.record.Image.ID, "err", err)
		r.cfg.Images.AcquireLayers(c.record.Image.Layers, c.id())
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
		r.working()
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
	live = append(live, r.held.attached()...)
	if err := r.cfg.Network.Restore(ctx, live); err != nil {
		// All that could be restored was. The rest is no reason to leave every pod of the node without its daemon.
		r.log.Error("not everything of the network could be restored", "err", err)
	}
}

// finishCut undoes the creations and goes on with the removals that the death of a daemon cut off.
func (r *Runtime) finishCut(ctx context.Context) {
	defer r.waiting()()
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
		if r.index.container(id) != nil || r.index.sandbox(id) != nil || r.held.holds(id) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, releaseLimit)
		if err := r.dismantle(ctx, id, r.strayCgroup(id)); err != nil {
			r.log.Error("leftover of an unknown container could not be removed", "container", id, "err", err)
		}
		cancel()
	}
	for _, id := range names(r.paths.runSandboxes()) {
		if r.index.sandbox(id) != nil || r.held.holds(id) {
			continue
		}
		if err := r.removeStraySandbox(ctx, id); err != nil {
			r.log.Error("leftover of an unknown sandbox could not be removed", "sandbox", id, "err", err)
		}
	}
}

// strayCgroup is where an unknown container has its cgroup, as its bundle says; "" if that cannot be told.
func (r *Runtime) strayCgroup(id string) string {
	s, err := r.readBundle(id)
	if err != nil || s.Linux == nil {
		return ""
	}
	return s.Linux.CgroupsPath
}

// bundleAnnotations say of a container whose record cannot be read whose it is; nil if that cannot be told.
func (r *Runtime) bundleAnnotations(id string) map[string]string {
	s, err := r.readBundle(id)
	if err != nil {
		return nil
	}
	return s.Annotations
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
