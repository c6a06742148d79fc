package podspec

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/component-helpers/node/util/sysctl"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/util/kernel"
)

// Abilities are what a node must have for pods that ask for it.
type Abilities struct {
	// Sysctls may be set by pods beside [SafeSysctls]: names, or beginnings of names that end in *.
	Sysctls []string
	// AppArmor says that the node has it, SupplementalGroups that the policy Strict is possible.
	AppArmor, SupplementalGroups bool
}

// A Rejection is why a pod cannot run on this node at all, in upstream's words for its status.
type Rejection struct{ Reason, Message string }

// Check returns nil for a pod that the node has the abilities for.
func (a Abilities) Check(pod *v1.Pod) *Rejection {
	sc := pod.Spec.SecurityContext
	if sc != nil {
		for _, s := range sc.Sysctls {
			if err := a.checkSysctl(pod, sysctl.NormalizeName(s.Name)); err != nil {
				return &Rejection{"SysctlForbidden", fmt.Sprintf("forbidden sysctl: %v", err)}
			}
		}
		if p := sc.SupplementalGroupsPolicy; p != nil && *p == v1.SupplementalGroupsPolicyStrict && !a.SupplementalGroups {
			return &Rejection{"SupplementalGroupsPolicyNotSupported", "SupplementalGroupsPolicy=Strict is not supported in this node"}
		}
	}
	if os := pod.Spec.OS; os != nil && os.Name != v1.Linux {
		return &Rejection{"PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"}
	}
	return a.checkAppArmor(pod)
}

func (a Abilities) checkSysctl(pod *v1.Pod, name string) error {
	for _, allowed := range append(SafeSysctls(), a.Sysctls...) {
		ns, pattern, prefix := sysctl.GetNamespace(allowed)
		if name != pattern && !(prefix && strings.HasPrefix(name, pattern)) {
			continue
		}
		if ns == sysctl.IPCNamespace && pod.Spec.HostIPC || ns == sysctl.NetNamespace && pod.Spec.HostNetwork {
			return fmt.Errorf("%q not allowed with host %s enabled", name, ns)
		}
		return nil
	}
	return fmt.Errorf("%q not allowlisted", name)
}

func (a Abilities) checkAppArmor(pod *v1.Pod) *Rejection {
	var fault string
	podutil.VisitContainers(&pod.Spec, podutil.AllContainers, func(c *v1.Container, _ podutil.ContainerType) bool {
		switch p := apparmorProfile(pod, c); {
		case p == nil || p.Type == v1.AppArmorProfileTypeUnconfined:
		case !a.AppArmor:
			fault = "Cannot enforce AppArmor: AppArmor is not enabled on the host"
		case p.Type == v1.AppArmorProfileTypeLocalhost && (p.LocalhostProfile == nil || strings.TrimSpace(*p.LocalhostProfile) == ""):
			fault = "Cannot enforce AppArmor: invalid empty AppArmor profile name"
		}
		return fault == ""
	})
	if fault == "" {
		return nil
	}
	return &Rejection{"AppArmor", fault}
}

// SafeSysctls are the sysctls that every pod may set, since they are the pod's alone: upstream's list, without those that
// this kernel has for the node as a whole.
func SafeSysctls() []string {
	safe := []string{
		"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
		"net.ipv4.ip_unprivileged_port_start",
	}
	running := kernelVersion()
	for _, s := range []struct{ name, since string }{
		{"net.ipv4.ip_local_reserved_ports", kernel.IPLocalReservedPortsNamespacedKernelVersion},
		{"net.ipv4.tcp_keepalive_time", kernel.TCPKeepAliveTimeNamespacedKernelVersion},
		{"net.ipv4.tcp_fin_timeout", kernel.TCPFinTimeoutNamespacedKernelVersion},
		{"net.ipv4.tcp_keepalive_intvl", kernel.TCPKeepAliveIntervalNamespacedKernelVersion},
		{"net.ipv4.tcp_keepalive_probes", kernel.TCPKeepAliveProbesNamespacedKernelVersion},
		{"net.ipv4.tcp_rmem", kernel.TCPReceiveMemoryNamespacedKernelVersion},
		{"net.ipv4.tcp_wmem", kernel.TCPTransmitMemoryNamespacedKernelVersion},
	} {
		if running != nil && running.AtLeast(version.MustParseGeneric(s.since)) {
			safe = append(safe, s.name)
		}
	}
	return safe
}

// kernelVersion is nil where it cannot be told.
func kernelVersion() *version.Version {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil
	}
	v, err := version.ParseGeneric(unix.ByteSliceToString(u.Release[:]))
	if err != nil {
		return nil
	}
	return v
}

// CheckSysctlPattern refuses a pattern of the configuration that names nothing, or what is not a pod's own.
func CheckSysctlPattern(pattern string) error {
	name := pattern
	if beginning, is := strings.CutSuffix(pattern, "*"); is {
		name = beginning + "a"
	}
	if !validation.IsValidSysctlName(name) {
		return fmt.Errorf("sysctl %q is neither a name nor the beginning of one that ends in *", pattern)
	}
	if ns, name, _ := sysctl.GetNamespace(pattern); ns == sysctl.UnknownNamespace {
		return fmt.Errorf("the sysctls %q are not known to be namespaced", name)
	}
	return nil
}
