package kubelet

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/runtime"
)

// A Runtime runs the pods: a runtime.Runtime, by On.
type Runtime interface {
	Sandboxes(filter runtime.SandboxFilter) []runtime.Sandbox
	RunSandbox(ctx context.Context, config *cri.PodSandboxConfig, handler, owner string) (id string, err error)
	UpdateSandboxResources(ctx context.Context, id string, overhead, resources *cri.LinuxContainerResources) error
	StopSandbox(ctx context.Context, id string) error
	RemoveSandbox(ctx context.Context, id string) error

	SandboxContainers(sandbox string) []runtime.Container
	Container(ctx context.Context, id string) (runtime.Container, error)
	CreateContainer(ctx context.Context, sandbox string, config *cri.ContainerConfig, sandboxConfig *cri.PodSandboxConfig) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	UpdateContainerResources(ctx context.Context, id string, linux *cri.LinuxContainerResources, annotations map[string]string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (runtime.ExecResult, error)

	Subscribe() Events
}

// Events are those of a Runtime, as a runtime.Subscription has them.
type Events interface {
	Next(ctx context.Context) (runtime.Event, error)
	Close()
}

// On has the pods run on r.
func On(r *runtime.Runtime) Runtime { return on{r} }

type on struct{ *runtime.Runtime }

func (o on) Subscribe() Events { return o.Runtime.Subscribe() }
