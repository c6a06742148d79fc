package resource

import (
	"strconv"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const swapMax = "memory.swap.max"

// limitSwap keeps a container from swapping, or to its part of the swap.
func (n *Node) limitSwap(r *cri.LinuxContainerResources, pod *v1.Pod, c *v1.Container) {
	if !n.SwapAccounting {
		return
	}
	if !n.Unified {
		// Memory and swap together: no swap above the limit. Without a limit of memory there is none of both.
		r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
		return
	}
	if r.Unified == nil {
		r.Unified = map[string]string{}
	}
	r.Unified[swapMax] = strconv.FormatInt(n.swapOf(pod, c), 10)
}

// swapOf is the swap that a container may use: as large a part of all as its request is of the memory, for containers of
// Burstable pods that request some memory and may use more.
func (n *Node) swapOf(pod *v1.Pod, c *v1.Container) int64 {
	request := c.Resources.Requests.Memory()
	if !n.maySwap(pod, c) || n.MemoryCapacity <= 0 || request.Value() > n.MemoryCapacity {
		return 0
	}
	return int64(float64(request.Value()) / float64(n.MemoryCapacity) * float64(n.SwapCapacity))
}

func (n *Node) maySwap(pod *v1.Pod, c *v1.Container) bool {
	request, limit := c.Resources.Requests.Memory(), c.Resources.Limits.Memory()
	return n.LimitedSwap && n.SwapAccounting && n.Unified && !Critical(pod) && Class(pod) == v1.PodQOSBurstable &&
		!(request.IsZero() && limit.IsZero()) && request.Cmp(*limit) != 0
}
