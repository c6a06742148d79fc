package cri

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkSandboxConfig checks the configuration of a pod sandbox.
func checkSandboxConfig(field string, c *cri.PodSandboxConfig) error {
	if c == nil {
		return invalid(field, "must be set")
	}
	m := c.GetMetadata()
	if m == nil {
		return invalid(field+".metadata", "must be set")
	}
	return first(
		checkName(field+".metadata.name", m.GetName()),
		checkName(field+".metadata.namespace", m.GetNamespace()),
		checkName(field+".metadata.uid", m.GetUid()),
		checkHostname(field+".hostname", c.GetHostname()),
		checkPath(field+".log_directory", c.GetLogDirectory()),
		checkDNS(field+".dns_config", c.GetDnsConfig()),
		checkPortMappings(field+".port_mappings", c.GetPortMappings()),
		checkSandboxLinux(field+".linux", c.GetLinux()),
	)
}

func checkHostname(field, v string) error {
	if len(v) > maxHostname {
		return invalid(field, "is %d bytes long, the kernel allows %d", len(v), maxHostname)
	}
	if strings.ContainsFunc(v, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == '/' }) {
		return invalid(field, "%q cannot be a host name", v)
	}
	return nil
}

// checkDNS checks what becomes words of a resolv.conf, where a line break would begin a line of its own.
func checkDNS(field string, c *cri.DNSConfig) error {
	for name, words := range map[string][]string{"servers": c.GetServers(), "searches": c.GetSearches(), "options": c.GetOptions()} {
		for i, w := range words {
			if strings.ContainsFunc(w, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) {
				return invalid(fmt.Sprintf("%s.%s[%d]", field, name, i), "%q is not a word", shorten(w))
			}
		}
	}
	return nil
}

func checkPortMappings(field string, mappings []*cri.PortMapping) error {
	for i, m := range mappings {
		f := fmt.Sprintf("%s[%d]", field, i)
		if m == nil {
			return invalid(f, "must be set")
		}
		err := first(
			checkEnum(f+".protocol", m.GetProtocol(), cri.Protocol_name),
			checkPort(f+".container_port", m.GetContainerPort(), 1),
			checkPort(f+".host_port", m.GetHostPort(), 0), // 0: not exposed
		)
		if err != nil {
			return err
		}
		if ip := m.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				return invalid(f+".host_ip", "%v", err)
			}
		}
	}
	return nil
}

func checkSandboxLinux(field string, l *cri.LinuxPodSandboxConfig) error {
	parent := l.GetCgroupParent()
	if slices.Contains(strings.Split(parent, "/"), "..") || strings.ContainsFunc(parent, unicode.IsControl) {
		return invalid(field+".cgroup_parent", "%q cannot be the path of a cgroup", shorten(parent))
	}
	if err := checkFile(field+".cgroup_parent", parent); err != nil {
		return err
	}
	for k, v := range l.GetSysctls() {
		if k == "" || strings.ContainsFunc(k+v, func(r rune) bool { return r == 0 || r == '\n' }) ||
			slices.Contains(strings.Split(k, "/"), "..") {
			return invalid(field+".sysctls", "%q=%q cannot be a sysctl", shorten(k), shorten(v))
		}
	}
	sc := l.GetSecurityContext()
	return first(
		checkNamespaces(field+".security_context.namespace_options", sc.GetNamespaceOptions()),
		checkEnum(field+".security_context.supplemental_groups_policy", sc.GetSupplementalGroupsPolicy(), cri.SupplementalGroupsPolicy_name),
		checkProfile(field+".security_context.seccomp", sc.GetSeccomp()),
		checkProfile(field+".security_context.apparmor", sc.GetApparmor()),
	)
}

func checkNamespaces(field string, o *cri.NamespaceOption) error {
	err := first(
		checkEnum(field+".network", o.GetNetwork(), cri.NamespaceMode_name),
		checkEnum(field+".pid", o.GetPid(), cri.NamespaceMode_name),
		checkEnum(field+".ipc", o.GetIpc(), cri.NamespaceMode_name),
		checkEnum(field+".userns_options.mode", o.GetUsernsOptions().GetMode(), cri.NamespaceMode_name),
	)
	if err != nil {
		return err
	}
	if o.GetPid() == cri.NamespaceMode_TARGET && o.GetTargetId() == "" {
		return invalid(field+".target_id", "must be set with pid TARGET")
	}
	return nil
}

