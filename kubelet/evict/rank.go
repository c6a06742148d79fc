package evict

import (
	"cmp"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// FsUse is what something takes of a file system.
type FsUse struct{ Bytes, Inodes int64 }

func (f FsUse) plus(g FsUse) FsUse { return FsUse{f.Bytes + g.Bytes, f.Inodes + g.Inodes} }

// ContainerUse is what a container uses. Memory is its working set, in bytes.
type ContainerUse struct {
	Memory       int64
	Rootfs, Logs FsUse
}

// Use is what a pod uses.
type Use struct {
	Memory     int64 // working set, in bytes
	Processes  int64
	Containers map[string]ContainerUse
	Volumes    map[string]FsUse // those whose files are the pod's alone and on the node's disk, by name
	Other      FsUse            // its files beside volumes, logs and layers: /etc/hosts, termination messages
}

// disk is all that the pod keeps on the node's disk.
func (u Use) disk() FsUse {
	sum := u.Other
	for _, c := range u.Containers {
		sum = sum.plus(c.Rootfs).plus(c.Logs)
	}
	for _, v := range u.Volumes {
		sum = sum.plus(v)
	}
	return sum
}

func (u Use) of(what v1.ResourceName) int64 {
	switch what {
	case v1.ResourceMemory:
		return u.Memory
	case v1.ResourceEphemeralStorage:
		return u.disk().Bytes
	case resourceInodes:
		return u.disk().Inodes
	default:
		return u.Processes
	}
}

// order sorts pods so that the first is to go first: upstream's order. Who uses more than he asked for goes before who does not,
// then the lower priority, then who uses most above what he asked for. Pods without numbers go first. For processes, which nobody
// asks for, priority and number decide.
func order(pods []*v1.Pod, what v1.ResourceName, use func(*v1.Pod) (Use, bool)) {
	requests := func(pod *v1.Pod) int64 {
		if what != v1.ResourceMemory && what != v1.ResourceEphemeralStorage {
			return 0
		}
		q := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})[what]
		return q.Value()
	}
	slices.SortStableFunc(pods, func(a, b *v1.Pod) int {
		ua, foundA := use(a)
		ub, foundB := use(b)
		if what == resourcePIDs {
			return cmp.Or(cmp.Compare(priority(a), priority(b)), truth(!foundA, !foundB), cmp.Compare(ub.Processes, ua.Processes))
		}
		if !foundA || !foundB {
			return cmp.Or(truth(!foundA, !foundB), cmp.Compare(priority(a), priority(b)))
		}
		overA, overB := ua.of(what)-requests(a), ub.of(what)-requests(b)
		return cmp.Or(truth(overA > 0, overB > 0), cmp.Compare(priority(a), priority(b)), cmp.Compare(overB, overA))
	})
}

// truth puts what is true first.
func truth(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func priority(pod *v1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// systemCritical is the least priority of pods that are never evicted (upstream's SystemCriticalPriority).
const systemCritical = 2_000_000_000

// Messages are upstream's.
const (
	nodeLow            = "The node was low on resource: %v. "
	thresholdMet       = "Threshold quantity: %v, available: %v. "
	nodeCondition      = "The node had condition: %v. "
	containerUses      = "Container %s was using %s, request is %s, has larger consumption of %v. "
	podUses            = "Pod %s was using %s, request is %s, has larger consumption of %v. "
	containerOverLimit = "Container %s exceeded its local ephemeral storage limit %q. "
	podOverLimit       = "Pod ephemeral local storage usage exceeds the total limit of containers %s. "
	emptyDirOverLimit  = "Usage of EmptyDir volume %q exceeds the limit %q. "
)

// say explains the eviction of a pod for a threshold.
func say(t Threshold, o Observation, pod *v1.Pod, use Use, found bool) string {
	what := about[t.Signal].resource
	format := resource.BinarySI
	if what == resourceInodes || what == resourcePIDs {
		format = resource.DecimalSI
	}
	quantity := func(n int64) string { return resource.NewQuantity(n, format).String() }
	text := fmt.Sprintf(nodeLow, what) + fmt.Sprintf(thresholdMet, quantity(t.Least.of(o.Capacity)), quantity(o.Available))
	if !found {
		return text
	}
	if r := pod.Spec.Resources; r != nil && what == v1.ResourceMemory {
		if request, ok := r.Requests[what]; ok {
			text += fmt.Sprintf(podUses, pod.Name, quantity(use.Memory), request.String(), what)
		}
	}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		u, ok := use.Containers[c.Name]
		var n int64
		switch {
		case !ok:
			continue
		case what == v1.ResourceMemory:
			n = u.Memory
		case what == v1.ResourceEphemeralStorage:
			n = u.Rootfs.plus(u.Logs).Bytes
		}
		if request := c.Resources.Requests[what]; n > request.Value() {
			text += fmt.Sprintf(containerUses, c.Name, quantity(n), request.String(), what)
		}
	}
	return text
}

// overLimit says which limit of local storage a pod has exceeded, "" if none.
func overLimit(pod *v1.Pod, use Use) string {
	for _, v := range pod.Spec.Volumes {
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
			continue
		}
		if u, ok := use.Volumes[v.Name]; ok && u.Bytes > v.EmptyDir.SizeLimit.Value() {
			return fmt.Sprintf(emptyDirOverLimit, v.Name, v.EmptyDir.SizeLimit.String())
		}
	}
	if limit, ok := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})[v1.ResourceEphemeralStorage]; ok && use.disk().Bytes > limit.Value() {
		return fmt.Sprintf(podOverLimit, limit.String())
	}
	for _, c := range pod.Spec.Containers {
		limit := c.Resources.Limits[v1.ResourceEphemeralStorage]
		if u, ok := use.Containers[c.Name]; ok && !limit.IsZero() && u.Rootfs.plus(u.Logs).Bytes > limit.Value() {
			return fmt.Sprintf(containerOverLimit, c.Name, limit.String())
		}
	}
	return ""
}
