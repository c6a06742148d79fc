package resource

import (
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A Room is what the node's own pods share. A pod that finds too little of it has less important ones ended, and until they
// are gone what they leave is kept for it: else they, or others like them, would be back first.
type Room struct {
	all     v1.ResourceList
	preempt func(victim *v1.Pod)
	waits   func(types.NamespacedName) bool

	mu      sync.Mutex
	waiting map[types.NamespacedName]*v1.Pod // those for which others have been ended
	ending  map[types.UID]bool
}

// NewRoom takes preempt, which begins the end of a pod and does not wait for it, and waits, which says that the pod of a name
// still wants to come in.
func NewRoom(all v1.ResourceList, preempt func(*v1.Pod), waits func(types.NamespacedName) bool) *Room {
	return &Room{all: all, preempt: preempt, waits: waits, waiting: map[types.NamespacedName]*v1.Pod{}, ending: map[types.UID]bool{}}
}

// Ask returns why there is no room for a pod beside others, which run or are about to; nil if there is.
func (r *Room) Ask(pod *v1.Pod, others []*v1.Pod) *Obstacle {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.obstacle(pod, others)
	if o != nil {
		r.make(pod, others)
	}
	return o
}

// Look is Ask for a pod that makes no room for itself.
func (r *Room) Look(pod *v1.Pod, others []*v1.Pod) *Obstacle {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.obstacle(pod, others)
}

func (r *Room) obstacle(pod *v1.Pod, others []*v1.Pod) *Obstacle {
	r.forget(others)
	obstacles := Obstacles(pod, slices.Concat(others, r.before(pod)), r.all)
	if len(obstacles) == 0 {
		return nil
	}
	return &obstacles[0]
}

// forget leaves out those that have got in, or wait no more, and those that are gone.
func (r *Room) forget(others []*v1.Pod) {
	there := map[types.UID]bool{}
	for _, o := range others {
		there[o.UID] = true
		delete(r.waiting, nameOf(o))
	}
	for name := range r.waiting {
		if !r.waits(name) {
			delete(r.waiting, name)
		}
	}
	for uid := range r.ending {
		if !there[uid] {
			delete(r.ending, uid)
		}
	}
}

// before are the pods that wait and are more important.
func (r *Room) before(pod *v1.Pod) (first []*v1.Pod) {
	for name, w := range r.waiting {
		if name != nameOf(pod) && Priority(w) > Priority(pod) {
			first = append(first, w)
		}
	}
	return first
}

// make has others ended for a pod, as far as those that are ending already do not do.
func (r *Room) make(pod *v1.Pod, others []*v1.Pod) {
	staying := slices.DeleteFunc(slices.Clone(others), func(o *v1.Pod) bool { return r.ending[o.UID] })
	obstacles := Obstacles(pod, append(staying, r.before(pod)...), r.all)
	if len(obstacles) == 0 {
		return
	}
	victims, err := Preempt(pod, staying, obstacles)
	if err != nil {
		return // there is nobody less important, or not enough of them
	}
	r.waiting[nameOf(pod)] = pod
	for _, v := range victims {
		r.ending[v.UID] = true
		r.preempt(v)
	}
}

func nameOf(pod *v1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}
