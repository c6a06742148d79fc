package podspec

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SandboxInputs are what a sandbox has beside its pod.
type SandboxInputs struct {
	// Attempt counts the sandboxes of the pod.
	Attempt uint32
	// UserNS is the pod's user namespace; nil means the node's.
	UserNS *cri.UserNamespace
}

// Sandbox returns the configuration of the pod's sandbox.
func (n *Node) Sandbox(pod *v1.Pod, in SandboxInputs) (*cri.PodSandboxConfig, error) {
	dns, err := n.dnsFor(pod)
	if err != nil {
		return nil, err
	}
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{
			Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: in.Attempt,
		},
		Labels:       podLabels(pod),
		Annotations:  pod.Annotations,
		DnsConfig:    dns,
		LogDirectory: n.PodLogDir(pod),
		PortMappings: portMappings(pod),
	}
	if !pod.Spec.HostNetwork {
		name, domain, err := n.Hostname(pod)
		if err != nil {
			return nil, err
		}
		if config.Hostname, err = kernelHostname(pod, name, domain); err != nil {
			return nil, err
		}
	}
	if config.Linux, err = n.linuxSandbox(pod, in); err != nil {
		return nil, err
	}
	return config, nil
}

func (n *Node) linuxSandbox(pod *v1.Pod, in SandboxInputs) (*cri.LinuxPodSandboxConfig, error) {
	security, err := sandboxSecurity(pod, in.UserNS)
	if err != nil {
		return nil, err
	}
	linux := &cri.LinuxPodSandboxConfig{SecurityContext: security, Sysctls: map[string]string{}}
	if n.CgroupParent != nil {
		linux.CgroupParent = n.CgroupParent(pod)
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			linux.Sysctls[s.Name] = s.Value
		}
	}
	linux.Resources, linux.Overhead = n.Resources.Sandbox(pod)
	return linux, nil
}

func sandboxSecurity(pod *v1.Pod, user *cri.UserNamespace) (*cri.LinuxSandboxSecurityContext, error) {
	security := &cri.LinuxSandboxSecurityContext{
		Privileged: privileged(pod),
		// The pause process needs no more, whatever the containers need.
		Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		NamespaceOptions: namespaces(pod, user),
	}
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return security, nil
	}
	security.RunAsUser, security.RunAsGroup = id(sc.RunAsUser), id(sc.RunAsGroup)
	security.SelinuxOptions = selinux(sc.SELinuxOptions)
	var err error
	security.SupplementalGroups, security.SupplementalGroupsPolicy, err = groups(sc)
	return security, err
}

// namespaces are those of the pod: its own, or the node's.
func namespaces(pod *v1.Pod, user *cri.UserNamespace) *cri.NamespaceOption {
	if user == nil {
		user = &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
	}
	options := &cri.NamespaceOption{
		Network:       ofNode(pod.Spec.HostNetwork),
		Ipc:           ofNode(pod.Spec.HostIPC),
		Pid:           cri.NamespaceMode_CONTAINER,
		UsernsOptions: user,
	}
	if shared := pod.Spec.ShareProcessNamespace; shared != nil && *shared {
		options.Pid = cri.NamespaceMode_POD
	}
	if pod.Spec.HostPID {
		options.Pid = cri.NamespaceMode_NODE
	}
	return options
}

func ofNode(host bool) cri.NamespaceMode {
	if host {
		return cri.NamespaceMode_NODE
	}
	return cri.NamespaceMode_POD
}

// portMappings are the ports of all containers that live as long as the pod, sidecars among them.
func portMappings(pod *v1.Pod) []*cri.PortMapping {
	var out []*cri.PortMapping
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			out = append(out, portsOf(c)...)
		}
	}
	for i := range pod.Spec.Containers {
		out = append(out, portsOf(&pod.Spec.Containers[i])...)
	}
	return out
}

// portsOf leaves out what is said twice. The same port is another one at another host IP or in the other family.
func portsOf(c *v1.Container) []*cri.PortMapping {
	var out []*cri.PortMapping
	seen := map[string]bool{}
	for _, p := range c.Ports {
		name := p.Name
		if name == "" {
			name = fmt.Sprintf("%s %s %d %d", p.Protocol, p.HostIP, p.ContainerPort, p.HostPort)
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		out = append(out, &cri.PortMapping{
			Protocol: protocols[p.Protocol], ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP,
		})
	}
	return out
}

// protocols has no entry for TCP, which is CRI's zero.
var protocols = map[v1.Protocol]cri.Protocol{v1.ProtocolUDP: cri.Protocol_UDP, v1.ProtocolSCTP: cri.Protocol_SCTP}
