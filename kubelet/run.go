package kubelet

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/kubelet/manifest"
	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/runtime"
)

// Run runs the pods until ctx ends. They run on without it, and the next Run finds them.
func (k *Kubelet) Run(ctx context.Context) error {
	// Who looks first and listens then misses what happens in between.
	events, declared := k.cfg.Runtime.Subscribe(), k.cfg.Source.Subscribe()
	defer declared.Close()
	k.begin(ctx)
	var listening sync.WaitGroup
	listening.Go(func() { k.follow(ctx, events) })
	defer listening.Wait()
	defer k.running.Wait()
	defer k.probes.Close()
	ready := k.cfg.Source.Ready()
	for {
		select {
		case <-declared.C():
			k.declared(declared.Take())
		case <-ready:
			ready = nil
			k.wakeAll() // what nobody has declared may go from now on
		case <-ctx.Done():
			return nil
		}
	}
}

// begin starts the workers of what was there before.
func (k *Kubelet) begin(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ctx = ctx
	for _, w := range k.workers {
		k.start(w)
	}
}

// start has a worker run; k.mu is held.
func (k *Kubelet) start(w *worker) {
	k.running.Go(func() { w.run(k.ctx) })
}

// declared looks at objects that came, changed or went.
func (k *Kubelet) declared(keys []manifest.Key) {
	for _, key := range keys {
		switch key.Kind {
		case manifest.Pod:
			k.worker(types.NamespacedName{Namespace: key.Namespace, Name: key.Name})
		default:
			k.objectChanged(key)
		}
	}
}

// worker wakes the worker of a pod's name; if there is none, and something is declared by that name, it gets one.
func (k *Kubelet) worker(name types.NamespacedName) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.workers[name]
	if w == nil {
		if _, ok := k.cfg.Source.Get(podKey(name)); !ok {
			return
		}
		w = k.newWorker(name)
		k.start(w)
	}
	w.rouse()
}

func podKey(name types.NamespacedName) manifest.Key {
	return manifest.Key{Kind: manifest.Pod, Namespace: name.Namespace, Name: name.Name}
}

// newWorker adds one; k.mu is held.
func (k *Kubelet) newWorker(name types.NamespacedName) *worker {
	w := &worker{k: k, name: name, wake: make(chan struct{}, 1), log: k.log.With("pod", name.String())}
	k.workers[name] = w
	return w
}

// leave ends a worker that has nothing more to do, unless it was woken just now.
func (k *Kubelet) leave(w *worker) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-w.wake:
		return false
	default:
	}
	delete(k.workers, w.name)
	delete(k.refused, w)
	delete(k.deferred, w)
	if len(k.workers) == 0 {
		k.empty.Broadcast()
	}
	return true
}

// objectChanged wakes the pods that use a ConfigMap, a Secret or a claim, or may use a PersistentVolume.
func (k *Kubelet) objectChanged(key manifest.Key) {
	pods, _ := k.pods.List()
	for _, p := range pods {
		if key.Kind.Namespaced() && p.Namespace != key.Namespace || !uses(&p.Spec, key) {
			continue
		}
		if w := k.workerOf(p.UID); w != nil {
			w.request(p.UID, nil)
		}
	}
}

func (k *Kubelet) wakeAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, w := range k.workers {
		w.rouse()
	}
}

func (k *Kubelet) wakeUID(uid types.UID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if w := k.uids[uid]; w != nil {
		w.rouse()
	}
}

// follow wakes workers by what happens to their containers.
func (k *Kubelet) follow(ctx context.Context, events Events) {
	defer func() { events.Close() }()
	pods := map[string]types.UID{} // by sandbox, since the last event of one does not say whose it was
	for {
		ev, err := events.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			k.log.Warn("events were missed, looking at all pods", "err", err)
			events.Close()
			events = k.cfg.Runtime.Subscribe()
			k.wakeAll()
			continue
		}
		if ev.Sandbox != nil {
			if ev.Sandbox.Owner != runtime.OwnerKubelet {
				continue
			}
			pods[ev.SandboxID] = types.UID(ev.Sandbox.Config.GetLabels()[podspec.PodUIDLabel])
		}
		k.wakeUID(pods[ev.SandboxID])
		if ev.Sandbox == nil {
			delete(pods, ev.SandboxID)
		}
	}
}

