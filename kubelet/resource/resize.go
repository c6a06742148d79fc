package resource

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
)

// A Part is a container that runs, as a resize finds it.
type Part struct {
	ID string
	// Container is as the pod has it now.
	Container *v1.Container
	// Has is what the runtime was told of it last.
	Has *cri.LinuxContainerResources
	// CgroupsPath is its cgroup, as the runtime has it.
	CgroupsPath string

	usage uint64 // of memory, in bytes
}

// A Resizer changes what is not the pod's cgroup.
type Resizer struct {
	// Pod is told what the pod is about to have, before its cgroup changes; its error is the end of the resize.
	Pod func(ctx context.Context) error
	// Container changes limits of a container. What is zero stays.
	Container func(ctx context.Context, id string, to *cri.LinuxContainerResources) error
}

// Resize brings a pod that runs to what it says now: first memory, then CPU, each at the pod's cgroup before the containers
// where it grows and after them where it shrinks, so that what the containers may use is never more than what the pod may.
// What is in force is read, not remembered: called again after an error, or after the end of the daemon, it goes on. A
// memory limit that is to be less than what is in use is refused before anything has changed.
func (m *Manager) Resize(ctx context.Context, pod *v1.Pod, parts []Part, do Resizer) error {
	group, err := m.group(pod)
	if err != nil {
		return err
	}
	stats, err := group.Stats()
	if err != nil {
		return err
	}
	has := limitsOf(stats)
	m.measure(parts)
	if err := m.node.checkResize(has, usageOf(stats), pod, parts); err != nil {
		return err
	}
	steps := m.node.resizeSteps(has, pod, parts)
	if slices.ContainsFunc(steps, func(s resizeStep) bool { return s.pod != nil }) {
		if err := do.Pod(ctx); err != nil {
			return err
		}
	}
	for _, step := range steps {
		if step.pod != nil {
			err = group.Set(ctx, step.pod)
		} else {
			err = do.Container(ctx, step.id, step.to)
		}
		if err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods[pod.UID] = shareOf(pod)
	return m.setBurstable(ctx)
}

// Actual are the limits of the pod's cgroup that are in force; what is nil is not limited.
func (m *Manager) Actual(pod *v1.Pod) (*specs.LinuxResources, error) {
	stats, err := m.Stats(pod)
	if err != nil {
		return nil, err
	}
	return limitsOf(stats), nil
}

// limitsOf are the limits that the statistics of a cgroup tell of.
func limitsOf(s *cgroups.Stats) *specs.LinuxResources {
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}}
	if c := s.CPU; c != nil {
		r.CPU.Shares = &c.Shares
		if c.Quota > 0 && c.Period > 0 {
			r.CPU.Quota = new(int64(c.Quota / time.Microsecond))
			r.CPU.Period = new(uint64(c.Period / time.Microsecond))
		}
	}
	if mem := s.Memory; mem != nil && mem.Limit != cgroups.Unlimited {
		r.Memory.Limit = new(int64(mem.Limit))
	}
	return r
}

// measure enters how much memory the containers use. One that cannot be looked at any more uses none.
func (m *Manager) measure(parts []Part) {
	for i := range parts {
		p := &parts[i]
		if p.CgroupsPath == "" {
			continue
		}
		group, err := m.host.Open(p.CgroupsPath)
		if err != nil {
			continue
		}
		if stats, err := group.Stats(); err == nil {
			p.usage = usageOf(stats)
		}
	}
}

func usageOf(s *cgroups.Stats) uint64 {
	if s.Memory == nil {
		return 0
	}
	return s.Memory.Usage
}

// A resizeStep changes limits of a container, or a limit of the pod's.
type resizeStep struct {
	id  string
	to  *cri.LinuxContainerResources
	pod *specs.LinuxResources
}

func (n *Node) resizeSteps(from *specs.LinuxResources, pod *v1.Pod, parts []Part) []resizeStep {
	to := n.Pod(pod)
	memory := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(orUnlimited(to.Memory.Limit))}}
	quota := &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(orUnlimited(to.CPU.Quota)), Period: new(uint64(n.period()))}}
	shares := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: to.CPU.Shares}}

	memoryBy := compare(from.Memory.Limit, to.Memory.Limit)
	quotaBy := compare(perPeriod(from.CPU, n.period()), to.CPU.Quota)
	sharesBy := 0
	if from.CPU.Shares != nil {
		sharesBy = int(*to.CPU.Shares) - int(*from.CPU.Shares)
	}

	var steps []resizeStep
	change := func(when bool, r *specs.LinuxResources) {
		if when {
			steps = append(steps, resizeStep{pod: r})
		}
	}
	change(memoryBy > 0, memory)
	steps = append(steps, n.partSteps(pod, parts, memoryOf)...)
	change(memoryBy < 0, memory)
	// Limits grow before requests and shrink after them.
	change(quotaBy > 0, quota)
	change(sharesBy > 0, shares)
	steps = append(steps, n.partSteps(pod, parts, cpuOf)...)
	change(sharesBy < 0, shares)
	change(quotaBy < 0, quota)
	return steps
}

