// Package podspec turns a v1.Pod into what the runtime is told: the configurations of CRI, as upstream's kubelet writes
// them (pkg/kubelet/kuberuntime and kubelet_pods.go), letter for letter where a workload or a tool can see it.
//
// Everything here is a function of its arguments, but for [Node.MakeFiles], and the node's resolv.conf and hosts, which are
// read when a pod is made.
package podspec

import (
	"net/netip"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/kubelet/resource"
)

// Node is what pods are told of the node. It does not change.
type Node struct {
	// IPs of the node, those of the preferred family first: pods' addresses are told in the same order.
	IPs []netip.Addr
	// Allocatable stands in resourceFieldRef for limits that are not set.
	Allocatable v1.ResourceList
	// LogDir has a folder for the logs of each pod: /var/log/pods.
	LogDir string
	// LinkDir has a link to the log of each container, for collectors: /var/log/containers. "" is none.
	LinkDir string
	DNS     DNS
	// SeccompRoot is the folder of the profiles of type Localhost.
	SeccompRoot string
	// SeccompDefault gives the runtime's profile to containers that name none; else those are unconfined.
	SeccompDefault bool
	// SELinux says that the node labels files.
	SELinux bool
	// RecursiveReadOnly says that the runtime can mount so.
	RecursiveReadOnly bool
	Resources         *resource.Node
	// CgroupParent is the pod's cgroup.
	CgroupParent func(*v1.Pod) string
	// Warn is told what does not keep the pod from running: a Warning event of the pod.
	Warn func(pod *v1.Pod, reason, message string)
}

// A Volume is a volume of the pod, set up: a path on the host, or an image that the runtime mounts.
type Volume struct {
	Path string
	// ReadOnly volumes can only be mounted so, whatever the mount says.
	ReadOnly bool
	// Relabel says that the volume is the kubelet's own, so that its files get the container's SELinux label.
	Relabel bool
	Image   *cri.ImageSpec
}

func (n *Node) warn(pod *v1.Pod, reason, message string) {
	if n.Warn != nil {
		n.Warn(pod, reason, message)
	}
}

// PodIPs returns the addresses of a pod as its status tells them: one of each family, that of the node's first address
// first. A pod on the host's network has the node's.
func (n *Node) PodIPs(pod *v1.Pod, sandbox []netip.Addr) []string {
	ips := sandbox
	if pod.Spec.HostNetwork {
		ips = n.IPs
	}
	if len(ips) == 0 {
		return nil
	}
	is4 := ips[0].Is4()
	if len(n.IPs) > 0 {
		is4 = n.IPs[0].Is4()
	}
	var out []string
	for _, family := range []bool{is4, !is4} {
		for _, ip := range ips {
			if ip.Unmap().Is4() == family {
				out = append(out, ip.Unmap().String())
				break
			}
		}
	}
	return out
}
