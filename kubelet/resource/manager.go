package resource

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	helper "k8s.io/component-helpers/resource"

	"github.com/berth-node/berth/cgroups"
)

// A Manager makes the cgroups of pods, of their classes and of all of them, and keeps their limits. The cgroups of
// containers in them are the runtime's. Its methods are safe for concurrent use, but for those about one pod, which come
// one after the other.
type Manager struct {
	host *cgroups.Host
	tree Tree
	node *Node
	// whole is what all pods together may use.
	whole v1.ResourceList
	log   *slog.Logger

	mu     sync.Mutex // also guards what is made and removed above the pods
	pods   map[types.UID]share
	shares uint64 // of the class Burstable, as written last; 0 if they are to be written
	// limited says that the cgroup of all pods has the limits of whole: one from before this daemon may have others.
	limited bool
}

// share is what a pod counts for in its class.
type share struct {
	class    v1.PodQOSClass
	milliCPU int64
}

// NewManager returns the manager of the cgroups below root, a path of names. whole is what all pods together may use: the
// node's capacity without what is reserved.
func NewManager(host *cgroups.Host, root string, node *Node, whole v1.ResourceList, log *slog.Logger) *Manager {
	return &Manager{
		host: host, tree: Tree{Root: root, Driver: host.Driver}, node: node, whole: whole, log: log,
		pods: map[types.UID]share{},
	}
}

// Parent is the pod's cgroup as the runtime is told it.
func (m *Manager) Parent(pod *v1.Pod) string { return m.tree.Pod(pod.UID, Class(pod)) }

// Adopt takes up pods that have their cgroups, after a restart.
func (m *Manager) Adopt(pods ...*v1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pod := range pods {
		m.pods[pod.UID] = shareOf(pod)
	}
}

func shareOf(pod *v1.Pod) share {
	requests := helper.PodRequests(pod, helper.PodResourcesOptions{})
	return share{Class(pod), requests.Cpu().MilliValue()}
}

// EnsurePod makes the pod's cgroup with all limits but that of CPU time: what is done to start the pod's containers would
// be held up by it. [Manager.SetPod] sets it when they run. A cgroup that is there gets the same.
func (m *Manager) EnsurePod(ctx context.Context, pod *v1.Pod) error {
	if err := m.ensureClass(ctx, pod); err != nil {
		return err
	}
	group, err := m.group(pod)
	if err != nil {
		return err
	}
	if err := group.Make(ctx); err != nil {
		return err
	}
	limits := m.node.Pod(pod)
	limits.CPU.Quota, limits.CPU.Period = nil, nil
	return group.Set(ctx, limits)
}

// SetPod sets all limits of a pod whose containers run.
func (m *Manager) SetPod(ctx context.Context, pod *v1.Pod) error {
	group, err := m.group(pod)
	if err != nil {
		return err
	}
	if err := group.Set(ctx, m.node.Pod(pod)); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods[pod.UID] = shareOf(pod)
	return m.setBurstable(ctx)
}

func (m *Manager) group(pod *v1.Pod) (*cgroups.Group, error) { return m.host.OpenParent(m.Parent(pod)) }

// Stats are the numbers of the pod's cgroup.
func (m *Manager) Stats(pod *v1.Pod) (*cgroups.Stats, error) {
	group, err := m.group(pod)
	if err != nil {
		return nil, err
	}
	return group.Stats()
}

// ensureClass makes the cgroup of all pods and that of the pod's class, and counts the pod in.
func (m *Manager) ensureClass(ctx context.Context, pod *v1.Pod) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods[pod.UID] = shareOf(pod)
	if err := m.ensureNode(ctx); err != nil {
		return err
	}
	switch class := Class(pod); class {
	case v1.PodQOSBestEffort:
		return m.ensure(ctx, m.tree.Class(class), &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: new(uint64(MinShares))}})
	case v1.PodQOSBurstable:
		if err := m.ensure(ctx, m.tree.Class(class), nil); err != nil {
			return err
		}
		return m.setBurstable(ctx)
	}
	return nil
}

