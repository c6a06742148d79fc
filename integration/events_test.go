//go:build integration

package integration

import (
	"slices"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

func TestEventsInOrder(t *testing.T) {
	n := sharedNode(t)
	stream, err := n.Runtime.GetContainerEvents(harness.Ctx(t), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // sent when the subscription holds
		t.Fatal(err)
	}
	pod := n.RunPod(t, "events")
	app := pod.Idle(t, "app")
	app.Stop(t, 0)
	if _, err := n.Runtime.RemoveContainer(harness.Ctx(t), &cri.RemoveContainerRequest{ContainerId: app.ID}); err != nil {
		t.Fatal(err)
	}
	pod.Remove(t)

	const (
		created = cri.ContainerEventType_CONTAINER_CREATED_EVENT
		started = cri.ContainerEventType_CONTAINER_STARTED_EVENT
		stopped = cri.ContainerEventType_CONTAINER_STOPPED_EVENT
		deleted = cri.ContainerEventType_CONTAINER_DELETED_EVENT
	)
	ofPod, ofApp := []cri.ContainerEventType{}, []cri.ContainerEventType{}
	var last int64
	for !slices.Contains(ofPod, deleted) {
		e, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %v and %v: %v", ofPod, ofApp, err)
		}
		if e.CreatedAt < last {
			t.Errorf("%s of %s is from before the event that came before it", e.ContainerEventType, e.ContainerId)
		}
		last = e.CreatedAt
		switch e.ContainerId {
		case pod.ID:
			ofPod = append(ofPod, e.ContainerEventType)
		case app.ID:
			ofApp = append(ofApp, e.ContainerEventType)
			wantPodInEvent(t, e, pod, app)
		}
	}
	want := []cri.ContainerEventType{created, started, stopped, deleted}
	if !slices.Equal(ofPod, want) {
		t.Errorf("of the pod: %v", ofPod)
	}
	if !slices.Equal(ofApp, want) {
		t.Errorf("of the container: %v", ofApp)
	}
}

// wantPodInEvent checks that an event of a container shows the pod as it was then.
func wantPodInEvent(t *testing.T, e *cri.ContainerEventResponse, pod *harness.Pod, app *harness.Container) {
	t.Helper()
	if e.PodSandboxStatus.GetId() != pod.ID {
		t.Errorf("%s without its pod", e.ContainerEventType)
	}
	states := map[cri.ContainerEventType]cri.ContainerState{
		cri.ContainerEventType_CONTAINER_CREATED_EVENT: cri.ContainerState_CONTAINER_CREATED,
		cri.ContainerEventType_CONTAINER_STARTED_EVENT: cri.ContainerState_CONTAINER_RUNNING,
		cri.ContainerEventType_CONTAINER_STOPPED_EVENT: cri.ContainerState_CONTAINER_EXITED,
	}
	want, there := states[e.ContainerEventType]
	i := slices.IndexFunc(e.ContainersStatuses, func(s *cri.ContainerStatus) bool { return s.Id == app.ID })
	if there != (i >= 0) {
		t.Errorf("%s with the containers %v", e.ContainerEventType, e.ContainersStatuses)
	}
	if i >= 0 && e.ContainersStatuses[i].State != want {
		t.Errorf("%s shows the container as %s", e.ContainerEventType, e.ContainersStatuses[i].State)
	}
}
