package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/kubelet/probe"
	"github.com/berth-node/berth/kubelet/pull"
	"github.com/berth-node/berth/kubelet/source"
)

// An incarnation is one life of a declared pod, with a UID of its own. What its worker has handed to an operation is not
// changed any more, but replaced: pod, volumes.
type incarnation struct {
	pod    *v1.Pod
	wanted *v1.Pod // as it wishes to be, if it has not been given the resources
	hash   string  // of its declaration
	memory plan.Memory
	status v1.PodStatus
	saved  map[string][]byte // what its files hold

	// What follows is found out anew by each daemon.
	prepared, mounted, tornDown, erased bool
	// freed says that the pod has just left what it used to others.
	freed              bool
	changes, refreshed int // of objects that it uses; and how many of them its volumes show
	users              *cri.UserNamespace
	volumes            map[string]podspec.Volume
	images             map[string]pull.Image // by container
	busy               map[string]*operation
	messages           map[string]string // last words, by container ID
	actual             *plan.Actual      // resources of its cgroup; nil if they may have changed
	shown              *v1.Pod
}

// A worker looks after all pods of one name, one at a time: an edit that cannot be made in place begins when nothing is left
// of what was there before.
type worker struct {
	k    *Kubelet
	name types.NamespacedName
	log  *slog.Logger
	wake chan struct{} // capacity 1

	// word is held by who takes back a declaration and says how the pod is to end: the worker hears of both or of neither.
	word sync.Mutex

	mu      sync.Mutex
	asked   []request
	results []result

	// The rest is the worker's own.
	pod  *incarnation
	next []*incarnation
}

// A request changes what is remembered of a pod; without a change it says that objects which the pod uses have changed.
type request struct {
	uid    types.UID
	change func(*plan.Memory, time.Time)
}

func (w *worker) request(uid types.UID, change func(*plan.Memory, time.Time)) {
	w.mu.Lock()
	w.asked = append(w.asked, request{uid, change})
	w.mu.Unlock()
	w.rouse()
}

