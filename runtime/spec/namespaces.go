package spec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Namespaces are paths of a pod's namespaces.
//
// Whether a container has the host's, the pod's or its own is decided by the configs. Where it is the pod's, the path
// names it and "" makes a new one. PID is that of the pod's pause process, or of the target container in mode TARGET.
type Namespaces struct {
	Net, IPC, UTS, PID, User string
}

// namespaces decides on each namespace.
//
// Network, IPC and UTS are matters of the pod: the container's own options are not asked. UTS goes with the network, since
// the pod of a host network has the host's name.
func (b *builder) namespaces() error {
	pod := b.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions()
	b.namespace(specs.MountNamespace, "")
	if pod.GetNetwork() != cri.NamespaceMode_NODE {
		b.namespace(specs.NetworkNamespace, b.Namespaces.Net)
		b.namespace(specs.UTSNamespace, b.Namespaces.UTS)
		if b.Namespaces.UTS == "" {
			b.spec.Hostname = b.Hostname
		}
	}
	if pod.GetIpc() != cri.NamespaceMode_NODE {
		b.namespace(specs.IPCNamespace, b.Namespaces.IPC)
	}
	switch mode := PIDMode(b.Sandbox, b.Container); mode {
	case cri.NamespaceMode_NODE:
	case cri.NamespaceMode_CONTAINER:
		b.namespace(specs.PIDNamespace, "")
	case cri.NamespaceMode_TARGET:
		if b.Namespaces.PID == "" {
			return invalid("linux.security_context.namespace_options.target_id", "the container %q has no pid namespace to join",
				b.sc.GetNamespaceOptions().GetTargetId())
		}
		b.namespace(specs.PIDNamespace, b.Namespaces.PID)
	default:
		b.namespace(specs.PIDNamespace, b.Namespaces.PID)
	}
	// On cgroup v1 a cgroup namespace breaks what programs expect of /proc/self/cgroup (cAdvisor, JVMs); privileged
	// containers are there to manage the host's cgroups.
	if b.Node.Unified && !b.sc.GetPrivileged() {
		b.namespace(specs.CgroupNamespace, "")
	}
	if m := UserMapping(b.Sandbox); m != nil {
		b.namespace(specs.UserNamespace, b.Namespaces.User)
		if b.Namespaces.User == "" {
			// A namespace that is joined has its mappings; libcontainer warns of those that say it again.
			b.spec.Linux.UIDMappings = []specs.LinuxIDMapping{*m}
			b.spec.Linux.GIDMappings = []specs.LinuxIDMapping{*m}
		}
		if !contains(m, b.User.UID) || !contains(m, b.User.GID) {
			return invalid("linux.security_context.run_as_user", "user %d:%d is not mapped in the pod's user namespace",
				b.User.UID, b.User.GID)
		}
	}
	return nil
}

func (b *builder) namespace(t specs.LinuxNamespaceType, path string) {
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
}

// hasNamespace reports whether the container is in a namespace of this kind that is not the host's.
func hasNamespace(s *specs.Spec, t specs.LinuxNamespaceType) bool {
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == t {
			return true
		}
	}
	return false
}

// PIDMode says whose processes a container sees: NODE, POD, CONTAINER (its own) or TARGET. A pod on the host's pid
// namespace has no other to share.
func PIDMode(sandbox *cri.PodSandboxConfig, container *cri.ContainerConfig) cri.NamespaceMode {
	mode := container.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid()
	if mode == cri.NamespaceMode_POD {
		return sandboxPIDMode(sandbox)
	}
	return mode
}

// NeedsPause reports whether the pod shares a pid namespace of its own, which needs a process that holds it.
func NeedsPause(sandbox *cri.PodSandboxConfig) bool {
	return sandboxPIDMode(sandbox) == cri.NamespaceMode_POD
}

func sandboxPIDMode(sandbox *cri.PodSandboxConfig) cri.NamespaceMode {
	return sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid()
}

// UserMapping returns the mapping of the pod's user namespace, the same for users and groups, or nil if it has none.
func UserMapping(sandbox *cri.PodSandboxConfig) *specs.LinuxIDMapping {
	user := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if user == nil || user.GetMode() != cri.NamespaceMode_POD || len(user.GetUids()) == 0 {
		return nil
	}
	return &idMappings(user.GetUids()[:1])[0]
}

func contains(m *specs.LinuxIDMapping, id uint32) bool {
	return id >= m.ContainerID && uint64(id) < uint64(m.ContainerID)+uint64(m.Size)
}

func idMappings(from []*cri.IDMapping) []specs.LinuxIDMapping {
	var to []specs.LinuxIDMapping
	for _, m := range from {
		to = append(to, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return to
}
