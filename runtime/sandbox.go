package runtime

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/runtime/spec"
)

// A sandbox is a pod's network, IPC and UTS namespaces, its cgroup and its containers.
//
//	           RunSandbox                    StopSandbox             RemoveSandbox
//	(nothing) ------------> record -> ready -------------> stopped -----------------> (nothing)
//	                          |                               ^
//	                          +-- any failure: the same teardown as a stop, then removal
type sandbox struct {
	twin
	record sandboxRecord
	config *cri.PodSandboxConfig
	// op serialises stopping and removing.
	op opLock
	// creations lets in what makes containers, until the sandbox is stopped.
	creations gate
	// pinning is held while the file of the network namespace is looked after.
	pinning sync.Mutex

	mu    sync.Mutex
	facts sandboxFacts
	// erased says that the records are deleted.
	erased bool
}

// netnsDir is where agents such as Multus look for network namespaces.
const netnsDir = "/run/netns"

func netnsPath(id string) string { return filepath.Join(netnsDir, "berth-"+id[:min(len(id), 24)]) }

// RunSandbox makes a sandbox ready and returns its ID. A call for an attempt at a pod that is just being made joins that
// work, one for an attempt that is ready returns its ID: a caller that gave up waiting may simply ask again.
func (r *Runtime) RunSandbox(ctx context.Context, cfg *cri.PodSandboxConfig, handler, owner string) (string, error) {
	if cfg.GetMetadata() == nil {
		return "", fmt.Errorf("config.metadata is missing: %w", errdefs.ErrInvalidArgument)
	}
	key := sandboxKey(cfg.Metadata)
	return join(ctx, r, key, func() (string, error) {
		ctx, cancel := r.detached(createLimit)
		defer cancel()
		ctx, done, err := r.admission.enter(ctx)
		if err != nil {
			return "", err
		}
		defer done()
		if sb := r.index.sandboxByKey(key); sb != nil {
			if sb.ready() {
				return sb.record.ID, nil
			}
			return "", fmt.Errorf("attempt %d at pod %s/%s was stopped already (sandbox %s): %w",
				cfg.Metadata.Attempt, cfg.Metadata.Namespace, cfg.Metadata.Name, sb.record.ID, errdefs.ErrAlreadyExists)
		}
		if err := r.held.refusePod(cfg.Metadata); err != nil {
			return "", err
		}
		id, err := r.createSandbox(ctx, cfg, handler, owner)
		return id, becauseOf(ctx, err)
	})
}

func (r *Runtime) createSandbox(ctx context.Context, cfg *cri.PodSandboxConfig, handler, owner string) (string, error) {
	if _, ok := r.cfg.Handlers[handler]; !ok && handler != "" {
		return "", fmt.Errorf("runtime_handler %q is not configured: %w", handler, errdefs.ErrInvalidArgument)
	}
	if err := spec.ValidateSandbox(cfg, false); err != nil {
		return "", err
	}
	r.cfg.Cgroups.Warm() // for its first container
	sb, err := r.newSandbox(cfg, handler, owner)
	if err != nil {
		return "", err
	}
	if err := r.assemble(ctx, sb); err != nil {
		// The steps of a stop and a removal; each does nothing where nothing is.
		undo, cancel := r.detached(teardownLimit)
		defer cancel()
		undone := r.teardown(undo, sb)
		if undone == nil {
			undone = r.eraseSandbox(sb)
		}
		if undone != nil {
			// What could not be undone stays visible, not ready, so that a removal by its ID tries again.
			r.index.addSandbox(sb)
			r.log.Error("sandbox could not be undone", "sandbox", sb.record.ID, "err", undone)
		}
		return "", err
	}
	return sb.record.ID, nil
}

