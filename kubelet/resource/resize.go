package resource

import (
	"context"
	"fmt"
	"math"

	"github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
)

// Resize brings the cgroup of a pod that runs as old to what the pod says now. For memory, and then for CPU, set is called to
// change the containers: after the pod's cgroup where that grows, before it where it shrinks, so that what the containers
// may use is never more than what the pod may. An error ends it; called again with the same pods, it goes on.
func (m *Manager) Resize(ctx context.Context, old, pod *v1.Pod, set func(ctx context.Context, name v1.ResourceName) error) error {
	group, err := m.group(pod)
	if err != nil {
		return err
	}
	for _, step := range m.node.resizeSteps(old, pod) {
		if step.containers != "" {
			err = set(ctx, step.containers)
		} else {
			err = group.Set(ctx, step.pod)
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

// A resizeStep changes the containers' limits of a resource, or a limit of the pod's.
type resizeStep struct {
	containers v1.ResourceName
	pod        *specs.LinuxResources
}

func (n *Node) resizeSteps(old, pod *v1.Pod) []resizeStep {
	from, to := n.Pod(old), n.Pod(pod)
	memory := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(orUnlimited(to.Memory.Limit))}}
	quota := &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(orUnlimited(to.CPU.Quota)), Period: new(uint64(n.period()))}}
	shares := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: to.CPU.Shares}}

	memoryBy := compare(from.Memory.Limit, to.Memory.Limit)
	quotaBy := compare(from.CPU.Quota, to.CPU.Quota)
	sharesBy := int(*to.CPU.Shares) - int(*from.CPU.Shares)

	var steps []resizeStep
	change := func(when bool, r *specs.LinuxResources) {
		if when {
			steps = append(steps, resizeStep{pod: r})
		}
	}
	change(memoryBy > 0, memory)
	steps = append(steps, resizeStep{containers: v1.ResourceMemory})
	change(memoryBy < 0, memory)
	// Limits grow before requests and shrink after them.
	change(quotaBy > 0, quota)
	change(sharesBy > 0, shares)
	steps = append(steps, resizeStep{containers: v1.ResourceCPU})
	change(sharesBy < 0, shares)
	change(quotaBy < 0, quota)
	return steps
}

func orUnlimited(limit *int64) int64 {
	if limit == nil {
		return -1
	}
	return *limit
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

// CheckResize refuses memory limits below what is in use, by the usage of the pod and of its containers by name. The words
// are those that upstream gives as the message of the condition PodResizeInProgress.
func (n *Node) CheckResize(old, pod *v1.Pod, podUsage uint64, usage map[string]uint64) error {
	var failed []error
	if to := n.Pod(pod).Memory.Limit; to != nil && compare(n.Pod(old).Memory.Limit, to) < 0 && podUsage >= uint64(*to) {
		failed = append(failed, fmt.Errorf("attempting to set pod memory limit (%d) below current usage (%d)", *to, podUsage))
	}
	was := map[string]int64{}
	eachContainer(old, func(c *v1.Container) { was[c.Name] = memoryLimit(old, c) })
	eachContainer(pod, func(c *v1.Container) {
		limit, before := memoryLimit(pod, c), was[c.Name]
		if used, running := usage[c.Name]; running && limit > 0 && (before == 0 || limit < before) && used >= uint64(limit) {
			failed = append(failed, fmt.Errorf("attempting to set container %q memory limit (%d) below current usage (%d)", c.Name, limit, used))
		}
	})
	if len(failed) == 0 {
		return nil
	}
	return fmt.Errorf("cannot decrease memory limits: %w", utilerrors.NewAggregate(failed))
}

func memoryLimit(pod *v1.Pod, c *v1.Container) int64 {
	limits := Limits(pod, c)
	return limits.Memory().Value()
}

func eachContainer(pod *v1.Pod, do func(*v1.Container)) {
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			do(&list[i])
		}
	}
}
