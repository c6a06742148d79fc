package cri

import (
	"context"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/runtime"
)

// RunPodSandbox makes a sandbox and waits until it is ready.
func (s *Server) RunPodSandbox(ctx context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	if err := checkSandboxConfig("config", r.GetConfig()); err != nil {
		return nil, err
	}
	if err := s.checkKubelet(r.GetConfig()); err != nil {
		return nil, err
	}
	id, err := s.cfg.Runtime.RunSandbox(ctx, r.GetConfig(), r.GetRuntimeHandler(), runtime.OwnerCRI)
	if err != nil {
		return nil, err
	}
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox stops what runs in the sandbox and frees its network.
func (s *Server) StopPodSandbox(ctx context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	if err := checkName("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.sandboxIsTheirs(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.cfg.Runtime.StopSandbox(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &cri.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes the sandbox and its containers.
func (s *Server) RemovePodSandbox(ctx context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	if err := checkName("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.sandboxIsTheirs(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.cfg.Runtime.RemoveSandbox(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &cri.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus tells all of one sandbox, its containers included.
func (s *Server) PodSandboxStatus(ctx context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	if err := checkName("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	// The time is one before the look: a client that compares it with an event's must not take the status for newer than
	// it is.
	at := time.Now()
	sb, err := s.cfg.Runtime.Sandbox(ctx, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	containers := s.cfg.Runtime.SandboxContainers(sb.ID)
	resp := &cri.PodSandboxStatusResponse{
		Status:             toSandboxStatus(sb),
		ContainersStatuses: each(containers, toContainerStatus),
		Timestamp:          at.UnixNano(),
	}
	if r.GetVerbose() {
		info, err := s.cfg.Runtime.SandboxInfo(ctx, sb.ID)
		if err != nil {
			return nil, err
		}
		if resp.Info, err = verbose(sandboxInfo(sb, containers, info)); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func (s *Server) sandboxes(f *cri.PodSandboxFilter) ([]*cri.PodSandbox, error) {
	if err := checkSandboxFilter(f); err != nil {
		return nil, err
	}
	return each(s.cfg.Runtime.Sandboxes(fromSandboxFilter(f)), toSandbox), nil
}

// ListPodSandbox lists sandboxes, the newest first.
func (s *Server) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	items, err := s.sandboxes(r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &cri.ListPodSandboxResponse{Items: items}, nil
}

// StreamPodSandboxes is ListPodSandbox in parts.
func (s *Server) StreamPodSandboxes(r *cri.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[cri.StreamPodSandboxesResponse]) error {
	items, err := s.sandboxes(r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(out, items, func(part []*cri.PodSandbox) *cri.StreamPodSandboxesResponse {
		return &cri.StreamPodSandboxesResponse{PodSandboxes: part}
	})
}

// UpdatePodSandboxResources tells that the kubelet has changed the limits of the pod's cgroup.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	if err := checkName("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.sandboxIsTheirs(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	err := s.cfg.Runtime.UpdateSandboxResources(ctx, r.GetPodSandboxId(), r.GetOverhead(), r.GetResources())
	if err != nil {
		return nil, err
	}
	return &cri.UpdatePodSandboxResourcesResponse{}, nil
}
