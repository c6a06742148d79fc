package kubelet

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// idScheme is what stands before a container's ID in a pod's status.
const idScheme = "berth://"

// containerID finds the ID of a container in the status of its pod.
func containerID(p *v1.Pod, name string, previous bool) (string, error) {
	if !hasContainer(&p.Spec, name) {
		return "", fmt.Errorf("container %s is not valid for pod %s: %w", name, p.Name, errdefs.ErrNotFound)
	}
	s := statusOf(&p.Status, name)
	id := ""
	switch {
	case s == nil:
	case !previous:
		id = s.ContainerID
	case s.LastTerminationState.Terminated != nil:
		id = s.LastTerminationState.Terminated.ContainerID
	}
	if id != "" {
		return strings.TrimPrefix(id, idScheme), nil
	}
	if previous {
		return "", fmt.Errorf("previous terminated container %q in pod %q not found: %w", name, p.Name, errdefs.ErrFailedPrecondition)
	}
	why := "has not been created"
	if s != nil && s.State.Waiting != nil && s.State.Waiting.Reason != "" {
		why = "is waiting to start: " + s.State.Waiting.Reason
	}
	return "", fmt.Errorf("container %q in pod %q %s: %w", name, p.Name, why, errdefs.ErrFailedPrecondition)
}

func hasContainer(s *v1.PodSpec, name string) bool {
	for i := range s.Containers {
		if s.Containers[i].Name == name {
			return true
		}
	}
	for i := range s.InitContainers {
		if s.InitContainers[i].Name == name {
			return true
		}
	}
	for i := range s.EphemeralContainers {
		if s.EphemeralContainers[i].Name == name {
			return true
		}
	}
	return false
}

func statusOf(s *v1.PodStatus, name string) *v1.ContainerStatus {
	for _, all := range [][]v1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range all {
			if all[i].Name == name {
				return &all[i]
			}
		}
	}
	return nil
}
