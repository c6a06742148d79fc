package spec

import (
	"maps"
	"slices"
	"strings"

	"github.com/berth-node/berth/internal/procfs"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A Sysctl is a kernel parameter that belongs to one of the pod's namespaces. The runtime writes it in the sandbox, once;
// the specs of containers know nothing of it.
type Sysctl struct {
	// Namespace holds the parameter: network, ipc or uts.
	Namespace specs.LinuxNamespaceType
	// File is the path below /proc/sys, as net/ipv4/ip_forward.
	File  string
	Value string
}

// SandboxSysctls are the pod's parameters, sorted by file, and those of defaults that it does not set and that belong to
// namespaces of its own. A parameter that is not namespaced, or whose namespace is the host's, is ErrInvalidArgument.
func SandboxSysctls(cfg *cri.PodSandboxConfig, defaults map[string]string) ([]Sysctl, error) {
	opts := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	shared := map[specs.LinuxNamespaceType]bool{
		specs.NetworkNamespace: opts.GetNetwork() == cri.NamespaceMode_NODE,
		specs.UTSNamespace:     opts.GetNetwork() == cri.NamespaceMode_NODE,
		specs.IPCNamespace:     opts.GetIpc() == cri.NamespaceMode_NODE,
	}
	found := map[string]Sysctl{}
	for name, value := range cfg.GetLinux().GetSysctls() {
		file := procfs.SysctlFile(name)
		ns, ok := sysctlNamespace(file)
		switch {
		case !ok:
			return nil, invalid("linux.sysctls", "%q does not belong to a namespace of the pod", name)
		case shared[ns]:
			return nil, invalid("linux.sysctls", "%q belongs to the %s namespace, which is the host's", name, ns)
		}
		if _, twice := found[file]; twice {
			return nil, invalid("linux.sysctls", "%q is set twice", name)
		}
		found[file] = Sysctl{Namespace: ns, File: file, Value: value}
	}
	for name, value := range defaults {
		file := procfs.SysctlFile(name)
		ns, ok := sysctlNamespace(file)
		if _, set := found[file]; ok && !set && !shared[ns] {
			found[file] = Sysctl{Namespace: ns, File: file, Value: value}
		}
	}
	var out []Sysctl
	for _, file := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[file])
	}
	return out, nil
}

// DefaultSysctls are what pods get that say nothing: ports below 1024 and ping for everybody, which is safe in a network
// namespace of one's own. In a user namespace not every group exists, and the kernel refuses a range that names others.
func DefaultSysctls(cfg *cri.PodSandboxConfig) map[string]string {
	out := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	if UserMapping(cfg) == nil {
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	return out
}

// sysctlNamespace tells to which namespace a parameter belongs. The list is libcontainer's.
func sysctlNamespace(file string) (specs.LinuxNamespaceType, bool) {
	for _, part := range strings.Split(file, "/") {
		if part == "" || part == "." || part == ".." {
			return "", false
		}
	}
	switch file {
	case "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax",
		"kernel/shmmni", "kernel/shm_rmid_forced":
		return specs.IPCNamespace, true
	case "kernel/domainname":
		return specs.UTSNamespace, true
	}
	switch {
	case strings.HasPrefix(file, "fs/mqueue/"):
		return specs.IPCNamespace, true
	case strings.HasPrefix(file, "net/"):
		return specs.NetworkNamespace, true
	}
	return "", false
}
