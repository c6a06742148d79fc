package nri

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func memoryUpdate(id string, limit int64) *api.ContainerUpdate {
	u := &api.ContainerUpdate{}
	u.SetContainerId(id)
	u.SetLinuxMemoryLimit(limit)
	return u
}

// show is an update in one line.
func (u Update) String() string {
	var limit int64
	if u.Resources != nil && u.Resources.Memory != nil && u.Resources.Memory.Limit != nil {
		limit = *u.Resources.Memory.Limit
	}
	return fmt.Sprintf("%s memory %d ignore %v", u.ContainerID, limit, u.IgnoreFailure)
}

func wantUpdates(t *testing.T, got []Update, want ...string) {
	t.Helper()
	var lines []string
	for _, u := range got {
		lines = append(lines, u.String())
	}
	if !slices.Equal(lines, want) {
		t.Errorf("updates are %q, want %q", lines, want)
	}
}

func TestSynchronize(t *testing.T) {
	n := newNode(t)
	old := testPod()
	old.ID, old.Stopped = "p0", true
	dead := testContainer("c0")
	dead.State = "exited"
	n.pods, n.containers = []Pod{old, testPod()}, []Container{dead, testContainer("c1")}
	n.start(t)
	p := &plugin{onSync: func() []*api.ContainerUpdate { return []*api.ContainerUpdate{memoryUpdate("c1", 5)} }}
	if got := n.connect(t, p); !slices.Equal(got, []string{"p0", "p1", "c1"}) {
		t.Errorf("synchronized with %q", got)
	}
	wantUpdates(t, n.updates, "c1 memory 5 ignore false")

	// Of what was there before the daemon, plugins hear the end: once, and what ended before not again.
	_, err := n.StopContainer(t.Context(), testPod(), dead)
	must(t, err)
	_, err = n.StopContainer(t.Context(), testPod(), testContainer("c1"))
	must(t, err)
	must(t, n.StopPodSandbox(t.Context(), old))
	must(t, n.RemovePodSandbox(t.Context(), old))
	wantEvents(t, p, "stop c1", "removepod p0")
}

func TestUnsolicitedUpdates(t *testing.T) {
	n := newNode(t).start(t)
	n.fail = func(u Update) bool { return u.ContainerID == "c2" }
	p := &plugin{}
	n.connect(t, p)
	second := memoryUpdate("c2", 6)
	second.SetIgnoreFailure()
	failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{memoryUpdate("c1", 5), second})
	must(t, err)
	if len(failed) != 1 || failed[0].GetContainerId() != "c2" {
		t.Errorf("failed are %v", failed)
	}
	wantUpdates(t, n.updates, "c1 memory 5 ignore false", "c2 memory 6 ignore true")
}

func TestUpdatesOfOthers(t *testing.T) {
	n := newNode(t).start(t)
	p := &plugin{
		onCreate: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			return nil, []*api.ContainerUpdate{memoryUpdate("c2", 1)}, nil
		},
		onUpdate: func(r *api.LinuxResources) []*api.ContainerUpdate {
			return []*api.ContainerUpdate{memoryUpdate("c1", 2*r.GetMemory().GetLimit().GetValue()), memoryUpdate("c2", 3)}
		},
		onStop: func() []*api.ContainerUpdate { return []*api.ContainerUpdate{memoryUpdate("c2", 4)} },
	}
	n.connect(t, p)
	ctx, pod, c := t.Context(), testPod(), testContainer("c1")

	_, updates, err := n.CreateContainer(ctx, pod, c)
	must(t, err)
	wantUpdates(t, updates, "c2 memory 1 ignore false")

	limit, shares := int64(100), uint64(9)
	resources, updates, err := n.UpdateContainer(ctx, pod, c, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Shares: &shares},
	})
	must(t, err)
	wantUpdates(t, updates, "c2 memory 3 ignore false")
	if *resources.Memory.Limit != 200 || *resources.CPU.Shares != 9 {
		t.Errorf("memory %d, shares %d: want the plugin's and ours", *resources.Memory.Limit, *resources.CPU.Shares)
	}

	updates, err = n.StopContainer(ctx, pod, c)
	must(t, err)
	wantUpdates(t, updates, "c2 memory 4 ignore false")
}

// A plugin that connects while containers are made sees each of them once: when it is synchronized, or as created.
func TestSynchronizeRace(t *testing.T) {
	n := newNode(t).start(t)
	const count = 200
	half, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := range count {
			if i == count/2 {
				close(half)
			}
			release := n.Block()
			c := testContainer(fmt.Sprintf("c%d", i))
			_, _, err := n.CreateContainer(t.Context(), testPod(), c)
			n.mu.Lock()
			n.containers = append(n.containers, c)
			n.mu.Unlock()
			release()
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	<-half
	p := &plugin{}
	seen := map[string]int{}
	for _, id := range n.connect(t, p) {
		seen[id]++
	}
	must(t, <-done)
	for _, event := range p.saw() {
		var id string
		if _, err := fmt.Sscanf(event, "create %s", &id); err != nil {
			t.Fatalf("%q: %v", event, err)
		}
		seen[id]++
	}
	for i := range count {
		if id := fmt.Sprintf("c%d", i); seen[id] != 1 {
			t.Errorf("%s was seen %d times", id, seen[id])
		}
	}
}

// While somebody blocks, a plugin waits.
func TestBlock(t *testing.T) {
	n := newNode(t).start(t)
	release := n.Block()
	second := n.Block() // shared
	in := make(chan struct{})
	go func() {
		n.connect(t, &plugin{})
		close(in)
	}()
	must(t, n.RunPodSandbox(t.Context(), testPod()))
	n.mu.Lock()
	n.pods = append(n.pods, testPod())
	n.mu.Unlock()
	select {
	case <-in:
		t.Error("a plugin came in while it was blocked")
	default:
	}
	release()
	release() // is harmless
	second()
	<-in
}

// An eviction runs beside the step in which it was wished, and outlives its caller.
func TestEvict(t *testing.T) {
	n := newNode(t)
	evicted := make(chan string, 1)
	n.callbacks.Evict = func(ctx context.Context, id, reason string) error {
		evicted <- fmt.Sprintf("%s %s %v", id, reason, ctx.Err())
		return errors.New("it is logged")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.evict(ctx, []*api.ContainerEviction{{ContainerId: "c1", Reason: "greedy"}})
	if got := <-evicted; got != "c1 greedy <nil>" {
		t.Errorf("evicted %q", got)
	}
}
