package resource

import (
	"math"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	helper "k8s.io/component-helpers/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"
)

// What the kernel allows and Kubernetes has defined (kernel/sched/sched.h, kernel/sched/core.c).
const (
	MinShares = 2
	MaxShares = 262144
	// MinQuota is the least CPU time per period that the kernel takes, in microseconds.
	MinQuota = 1000

	sharesPerCPU  = 1024
	milliCPUs     = 1000
	defaultPeriod = 100 * time.Millisecond
)

// Node is what the formulas take of the node.
type Node struct {
	// MemoryCapacity is the machine's memory, SwapCapacity its swap, in bytes.
	MemoryCapacity, SwapCapacity int64
	// Unified says that the node has cgroup v2, SwapAccounting that limits of swap can be set.
	Unified, SwapAccounting bool
	// HugePageSizes are the sizes of huge pages as the kernel names them: "2MB".
	HugePageSizes []string

	// NoCPUQuota leaves CPU limits unenforced.
	NoCPUQuota bool
	// CPUPeriod is the time in which a CPU limit is counted; zero means 100 ms.
	CPUPeriod time.Duration
	// LimitedSwap gives containers of Burstable pods a part of the swap; else no pod swaps.
	LimitedSwap bool
	// SingleProcessOOMKill leaves it to the kernel to kill one process of a container that is out of memory. Without it, on
	// cgroup v2, the container goes as a whole.
	SingleProcessOOMKill bool
	// PodPids limits the processes of a pod; 0 or less does not.
	PodPids int64
}

// Class is the pod's class of service.
func Class(pod *v1.Pod) v1.PodQOSClass { return qos.GetPodQOS(pod) }

// Shares are the CPU shares of a request.
func Shares(milliCPU int64) uint64 {
	return uint64(min(max(milliCPU*sharesPerCPU/milliCPUs, MinShares), MaxShares))
}

// MilliCPUOfShares is the request that [Shares] were made of. Shares are coarser than requests, so the two differ by up to
// one thousandth of a CPU: no reason to write them again.
func MilliCPUOfShares(shares int64) int64 {
	if shares < MinShares {
		return 0
	}
	return int64(math.Ceil(float64(shares*milliCPUs) / sharesPerCPU))
}

// Quota is the CPU time of a limit in a period, both in microseconds; 0 for no limit.
func Quota(milliCPU, period int64) int64 {
	if milliCPU == 0 {
		return 0
	}
	return max(milliCPU*period/milliCPUs, MinQuota)
}

// MilliCPUOfQuota is the limit that a [Quota] was made of; 0 for none.
func MilliCPUOfQuota(quota, period int64) int64 {
	if quota <= 0 || period <= 0 {
		return 0
	}
	return quota * milliCPUs / period
}

func (n *Node) period() int64 {
	if n.CPUPeriod == 0 {
		return defaultPeriod.Microseconds()
	}
	return n.CPUPeriod.Microseconds()
}

// Container returns what the runtime is told of a container's resources.
func (n *Node) Container(pod *v1.Pod, c *v1.Container) *cri.LinuxContainerResources {
	var request *resource.Quantity
	if q, ok := c.Resources.Requests[v1.ResourceCPU]; ok {
		request = &q
	}
	limits := Limits(pod, c)
	r := n.linux(request, limits.Cpu(), limits.Memory())
	r.OomScoreAdj = int64(OOMScoreAdj(pod, c, n.MemoryCapacity))
	r.HugepageLimits = n.hugePages(pod, c)
	n.limitSwap(r, pod, c)
	return r
}

// Limits are the container's own limits of CPU and memory, and where it has none the pod's.
func Limits(pod *v1.Pod, c *v1.Container) v1.ResourceList {
	limits := c.Resources.Limits.DeepCopy()
	if !helper.IsPodLevelResourcesSet(pod) {
		return limits
	}
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		own, whole := limits[name], pod.Spec.Resources.Limits[name]
		if own.IsZero() && !whole.IsZero() {
			if limits == nil {
				limits = v1.ResourceList{}
			}
			limits[name] = whole.DeepCopy()
		}
	}
	return limits
}

// Sandbox returns what the runtime is told of a pod's resources: those of all its containers, and its overhead.
func (n *Node) Sandbox(pod *v1.Pod) (all, overhead *cri.LinuxContainerResources) {
	options := helper.PodResourcesOptions{ExcludeOverhead: true}
	requests, limits := helper.PodRequests(pod, options), helper.PodLimits(pod, options)
	var request *resource.Quantity
	if q, ok := requests[v1.ResourceCPU]; ok {
		request = &q
	}
	overhead = &cri.LinuxContainerResources{}
	if o := pod.Spec.Overhead; o != nil {
		overhead = n.linux(o.Cpu(), o.Cpu(), o.Memory())
	}
	return n.linux(request, limits.Cpu(), limits.Memory()), overhead
}

