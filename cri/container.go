package cri

import (
	"context"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/runtime"
)

// CreateContainer makes a container that StartContainer can start.
func (s *Server) CreateContainer(ctx context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	err := first(
		checkName("pod_sandbox_id", r.GetPodSandboxId()),
		checkContainerConfig("config", r.GetConfig()),
	)
	if err != nil {
		return nil, err
	}
	pod := r.GetSandboxConfig()
	if pod == nil {
		// The field repeats what the sandbox was made from; a client may leave it out.
		sb, err := s.cfg.Runtime.Sandbox(ctx, r.GetPodSandboxId())
		if err != nil {
			return nil, err
		}
		pod = sb.Config
	} else if err := checkSandboxConfig("sandbox_config", pod); err != nil {
		return nil, err
	}
	if err := s.sandboxIsTheirs(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	id, err := s.cfg.Runtime.CreateContainer(ctx, r.GetPodSandboxId(), r.GetConfig(), pod)
	if err != nil {
		return nil, err
	}
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer starts a created container.
func (s *Server) StartContainer(ctx context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	if err := checkName("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.containerIsTheirs(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	err := s.cfg.Runtime.StartContainer(ctx, r.GetContainerId())
	s.cfg.Metrics.ContainerStarted(err)
	if err != nil {
		return nil, err
	}
	return &cri.StartContainerResponse{}, nil
}

// StopContainer stops a container and returns when it is dead.
func (s *Server) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	err := first(
		checkName("container_id", r.GetContainerId()),
		checkSeconds("timeout", r.GetTimeout()),
	)
	if err != nil {
		return nil, err
	}
	if err := s.containerIsTheirs(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.cfg.Runtime.StopContainer(ctx, r.GetContainerId(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &cri.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, by force if it runs.
func (s *Server) RemoveContainer(ctx context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	if err := checkName("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.containerIsTheirs(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.cfg.Runtime.RemoveContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &cri.RemoveContainerResponse{}, nil
}

func (s *Server) containers(f *cri.ContainerFilter) ([]*cri.Container, error) {
	if err := checkContainerFilter(f); err != nil {
		return nil, err
	}
	return each(s.cfg.Runtime.Containers(fromContainerFilter(f)), toContainer), nil
}

// ListContainers lists containers, the newest first.
func (s *Server) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	items, err := s.containers(r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &cri.ListContainersResponse{Containers: items}, nil
}

// StreamContainers is ListContainers in parts.
func (s *Server) StreamContainers(r *cri.StreamContainersRequest, out grpc.ServerStreamingServer[cri.StreamContainersResponse]) error {
	items, err := s.containers(r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(out, items, func(part []*cri.Container) *cri.StreamContainersResponse {
		return &cri.StreamContainersResponse{Containers: part}
	})
}

// ContainerStatus tells all of one container.
func (s *Server) ContainerStatus(ctx context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	if err := checkName("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.cfg.Runtime.Container(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &cri.ContainerStatusResponse{Status: toContainerStatus(c)}
	if r.GetVerbose() {
		info, err := s.cfg.Runtime.ContainerInfo(ctx, c.ID)
		if err != nil {
			return nil, err
		}
		if resp.Info, err = verbose(containerInfo(c, info)); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// UpdateContainerResources changes the limits of a container.
func (s *Server) UpdateContainerResources(ctx context.Context, r *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	if err := checkName("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if r.GetLinux() == nil {
		return nil, invalid("linux", "must be set")
	}
	if err := checkResources("linux", r.GetLinux()); err != nil {
		return nil, err
	}
	if err := s.containerIsTheirs(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	err := s.cfg.Runtime.UpdateContainerResources(ctx, r.GetContainerId(), r.GetLinux(), r.GetAnnotations())
	if err != nil {
		return nil, err
	}
	return &cri.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog makes the log be written to a new file of its name.
func (s *Server) ReopenContainerLog(ctx context.Context, r *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	if err := checkName("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.cfg.Runtime.ReopenLog(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &cri.ReopenContainerLogResponse{}, nil
}

// checkpointTimeout is the CRI's "default" of CheckpointContainer.
const checkpointTimeout = 5 * time.Minute

// CheckpointContainer writes the state of a running container to an archive.
func (s *Server) CheckpointContainer(ctx context.Context, r *cri.CheckpointContainerRequest) (*cri.CheckpointContainerResponse, error) {
	err := first(
		checkName("container_id", r.GetContainerId()),
		checkPath("location", r.GetLocation()),
		checkSeconds("timeout", r.GetTimeout()),
	)
	if err != nil {
		return nil, err
	}
	if r.GetLocation() == "" {
		return nil, invalid("location", "must not be empty")
	}
	limit := checkpointTimeout
	if r.GetTimeout() > 0 {
		limit = seconds(r.GetTimeout())
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := s.cfg.Runtime.Checkpoint(ctx, r.GetContainerId(), r.GetLocation()); err != nil {
		return nil, err
	}
	return &cri.CheckpointContainerResponse{}, nil
}

// CheckpointPod is not there yet.
func (s *Server) CheckpointPod(context.Context, *cri.CheckpointPodRequest) (*cri.CheckpointPodResponse, error) {
	return nil, notYet("checkpoints of whole pods; CheckpointContainer checkpoints one container")
}

// RestorePod is not there yet.
func (s *Server) RestorePod(context.Context, *cri.RestorePodRequest) (*cri.RestorePodResponse, error) {
	return nil, notYet("the restoring of pods from checkpoints")
}

// GetContainerEvents streams what happens to sandboxes and containers from now on, in order. A client too slow for its
// queue gets ResourceExhausted and has to list and subscribe again.
func (s *Server) GetContainerEvents(_ *cri.GetEventsRequest, out grpc.ServerStreamingServer[cri.ContainerEventResponse]) (err error) {
	sub := s.cfg.Runtime.Subscribe()
	defer sub.Close()
	left := s.cfg.Metrics.SubscriberJoined()
	defer func() { left(isCutOff(err)) }()
	// The headers tell the client that whatever it does from now on will be in the stream.
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	return relay(out.Context(), sub, out.Send)
}

// relay passes the events on until an error ends it.
func relay(ctx context.Context, sub *runtime.Subscription, send func(*cri.ContainerEventResponse) error) error {
	for {
		e, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		if err := send(toEvent(e)); err != nil {
			return err
		}
	}
}
