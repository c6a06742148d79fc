package kubelet

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/resource"
	"github.com/berth-node/berth/runtime"
)

// A bid is the wish of a pod for other resources than it has. It stays, granted, until the pod is gone. Who changes one holds
// both locks, k.admission and k.mu; one of them is enough to look at it.
type bid struct {
	w          *worker
	have, want *v1.Pod
	since      time.Time
	granted    bool
	refusal    *Refusal
}

// allocated is the pod with the resources that count as its own.
func (b *bid) allocated() *v1.Pod {
	if b.granted {
		return b.want
	}
	return b.have
}

// wish is the pod as it is declared: p.pod is that with the resources that it has been given.
func (p *incarnation) wish() *v1.Pod {
	if p.wanted != nil {
		return p.wanted
	}
	return p.pod
}

// become takes an edit over. Resources are to be asked for.
func (p *incarnation) become(edited *v1.Pod) {
	p.pod, p.wanted = withResources(edited, p.pod), edited
	if equality.Semantic.DeepEqual(p.pod.Spec, edited.Spec) {
		p.wanted, p.memory.Wish = nil, nil
	}
}

// resize asks for the resources that the pod wishes to have, and takes them when it is given them.
func (w *worker) resize() {
	p := w.pod
	if p.wanted == nil || p.memory.End != nil {
		w.k.endBid(p)
		return
	}
	w.k.wakeWithRoom(w.k.deferred, w, true) // before it asks, as in admit
	if refusal := w.k.bid(w, p.pod, p.wanted); refusal != nil {
		w.tell(p.memory.Wait(p.wanted, refusal.Reason, refusal.Message))
		return
	}
	w.k.wakeWithRoom(w.k.deferred, w, false)
	for _, op := range p.busy { // what has begun goes on with what it has begun with
		if slices.Contains([]plan.Kind{plan.Prepare, plan.MakeSandbox, plan.Start, plan.Resize}, op.action.Kind) {
			return
		}
	}
	from := w.outgrown(p.pod, p.wanted)
	p.pod, p.wanted = p.wanted, nil
	p.changes++ // volumes show resources
	w.tell(p.memory.Resized(p.pod, from))
}

func (w *worker) tell(e *plan.Event) {
	if e != nil {
		w.k.containerEvent(w.pod.pod, e.Container, e.Type, e.Reason, e.Message)
	}
}

// outgrown are the containers that have other resources than the pod is about to have.
func (w *worker) outgrown(old, pod *v1.Pod) map[string]plan.Outgrown {
	var before map[string]plan.Outgrown
	if r := w.pod.memory.Resizing; r != nil {
		before = r.From
	}
	from := map[string]plan.Outgrown{}
	for _, c := range w.living() {
		name := c.Config.GetMetadata().GetName()
		was, now := resizableContainer(old, name), resizableContainer(pod, name)
		if was == nil || now == nil {
			continue
		}
		has, to := effective(old, was), effective(pod, now)
		unfinished, ok := before[c.ID]
		if ok {
			has = unfinished.Has
		}
		if ok || !equality.Semantic.DeepEqual(has, to) {
			from[c.ID] = plan.Outgrown{Has: has, Restart: resource.NeedsRestart(now, has, to)}
		}
	}
	return from
}

// living are the pod's containers that have not exited.
func (w *worker) living() (all []runtime.Container) {
	for _, s := range w.sandboxes() {
		for _, c := range w.k.cfg.Runtime.SandboxContainers(s.ID) {
			if c.State != runtime.Exited {
				all = append(all, c)
			}
		}
	}
	return all
}

// resizableContainer finds a container that is not ephemeral.
func resizableContainer(pod *v1.Pod, name string) *v1.Container {
	for _, all := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		if i := slices.IndexFunc(all, func(c v1.Container) bool { return c.Name == name }); i >= 0 {
			return &all[i]
		}
	}
	return nil
}

// effective are a container's resources with the pod's limits where it has none of its own.
func effective(pod *v1.Pod, c *v1.Container) v1.ResourceRequirements {
	return v1.ResourceRequirements{Requests: c.Resources.Requests.DeepCopy(), Limits: resource.Limits(pod, c)}
}

// bid asks for other resources for a pod, and returns why it does not get them, nil if it does.
func (k *Kubelet) bid(w *worker, have, want *v1.Pod) *Refusal {
	k.admission.Lock()
	defer k.admission.Unlock()
	k.mu.Lock()
	b := k.bids[want.UID]
	if b == nil || b.want != want {
		fresh := &bid{w: w, want: want, since: k.cfg.Now()}
		if b != nil && !b.granted {
			fresh.since = b.since
		}
		b = fresh
		k.bids[want.UID] = b
	}
	b.have = have
	k.mu.Unlock()
	k.grant(w)
	return b.refusal
}

// grant gives to those that bid what there is, the most important first: one who has less to come takes nothing from the
// others. Its caller holds k.admission.
func (k *Kubelet) grant(asking *worker) {
	k.mu.Lock()
	var open []*bid
	for _, b := range k.bids {
		if !b.granted {
			open = append(open, b)
		}
	}
	k.mu.Unlock()
	slices.SortFunc(open, compareBids)
	for _, b := range open {
		var refusal *Refusal
		if k.cfg.Resize != nil {
			refusal = k.cfg.Resize(b.have, b.want, k.others(b.want.UID))
		}
		k.mu.Lock()
		b.refusal, b.granted = refusal, refusal == nil
		k.mu.Unlock()
		if b.granted && b.w != asking {
			b.w.rouse()
		}
	}
}

