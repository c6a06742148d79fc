package network

import (
	"math"

	"github.com/containernetworking/cni/libcni"
)

// Capabilities are passed to those plugins only whose configuration asks for them.
type (
	cniPortMapping struct {
		HostPort      int32  `json:"hostPort"`
		ContainerPort int32  `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP,omitempty"`
	}
	cniBandwidth struct { // bits per second, bits
		IngressRate  uint64 `json:"ingressRate,omitempty"`
		IngressBurst uint64 `json:"ingressBurst,omitempty"`
		EgressRate   uint64 `json:"egressRate,omitempty"`
		EgressBurst  uint64 `json:"egressBurst,omitempty"`
	}
	cniDNS struct {
		Servers  []string `json:"servers,omitempty"`
		Searches []string `json:"searches,omitempty"`
		Options  []string `json:"options,omitempty"`
	}
	cniRange struct {
		Subnet string `json:"subnet"`
	}
)

// runtimeConf puts a request into the words of CNI.
func (c *CNI) runtimeConf(req Request) (*libcni.RuntimeConf, error) {
	capabilities := make(map[string]any)
	mappings, err := mapped(req.PortMappings)
	if err != nil {
		return nil, err
	}
	if len(mappings) > 0 {
		ports := make([]cniPortMapping, 0, len(mappings))
		for _, m := range mappings {
			ports = append(ports, cniPortMapping{m.HostPort, m.ContainerPort, m.Protocol, m.HostIP})
		}
		capabilities["portMappings"] = ports
	}
	limit, err := bandwidthOf(req.Annotations)
	if err != nil {
		return nil, err
	}
	if limit != (bandwidth{}) {
		capabilities["bandwidth"] = limit.cni()
	}
	if d := req.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		capabilities["dns"] = cniDNS(d)
	}
	if ranges := c.ipRanges(); len(ranges) > 0 {
		capabilities["ipRanges"] = ranges
	}
	if len(req.Aliases) > 0 {
		capabilities["aliases"] = req.Aliases
	}
	if len(req.Annotations) > 0 {
		capabilities["io.kubernetes.cri.pod-annotations"] = req.Annotations
	}
	if req.CgroupParent != "" {
		capabilities["cgroupPath"] = req.CgroupParent
	}
	return &libcni.RuntimeConf{
		ContainerID: req.SandboxID,
		NetNS:       req.NetNS,
		IfName:      InterfaceName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", req.Namespace},
			{"K8S_POD_NAME", req.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", req.SandboxID},
			{"K8S_POD_UID", req.UID},
		},
		CapabilityArgs: capabilities,
	}, nil
}

// cni is b as the plugin bandwidth takes it, which wants a burst with every rate; Kubernetes has no word for it.
func (b bandwidth) cni() cniBandwidth {
	var c cniBandwidth
	if b.Ingress > 0 {
		c.IngressRate, c.IngressBurst = b.Ingress, math.MaxInt32
	}
	if b.Egress > 0 {
		c.EgressRate, c.EgressBurst = b.Egress, math.MaxInt32
	}
	return c
}
