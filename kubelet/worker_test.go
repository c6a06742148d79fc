package kubelet

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

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