// newSandbox puts on record what is going to be made.
func (r *Runtime) newSandbox(cfg *cri.PodSandboxConfig, handler, owner string) (*sandbox, error) {
	config, err := marshalProto(cfg)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	id := newID()
	a := anchors{
		CgroupParent: cfg.GetLinux().GetCgroupParent(),
		Name:         cfg.Metadata.Name, Namespace: cfg.Metadata.Namespace, UID: cfg.Metadata.Uid,
	}
	parent, err := r.cfg.Cgroups.OpenParent(a.CgroupParent)
	if err != nil {
		return nil, fmt.Errorf("config.linux.cgroup_parent: %w", err)
	}
	a.MadeParent = !parent.Exists() || r.index.madeParent(a.CgroupParent)
	if !hostNetwork(cfg) {
		a.NetNS = netnsPath(id)
	}
	process, mount, err := r.podLabels(cfg)
	if err != nil {
		return nil, err
	}
	sb := &sandbox{
		twin: r.paths.sandboxTwin(id, r.records), config: cfg, op: newOpLock(),
		record: sandboxRecord{
			Version: recordVersion, ID: id, Handler: handler, Owner: owner,
			CreatedAt: time.Now(), Boot: r.boot, Anchors: a, Config: config,
		},
		facts: sandboxFacts{ID: id, Anchors: a, ProcessLabel: process, MountLabel: mount},
	}
	if err := writeRecord(sb.dir, sb.record); err != nil {
		if process != "" {
			spec.ReleaseSELinuxLabel(process)
		}
		return nil, err
	}
	return sb, nil
}

// assemble makes the sandbox, in an order in which each step needs only the ones before it.
func (r *Runtime) assemble(ctx context.Context, sb *sandbox) error {
	failpoint.Here(failpoint.SandboxRecorded)
	if err := r.makeSandboxFiles(sb); err != nil {
		return err
	}
	failpoint.Here(failpoint.SandboxFiles)
	if err := r.makeNamespaces(ctx, sb); err != nil {
		return err
	}
	if err := r.attachNetwork(ctx, sb); err != nil {
		return err
	}
	if sharesPID(sb.config) {
		if err := r.startPause(ctx, sb); err != nil {
			return fmt.Errorf("pause process: %w", err)
		}
	}
	failpoint.Here(failpoint.SandboxComplete)
	return r.publishSandbox(ctx, sb)
}

// publishSandbox lets the plugins look at the sandbox and only then shows it to everybody else.
func (r *Runtime) publishSandbox(ctx context.Context, sb *sandbox) error {
	// Who finds the sandbox at once and stops it has to wait until it was announced.
	if err := sb.op.lock(ctx); err != nil {
		return err
	}
	defer sb.op.unlock()
	release := r.cfg.NRI.Block()
	defer release()
	if err := r.cfg.NRI.RunPodSandbox(ctx, r.nriPod(sb)); err != nil {
		return fmt.Errorf("NRI plugin refused the sandbox: %w", err)
	}
	now := time.Now()
	if err := sb.update(func(f *sandboxFacts) { f.ReadyAt = now }); err != nil {
		return errors.Join(err, r.cfg.NRI.RemovePodSandbox(ctx, r.nriPod(sb)))
	}
	failpoint.Here(failpoint.SandboxReady)
	r.index.addSandbox(sb)
	r.announce(EventCreated, sb.record.ID, "", now)
	r.announce(EventStarted, sb.record.ID, "", now)
	if p := sb.factsNow().Pause; p.Pid != 0 && !p.Alive() {
		r.pauseExited(sb, now) // its exit came while nobody could find the sandbox
	}
	return nil
}

// update changes the facts whole, on disk first: nothing is believed that is not written.
func (sb *sandbox) update(change func(*sandboxFacts)) error { return sb.change(change, true) }

// note is update for what is true whether or not there is room to write it. After an error a next daemon does not know it.
func (sb *sandbox) note(change func(*sandboxFacts)) error { return sb.change(change, false) }

// learn changes the facts of a sandbox that is being made. They are on disk with the next update: of one that is not complete
// a next daemon wants its record alone, by which it takes everything away.
func (sb *sandbox) learn(change func(*sandboxFacts)) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	change(&sb.facts)
}

func (sb *sandbox) change(change func(*sandboxFacts), must bool) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.erased {
		return errErased
	}
	facts := sb.facts
	change(&facts)
	facts.ID = sb.record.ID
	facts.Revision++
	err := sb.save(sb.record, facts, !facts.ReadyAt.IsZero(), sb.writeAgain)
	if err == nil || !must {
		sb.facts = facts
	}
	return err
}

// writeAgain puts the facts as they are into the root dir.
func (sb *sandbox) writeAgain() error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.erased {
		return errErased
	}
	return sb.rewrite(sb.record, sb.facts, !sb.facts.ReadyAt.IsZero())
}

