//go:build integration

package integration

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// However creations and starts overlap with the end of their sandbox, no container is left in it, nor anywhere else.
func TestContainersAreNotMadeInASandboxThatEnds(t *testing.T) {
	n := sharedNode(t)
	n.NeedImage(t, images.Tools)
	before := len(containersOf(t, n, ""))
	for i := range 8 {
		pod := n.RunPod(t, "ending")
		var calls sync.WaitGroup
		for k := range 4 {
			calls.Go(func() {
				config := harness.ContainerConfig(fmt.Sprintf("app-%d", k), images.Tools, "sleep", "1000")
				resp, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
				if err != nil {
					wantTooLate(t, "CreateContainer", err)
					return
				}
				if _, err := n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: resp.ContainerId}); err != nil {
					wantTooLate(t, "StartContainer", err)
				}
			})
		}
		time.Sleep(time.Duration(i) * 8 * time.Millisecond) // each round ends at another step of the creations
		if i%2 == 0 {
			pod.Remove(t)
		} else if _, err := n.Runtime.StopPodSandbox(harness.Ctx(t), &cri.StopPodSandboxRequest{PodSandboxId: pod.ID}); err != nil {
			t.Errorf("StopPodSandbox: %v", err)
		}
		for _, c := range containersOf(t, n, pod.ID) {
			if i%2 == 0 || c.State != cri.ContainerState_CONTAINER_EXITED {
				t.Errorf("round %d: container %s is %s after the end of its sandbox", i, c.Metadata.Name, c.State)
			}
		}
		calls.Wait()
		pod.Remove(t)
	}
	if now := containersOf(t, n, ""); len(now) != before {
		t.Errorf("%d containers on the node, %d before: %v", len(now), before, now)
	}
}

// wantTooLate is for what a sandbox that ends may answer: that it is not ready, or is not there, or that the container
// is not.
func wantTooLate(t *testing.T, call string, err error) {
	t.Helper()
	switch status.Code(err) {
	case codes.FailedPrecondition, codes.NotFound:
	default:
		t.Errorf("%s: %v", call, err)
	}
}

// containersOf lists the containers of a sandbox, or with "" all.
func containersOf(t *testing.T, n *harness.Node, sandboxID string) []*cri.Container {
	t.Helper()
	resp, err := n.Runtime.ListContainers(harness.Ctx(t), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: sandboxID}})
	if err != nil {
		t.Fatal(err)
	}
	var found []*cri.Container
	for _, c := range resp.Containers {
		if sandboxID == "" || c.PodSandboxId == sandboxID {
			found = append(found, c)
		}
	}
	return found
}

// Of calls that stop and remove the same things at once, each succeeds.
func TestEndsOverlap(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "ends")
	app := pod.Idle(t, "app")
	other := pod.Sh(t, "other", `trap "" TERM; while :; do sleep 1; done`)
	var calls sync.WaitGroup
	for _, call := range []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: app.ID, Timeout: 30})
			return err
		},
		func(ctx context.Context) error {
			_, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: other.ID, Timeout: 60})
			return err
		},
		func(ctx context.Context) error {
			_, err := n.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: app.ID})
			return err
		},
		func(ctx context.Context) error {
			_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.ID})
			return err
		},
		func(ctx context.Context) error {
			_, err := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.ID})
			return err
		},
	} {
		for range 3 {
			calls.Go(func() {
				if err := call(harness.Ctx(t)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	calls.Wait()
	if left := containersOf(t, n, pod.ID); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A drain takes along what is being made while it begins.
func TestDrainWhilePodsAreMade(t *testing.T) {
	n := ownNode(t)
	var calls sync.WaitGroup
	for range 12 {
		config := n.PodConfig("late")
		calls.Go(func() {
			_, _ = n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config}) // whatever it answers
		})
	}
	time.Sleep(5 * time.Millisecond)
	if err := n.Drain(); err != nil {
		t.Error(err)
	}
	calls.Wait()
}
