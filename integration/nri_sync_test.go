//go:build integration

package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

func testSynchronized(t *testing.T, n *harness.Node) {
	pod := n.RunPod(t, "before")
	running := pod.Idle(t, "running")
	created := pod.Create(t, harness.ContainerConfig("created", images.Tools, "true"))
	exited := pod.Sh(t, "exited", "true")
	exited.WaitExit(t)

	p := &plugin{}
	p.connect(t, n, "10")
	if !slices.ContainsFunc(p.pods, func(s *api.PodSandbox) bool {
		return s.Id == pod.ID && s.Uid == pod.Config.Metadata.Uid && netns(s) != ""
	}) {
		t.Errorf("the pod is not among %v", p.pods)
	}
	for c, want := range map[*harness.Container]api.ContainerState{
		running: api.ContainerState_CONTAINER_RUNNING, created: api.ContainerState_CONTAINER_CREATED,
	} {
		i := slices.IndexFunc(p.containers, func(m *api.Container) bool { return m.Id == c.ID })
		if i < 0 || p.containers[i].State != want || p.containers[i].Pid == 0 || p.containers[i].PodSandboxId != pod.ID {
			t.Errorf("%s is not, or not so, among %v", c.Config.Metadata.Name, p.containers)
		}
	}
	if p.timesSeen(exited.ID) != 0 {
		t.Error("told of a container that has ended")
	}
	later := pod.Idle(t, "later")
	if p.timesSeen(later.ID) != 1 {
		t.Errorf("of a container created later told %d times", p.timesSeen(later.ID))
	}
	running.Stop(t, 0)
	pod.Remove(t)
	if story := p.story(pod.ID); !slices.Contains(story, "StopContainer running") || !slices.Contains(story, "RemoveContainer exited") {
		t.Errorf("of the end of what was there before told %q", story)
	}
}

// connectHeld connects a plugin that stays in its synchronization until the gate is open.
func connectHeld(t *testing.T, n *harness.Node) (p *plugin, g *gate, synced <-chan struct{}) {
	t.Helper()
	g = newGate(t)
	p = &plugin{onSync: func(ctx context.Context) []*api.ContainerUpdate {
		g.hold(ctx, event{})
		return nil
	}}
	synced, _ = p.begin(t, n, "20")
	g.wait(t)
	return p, g, synced
}

// createAsync creates containers at the same time, and returns their IDs when asked for.
func createAsync(t *testing.T, pod *harness.Pod, names ...string) (ids func() []string) {
	t.Helper()
	pod.Node.NeedImage(t, images.Tools)
	ctx, results := harness.Ctx(t), make(chan string, len(names))
	for _, name := range names {
		go func() {
			resp, err := pod.Node.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
				PodSandboxId: pod.ID, Config: harness.ContainerConfig(name, images.Tools, "true"), SandboxConfig: pod.Config,
			})
			if err != nil {
				t.Errorf("CreateContainer %s: %v", name, err)
			}
			results <- resp.GetContainerId()
		}()
	}
	return func() []string {
		var list []string
		for range names {
			list = append(list, <-results)
		}
		return list
	}
}

func testCreatedWhileSynchronizing(t *testing.T, n *harness.Node) {
	first := &plugin{}
	first.connect(t, n, "10")
	pod := n.RunPod(t, "meanwhile")
	p, g, synced := connectHeld(t, n)
	ids := createAsync(t, pod, "app")
	// What has to wait for the plugin cannot be seen from here; what need not wait ends in this time.
	time.Sleep(300 * time.Millisecond)
	g.open()
	<-synced
	id := ids()[0]
	if p.timesSeen(id) != 1 || first.timesSeen(id) != 1 {
		t.Errorf("the one that was synchronized saw it %d times, the other %d times", p.timesSeen(id), first.timesSeen(id))
	}
}

func testCreatedAroundSynchronizing(t *testing.T, n *harness.Node) {
	pod := n.RunPod(t, "around")
	before := createAsync(t, pod, "b1", "b2")()
	early := createAsync(t, pod, "e1", "e2", "e3")
	p, g, synced := connectHeld(t, n)
	during := createAsync(t, pod, "d1", "d2", "d3")
	g.open()
	late := createAsync(t, pod, "l1", "l2", "l3")
	<-synced
	after := createAsync(t, pod, "a1", "a2")
	for _, id := range slices.Concat(before, early(), during(), late(), after()) {
		if seen := p.timesSeen(id); seen != 1 {
			t.Errorf("%s was seen %d times", id, seen)
		}
	}
}

// A plugin that connects by itself is cut off by an upgrade, as by any end of a daemon. When it connects again, as plugins do when
// they are started again, the new daemon tells it all that there is, also what was made without it. So does the old one after an
// upgrade that failed.
func TestNRIPluginComesBack(t *testing.T) {
	n := nriNode(t)
	before := &plugin{}
	synced, ended := before.begin(t, n, "10")
	await(t, synced, "the plugin to be synchronized")
	pod := n.RunPod(t, "stays")
	app := pod.Idle(t, "app")
	for _, upgrade := range []struct {
		name string
		run  func()
	}{
		{"upgrade", func() { n.Berth(t, "upgrade") }},
		{"upgrade that fails", func() { upgradeFails(t, n, "--program", agrees(t, "sleep 0.2")) }},
	} {
		t.Run(upgrade.name, func(t *testing.T) {
			upgrade.run()
			await(t, ended, "the plugin to be cut off")
			meanwhile := pod.Idle(t, "meanwhile-"+strings.ReplaceAll(upgrade.name, " ", "-"))
			again := &plugin{}
			harness.Eventually(t, 20*time.Second, "the socket for plugins", func() (err error) {
				synced, ended, err = again.try(t, n, "10")
				return err
			})
			await(t, synced, "the plugin to be synchronized again")
			later := pod.Idle(t, "later-"+strings.ReplaceAll(upgrade.name, " ", "-"))
			for _, c := range []*harness.Container{app, meanwhile, later} {
				if seen := again.timesSeen(c.ID); seen != 1 {
					t.Errorf("%s was seen %d times", c.Config.Metadata.Name, seen)
				}
			}
			meanwhile.Stop(t, 0)
			harness.Eventually(t, 10*time.Second, "the plugin to hear of the end of what was made meanwhile", func() error {
				if story := again.story(pod.ID); !slices.Contains(story, "StopContainer "+meanwhile.Config.Metadata.Name) {
					return fmt.Errorf("it has heard %q", story)
				}
				return nil
			})
		})
	}
}

func await(t *testing.T, event <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-event:
	case <-harness.Ctx(t).Done():
		t.Fatal("waited in vain for " + what)
	}
}
