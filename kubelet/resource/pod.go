package resource

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
	helper "k8s.io/component-helpers/resource"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
)

// Pod returns the limits of the pod's own cgroup. What is nil in them is not limited there: memory and CPU time of a pod
// are only if every container's are, or the pod itself says so.
func (n *Node) Pod(pod *v1.Pod) *specs.LinuxResources {
	requests := helper.PodRequests(pod, helper.PodResourcesOptions{})
	limits, cpuLimited, memoryLimited := podLimits(pod)
	r := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: new(uint64(MinShares))},
		Memory:         &specs.LinuxMemory{},
		HugepageLimits: n.podHugePages(requests),
	}
	if n.PodPids > 0 {
		r.Pids = &specs.LinuxPids{Limit: &n.PodPids}
	}
	class := Class(pod)
	if class == v1.PodQOSBestEffort {
		return r
	}
	guaranteed := class == v1.PodQOSGuaranteed
	*r.CPU.Shares = Shares(requests.Cpu().MilliValue())
	if guaranteed || cpuLimited {
		r.CPU.Quota, r.CPU.Period = n.podQuota(limits.Cpu().MilliValue())
	}
	if memory := limits.Memory().Value(); guaranteed || memoryLimited {
		r.Memory.Limit = &memory
	}
	return r
}

func (n *Node) podQuota(milliCPU int64) (quota *int64, period *uint64) {
	p := n.period()
	q := Quota(milliCPU, p)
	if n.NoCPUQuota {
		q = -1
	}
	return &q, new(uint64(p))
}

// podLimits sums up the limits, and says of CPU and memory whether they hold for all of the pod.
func podLimits(pod *v1.Pod) (limits v1.ResourceList, cpu, memory bool) {
	cpu, memory = true, true
	limits = helper.PodLimits(pod, helper.PodResourcesOptions{
		ContainerFn: func(of v1.ResourceList, _ helper.ContainerType) {
			cpu = cpu && !of.Cpu().IsZero()
			memory = memory && !of.Memory().IsZero()
		},
	})
	if helper.IsPodLevelResourcesSet(pod) {
		cpu = cpu || !pod.Spec.Resources.Limits.Cpu().IsZero()
		memory = memory || !pod.Spec.Resources.Limits.Memory().IsZero()
	}
	return limits, cpu, memory
}

// podHugePages limits every size that the node has to what the pod requests of it.
func (n *Node) podHugePages(requests v1.ResourceList) []specs.LinuxHugepageLimit {
	sums := map[string]uint64{}
	for name, quantity := range requests {
		if !v1helper.IsHugePageResourceName(name) {
			continue
		}
		if size, ok := hugePageSize(name); ok {
			sums[size] += uint64(quantity.Value())
		}
	}
	var out []specs.LinuxHugepageLimit
	for _, size := range slices.Sorted(slices.Values(n.HugePageSizes)) {
		out = append(out, specs.LinuxHugepageLimit{Pagesize: size, Limit: sums[size]})
	}
	return out
}
