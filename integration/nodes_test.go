//go:build integration

package integration

import (
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// Two nodes with folders of their own know nothing of each other, and neither takes the other's pods along.
func TestTwoNodesSideBySide(t *testing.T) {
	one, two := sharedNode(t), ownNode(t)
	first := one.RunPod(t, "of-one").Idle(t, "app")
	pod := two.RunPod(t, "of-two")
	second := pod.Idle(t, "app")
	list, err := two.Runtime.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Id != pod.ID {
		t.Errorf("the second node lists %v, %v", list, err)
	}
	if got := second.Exec(t, "hostname"); got != "of-two" {
		t.Errorf("hostname on the second: %q", got)
	}
	two.Restart(t)
	if got := second.Exec(t, "echo", "alive"); got != "alive" {
		t.Errorf("the second after its restart: %q", got)
	}
	if err := two.Drain(); err != nil {
		t.Fatal(err)
	}
	if got := first.Exec(t, "hostname"); got != "of-one" {
		t.Errorf("the first after the second's end: %q", got)
	}
	if s := first.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the first's container is %s", s.State)
	}
}
