package nri

import (
	"context"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// begin starts telling plugins something, end is to be called afterwards.
//
// The caller's deadline is left behind: the library takes any deadline that passes for a plugin that hangs, and cuts the
// plugin off. Each plugin has its request timeout, and that bounds the whole.
func (n *NRI) begin(ctx context.Context) (told context.Context, end func()) {
	n.mu.Lock()
	return context.WithoutCancel(ctx), n.mu.Unlock
}

// RunPodSandbox tells of a new pod, whose sandbox is ready and not yet visible. After an error plugins were told that it is
// gone again.
func (n *NRI) RunPodSandbox(ctx context.Context, pod Pod) error {
	if n == nil {
		return nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	n.told[pod.ID] = alive
	err := n.adaptation.RunPodSandbox(ctx, &adaptation.RunPodSandboxRequest{Pod: pod.message()})
	if err != nil {
		return joinUndo(veto("RunPodSandbox", err), n.removePod(ctx, pod))
	}
	return nil
}

// UpdatePodSandbox tells of new resources of a pod before they count: the sum of its containers' and the pod's overhead.
func (n *NRI) UpdatePodSandbox(ctx context.Context, pod Pod, overhead, resources *cri.LinuxContainerResources) error {
	if n == nil {
		return nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	_, err := n.adaptation.UpdatePodSandbox(ctx, &adaptation.UpdatePodSandboxRequest{
		Pod:                    pod.message(),
		OverheadLinuxResources: resourcesMessage(overhead),
		LinuxResources:         resourcesMessage(resources),
	})
	return veto("UpdatePodSandbox", err)
}

// PostUpdatePodSandbox tells that the new resources of a pod count.
func (n *NRI) PostUpdatePodSandbox(ctx context.Context, pod Pod) error {
	if n == nil {
		return nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	err := n.adaptation.PostUpdatePodSandbox(ctx, &adaptation.PostUpdatePodSandboxRequest{Pod: pod.message()})
	return veto("PostUpdatePodSandbox", err)
}

// StopPodSandbox tells that a pod's containers are stopped and the sandbox will be. An error stops nothing.
func (n *NRI) StopPodSandbox(ctx context.Context, pod Pod) error {
	if n == nil {
		return nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	return n.stopPod(ctx, pod)
}

func (n *NRI) stopPod(ctx context.Context, pod Pod) error {
	if n.told[pod.ID] != alive {
		return nil
	}
	n.told[pod.ID] = stopped
	err := n.adaptation.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: pod.message()})
	return veto("StopPodSandbox", err)
}

// RemovePodSandbox tells that a pod goes.
func (n *NRI) RemovePodSandbox(ctx context.Context, pod Pod) error {
	if n == nil {
		return nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	return n.removePod(ctx, pod)
}

func (n *NRI) removePod(ctx context.Context, pod Pod) error {
	if n.told[pod.ID] == unknown {
		return nil
	}
	stop := n.stopPod(ctx, pod)
	delete(n.told, pod.ID)
	err := n.adaptation.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: pod.message()})
	return joinUndo(veto("RemovePodSandbox", err), stop)
}

// CreateContainer lets plugins change a container before it is made. It returns the spec as they want it, which is
// container.Spec itself if they want no change and a copy else, and updates of other containers. After an error plugins
// were told that the container is gone again.
func (n *NRI) CreateContainer(ctx context.Context, pod Pod, container Container) (*specs.Spec, []Update, error) {
	if n == nil {
		return container.Spec, nil, nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	n.told[container.ID] = alive
	request := &adaptation.CreateContainerRequest{Pod: pod.message(), Container: container.message()}
	answer, err := n.adaptation.CreateContainer(ctx, request)
	var spec *specs.Spec
	if err == nil {
		wishes := withRemovals(answer.GetAdjust(), container.Spec, request.GetContainer())
		spec, err = adjusted(container.Spec, wishes, n.cfg.InjectCDI)
	}
	if err != nil {
		return nil, nil, joinUndo(veto("CreateContainer", err), n.removeContainer(ctx, pod, container))
	}
	n.evict(ctx, answer.GetEvict())
	return spec, newUpdates(answer.GetUpdate()), nil
}

// PostCreateContainer tells that a container is created.
func (n *NRI) PostCreateContainer(ctx context.Context, pod Pod, container Container) error {
	if n == nil {
		return nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	err := n.adaptation.PostCreateContainer(ctx, &adaptation.PostCreateContainerRequest{
		Pod: pod.message(), Container: container.message(),
	})
	return veto("PostCreateContainer", err)
}

// StartContainer tells that a container is about to run.
func (n *NRI) StartContainer(ctx context.Context, pod Pod, container Container) error {
	if n == nil {
		return nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	err := n.adaptation.StartContainer(ctx, &adaptation.StartContainerRequest{
		Pod: pod.message(), Container: container.message(),
	})
	return veto("StartContainer", err)
}

// PostStartContainer tells that a container runs.
func (n *NRI) PostStartContainer(ctx context.Context, pod Pod, container Container) error {
	if n == nil {
		return nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	err := n.adaptation.PostStartContainer(ctx, &adaptation.PostStartContainerRequest{
		Pod: pod.message(), Container: container.message(),
	})
	return veto("PostStartContainer", err)
}

// UpdateContainer lets plugins change new resources of a container before they are applied. It returns the resources to
// apply, the given ones if no plugin minds, and updates of other containers.
func (n *NRI) UpdateContainer(ctx context.Context, pod Pod, container Container, resources *specs.LinuxResources) (
	*specs.LinuxResources, []Update, error,
) {
	if n == nil {
		return resources, nil, nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	asked := api.FromOCILinuxResources(resources, nil)
	if asked == nil {
		asked = &api.LinuxResources{}
	}
	answer, err := n.adaptation.UpdateContainer(ctx, &adaptation.UpdateContainerRequest{
		Pod: pod.message(), Container: container.message(), LinuxResources: asked,
	})
	if err != nil {
		return nil, nil, veto("UpdateContainer", err)
	}
	n.evict(ctx, answer.GetEvict())
	var others []Update
	for _, u := range newUpdates(answer.GetUpdate()) {
		if u.ContainerID != container.ID {
			others = append(others, u)
		} else if u.Resources != nil {
			resources = u.Resources
		}
	}
	return resources, others, nil
}

// PostUpdateContainer tells that new resources of a container are applied.
func (n *NRI) PostUpdateContainer(ctx context.Context, pod Pod, container Container) error {
	if n == nil {
		return nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	err := n.adaptation.PostUpdateContainer(ctx, &adaptation.PostUpdateContainerRequest{
		Pod: pod.message(), Container: container.message(),
	})
	return veto("PostUpdateContainer", err)
}

// StopContainer tells that a container is stopped. It returns updates of other containers. An error stops nothing: the
// container has ended.
func (n *NRI) StopContainer(ctx context.Context, pod Pod, container Container) ([]Update, error) {
	if n == nil {
		return nil, nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	return n.stopContainer(ctx, pod, container)
}

func (n *NRI) stopContainer(ctx context.Context, pod Pod, container Container) ([]Update, error) {
	if n.told[container.ID] != alive {
		return nil, nil
	}
	n.told[container.ID] = stopped
	answer, err := n.adaptation.StopContainer(ctx, &adaptation.StopContainerRequest{
		Pod: pod.message(), Container: container.message(),
	})
	return newUpdates(answer.GetUpdate()), veto("StopContainer", err)
}

// RemoveContainer tells that a container goes. Updates that plugins ask for at a stop that was not told before are dropped:
// who wants them calls StopContainer first.
func (n *NRI) RemoveContainer(ctx context.Context, pod Pod, container Container) error {
	if n == nil {
		return nil
	}
	ctx, end := n.begin(ctx)
	defer end()
	return n.removeContainer(ctx, pod, container)
}

func (n *NRI) removeContainer(ctx context.Context, pod Pod, container Container) error {
	if n.told[container.ID] == unknown {
		return nil
	}
	_, stop := n.stopContainer(ctx, pod, container)
	delete(n.told, container.ID)
	err := n.adaptation.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{
		Pod: pod.message(), Container: container.message(),
	})
	return joinUndo(veto("RemoveContainer", err), stop)
}