// rouse has the worker look at its pod. It does not wait; what comes while it looks makes it look again, once.
func (w *worker) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run returns when ctx ends, or nothing is left to look after.
func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		again, idle := w.guardedStep(ctx)
		if idle {
			if w.k.leave(w) {
				return
			}
			continue // it was woken meanwhile, by what leave has taken
		}
		timer.Stop()
		if !again.IsZero() {
			timer.Reset(time.Until(again))
		}
		select {
		case <-w.wake:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// guardedStep keeps a fault in what is done for one pod to that pod.
func (w *worker) guardedStep(ctx context.Context) (again time.Time, idle bool) {
	var err error
	defer func() {
		if err != nil {
			w.log.Error("looking after a pod failed, trying again", "err", err, "stack", string(err.(*errdefs.Panic).Stack))
			again, idle = w.k.cfg.Now().Add(w.k.cfg.Limits.Retry), false
		}
	}()
	defer errdefs.Recover(&err)
	return w.step(ctx)
}

// step does all that is to be done now, and returns when to look again. It is idle if nothing is declared and nothing there.
func (w *worker) step(ctx context.Context) (again time.Time, idle bool) {
	for ctx.Err() == nil {
		if w.pod == nil && !w.begin() {
			return time.Time{}, true
		}
		w.hear()
		w.resize()
		p := w.pod
		next := plan.Next(p.pod, w.observe(), w.k.cfg.Now())
		if next.Gone {
			w.gone()
			continue
		}
		p.memory, p.status = next.Memory, next.Status
		if err := w.k.store.save(p); err != nil && p.busy[(plan.Action{Kind: plan.Erase}).Key()] == nil {
			w.log.Error("the state of a pod could not be kept; it goes on", "err", err)
		}
		for _, e := range next.Events {
			w.k.containerEvent(p.pod, e.Container, e.Type, e.Reason, e.Message)
		}
		w.probe()
		w.publish()
		for _, key := range next.Cancel {
			if op := p.busy[key]; op != nil {
				op.cancel()
			}
		}
		for _, a := range next.Do {
			w.do(ctx, a)
		}
		return next.Again, false
	}
	return time.Time{}, false
}

// begin takes the next pod of the name: one that was there before, or the one that is declared.
func (w *worker) begin() bool {
	if len(w.next) > 0 {
		w.pod, w.next = w.next[0], w.next[1:]
		return true
	}
	e, ok := w.k.cfg.Source.Get(podKey(w.name))
	if !ok || e.Lost != nil || w.k.isDraining() {
		return false
	}
	w.pod = w.k.incarnate(e, uuid.NewUUID(), w.k.cfg.Now())
	w.k.mu.Lock()
	w.k.uids[w.pod.pod.UID] = w
	w.k.mu.Unlock()
	w.admit()
	return true
}

// admit lets the pod in or refuses it. One at a time, and seen by the next: two that do not fit beside each other must not both
// get in.
func (w *worker) admit() {
	w.k.admission.Lock()
	defer w.k.admission.Unlock()
	w.k.wakeWithRoom(w.k.refused, w, true) // before it asks: what goes meanwhile may be what it lacks
	if r := w.k.admit(w.pod.pod); r != nil {
		w.refuse(r)
		return
	}
	w.k.wakeWithRoom(w.k.refused, w, false)
	w.publish()
}

// incarnate makes a pod of what is declared.
func (k *Kubelet) incarnate(e source.Entry, uid types.UID, at time.Time) *incarnation {
	pod := e.Pod.DeepCopy()
	created := metav1.NewTime(at.Truncate(time.Second))
	pod.UID, pod.CreationTimestamp, pod.Generation = uid, created, 1
	pod.Spec.NodeName = k.cfg.NodeName
	return &incarnation{
		pod: pod, hash: e.Hash, saved: map[string][]byte{},
		status: v1.PodStatus{Phase: v1.PodPending, StartTime: &created},
	}
}

// refuse ends a pod that may not run. It is asked about again when another one has ended.
func (w *worker) refuse(r *Refusal) {
	w.pod.memory.Finish(plan.End{Since: w.k.cfg.Now(), Phase: v1.PodFailed, Reason: r.Reason, Message: plan.Rejected + r.Message})
	w.k.containerEvent(w.pod.pod, "", v1.EventTypeWarning, r.Reason, r.Message)
}

// hear takes in what has become known since the last time.
func (w *worker) hear() {
	w.word.Lock()
	defer w.word.Unlock()
	w.takeIn()
	w.compare()
}

// untold are the actions of which no event tells that they failed.
var untold = []plan.Kind{plan.Stop, plan.RemoveContainer, plan.RemoveSandbox, plan.Teardown, plan.Erase}

// takeIn takes in what was asked, and how what was being done went.
func (w *worker) takeIn() {
	w.mu.Lock()
	asked, results := w.asked, w.results
	w.asked, w.results = nil, nil
	w.mu.Unlock()
	p := w.pod
	for _, r := range results {
		if p.busy[r.op.action.Key()] != r.op {
			continue // another one has taken its place, or the pod has
		}
		delete(p.busy, r.op.action.Key())
		if r.Err != nil && slices.Contains(untold, r.op.action.Kind) {
			w.log.Warn("an action for a pod failed, trying again", "uid", p.pod.UID, "action", r.op.action.Key(), "err", r.Err)
		}
		switch r.op.action.Kind {
		case plan.Resize:
			p.freed = true // perhaps
			fallthrough
		case plan.Prepare, plan.Start:
			p.actual = nil
		}
		if r.apply != nil {
			r.apply(p)
		}
		p.memory = p.memory.Done(r.op.action, w.image(r.op.action.Container), r.Result, w.k.cfg.Limits, w.k.cfg.Now())
	}
	for _, r := range asked {
		switch {
		case r.uid != p.pod.UID:
		case r.change == nil:
			p.changes++
			p.memory = p.memory.Hurry()
		default:
			r.change(&p.memory, w.k.cfg.Now())
		}
	}
}

// image is the name of the image of a container.
func (w *worker) image(container string) string {
	if c := findContainer(&w.pod.pod.Spec, container); c != nil {
		return c.Image
	}
	return ""
}

// compare looks whether the pod is still what is declared. What cannot be changed in place ends, and begins anew.
func (w *worker) compare() {
	p, now := w.pod, w.k.cfg.Now()
	if p.memory.End != nil && p.memory.End.Remove {
		return
	}
	e, ok := w.k.cfg.Source.Get(podKey(w.name))
	turn, grace := w.k.mustEnd(p.pod)
	switch {
	case turn:
		p.memory.Finish(plan.End{Since: now, Grace: grace, Remove: true})
	case w.k.isDraining(): // its turn comes
	case !ok && w.k.sourcesReady():
		p.memory.Finish(plan.End{Since: now, Remove: true})
	case !ok, e.Lost != nil:
	case e.Hash != p.hash:
		edited, inPlace := edit(p.wish(), e.Pod)
		if !inPlace || p.memory.End != nil {
			p.memory.Finish(plan.End{Since: now, Remove: true})
			return
		}
		p.hash = e.Hash
		p.become(edited)
		p.changes++
		p.memory = p.memory.Hurry()
	case p.memory.End.ComesBack() && p.tornDown && w.k.admit(p.pod) == nil:
		p.memory.Finish(plan.End{Since: now, Remove: true})
	}
}

func (k *Kubelet) sourcesReady() bool {
	select {
	case <-k.cfg.Source.Ready():
		return true
	default:
		return false
	}
}

// admit asks whether a pod may run beside the others.
func (k *Kubelet) admit(pod *v1.Pod) *Refusal {
	if k.cfg.Admit == nil {
		return nil
	}
	return k.cfg.Admit(pod, k.others(pod.UID))
}

// gone is the end of a pod of which nothing is left.
func (w *worker) gone() {
	p := w.pod
	w.k.probes.Forget(p.pod)
	w.k.pods.Delete(p.pod.Namespace, p.pod.Name)
	w.k.mu.Lock()
	delete(w.k.uids, p.pod.UID)
	delete(w.k.refused, w)
	delete(w.k.deferred, w)
	delete(w.k.bids, p.pod.UID)
	if d := w.k.drain; d != nil {
		if d.tell != nil {
			d.tell(fmt.Sprintf("removed pod %s", w.name))
		}
		w.k.empty.Broadcast()
	}
	w.k.mu.Unlock()
	w.pod = nil
	w.k.Reconsider()
}

// publish shows the pod as it is now, if that is news.
func (w *worker) publish() {
	p := w.pod
	pod := *p.wish()
	pod.Status = p.status
	if e := p.memory.End; e != nil && e.Remove {
		grace := e.Grace
		if grace == nil {
			grace = pod.Spec.TerminationGracePeriodSeconds
		}
		at := metav1.NewTime(e.Since.Truncate(time.Second))
		if grace != nil {
			at = metav1.NewTime(at.Add(time.Duration(*grace) * time.Second))
		}
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, grace
	}
	if s := p.shown; s == nil || s.Generation != pod.Generation || !s.DeletionTimestamp.Equal(pod.DeletionTimestamp) ||
		!maps.Equal(s.Labels, pod.Labels) || !maps.Equal(s.Annotations, pod.Annotations) || !equality.Semantic.DeepEqual(s.Status, pod.Status) {
		p.shown = &pod
		w.k.pods.Put(&pod)
	}
	if p.freed { // the others have been shown so first
		p.freed = false
		w.k.Reconsider()
	}
}

// probe has the containers probed that run and are shown so.
func (w *worker) probe() {
	p := w.pod
	var targets []probe.Target
	for c, s := range shownRunning(p.pod, &p.status) {
		targets = append(targets, probe.Target{
			Pod: p.pod, Container: c, ID: s.id, StartedAt: s.startedAt, PodIP: p.status.PodIP,
		})
	}
	w.k.probes.Set(p.pod.UID, p.memory.End != nil, targets...)
}
