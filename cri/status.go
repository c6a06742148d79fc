package cri

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	goruntime "runtime"
	"slices"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/runtime"
)

const (
	runtimeName = "berth"
	// kubeletVersion is what clients of the CRI call the version of the kubelet's side of it; it has not changed since
	// the CRI began.
	kubeletVersion = "0.1.0"
	apiVersion     = "v1"
)

// Version tells who answers.
func (s *Server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{
		Version:           kubeletVersion,
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.cfg.Version,
		RuntimeApiVersion: apiVersion,
	}, nil
}

// Status tells whether pods can run, and what they can use.
func (s *Server) Status(ctx context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error) {
	st := s.cfg.Runtime.Status(ctx)
	resp := toStatusResponse(st)
	if r.GetVerbose() {
		var err error
		if resp.Info, err = s.statusInfo(st); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// stateWritable is a condition of berth's own, which kubelets pass over: a node whose disk is full is not to lose its pods.
const stateWritable = "StateWritable"

func toStatusResponse(st runtime.NodeStatus) *cri.StatusResponse {
	resp := &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			toCondition(cri.RuntimeReady, "RuntimeNotReady", st.Runtime),
			toCondition(cri.NetworkReady, "NetworkPluginNotReady", st.Network),
			toCondition(stateWritable, "StateNotWritable", st.State),
		}},
		Features: &cri.RuntimeFeatures{
			SupplementalGroupsPolicy:  st.Features.SupplementalGroupsPolicy,
			UserNamespacesHostNetwork: st.Features.UserNamespacesHostNetwork,
			MountOptions:              st.Features.MountOptions,
		},
	}
	// The default handler's name is "", so it comes first.
	handlers := slices.SortedFunc(slices.Values(st.Handlers), func(a, b runtime.Handler) int { return cmp.Compare(a.Name, b.Name) })
	for _, h := range handlers {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &cri.RuntimeHandler{
			Name: h.Name,
			Features: &cri.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: h.RecursiveReadOnlyMounts,
				UserNamespaces:          h.UserNamespaces,
			},
		})
	}
	return resp
}

func toCondition(kind, reason string, err error) *cri.RuntimeCondition {
	if err == nil {
		return &cri.RuntimeCondition{Type: kind, Status: true}
	}
	return &cri.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
}

// statusInfo is the verbose part: one JSON text per topic.
func (s *Server) statusInfo(st runtime.NodeStatus) (map[string]string, error) {
	config := map[string]any{}
	maps.Copy(config, s.cfg.Settings)
	// critest reads stateDir to find the file system that containers are on.
	config["rootDir"], config["stateDir"] = s.cfg.RootDir, s.cfg.StateDir
	topics := map[string]any{
		"config":      config,
		"limitations": orEmpty(st.Limitations),
		"damaged":     orEmpty(st.Damaged),
		"golang":      goruntime.Version(),
	}
	maps.Copy(topics, st.Info)
	info := make(map[string]string, len(topics))
	for topic, v := range topics {
		text, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("verbose status: %s: %w", topic, err)
		}
		info[topic] = string(text)
	}
	return info, nil
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// RuntimeConfig tells the kubelet the cgroup driver that it has to use too.
func (s *Server) RuntimeConfig(ctx context.Context, _ *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	driver := cri.CgroupDriver_CGROUPFS
	if s.cfg.Runtime.Status(ctx).CgroupDriver == cgroups.Systemd {
		driver = cri.CgroupDriver_SYSTEMD
	}
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the addresses that the cluster has given to the pods of this node.
func (s *Server) UpdateRuntimeConfig(_ context.Context, r *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	cidrs := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if err := checkCIDRs("runtime_config.network_config.pod_cidr", cidrs); err != nil {
		return nil, err
	}
	if cidrs != "" {
		if err := s.cfg.Runtime.UpdatePodCIDR(cidrs); err != nil {
			return nil, err
		}
	}
	return &cri.UpdateRuntimeConfigResponse{}, nil
}
