package resource

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	helper "k8s.io/component-helpers/resource"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
)

// An Obstacle is why a pod does not fit on the node. The first of several is what its status tells.
type Obstacle struct {
	// Reason is upstream's word for the pod's status, OutOfcpu for one.
	Reason string
	// Message is the obstacle in words, as upstream has them, without what is the same for all: "Pod was rejected: ".
	Message string
	// Resource is what there is too little of, and Missing how much, CPU in thousandths; "" for obstacles of another kind.
	Resource v1.ResourceName
	Missing  int64
}

// Obstacles says why a pod does not fit beside others, which are those that run or are about to; none if it does.
func Obstacles(pod *v1.Pod, others []*v1.Pod, allocatable v1.ResourceList) []Obstacle {
	out := shortages(pod, others, allocatable)
	if slices.ContainsFunc(others, func(o *v1.Pod) bool { return portsClash(pod, o) }) {
		out = append(out, Obstacle{
			Reason:  "NodePorts",
			Message: "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
		})
	}
	return out
}

func shortages(pod *v1.Pod, others []*v1.Pod, allocatable v1.ResourceList) []Obstacle {
	var out []Obstacle
	short := func(name v1.ResourceName, requested, used, capacity int64) {
		if requested > capacity-used {
			out = append(out, Obstacle{
				Reason: "OutOf" + string(name),
				Message: fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d",
					name, requested, used, capacity),
				Resource: name, Missing: requested - (capacity - used),
			})
		}
	}
	if pods, limited := allocatable[v1.ResourcePods]; limited {
		short(v1.ResourcePods, 1, int64(len(others)), pods.Value())
	}
	for _, name := range requestedNames(pod) {
		capacity, known := allocatable[name]
		if !known && v1helper.IsExtendedResourceName(name) {
			continue // that there is none here, whoever chose the node knew
		}
		requested := request(pod, name)
		if requested == 0 {
			continue
		}
		var used int64
		for _, o := range others {
			used += occupied(o, name)
		}
		short(name, requested, used, amount(name, v1.ResourceList{name: capacity}))
	}
	return out
}

// requestedNames are the resources that a pod requests, CPU, memory and local storage first.
func requestedNames(pod *v1.Pod) []v1.ResourceName {
	first := []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage}
	var rest []v1.ResourceName
	for name := range helper.PodRequests(pod, helper.PodResourcesOptions{}) {
		if !slices.Contains(first, name) {
			rest = append(rest, name)
		}
	}
	slices.Sort(rest)
	return append(first, rest...)
}

// request is what a pod requests of a resource, CPU in thousandths.
func request(pod *v1.Pod, name v1.ResourceName) int64 {
	return amount(name, helper.PodRequests(pod, helper.PodResourcesOptions{}))
}

// occupied is what a pod that is there takes from the others: what it requests, and as long as it is not through with a
// resize, what it had.
func occupied(pod *v1.Pod, name v1.ResourceName) int64 {
	return amount(name, helper.PodRequests(pod, helper.PodResourcesOptions{
		UseStatusResources: true, InPlacePodLevelResourcesVerticalScalingEnabled: true,
	}))
}

func amount(name v1.ResourceName, list v1.ResourceList) int64 {
	q := list[name]
	if name == v1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// portsClash says whether two pods want the same port of the node. The same port of the other family, or at another address
// of the node, is another port.
func portsClash(a, b *v1.Pod) bool {
	for _, p := range hostPorts(a) {
		for _, q := range hostPorts(b) {
			if p.HostPort == q.HostPort && p.Protocol == q.Protocol && addressesMeet(p.HostIP, q.HostIP) {
				return true
			}
		}
	}
	return false
}

func hostPorts(pod *v1.Pod) (ports []v1.ContainerPort) {
	eachContainer(pod, func(c *v1.Container) {
		for _, p := range c.Ports {
			if p.HostPort > 0 {
				ports = append(ports, p)
			}
		}
	})
	return ports
}

// addressesMeet says whether a port at one address of the node is also at the other. None means all addresses, an
// unspecified one all of its family.
func addressesMeet(a, b string) bool {
	x, err1 := netip.ParseAddr(a)
	y, err2 := netip.ParseAddr(b)
	if err1 != nil || err2 != nil {
		return true
	}
	return x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified() || x == y)
}