// partSteps are those of the containers for one resource: those that get less come first. of picks from what a container has
// and what it is to have the part about the resource, and says whether it grows; nil if nothing changes.
func (n *Node) partSteps(pod *v1.Pod, parts []Part, of func(has, to *cri.LinuxContainerResources) (*cri.LinuxContainerResources, bool)) []resizeStep {
	var less, more []resizeStep
	for _, p := range parts {
		change, grows := of(p.Has, n.Container(pod, p.Container))
		switch step := (resizeStep{id: p.ID, to: change}); {
		case change == nil:
		case grows:
			more = append(more, step)
		default:
			less = append(less, step)
		}
	}
	return append(less, more...)
}

func memoryOf(has, to *cri.LinuxContainerResources) (*cri.LinuxContainerResources, bool) {
	limit := to.GetMemoryLimitInBytes()
	if limit == 0 || limit == has.GetMemoryLimitInBytes() {
		return nil, false
	}
	change := &cri.LinuxContainerResources{MemoryLimitInBytes: limit, MemorySwapLimitInBytes: to.GetMemorySwapLimitInBytes()}
	return change, has.GetMemoryLimitInBytes() != 0 && limit > has.GetMemoryLimitInBytes()
}

func cpuOf(has, to *cri.LinuxContainerResources) (*cri.LinuxContainerResources, bool) {
	if to.GetCpuShares() == has.GetCpuShares() && to.GetCpuQuota() == has.GetCpuQuota() && to.GetCpuPeriod() == has.GetCpuPeriod() {
		return nil, false
	}
	change := &cri.LinuxContainerResources{CpuShares: to.GetCpuShares(), CpuQuota: to.GetCpuQuota(), CpuPeriod: to.GetCpuPeriod()}
	if to.GetCpuQuota() != has.GetCpuQuota() {
		return change, has.GetCpuQuota() != 0 && to.GetCpuQuota() > has.GetCpuQuota()
	}
	return change, to.GetCpuShares() > has.GetCpuShares()
}

func orUnlimited(limit *int64) int64 {
	if limit == nil {
		return -1
	}
	return *limit
}

// perPeriod is a quota as it would be with another period.
func perPeriod(c *specs.LinuxCPU, period int64) *int64 {
	if c.Quota == nil || c.Period == nil || *c.Period == 0 {
		return nil
	}
	return new(*c.Quota * period / int64(*c.Period))
}

// compare says whether a limit grows (> 0) or shrinks (< 0). None is more than any.
func compare(from, to *int64) int {
	value := func(limit *int64) int64 {
		if limit == nil || *limit < 0 {
			return math.MaxInt64
		}
		return *limit
	}
	switch a, b := value(from), value(to); {
	case a < b:
		return 1
	case a > b:
		return -1
	}
	return 0
}

// checkResize refuses memory limits below what is in use. The words are upstream's, and become the message of the condition
// PodResizeInProgress.
func (n *Node) checkResize(has *specs.LinuxResources, usage uint64, pod *v1.Pod, parts []Part) error {
	var failed []error
	if to := n.Pod(pod).Memory.Limit; to != nil && compare(has.Memory.Limit, to) < 0 && usage >= uint64(*to) {
		failed = append(failed, fmt.Errorf("attempting to set pod memory limit (%d) below current usage (%d)", *to, usage))
	}
	for _, p := range parts {
		limit, before := memoryLimit(pod, p.Container), p.Has.GetMemoryLimitInBytes()
		if limit > 0 && (before == 0 || limit < before) && p.usage >= uint64(limit) {
			failed = append(failed, fmt.Errorf("attempting to set container %q memory limit (%d) below current usage (%d)", p.Container.Name, limit, p.usage))
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return fmt.Errorf("cannot decrease memory limits: %w", utilerrors.NewAggregate(failed))
}

func memoryLimit(pod *v1.Pod, c *v1.Container) int64 {
	limits := Limits(pod, c)
	return limits.Memory().Value()
}

// Infeasible says why a resize cannot be made on this node, whatever room there is; empty if it can.
func (n *Node) Infeasible(old, pod *v1.Pod) string {
	was := map[string]*v1.Container{}
	eachContainer(old, func(c *v1.Container) { was[c.Name] = c })
	message := ""
	eachContainer(pod, func(c *v1.Container) {
		before := was[c.Name]
		if before == nil || c.Resources.Requests.Memory().Equal(*before.Resources.Requests.Memory()) || restartsFor(before, v1.ResourceMemory) {
			return
		}
		if n.maySwap(pod, c) || n.maySwap(old, before) {
			message = "In-place resize of containers with swap is not supported."
		}
	})
	return message
}

// NeedsRestart reports whether a container has to be restarted for new resources, by its policies for what differs.
func NeedsRestart(c *v1.Container, has, to v1.ResourceRequirements) bool {
	return slices.ContainsFunc([]v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory}, func(name v1.ResourceName) bool {
		differs := amount(name, has.Requests) != amount(name, to.Requests) || amount(name, has.Limits) != amount(name, to.Limits)
		return differs && restartsFor(c, name)
	})
}

func restartsFor(c *v1.Container, name v1.ResourceName) bool {
	return slices.ContainsFunc(c.ResizePolicy, func(p v1.ContainerResizePolicy) bool {
		return p.ResourceName == name && p.RestartPolicy == v1.RestartContainer
	})
}

// Grows reports whether a pod requests more CPU or memory than before.
func Grows(old, pod *v1.Pod) bool {
	return request(pod, v1.ResourceCPU) > request(old, v1.ResourceCPU) || request(pod, v1.ResourceMemory) > request(old, v1.ResourceMemory)
}

func eachContainer(pod *v1.Pod, do func(*v1.Container)) {
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			do(&list[i])
		}
	}
}