// linux turns quantities into what cgroups take. Without a request the limit stands for it.
func (n *Node) linux(request, limit, memory *resource.Quantity) *cri.LinuxContainerResources {
	if request == nil {
		request = limit
	}
	r := &cri.LinuxContainerResources{
		CpuShares:          int64(Shares(request.MilliValue())),
		MemoryLimitInBytes: memory.Value(),
	}
	if !n.NoCPUQuota {
		r.CpuPeriod = n.period()
		r.CpuQuota = Quota(limit.MilliValue(), r.CpuPeriod)
	}
	if n.Unified && !n.SingleProcessOOMKill {
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return r
}

// hugePages are the limits of all sizes that the node has, 0 where neither the container nor the pod names one: without
// that, what is not requested could be used.
func (n *Node) hugePages(pod *v1.Pod, c *v1.Container) []*cri.HugepageLimit {
	limits := map[string]uint64{}
	note := func(list v1.ResourceList) {
		for name, quantity := range list {
			if size, ok := hugePageSize(name); ok {
				limits[size] = uint64(quantity.Value())
			}
		}
	}
	if pod.Spec.Resources != nil {
		note(pod.Spec.Resources.Limits)
	}
	note(c.Resources.Limits)
	var out []*cri.HugepageLimit
	for _, size := range n.HugePageSizes {
		out = append(out, &cri.HugepageLimit{PageSize: size, Limit: limits[size]})
	}
	return out
}

// hugePageSize is the kernel's name of the size in hugepages-<size>.
func hugePageSize(name v1.ResourceName) (string, bool) {
	if !v1helper.IsHugePageResourceName(name) {
		return "", false
	}
	size, err := v1helper.HugePageSizeFromResourceName(name)
	if err != nil {
		return "", false
	}
	unit, err := v1helper.HugePageUnitSizeFromByteSize(size.Value())
	return unit, err == nil
}

// OOMScoreAdj is how gladly the kernel kills the container's processes when memory runs out.
func OOMScoreAdj(pod *v1.Pod, c *v1.Container, capacity int64) int {
	const guaranteed, bestEffort = -997, 1000
	if nodeCritical(pod) {
		return guaranteed
	}
	switch Class(pod) {
	case v1.PodQOSGuaranteed:
		return guaranteed
	case v1.PodQOSBestEffort:
		return bestEffort
	}
	if capacity <= 0 {
		return bestEffort - 1
	}
	spare := spareMemory(pod)
	score := 1000 - 1000*(c.Resources.Requests.Memory().Value()+spare)/capacity
	if isSidecar(pod, c) {
		// A sidecar is not killed before those that it serves.
		score = min(score, 1000-1000*(leastMemory(pod)+spare)/capacity)
	}
	// Above what is guaranteed, below what has asked for nothing.
	return int(min(max(score, 1000+guaranteed), bestEffort-1))
}

// spareMemory is each container's part of what the pod requests and no container does.
func spareMemory(pod *v1.Pod) int64 {
	if !helper.IsPodLevelRequestsSet(pod) || pod.Spec.Resources.Requests.Memory().IsZero() {
		return 0
	}
	containers := helper.AggregateContainerRequests(pod, helper.PodResourcesOptions{})
	spare := pod.Spec.Resources.Requests.Memory().Value() - containers.Memory().Value()
	return spare / int64(len(pod.Spec.Containers)+len(pod.Spec.InitContainers))
}

func isSidecar(pod *v1.Pod, c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways &&
		slices.ContainsFunc(pod.Spec.InitContainers, func(i v1.Container) bool { return i.Name == c.Name })
}

// leastMemory is the least memory request of the pod's containers proper.
func leastMemory(pod *v1.Pod) int64 {
	least := pod.Spec.Containers[0].Resources.Requests.Memory().Value()
	for i := range pod.Spec.Containers {
		least = min(least, pod.Spec.Containers[i].Resources.Requests.Memory().Value())
	}
	return least
}

// The priorities of the classes that every Kubernetes has, and the least of those that the system cannot be without.
const (
	nodeCriticalClass    = "system-node-critical"
	clusterCriticalClass = "system-cluster-critical"

	SystemCritical   = 2_000_000_000
	nodeCriticalness = SystemCritical + 1000
)

// Priority of a pod: what it says, or what its class says where that is one of the system's; 0 for one that says nothing.
func Priority(pod *v1.Pod) int32 {
	if p := pod.Spec.Priority; p != nil {
		return *p
	}
	switch pod.Spec.PriorityClassName {
	case nodeCriticalClass:
		return nodeCriticalness
	case clusterCriticalClass:
		return SystemCritical
	}
	return 0
}

// Critical says that the pod's priority is one of the system's own.
func Critical(pod *v1.Pod) bool { return Priority(pod) >= SystemCritical }

func nodeCritical(pod *v1.Pod) bool {
	return Critical(pod) && pod.Spec.PriorityClassName == nodeCriticalClass
}