// Preempt returns the pods that have to go so that a more important one fits: none, with an error, if there are not enough of
// them. They are of the least priority that will do, and among those as upstream's kubelet chooses: best effort before
// burstable before guaranteed, and as few as possible.
func Preempt(pod *v1.Pod, others []*v1.Pod, obstacles []Obstacle) ([]*v1.Pod, error) {
	var needs requirements
	for _, o := range obstacles {
		if o.Resource == "" {
			return nil, fmt.Errorf("that others go does not help: %s", o.Message)
		}
		needs = append(needs, requirement{o.Resource, o.Missing})
	}
	var priorities []int32
	for _, o := range others {
		if p := Priority(o); p < Priority(pod) {
			priorities = append(priorities, p)
		}
	}
	slices.Sort(priorities)
	for _, limit := range slices.Compact(priorities) {
		victims := slices.DeleteFunc(slices.Clone(others), func(o *v1.Pod) bool { return Priority(o) > limit })
		if len(needs.without(victims...)) == 0 {
			return needs.choose(victims), nil
		}
	}
	return nil, fmt.Errorf("no set of running pods found to reclaim resources: %v", needs)
}

// requirements are how much more is needed, of each resource.
type requirements []requirement

type requirement struct {
	name   v1.ResourceName
	amount int64
}

func (r requirement) String() string { return fmt.Sprintf("(res: %s, q: %d)", r.name, r.amount) }

// without is what is still needed when pods are gone.
func (r requirements) without(pods ...*v1.Pod) requirements {
	var left requirements
	for _, need := range r {
		for _, p := range pods {
			need.amount -= given(p, need.name)
		}
		if need.amount > 0 {
			left = append(left, need)
		}
	}
	return left
}

// given is what a pod leaves free when it goes.
func given(pod *v1.Pod, name v1.ResourceName) int64 {
	if name == v1.ResourcePods {
		return 1
	}
	return request(pod, name)
}

// choose picks of pods, which are enough, those that go.
func (r requirements) choose(pods []*v1.Pod) []*v1.Pod {
	of := map[v1.PodQOSClass][]*v1.Pod{}
	for _, p := range pods {
		of[Class(p)] = append(of[Class(p)], p)
	}
	bestEffort, burstable, guaranteed := of[v1.PodQOSBestEffort], of[v1.PodQOSBurstable], of[v1.PodQOSGuaranteed]
	// Those of a better class that would be needed if all of the lesser ones went; then of these only what is still needed.
	guaranteed = r.without(append(slices.Clone(bestEffort), burstable...)...).nearest(guaranteed)
	burstable = r.without(append(slices.Clone(bestEffort), guaranteed...)...).nearest(burstable)
	bestEffort = r.without(append(slices.Clone(burstable), guaranteed...)...).nearest(bestEffort)
	return slices.Concat(bestEffort, burstable, guaranteed)
}

// nearest takes pods until nothing is needed any more, each time the one that gives most of it, and of equal ones the
// smaller.
func (r requirements) nearest(pods []*v1.Pod) (chosen []*v1.Pod) {
	pods = slices.Clone(pods)
	for len(r) > 0 && len(pods) > 0 {
		best := 0
		for i := range pods {
			a, b := r.distance(pods[i]), r.distance(pods[best])
			if a < b || a == b && smaller(pods[i], pods[best]) {
				best = i
			}
		}
		chosen = append(chosen, pods[best])
		r = r.without(pods[best])
		pods = slices.Delete(pods, best, best+1)
	}
	return chosen
}

// distance is how much of what is needed the pod does not give, each resource in parts of the whole.
func (r requirements) distance(pod *v1.Pod) (sum float64) {
	for _, need := range r {
		if left := need.amount - given(pod, need.name); left > 0 {
			sum += math.Pow(float64(left)/float64(need.amount), 2)
		}
	}
	return sum
}

func smaller(a, b *v1.Pod) bool {
	for _, name := range []v1.ResourceName{v1.ResourceMemory, v1.ResourceCPU} {
		if x, y := request(a, name), request(b, name); x != y {
			return x < y
		}
	}
	return false
}
