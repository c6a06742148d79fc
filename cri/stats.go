package cri

import (
	"context"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/runtime"
)

// ContainerStats tells what one container uses.
func (s *Server) ContainerStats(ctx context.Context, r *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	if err := checkName("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	st, err := s.cfg.Runtime.ContainerStats(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &cri.ContainerStatsResponse{Stats: toContainerStats(st, s.rates)}, nil
}

func (s *Server) containerStats(ctx context.Context, f *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	found, err := s.cfg.Runtime.ListContainerStats(ctx, runtime.ContainerFilter{
		ID: f.GetId(), SandboxID: f.GetPodSandboxId(), Labels: f.GetLabelSelector(),
	})
	if err != nil {
		return nil, err
	}
	items := make([]*cri.ContainerStats, 0, len(found))
	for _, st := range found {
		items = append(items, toContainerStats(st, s.rates))
	}
	return items, nil
}

// ListContainerStats tells what the containers use that have not exited.
func (s *Server) ListContainerStats(ctx context.Context, r *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	items, err := s.containerStats(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &cri.ListContainerStatsResponse{Stats: items}, nil
}

// StreamContainerStats is ListContainerStats in parts.
func (s *Server) StreamContainerStats(r *cri.StreamContainerStatsRequest, out grpc.ServerStreamingServer[cri.StreamContainerStatsResponse]) error {
	items, err := s.containerStats(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(out, items, func(part []*cri.ContainerStats) *cri.StreamContainerStatsResponse {
		return &cri.StreamContainerStatsResponse{ContainerStats: part}
	})
}

// PodSandboxStats tells what one pod uses.
func (s *Server) PodSandboxStats(ctx context.Context, r *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	if err := checkName("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	st, err := s.cfg.Runtime.SandboxStats(ctx, r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &cri.PodSandboxStatsResponse{Stats: toSandboxStats(st, s.rates)}, nil
}

func (s *Server) sandboxStats(ctx context.Context, f *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
	found, err := s.cfg.Runtime.ListSandboxStats(ctx, runtime.SandboxFilter{ID: f.GetId(), Labels: f.GetLabelSelector()})
	if err != nil {
		return nil, err
	}
	items := make([]*cri.PodSandboxStats, 0, len(found))
	for _, st := range found {
		items = append(items, toSandboxStats(st, s.rates))
	}
	return items, nil
}

// ListPodSandboxStats tells what the ready pods use.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	items, err := s.sandboxStats(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &cri.ListPodSandboxStatsResponse{Stats: items}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in parts.
func (s *Server) StreamPodSandboxStats(r *cri.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[cri.StreamPodSandboxStatsResponse]) error {
	items, err := s.sandboxStats(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(out, items, func(part []*cri.PodSandboxStats) *cri.StreamPodSandboxStatsResponse {
		return &cri.StreamPodSandboxStatsResponse{PodSandboxStats: part}
	})
}

// ListMetricDescriptors tells which metrics ListPodSandboxMetrics may have. They do not change while berth runs.
func (s *Server) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	return &cri.ListMetricDescriptorsResponse{Descriptors: metricDescriptors()}, nil
}

func (s *Server) podMetrics(ctx context.Context) ([]*cri.PodSandboxMetrics, error) {
	found, err := s.cfg.Runtime.ListSandboxStats(ctx, runtime.SandboxFilter{})
	if err != nil {
		return nil, err
	}
	m := newMeter(s.cfg.Cgroups)
	items := make([]*cri.PodSandboxMetrics, 0, len(found))
	for _, st := range found {
		items = append(items, m.pod(st))
	}
	return items, nil
}

// ListPodSandboxMetrics tells of all ready pods what cAdvisor would, by its names.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	items, err := s.podMetrics(ctx)
	if err != nil {
		return nil, err
	}
	return &cri.ListPodSandboxMetricsResponse{PodMetrics: items}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in parts.
func (s *Server) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[cri.StreamPodSandboxMetricsResponse]) error {
	items, err := s.podMetrics(out.Context())
	if err != nil {
		return err
	}
	return sendBatches(out, items, func(part []*cri.PodSandboxMetrics) *cri.StreamPodSandboxMetricsResponse {
		return &cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part}
	})
}
