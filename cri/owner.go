package cri

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime"
)

// podUIDLabel is on every sandbox that a kubelet makes, and on none of crictl's.
const podUIDLabel = "io.kubernetes.pod.uid"

// checkKubelet refuses a pod of a kubelet on a node that runs pods of its own. The two would end each other's pods: a kubelet removes
// whatever it does not know.
func (s *Server) checkKubelet(pod *cri.PodSandboxConfig) error {
	if pod.GetLabels()[podUIDLabel] == "" || s.cfg.OwnPods == nil || !s.cfg.OwnPods() {
		return nil
	}
	return fmt.Errorf("this node runs pods by itself, from manifests or \"berth apply\": a kubelet cannot use it too: %w", errdefs.ErrFailedPrecondition)
}

// sandboxIsTheirs refuses to change what is not the callers': pods of the node itself are seen here, and can be entered, but
// their life is their owner's. What there is none of is for the call itself to say.
func (s *Server) sandboxIsTheirs(ctx context.Context, id string) error {
	sb, err := s.cfg.Runtime.Sandbox(ctx, id)
	if err != nil || sb.Owner != runtime.OwnerKubelet {
		return nil
	}
	return fmt.Errorf("%s/%s is a pod of the node itself, see \"berth get pods\": %w",
		sb.Config.GetMetadata().GetNamespace(), sb.Config.GetMetadata().GetName(), errdefs.ErrFailedPrecondition)
}

// containerIsTheirs is the same for a container.
func (s *Server) containerIsTheirs(ctx context.Context, id string) error {
	c, err := s.cfg.Runtime.Container(ctx, id)
	if err != nil {
		return nil
	}
	return s.sandboxIsTheirs(ctx, c.SandboxID)
}