// ensureNode makes the cgroup of all pods. One that is there gets its limits once; a limit below what is in use, which would
// have the kernel kill, waits for the next pod.
func (m *Manager) ensureNode(ctx context.Context) error {
	group, err := m.host.OpenParent(m.tree.Node())
	if err != nil {
		return err
	}
	if !group.Exists() {
		m.limited = true
		return m.ensure(ctx, m.tree.Node(), m.wholeLimits())
	}
	if m.limited {
		return nil
	}
	limits := m.wholeLimits()
	stats, err := group.Stats()
	if err == nil && limits.Memory != nil && usageOf(stats) >= uint64(*limits.Memory.Limit) {
		m.log.Warn("all pods together use more memory than they may: their limit stays as it is", "cgroup", m.tree.Node(), "used", usageOf(stats), "limit", *limits.Memory.Limit)
		return nil
	}
	if err == nil {
		err = group.Set(ctx, limits)
	}
	if err != nil {
		m.log.Warn("limits of all pods", "cgroup", m.tree.Node(), "err", err)
		return nil
	}
	m.limited = true
	return nil
}

// ensure makes a cgroup above those of pods, if it is not there. Limits that cannot be set now, since more is in use, are no
// reason to keep pods from running: they are set with the next cgroup that is made.
func (m *Manager) ensure(ctx context.Context, path string, limits *specs.LinuxResources) error {
	group, err := m.host.OpenParent(path)
	if err != nil || group.Exists() {
		return err
	}
	if err := group.Make(ctx); err != nil {
		return err
	}
	if path == m.tree.Class(v1.PodQOSBurstable) {
		m.shares = 0
	}
	if err := group.Set(ctx, limits); err != nil {
		m.log.Warn("limits of all pods", "cgroup", path, "err", err)
	}
	return nil
}

// wholeLimits are those of all pods together.
func (m *Manager) wholeLimits() *specs.LinuxResources {
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: new(Shares(m.whole.Cpu().MilliValue()))}}
	if memory := m.whole.Memory().Value(); memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &memory}
	}
	return r
}

// setBurstable gives the class Burstable as many shares as its pods request, so that they have what they request beside the
// Guaranteed ones.
func (m *Manager) setBurstable(ctx context.Context) error {
	var sum int64
	for _, s := range m.pods {
		if s.class == v1.PodQOSBurstable {
			sum += s.milliCPU
		}
	}
	shares := Shares(sum)
	if shares == m.shares {
		return nil
	}
	group, err := m.host.OpenParent(m.tree.Class(v1.PodQOSBurstable))
	if err != nil || !group.Exists() {
		return err
	}
	if err := group.Set(ctx, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}); err != nil {
		return err
	}
	m.shares = shares
	return nil
}

// RemovePod ends what still runs in a pod's cgroup and removes it, and those of its class and of all pods with the last pod.
func (m *Manager) RemovePod(ctx context.Context, uid types.UID) error {
	m.mu.Lock()
	known, ok := m.pods[uid]
	m.mu.Unlock()
	for _, class := range classes {
		group, err := m.host.OpenParent(m.tree.Pod(uid, class))
		if err != nil {
			return err
		}
		if ok && class == known.class || group.Exists() { // a slice may have a unit and no cgroup
			if err := group.Remove(ctx); err != nil {
				return err
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, uid)
	return errors.Join(m.setBurstable(ctx), m.removeUnused(ctx))
}

var classes = []v1.PodQOSClass{v1.PodQOSGuaranteed, v1.PodQOSBurstable, v1.PodQOSBestEffort}

// removeUnused removes what is above pods where there are none any more.
func (m *Manager) removeUnused(ctx context.Context) error {
	used := map[v1.PodQOSClass]bool{}
	for _, s := range m.pods {
		used[s.class] = true
	}
	var failed []error
	for _, class := range classes[1:] {
		if !used[class] {
			failed = append(failed, m.host.RemoveParentIfEmpty(ctx, m.tree.Class(class)))
		}
	}
	if len(used) == 0 {
		failed = append(failed, m.host.RemoveParentIfEmpty(ctx, m.tree.Node()))
	}
	return errors.Join(failed...)
}

// Pods are those that have a cgroup, whoever made it.
func (m *Manager) Pods() ([]types.UID, error) {
	found := map[types.UID]bool{}
	for _, class := range classes {
		group, err := m.host.OpenParent(m.tree.Class(class))
		if err != nil {
			return nil, err
		}
		for _, dir := range group.Paths() {
			entries, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("pods in %s: %w", filepath.Base(dir), err)
			}
			for _, e := range entries {
				if uid, ok := m.tree.uidOf(e.Name()); ok && e.IsDir() {
					found[uid] = true
				}
			}
		}
	}
	uids := make([]types.UID, 0, len(found))
	for uid := range maps.Keys(found) {
		uids = append(uids, uid)
	}
	return uids, nil
}