// compareBids is upstream's order: first who does not ask for more, then by priority, then Guaranteed pods, then who has
// waited longest.
func compareBids(a, b *bid) int {
	last := func(is bool) int {
		if is {
			return 1
		}
		return 0
	}
	burstable := func(b *bid) bool { return resource.Class(b.want) != v1.PodQOSGuaranteed }
	return cmp.Or(
		cmp.Compare(last(resource.Grows(a.have, a.want)), last(resource.Grows(b.have, b.want))),
		cmp.Compare(resource.Priority(b.want), resource.Priority(a.want)),
		cmp.Compare(last(burstable(a)), last(burstable(b))),
		a.since.Compare(b.since))
}

// endBid takes back the bid of a pod that wishes nothing more, or is ending: it counts with what it has, and not with what it
// was given last and has not taken.
func (k *Kubelet) endBid(p *incarnation) {
	k.mu.Lock()
	b := k.bids[p.pod.UID]
	ended := b == nil || b.want == p.pod
	k.mu.Unlock()
	if ended {
		return
	}
	k.admission.Lock()
	defer k.admission.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.deferred, b.w)
	b.have, b.want, b.granted = p.pod, p.pod, true
}

// Allocated is a pod, as it is shown, with the resources that it has been given instead of those that it wishes for.
func (k *Kubelet) Allocated(pod *v1.Pod) *v1.Pod {
	k.mu.Lock()
	b := k.bids[pod.UID]
	var given *v1.Pod
	if b != nil {
		given = b.allocated()
	}
	k.mu.Unlock()
	if given == nil {
		return pod
	}
	out := *pod
	out.Spec = given.Spec
	return &out
}

// others are the pods that are not over, but for one, with the resources that they have been given.
func (k *Kubelet) others(but types.UID) (others []*v1.Pod) {
	all, _ := k.pods.List()
	for _, p := range all {
		if p.UID != but && p.Status.Phase != v1.PodSucceeded && p.Status.Phase != v1.PodFailed {
			others = append(others, k.Allocated(p))
		}
	}
	return others
}

// resizePod gives the pod's cgroup, and the containers that run, the resources of the pod.
func (k *Kubelet) resizePod(ctx context.Context, pod *v1.Pod, sandbox string, containers []runtime.Container) error {
	var parts []resource.Part
	for i := range containers {
		c := &containers[i]
		if spec := resizableContainer(pod, c.Config.GetMetadata().GetName()); spec != nil && c.State == runtime.Running {
			parts = append(parts, resource.Part{ID: c.ID, Container: spec, Has: c.Resources.GetLinux(), CgroupsPath: c.CgroupsPath})
		}
	}
	return k.cfg.Cgroups.Resize(ctx, pod, parts, resource.Resizer{
		Pod: func(ctx context.Context) error {
			all, overhead := k.cfg.Spec.Resources.Sandbox(pod)
			return k.cfg.Runtime.UpdateSandboxResources(ctx, sandbox, overhead, all)
		},
		Container: func(ctx context.Context, id string, to *cri.LinuxContainerResources) error {
			err := k.cfg.Runtime.UpdateContainerResources(ctx, id, to, nil)
			if err != nil {
				if c, look := k.cfg.Runtime.Container(ctx, id); look != nil || c.State == runtime.Exited {
					return nil // the next one is made with what the pod has
				}
			}
			return err
		},
	})
}

// actualOf are the resources of a container that the runtime was told of last.
func actualOf(r *cri.LinuxContainerResources) plan.Actual {
	a := plan.Actual{
		CPURequest: milli(resource.MilliCPUOfShares(r.GetCpuShares())),
		CPULimit:   milli(resource.MilliCPUOfQuota(r.GetCpuQuota(), r.GetCpuPeriod())),
	}
	if limit := r.GetMemoryLimitInBytes(); limit > 0 {
		a.MemoryLimit = apiresource.NewQuantity(limit, apiresource.BinarySI)
	}
	return a
}

// actualOfPod are those of the pod's cgroup.
func actualOfPod(r *specs.LinuxResources) plan.Actual {
	var a plan.Actual
	if r.CPU.Shares != nil {
		a.CPURequest = milli(resource.MilliCPUOfShares(int64(*r.CPU.Shares)))
	}
	if r.CPU.Quota != nil && r.CPU.Period != nil {
		a.CPULimit = milli(resource.MilliCPUOfQuota(*r.CPU.Quota, int64(*r.CPU.Period)))
	}
	if r.Memory.Limit != nil {
		a.MemoryLimit = apiresource.NewQuantity(*r.Memory.Limit, apiresource.BinarySI)
	}
	return a
}

func milli(n int64) *apiresource.Quantity {
	if n <= 0 {
		return nil
	}
	return apiresource.NewMilliQuantity(n, apiresource.DecimalSI)
}

// actual are the resources of the pod's cgroup. They are read again when something may have changed them.
func (w *worker) actual() plan.Actual {
	p := w.pod
	if p.status.Phase != v1.PodRunning || p.tornDown {
		return plan.Actual{}
	}
	if p.actual == nil {
		limits, err := w.k.cfg.Cgroups.Actual(p.pod)
		if err != nil {
			return plan.Actual{} // it is not there, or not any more
		}
		a := actualOfPod(limits)
		p.actual = &a
	}
	return *p.actual
}
