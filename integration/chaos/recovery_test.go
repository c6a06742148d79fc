//go:build integration

package chaos

import (
	"fmt"
	"sync"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// recoveredPods is how many pods BenchmarkRecovery has.
const recoveredPods = 200

// BenchmarkRecovery measures how long a killed daemon takes from its start until it serves, with 200 pods that run.
func BenchmarkRecovery(b *testing.B) {
	n := harness.StartNode(b, harness.Options{HostsDir: hostsDir})
	n.NeedImage(b, images.Tools)
	runMany(b, n, recoveredPods)
	for b.Loop() {
		b.StopTimer()
		n.Kill9(b)
		b.StartTimer()
		if err := n.Start(); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	list, err := n.Runtime.ListContainers(harness.Ctx(b), &cri.ListContainersRequest{
		Filter: &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}},
	})
	if err != nil || len(list.Containers) != recoveredPods {
		b.Errorf("%d containers run after it: %v", len(list.GetContainers()), err)
	}
}

// runMany runs pods with one container each, some at a time.
func runMany(b *testing.B, n *harness.Node, count int) {
	b.Helper()
	var all sync.WaitGroup
	places := make(chan struct{}, 4)
	for i := range count {
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			if err := runOne(b, n, i); err != nil {
				b.Errorf("pod %d: %v", i, err)
			}
		})
	}
	all.Wait()
}

func runOne(b *testing.B, n *harness.Node, i int) error {
	config := n.PodConfig(fmt.Sprintf("many-%d", i))
	sandbox, err := n.Runtime.RunPodSandbox(b.Context(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return err
	}
	c, err := n.Runtime.CreateContainer(b.Context(), &cri.CreateContainerRequest{
		PodSandboxId: sandbox.PodSandboxId, SandboxConfig: config, Config: harness.ContainerConfig("app", images.Tools, "sleep", "100000"),
	})
	if err != nil {
		return err
	}
	_, err = n.Runtime.StartContainer(b.Context(), &cri.StartContainerRequest{ContainerId: c.ContainerId})
	return err
}
