package spec

import (
	"math"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ValidateSandbox checks the namespaces of a pod. A user namespace together with the host's network is refused unless
// hostNetworkInUserns says that the node's kernel and runtime can do it.
func ValidateSandbox(cfg *cri.PodSandboxConfig, hostNetworkInUserns bool) error {
	const field = "linux.security_context.namespace_options"
	opts := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for _, ns := range []struct {
		name string
		mode cri.NamespaceMode
	}{{"network", opts.GetNetwork()}, {"ipc", opts.GetIpc()}} {
		if ns.mode != cri.NamespaceMode_POD && ns.mode != cri.NamespaceMode_NODE {
			return invalid(field+"."+ns.name, "mode %s is not supported", ns.mode)
		}
	}
	if opts.GetPid() == cri.NamespaceMode_TARGET {
		return invalid(field+".pid", "mode TARGET is for containers")
	}
	if err := validateUserNamespace(field+".userns_options", opts.GetUsernsOptions()); err != nil {
		return err
	}
	if UserMapping(cfg) == nil {
		return nil
	}
	// The kernel mounts a namespace's proc or mqueue only for those who own that namespace.
	switch cri.NamespaceMode_NODE {
	case opts.GetPid():
		return invalid(field+".pid", "the host's pid namespace is not possible in a user namespace")
	case opts.GetIpc():
		return invalid(field+".ipc", "the host's IPC namespace is not possible in a user namespace")
	case opts.GetNetwork():
		if !hostNetworkInUserns {
			return invalid(field+".network", "the host's network is not possible in a user namespace on this node")
		}
	}
	return nil
}

// ValidateContainer checks a container's request against its pod's, as far as that is possible without looking at the
// node or the image.
func ValidateContainer(sandbox *cri.PodSandboxConfig, container *cri.ContainerConfig) error {
	const field = "linux.security_context"
	sc := container.GetLinux().GetSecurityContext()
	opts := sc.GetNamespaceOptions()
	if opts.GetPid() == cri.NamespaceMode_TARGET && opts.GetTargetId() == "" {
		return invalid(field+".namespace_options.target_id", "mode TARGET needs the id of a container")
	}
	if UserMapping(sandbox) != nil && PIDMode(sandbox, container) == cri.NamespaceMode_NODE {
		return invalid(field+".namespace_options.pid", "the host's pid namespace is not possible in a user namespace")
	}
	if err := validateUserNamespace(field+".namespace_options.userns_options", opts.GetUsernsOptions()); err != nil {
		return err
	}
	// A container that says nothing is in its pod's user namespace.
	if user := opts.GetUsernsOptions(); user != nil {
		if !sameUserNamespace(user, sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()) {
			return invalid(field+".namespace_options.userns_options", "differs from the pod's")
		}
	}
	if sc.GetPrivileged() && !sandbox.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid(field+".privileged", "the pod is not privileged")
	}
	for _, m := range container.GetMounts() {
		if err := validateMount(m); err != nil {
			return err
		}
	}
	for _, d := range container.GetDevices() {
		if err := validateDevice(d); err != nil {
			return err
		}
	}
	_, err := CDIDevices(container)
	return err
}

// validateUserNamespace checks one userns_options. More than one mapping would need root filesystems mapped piecewise;
// different mappings for users and groups cannot be given to one idmapped mount by the kubelet's contract; root must be
// mapped or the set-up of the container itself has no owner.
func validateUserNamespace(field string, user *cri.UserNamespace) error {
	if user == nil {
		return nil
	}
	switch user.GetMode() {
	case cri.NamespaceMode_NODE:
		if len(user.GetUids())+len(user.GetGids()) > 0 {
			return invalid(field, "mode NODE has no mappings")
		}
		return nil
	case cri.NamespaceMode_POD:
	default:
		return invalid(field+".mode", "mode %s is not supported", user.GetMode())
	}
	if len(user.GetUids()) != 1 || len(user.GetGids()) != 1 {
		return invalid(field, "needs exactly one mapping of users and one of groups, not %d and %d",
			len(user.GetUids()), len(user.GetGids()))
	}
	uid, gid := user.GetUids()[0], user.GetGids()[0]
	if !sameMapping(uid, gid) {
		return invalid(field, "users and groups must be mapped alike")
	}
	if uid.GetContainerId() != 0 {
		return invalid(field+".uids", "root (container id 0) must be mapped")
	}
	if uid.GetLength() < 1 {
		return invalid(field+".uids", "the mapping has no length")
	}
	if uint64(uid.GetHostId())+uint64(uid.GetLength()) > math.MaxUint32 {
		return invalid(field+".uids", "the mapping ends beyond the highest user id")
	}
	return nil
}

func sameUserNamespace(a, b *cri.UserNamespace) bool {
	aPod, bPod := a.GetMode() == cri.NamespaceMode_POD, b != nil && b.GetMode() == cri.NamespaceMode_POD
	if !aPod || !bPod {
		return aPod == bPod
	}
	return len(a.GetUids()) == 1 && len(b.GetUids()) == 1 && sameMapping(a.GetUids()[0], b.GetUids()[0])
}

func sameMapping(a, b *cri.IDMapping) bool {
	return a.GetContainerId() == b.GetContainerId() && a.GetHostId() == b.GetHostId() && a.GetLength() == b.GetLength()
}