// erase deletes the records.
func (sb *sandbox) erase() error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	err := sb.twin.erase()
	sb.erased = err == nil
	return err
}

func (sb *sandbox) factsNow() sandboxFacts {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.facts
}

func (sb *sandbox) ready() bool {
	f := sb.factsNow()
	return !f.ReadyAt.IsZero() && f.StoppedAt.IsZero()
}

// notReady is the error of a call that only a ready sandbox allows.
func (sb *sandbox) notReady() error {
	return fmt.Errorf("sandbox %s is not ready: %w", sb.record.ID, errdefs.ErrFailedPrecondition)
}

func (sb *sandbox) view() Sandbox {
	f := sb.factsNow()
	return Sandbox{
		ID: sb.record.ID, Config: sb.config, Handler: sb.record.Handler, Owner: sb.record.Owner,
		CreatedAt: sb.record.CreatedAt, Ready: !f.ReadyAt.IsZero() && f.StoppedAt.IsZero(),
		IPs: slices.Clone(f.IPs), NetNS: f.Anchors.NetNS, UserNS: f.UserNS, PausePid: f.Pause.Pid, CNI: f.CNI,
	}
}

// Sandbox returns the sandbox of this ID, or of the only ID that begins so.
func (r *Runtime) Sandbox(_ context.Context, id string) (Sandbox, error) {
	sb, err := r.index.findSandbox(id)
	if err != nil {
		return Sandbox{}, err
	}
	if sb.ready() {
		_ = r.holdNetNS(sb) // what becomes of it is in the view
	}
	return sb.view(), nil
}