func checkProfile(field string, p *cri.SecurityProfile) error {
	if err := checkEnum(field+".profile_type", p.GetProfileType(), cri.SecurityProfile_ProfileType_name); err != nil {
		return err
	}
	if p.GetProfileType() == cri.SecurityProfile_Localhost && p.GetLocalhostRef() == "" {
		return invalid(field+".localhost_ref", "must be set with a Localhost profile")
	}
	return nil
}

// checkContainerConfig checks the configuration of a container.
func checkContainerConfig(field string, c *cri.ContainerConfig) error {
	if c == nil {
		return invalid(field, "must be set")
	}
	if c.GetMetadata() == nil {
		return invalid(field+".metadata", "must be set")
	}
	sc := c.GetLinux().GetSecurityContext()
	return first(
		checkName(field+".metadata.name", c.GetMetadata().GetName()),
		checkImage(field+".image", c.GetImage()),
		checkWords(field+".command", c.GetCommand()),
		checkWords(field+".args", c.GetArgs()),
		checkFile(field+".working_dir", c.GetWorkingDir()),
		checkLogPath(field+".log_path", c.GetLogPath()),
		checkEnvs(field+".envs", c.GetEnvs()),
		checkMounts(field+".mounts", c.GetMounts()),
		checkDevices(field, c),
		checkEnum(field+".stop_signal", c.GetStopSignal(), cri.Signal_name),
		checkResources(field+".linux.resources", c.GetLinux().GetResources()),
		checkFiles(field+".linux.security_context.masked_paths", sc.GetMaskedPaths()),
		checkFiles(field+".linux.security_context.readonly_paths", sc.GetReadonlyPaths()),
		checkNamespaces(field+".linux.security_context.namespace_options", sc.GetNamespaceOptions()),
		checkEnum(field+".linux.security_context.supplemental_groups_policy", sc.GetSupplementalGroupsPolicy(), cri.SupplementalGroupsPolicy_name),
		checkProfile(field+".linux.security_context.seccomp", sc.GetSeccomp()),
		checkProfile(field+".linux.security_context.apparmor", sc.GetApparmor()),
	)
}

// checkLogPath checks that a container's log stays in its pod's log directory.
func checkLogPath(field, v string) error {
	if v == "" {
		return nil
	}
	if !filepath.IsLocal(v) || filepath.Clean(v) == "." {
		return invalid(field, "%q is not a path below the pod's log directory", shorten(v))
	}
	return checkFile(field, v)
}

func checkEnvs(field string, envs []*cri.KeyValue) error {
	for i, e := range envs {
		f := fmt.Sprintf("%s[%d]", field, i)
		if e.GetKey() == "" || strings.ContainsAny(e.GetKey(), "=\x00") {
			return invalid(f+".key", "%q cannot be the name of a variable", shorten(e.GetKey()))
		}
		// The value is bytes: it need not be UTF-8.
		if slices.Contains(e.GetValue(), 0) {
			return invalid(f+".value", "of %s must not contain a NUL", e.GetKey())
		}
	}
	return nil
}

func checkMounts(field string, mounts []*cri.Mount) error {
	for i, m := range mounts {
		f := fmt.Sprintf("%s[%d]", field, i)
		if m.GetContainerPath() == "" {
			return invalid(f+".container_path", "must not be empty")
		}
		if m.GetHostPath() == "" && m.GetImage().GetImage() == "" {
			return invalid(f+".host_path", "must not be empty without an image")
		}
		err := first(
			checkFile(f+".container_path", m.GetContainerPath()),
			checkFile(f+".host_path", m.GetHostPath()),
			checkFile(f+".image_sub_path", m.GetImageSubPath()),
			checkEnum(f+".propagation", m.GetPropagation(), cri.MountPropagation_name),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

func checkDevices(field string, c *cri.ContainerConfig) error {
	for i, d := range c.GetDevices() {
		f := fmt.Sprintf("%s.devices[%d]", field, i)
		if d.GetHostPath() == "" {
			return invalid(f+".host_path", "must not be empty")
		}
		if inside := d.GetContainerPath(); inside != "" && path.Join("/", inside) == "/" {
			return invalid(f+".container_path", "%q cannot be a device", shorten(inside))
		}
		if err := first(checkFile(f+".host_path", d.GetHostPath()), checkFile(f+".container_path", d.GetContainerPath())); err != nil {
			return err
		}
	}
	for i, d := range c.GetCDIDevices() {
		if d.GetName() == "" {
			return invalid(fmt.Sprintf("%s.CDI_devices[%d].name", field, i), "must not be empty")
		}
	}
	return nil
}
