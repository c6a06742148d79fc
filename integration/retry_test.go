//go:build integration

package integration

import (
	"context"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// The same pod asked for twice, at once or after the first caller gave up, is one pod.
func TestSameSandboxTwiceIsOne(t *testing.T) {
	n := sharedNode(t)
	config := n.PodConfig("twice")
	ids := make([]string, 6)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			ctx := harness.Ctx(t)
			if i%3 == 0 { // an impatient caller, who comes again
				short, cancel := context.WithTimeout(ctx, 2*time.Millisecond)
				_, _ = n.Runtime.RunPodSandbox(short, &cri.RunPodSandboxRequest{Config: config})
				cancel()
			}
			resp, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
			if err != nil {
				t.Error(err)
			}
			ids[i] = resp.GetPodSandboxId()
		})
	}
	all.Wait()
	t.Cleanup(func() {
		_, _ = n.Runtime.RemovePodSandbox(context.Background(), &cri.RemovePodSandboxRequest{PodSandboxId: ids[0]})
	})
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("different sandboxes: %v", ids)
		}
	}
	list, err := n.Runtime.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: map[string]string{"test": "twice"}}})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("listed: %v, %v", list.GetItems(), err)
	}
}

func TestSameContainerTwiceIsOne(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "container-twice")
	n.NeedImage(t, images.Tools)
	ids := make([]string, 4)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			config := harness.ContainerConfig("app", images.Tools, "sleep", "1000")
			resp, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
			if err != nil {
				t.Error(err)
			}
			ids[i] = resp.GetContainerId()
		})
	}
	all.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("different containers: %v", ids)
		}
	}
}

// The next attempt at the same pod is another sandbox.
func TestNextAttemptIsAnotherSandbox(t *testing.T) {
	n := sharedNode(t)
	first := n.RunPod(t, "attempt")
	second := n.RunPod(t, "attempt", func(c *cri.PodSandboxConfig) {
		c.Metadata = &cri.PodSandboxMetadata{
			Name: first.Config.Metadata.Name, Namespace: first.Config.Metadata.Namespace, Uid: first.Config.Metadata.Uid, Attempt: 1,
		}
	})
	if first.ID == second.ID {
		t.Error("attempt 1 is attempt 0")
	}
}
