package podspec

import (
	"errors"
	"net/netip"
	"strings"

	v1 "k8s.io/api/core/v1"
	helper "k8s.io/component-helpers/resource"
	"k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/apis/core/pods"
	"k8s.io/kubernetes/pkg/fieldpath"
)

// Field returns what a fieldRef names: a field of the pod, of its status or of its node.
func (n *Node) Field(pod *v1.Pod, ref *v1.ObjectFieldSelector, sandbox []netip.Addr) (string, error) {
	path, _, err := pods.ConvertDownwardAPIFieldLabel(ref.APIVersion, ref.FieldPath, "")
	if err != nil {
		return "", err
	}
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		if len(n.IPs) == 0 {
			return "", errors.New("the node has no IP address")
		}
		return pick(path, textOf(n.IPs)), nil
	case "status.podIP", "status.podIPs":
		return pick(path, n.PodIPs(pod, sandbox)), nil
	}
	return fieldpath.ExtractFieldPathAsString(pod, path)
}

// pick returns the first of ips, or all of them for a path in the plural.
func pick(path string, ips []string) string {
	if !strings.HasSuffix(path, "s") && len(ips) > 1 {
		ips = ips[:1]
	}
	return strings.Join(ips, ",")
}

func textOf(ips []netip.Addr) []string {
	var out []string
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return out
}

// ResourceField returns what a resourceFieldRef names, of the container that it names or of c. A limit that a container
// does not have is the pod's, and the node's allocatable where the pod has none.
func (n *Node) ResourceField(pod *v1.Pod, c *v1.Container, ref *v1.ResourceFieldSelector) (string, error) {
	allocatable := n.limitsOf(pod)
	if ref.ContainerName != "" {
		return resource.ExtractResourceValueByContainerNameAndNodeAllocatable(ref, pod, ref.ContainerName, allocatable)
	}
	if c == nil {
		return "", errors.New("resourceFieldRef names no container")
	}
	c = c.DeepCopy()
	resource.MergeContainerResourceLimits(c, allocatable)
	return resource.ExtractContainerResourceValue(ref, c)
}

// limitsOf are the limits of a container of the pod that has none.
func (n *Node) limitsOf(pod *v1.Pod) v1.ResourceList {
	if !helper.IsPodLevelLimitsSet(pod) {
		return n.Allocatable
	}
	limits := n.Allocatable.DeepCopy()
	for name, q := range pod.Spec.Resources.Limits {
		if _, known := limits[name]; known && !q.IsZero() && helper.IsSupportedPodLevelResource(name) {
			limits[name] = q
		}
	}
	return limits
}