// Sandboxes returns the sandboxes that fit, newest first.
func (r *Runtime) Sandboxes(f SandboxFilter) []Sandbox {
	var out []Sandbox
	if f.ID != "" {
		if sb, err := r.index.findSandbox(f.ID); err == nil && f.fits(sb) {
			out = append(out, sb.view())
		}
		return out
	}
	for _, sb := range r.index.allSandboxes() {
		if f.fits(sb) {
			out = append(out, sb.view())
		}
	}
	slices.SortFunc(out, func(a, b Sandbox) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return out
}

func (f SandboxFilter) fits(sb *sandbox) bool {
	return (f.Ready == nil || *f.Ready == sb.ready()) && hasLabels(sb.config.Labels, f.Labels)
}

func hasLabels(labels, wanted map[string]string) bool {
	for k, v := range wanted {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// UpdateSandboxResources tells the plugins that the kubelet has resized the pod's cgroup. The cgroup itself is the
// kubelet's.
func (r *Runtime) UpdateSandboxResources(ctx context.Context, id string, overhead, resources *cri.LinuxContainerResources) error {
	sb, err := r.index.findSandbox(id)
	if err != nil {
		return err
	}
	if !sb.ready() {
		return sb.notReady()
	}
	release := r.cfg.NRI.Block()
	defer release()
	pod := r.nriPod(sb)
	if err := r.cfg.NRI.UpdatePodSandbox(ctx, pod, overhead, resources); err != nil {
		return err
	}
	return r.cfg.NRI.PostUpdatePodSandbox(ctx, pod)
}

// StopSandbox stops all containers of the sandbox at once, frees its addresses and lets go of its namespaces. It is
// idempotent, and nil for a sandbox that does not exist.
func (r *Runtime) StopSandbox(ctx context.Context, id string) error {
	sb, err := r.index.findSandbox(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	return joinErr(ctx, r, "stop "+sb.record.ID, func() error {
		ctx, cancel := r.detached(teardownLimit)
		defer cancel()
		if err := sb.op.lock(ctx); err != nil {
			return err
		}
		defer sb.op.unlock()
		return r.stopSandbox(ctx, sb)
	})
}

// stopSandbox needs sb.op.
func (r *Runtime) stopSandbox(ctx context.Context, sb *sandbox) error {
	if sb.factsNow().TornDown {
		return nil
	}
	if sb.factsNow().StoppedAt.IsZero() {
		if err := sb.note(func(f *sandboxFacts) { f.StoppedAt = time.Now() }); err != nil {
			r.unrecorded("stop of a sandbox", sb.record.ID, err)
		}
	}
	failpoint.Here(failpoint.SandboxStopping)
	// First those in the making: they are undone, or they are containers like the others when they have left.
	if err := sb.creations.shut(ctx, sb.notReady()); err != nil {
		return fmt.Errorf("stop sandbox %s: a container is being made: %w", sb.record.ID, err)
	}
	if err := r.killContainers(ctx, sb); err != nil {
		return err
	}
	failpoint.Here(failpoint.SandboxKilled)
	// The plugins see the sandbox with its containers stopped and everything else still there.
	release := r.cfg.NRI.Block()
	defer release()
	if err := r.cfg.NRI.StopPodSandbox(ctx, r.nriPod(sb)); err != nil {
		r.log.Warn("NRI plugin failed on the stop of a sandbox, ignoring", "sandbox", sb.record.ID, "err", err)
	}
	if err := r.teardown(ctx, sb); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", sb.record.ID, err)
	}
	failpoint.Here(failpoint.SandboxDismantled)
	if err := sb.note(func(f *sandboxFacts) { f.TornDown = true }); err != nil {
		r.unrecorded("end of a sandbox", sb.record.ID, err)
	}
	r.announce(EventStopped, sb.record.ID, "", time.Now())
	return nil
}

// killContainers kills the containers of the sandbox, all at once.
func (r *Runtime) killContainers(ctx context.Context, sb *sandbox) error {
	members := r.index.containersOf(sb.record.ID)
	failed := make([]error, len(members))
	var wg sync.WaitGroup
	for i, c := range members {
		wg.Go(func() { failed[i] = r.kill(ctx, c) })
	}
	wg.Wait()
	return errors.Join(failed...)
}

// RemoveSandbox stops the sandbox, removes its containers and forgets it. It is idempotent, and nil for a sandbox that
// does not exist.
func (r *Runtime) RemoveSandbox(ctx context.Context, id string) error {
	sb, err := r.index.findSandbox(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	return joinErr(ctx, r, "remove "+sb.record.ID, func() error {
		ctx, cancel := r.detached(teardownLimit)
		defer cancel()
		if err := sb.op.lock(ctx); err != nil {
			return err
		}
		defer sb.op.unlock()
		return r.removeSandbox(ctx, sb)
	})
}

// removeSandbox needs sb.op.
func (r *Runtime) removeSandbox(ctx context.Context, sb *sandbox) error {
	if r.index.sandbox(sb.record.ID) == nil {
		return nil // another call was faster
	}
	if err := r.stopSandbox(ctx, sb); err != nil {
		return err
	}
	if err := sb.note(func(f *sandboxFacts) { f.Removing = true }); err != nil {
		r.unrecorded("removal of a sandbox", sb.record.ID, err)
	}
	failpoint.Here(failpoint.SandboxRemoving)
	for _, c := range r.index.containersOf(sb.record.ID) {
		if err := r.RemoveContainer(ctx, c.record.ID); err != nil {
			return err
		}
	}
	failpoint.Here(failpoint.SandboxEmptied)
	release := r.cfg.NRI.Block()
	defer release()
	if err := r.cfg.NRI.RemovePodSandbox(ctx, r.nriPod(sb)); err != nil {
		r.log.Warn("NRI plugin failed on the removal of a sandbox, ignoring", "sandbox", sb.record.ID, "err", err)
	}
	if err := r.eraseSandbox(sb); err != nil {
		return err
	}
	failpoint.Here(failpoint.SandboxErased)
	r.index.dropSandbox(sb)
	r.announce(EventDeleted, sb.record.ID, "", time.Now())
	return nil
}

func ignoreNotFound(err error) error {
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	return err
}

func hostNetwork(cfg *cri.PodSandboxConfig) bool {
	return namespaces(cfg).GetNetwork() == cri.NamespaceMode_NODE
}

func hostIPC(cfg *cri.PodSandboxConfig) bool {
	return namespaces(cfg).GetIpc() == cri.NamespaceMode_NODE
}

func sharesPID(cfg *cri.PodSandboxConfig) bool {
	return namespaces(cfg).GetPid() == cri.NamespaceMode_POD
}

// namespaces may be nil; its getters then say POD for each of them, which is the CRI's default. (The kubelet always asks
// for a PID namespace per container.)
func namespaces(cfg *cri.PodSandboxConfig) *cri.NamespaceOption {
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
}