// load reads the pods of before. What the runtime has of pods that nobody knows is ended, or is taken over by the pod that is
// declared by its name.
func (k *Kubelet) load() error {
	kept, err := k.store.all()
	if err != nil {
		return err
	}
	known := map[types.UID]bool{}
	for _, p := range kept {
		k.own(p)
		known[p.pod.UID] = true
	}
	for _, s := range k.cfg.Runtime.Sandboxes(runtime.SandboxFilter{}) {
		uid := types.UID(s.Config.GetLabels()[podspec.PodUIDLabel])
		if s.Owner != runtime.OwnerKubelet || known[uid] {
			continue
		}
		known[uid] = true
		p := k.adopt(s, uid)
		k.log.Warn("a pod runs that there is no record of", "pod", podName(p.pod), "uid", uid, "goesOn", p.memory.End == nil)
		k.own(p)
	}
	return nil
}

// adopt makes a record for a pod that has none, from what the runtime knows of it.
func (k *Kubelet) adopt(s runtime.Sandbox, uid types.UID) *incarnation {
	name := types.NamespacedName{Namespace: s.Config.GetMetadata().GetNamespace(), Name: s.Config.GetMetadata().GetName()}
	if e, ok := k.cfg.Source.Get(podKey(name)); ok && e.Lost == nil {
		return k.incarnate(e, uid, s.CreatedAt)
	}
	pod := &v1.Pod{}
	pod.Namespace, pod.Name, pod.UID = name.Namespace, name.Name, uid
	for _, c := range k.cfg.Runtime.SandboxContainers(s.ID) {
		if grace, err := strconv.ParseInt(c.Config.GetAnnotations()[podspec.TerminationGracePeriodAnnotation], 10, 64); err == nil {
			pod.Spec.TerminationGracePeriodSeconds = &grace
		}
	}
	p := &incarnation{pod: pod, saved: map[string][]byte{}}
	p.memory.Finish(plan.End{Since: k.cfg.Now(), Remove: true})
	return p
}

// own gives a pod of before to the worker of its name. Of several with one name, the newest goes on when the others are gone.
func (k *Kubelet) own(p *incarnation) {
	w := k.workers[podName(p.pod)]
	if w == nil {
		w = k.newWorker(podName(p.pod))
	}
	k.uids[p.pod.UID] = w
	if p.memory.End.ComesBack() {
		k.refused[w] = true
	}
	if p.wanted != nil { // before it is shown so: what it wishes for does not count
		k.bids[p.pod.UID] = &bid{w: w, have: p.pod, want: p.wanted, since: k.cfg.Now()}
	}
	k.seed(p)
	k.cfg.Cgroups.Adopt(p.pod)
	if w.pod == nil {
		w.pod = p
		w.publish()
		return
	}
	older, newer := w.pod, p
	if newer.pod.CreationTimestamp.Before(&older.pod.CreationTimestamp) {
		older, newer = newer, older
	}
	older.memory.Finish(plan.End{Since: k.cfg.Now(), Remove: true})
	w.pod, w.next = older, append(w.next, newer)
}

// Drain ends all pods, each with its grace but none with more than limit (0: no limit), and returns when they are gone, or an
// error when ctx ends before. The less important ones end first (DrainGroup), and within a pod its sidecars last. No pod starts
// any more. What is declared stays so for the next daemon.
func (k *Kubelet) Drain(ctx context.Context, limit time.Duration, tell func(string)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drain = &drain{most: limit, tell: tell}
	stop := context.AfterFunc(ctx, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.empty.Broadcast()
	})
	defer stop()
	for i := range k.cfg.DrainGroups {
		k.endGroup(ctx, i)
	}
	for len(k.workers) > 0 && ctx.Err() == nil {
		k.empty.Wait()
	}
	k.drain.tell = nil
	if len(k.workers) > 0 {
		return fmt.Errorf("%d pods have not ended: %w", len(k.workers), ctx.Err())
	}
	return nil
}
