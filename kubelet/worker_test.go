package kubelet

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/kubelet/event"
	"github.com/berth-node/berth/kubelet/feed"
	"github.com/berth-node/berth/kubelet/manifest"
	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/source"
)

// A worker that is woken in the moment in which it leaves leaves all the same: a drain waits for it.
func TestWorkersLeave(t *testing.T) {
	declared, err := source.Open(source.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	k := &Kubelet{cfg: Config{Source: declared}, log: slog.New(slog.DiscardHandler), workers: map[types.NamespacedName]*worker{}, refused: map[*worker]bool{}}
	k.empty = sync.NewCond(&k.mu)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var left sync.WaitGroup
	for i := range 3000 {
		k.mu.Lock()
		w := k.newWorker(types.NamespacedName{Name: "pod"})
		k.mu.Unlock()
		left.Go(func() { w.run(ctx) })
		left.Go(func() {
			for range i % 97 {
				_ = len(w.wake) // a little later each time
			}
			w.rouse()
		})
	}
	done := make(chan struct{})
	go func() { left.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("a worker stays")
		cancel()
		<-done
	}
}

// aWorker looks after a pod that is declared.
func aWorker(t *testing.T) *worker {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	declared, err := source.Open(source.Config{Dir: t.TempDir(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifest.Decode("pod.yaml", []byte("{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: a, image: a}]}}"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := declared.Apply(objects); err != nil {
		t.Fatal(err)
	}
	k := &Kubelet{
		cfg: Config{Source: declared, Events: event.Open(event.Config{Log: log, Now: time.Now}), Now: time.Now},
		log: log, pods: feed.New[*v1.Pod](1, 16),
		workers: map[types.NamespacedName]*worker{}, uids: map[types.UID]*worker{},
		bids: map[types.UID]*bid{}, refused: map[*worker]bool{}, deferred: map[*worker]bool{},
	}
	return k.newWorker(types.NamespacedName{Namespace: "default", Name: "p"})
}

// What goes while a pod is being refused may be what it lacks: it asks again.
func TestRoomThatComesWhileAPodIsRefused(t *testing.T) {
	w := aWorker(t)
	woken := func() bool {
		select {
		case <-w.wake:
			return true
		default:
			return false
		}
	}
	w.k.cfg.Admit = func(*v1.Pod, []*v1.Pod) *Refusal {
		w.k.Reconsider()
		return &Refusal{"OutOfcpu", "too little"}
	}
	if !w.begin() || !woken() || !w.pod.memory.End.ComesBack() {
		t.Error("the pod is not looked at again")
	}
	w.pod.memory.End = nil
	w.k.cfg.Admit = nil
	w.admit()
	w.k.Reconsider()
	if woken() {
		t.Error("a pod that was let in waits for others")
	}

	w.pod.wanted = w.pod.pod.DeepCopy()
	w.k.cfg.Resize = func(_, _ *v1.Pod, _ []*v1.Pod) *Refusal {
		w.k.Reconsider()
		return &Refusal{"OutOfcpu", "too little"}
	}
	w.resize()
	if !woken() {
		t.Error("the wish of a pod is not looked at again")
	}
}

// Who has ended by itself does not run again because the node was about to end it.
func TestOnlyWhoWasEndedByTheNodeComesBack(t *testing.T) {
	for name, c := range map[string]struct {
		end  plan.End
		back bool
	}{
		"through":   {plan.End{}, false},
		"evicted":   {plan.End{Phase: v1.PodFailed, Reason: plan.Evicted}, true},
		"preempted": {plan.End{Phase: v1.PodFailed, Reason: plan.Preempting}, true},
		"rejected":  {plan.End{Phase: v1.PodFailed, Reason: "OutOfcpu", Message: plan.Rejected + "too little"}, true},
		"too late":  {plan.End{Phase: v1.PodFailed, Reason: "DeadlineExceeded"}, false},
	} {
		w := aWorker(t)
		if !w.begin() {
			t.Fatal("nothing is declared")
		}
		w.pod.memory.End, w.pod.tornDown = &c.end, true
		if err := w.k.Evict(w.pod.pod.UID, plan.Evicted, "", "", nil); err != nil {
			t.Fatal(err)
		}
		w.compare()
		if w.pod.memory.End.Remove != c.back {
			t.Errorf("%s: comes back: %v", name, w.pod.memory.End.Remove)
		}
	}
}
