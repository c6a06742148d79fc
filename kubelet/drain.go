package kubelet

import (
	"context"
	"math"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/kubelet/resource"
)

// A DrainGroup is the pods of a priority and above, up to that of the next group; the first one has those below it too. It is
// what upstream's kubelet has as shutdownGracePeriodByPodPriority.
type DrainGroup struct {
	Priority int32
	// Grace is the most that its pods get to end, after which it is the next group's turn; 0 is what they say themselves.
	Grace time.Duration
}

// DefaultDrainGroups let all that depends on a critical pod, as that of a network or of DNS may be, end before it.
var DefaultDrainGroups = []DrainGroup{{Priority: 0}, {Priority: resource.SystemCritical}}

// A drain is under way, and has no end but that of the daemon.
type drain struct {
	// below is the priority below which pods have to end now, and limit the longest grace that they get; 0: what they say. most is
	// that of all groups.
	below       int64
	limit, most time.Duration
	tell        func(string) // hears of each pod that is gone; nil when nobody listens any more
}

// endGroup has a group of pods end, and waits until they are gone or their time is over. Of the last group it does not wait: there
// is no next one. The caller holds k.mu.
func (k *Kubelet) endGroup(ctx context.Context, number int) {
	group, last := k.cfg.DrainGroups[number], number == len(k.cfg.DrainGroups)-1
	k.drain.below = math.MaxInt64
	if !last {
		k.drain.below = int64(k.cfg.DrainGroups[number+1].Priority)
	}
	k.drain.limit = k.drain.most
	if k.drain.limit == 0 || group.Grace > 0 && group.Grace < k.drain.limit {
		k.drain.limit = group.Grace
	}
	for _, w := range k.workers {
		w.rouse()
	}
	if last {
		return
	}
	over := false
	if group.Grace > 0 {
		timer := time.AfterFunc(group.Grace, func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			over = true
			k.empty.Broadcast()
		})
		defer timer.Stop()
	}
	from := int64(math.MinInt64)
	if number > 0 {
		from = int64(group.Priority)
	}
	for !over && k.hasBetween(from, k.drain.below) && ctx.Err() == nil {
		k.empty.Wait()
	}
}

// hasBetween reports whether there is a pod of such a priority.
func (k *Kubelet) hasBetween(from, below int64) bool {
	all, _ := k.pods.List()
	for _, p := range all {
		if priority := int64(resource.Priority(p)); from <= priority && priority < below {
			return true
		}
	}
	return false
}

// isDraining reports whether no pod may begin any more.
func (k *Kubelet) isDraining() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.drain != nil
}

// mustEnd reports whether it is the pod's turn in a drain, and the grace that it gets then, nil for its own.
func (k *Kubelet) mustEnd(pod *v1.Pod) (now bool, grace *int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.drain == nil || int64(resource.Priority(pod)) >= k.drain.below {
		return false, nil
	}
	own, limit := pod.Spec.TerminationGracePeriodSeconds, int64(k.drain.limit/time.Second)
	if k.drain.limit == 0 || own != nil && *own <= limit {
		return true, nil
	}
	return true, &limit
}
