package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/kubelet/feed"
)

// drained drains pods of these priorities, and tells in which order and with how much grace they ended. Pods that stick do not end
// before the last group's turn.
func drained(t *testing.T, groups []DrainGroup, limit time.Duration, stick map[int32]bool, priorities ...int32) string {
	t.Helper()
	k := &Kubelet{
		cfg: Config{DrainGroups: groups}, log: slog.New(slog.DiscardHandler), pods: feed.New[*v1.Pod](1, 10),
		workers: map[types.NamespacedName]*worker{}, refused: map[*worker]bool{},
	}
	k.empty = sync.NewCond(&k.mu)
	var said []string
	var ended sync.WaitGroup
	for _, priority := range priorities {
		name := types.NamespacedName{Namespace: "default", Name: fmt.Sprint(priority)}
		own := int64(30)
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}, Spec: v1.PodSpec{Priority: &priority, TerminationGracePeriodSeconds: &own}}
		k.pods.Put(pod)
		w := k.newWorker(name)
		ended.Go(func() { // as the worker does
			for range w.wake {
				now, grace := k.mustEnd(pod)
				if stick[priority] {
					k.mu.Lock()
					now = k.drain.below == math.MaxInt64
					k.mu.Unlock()
				}
				if !now {
					continue
				}
				k.mu.Lock()
				if grace == nil {
					grace = &own
				}
				said = append(said, fmt.Sprintf("%d in %ds", priority, *grace))
				k.pods.Delete(name.Namespace, name.Name)
				delete(k.workers, name)
				k.empty.Broadcast()
				k.mu.Unlock()
				return
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := k.Drain(ctx, limit, func(string) {}); err != nil {
		t.Fatal(err)
	}
	ended.Wait()
	return strings.Join(said, ", ")
}

func TestDrainGoesByPriority(t *testing.T) {
	if got, want := drained(t, DefaultDrainGroups, 0, nil, 2_000_001_000, -5, 2_000_000_000), "-5 in 30s, "; !strings.HasPrefix(got, want) {
		t.Errorf("critical ones are not the last: %s", got)
	}
	three := []DrainGroup{{Priority: 0, Grace: 20 * time.Second}, {Priority: 10}, {Priority: 20, Grace: 5 * time.Second}}
	if got, want := drained(t, three, 0, nil, 25, 10, 5), "5 in 20s, 10 in 30s, 25 in 5s"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := drained(t, three, 10*time.Second, nil, 25, 10, 5), "5 in 10s, 10 in 10s, 25 in 5s"; got != want {
		t.Errorf("with a limit: got %s, want %s", got, want)
	}
}

// A group whose time is over keeps nobody else from his own.
func TestAStuckPodDoesNotHoldTheNext(t *testing.T) {
	groups := []DrainGroup{{Priority: 0, Grace: 50 * time.Millisecond}, {Priority: 10}, {Priority: 20}}
	got := drained(t, groups, 0, map[int32]bool{5: true}, 15, 5)
	if !strings.HasPrefix(got, "15 in ") {
		t.Errorf("got %s", got)
	}
}
