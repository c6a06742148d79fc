package spec

import (
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

const (
	etcHostname   = "/etc/hostname"
	etcHosts      = "/etc/hosts"
	etcResolvConf = "/etc/resolv.conf"
	devShm        = "/dev/shm"
	cgroupDir     = "/sys/fs/cgroup"
)

// A Mount is a bind mount into a container, its source ready on the host.
type Mount struct {
	// Source is the real path on the host: symbolic links are followed, an image is mounted. Destination is absolute.
	Source, Destination string
	// ReadOnly is for the mount itself; RecursiveReadOnly for all that is mounted below it too.
	ReadOnly, RecursiveReadOnly bool
	// Propagation as asked for. That the source's mount is shared (or a slave) is for the caller to check.
	Propagation cri.MountPropagation
	// UIDMappings and GIDMappings make it an idmapped mount.
	UIDMappings, GIDMappings []specs.LinuxIDMapping
	// Options are further options, as noexec.
	Options []string
}

// NewMount is the mount that CRI asks for, with its source: the real path of host_path, or where the image is mounted.
func NewMount(m *cri.Mount, source string) Mount {
	return Mount{
		Source:            source,
		Destination:       path.Join("/", m.GetContainerPath()),
		ReadOnly:          m.GetReadonly(),
		RecursiveReadOnly: m.GetRecursiveReadOnly(),
		Propagation:       m.GetPropagation(),
		UIDMappings:       idMappings(m.GetUidMappings()),
		GIDMappings:       idMappings(m.GetGidMappings()),
		Options:           m.GetMountOptions(),
	}
}

// mountOptions are what mount_options may name: per-mount flags that change neither what is mounted nor whether it can
// be written, for which CRI has fields of their own. The names with r hold for all mounts below too.
var mountOptions = []string{
	"noexec", "exec", "nodev", "dev", "nosuid", "suid", "noatime", "atime", "nodiratime", "diratime", "relatime",
	"norelatime", "strictatime", "nostrictatime", "nosymfollow", "symfollow",
	"rnoexec", "rexec", "rnodev", "rdev", "rnosuid", "rsuid", "rnoatime", "ratime", "rnodiratime", "rdiratime", "rrelatime",
	"rnorelatime", "rstrictatime", "rnostrictatime", "rnosymfollow", "rsymfollow",
}

// validateMount checks what CRI says about one mount.
func validateMount(m *cri.Mount) error {
	if path.Join("/", m.GetContainerPath()) == "/" {
		return invalid("mounts.container_path", "%q: nothing can be mounted over the container's root", m.GetContainerPath())
	}
	field := fmt.Sprintf("mounts[%s]", m.GetContainerPath())
	if image := m.GetImage().GetImage(); image != "" {
		if m.GetHostPath() != "" {
			return invalid(field+".image", "an image mount has no host_path")
		}
		if !m.GetReadonly() {
			return invalid(field+".readonly", "an image can only be mounted read-only")
		}
	} else {
		if m.GetHostPath() == "" {
			return invalid(field+".host_path", "is empty")
		}
		if m.GetImageSubPath() != "" {
			return invalid(field+".image_sub_path", "is for image mounts")
		}
	}
	if m.GetRecursiveReadOnly() {
		if !m.GetReadonly() {
			return invalid(field+".recursive_read_only", "needs readonly")
		}
		if p := m.GetPropagation(); p != cri.MountPropagation_PROPAGATION_PRIVATE {
			return invalid(field+".recursive_read_only", "needs private propagation, not %s", p)
		}
	}
	if _, known := cri.MountPropagation_name[int32(m.GetPropagation())]; !known {
		return invalid(field+".propagation", "%d is not known", m.GetPropagation())
	}
	if len(m.GetUidMappings()) > 0 != (len(m.GetGidMappings()) > 0) {
		return invalid(field, "users and groups are mapped both or not at all")
	}
	for _, o := range m.GetMountOptions() {
		if !slices.Contains(mountOptions, o) {
			return invalid(field+".mount_options", "%q is not an option for a volume", o)
		}
	}
	return nil
}

// mounts sets all mounts: the defaults that nothing replaces, then the binds, those nearer to the root first.
func (b *builder) mounts() error {
	binds := b.binds()
	taken := map[string]bool{}
	for _, m := range binds {
		taken[path.Clean(m.Destination)] = true
	}
	for _, m := range b.defaultMounts() {
		// Whoever brings a /dev brings all of it.
		if taken[m.Destination] || taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/") {
			continue
		}
		b.spec.Mounts = append(b.spec.Mounts, m)
	}
	for _, m := range binds {
		bind, err := b.bind(m)
		if err != nil {
			return err
		}
		b.spec.Mounts = append(b.spec.Mounts, bind)
	}
	return nil
}

// binds are the CRI mounts, the sandbox's files and the image's volumes, sorted by depth so that none hides another.
func (b *builder) binds() []Mount {
	mounts := slices.Clone(b.Mounts)
	add := func(m Mount) {
		taken := func(other Mount) bool { return path.Clean(other.Destination) == path.Clean(m.Destination) }
		if m.Destination != "/" && !slices.ContainsFunc(mounts, taken) {
			mounts = append(mounts, m)
		}
	}
	var mapped []specs.LinuxIDMapping
	if m := UserMapping(b.Sandbox); m != nil {
		mapped = []specs.LinuxIDMapping{*m}
	}
	for _, f := range []struct{ source, destination string }{
		{b.HostnameFile, etcHostname}, {b.HostsFile, etcHosts}, {b.ResolvConf, etcResolvConf},
	} {
		if f.source != "" {
			add(Mount{Source: f.source, Destination: f.destination, ReadOnly: b.sc.GetReadonlyRootfs(),
				UIDMappings: mapped, GIDMappings: mapped})
		}
	}
	// No mapping for /dev/shm: it starts empty, and tmpfs can be idmapped from Linux 6.3 only.
	if shm := b.shm(); shm != "" {
		add(Mount{Source: shm, Destination: devShm})
	}
	for _, v := range b.Volumes {
		add(Mount{Source: v.Source, Destination: path.Join("/", v.Destination), UIDMappings: mapped, GIDMappings: mapped})
	}
	depth := func(m Mount) int { return strings.Count(path.Clean(m.Destination), "/") }
	sort.SliceStable(mounts, func(i, j int) bool { return depth(mounts[i]) < depth(mounts[j]) })
	return mounts
}

func (b *builder) shm() string {
	hostIPC := b.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() == cri.NamespaceMode_NODE
	if b.Shm == "" && hostIPC {
		return devShm
	}
	return b.Shm
}

// bind turns a Mount into the spec's form.
func (b *builder) bind(m Mount) (specs.Mount, error) {
	options := []string{"rbind"}
	switch m.Propagation {
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		options = append(options, "rshared")
		b.spec.Linux.RootfsPropagation = "rshared"
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options = append(options, "rslave")
		if b.spec.Linux.RootfsPropagation == "" {
			b.spec.Linux.RootfsPropagation = "rslave"
		}
	default:
		options = append(options, "rprivate")
	}
	switch {
	case m.RecursiveReadOnly && !b.Node.RecursiveReadOnly:
		// The kubelet tells this failure from others by the prefix.
		err := invalid(fmt.Sprintf("mounts[%s].recursive_read_only", m.Destination), "this node has no recursive read-only mounts")
		return specs.Mount{}, fmt.Errorf("%w: %w", crierrors.ErrRROUnsupported, err)
	case m.RecursiveReadOnly:
		options = append(options, "rro")
	case m.ReadOnly:
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	return specs.Mount{
		Source: m.Source, Destination: m.Destination, Type: "bind", Options: append(options, m.Options...),
		UIDMappings: m.UIDMappings, GIDMappings: m.GIDMappings,
	}, nil
}

// defaultMounts are what a Linux program expects to find. In privileged containers sysfs and cgroupfs can be written.
func (b *builder) defaultMounts() []specs.Mount {
	access, cgroupAccess := "ro", "ro"
	if b.sc.GetPrivileged() {
		access, cgroupAccess = "rw", "rw"
	}
	if b.Handler.CgroupWritable {
		cgroupAccess = "rw"
	}
	cgroup := specs.Mount{Destination: cgroupDir, Type: "cgroup", Source: "cgroup",
		Options: []string{"nosuid", "noexec", "nodev", "relatime", cgroupAccess}}
	// Mounted in the host's cgroup namespace, cgroup2 takes the options of this mount for the one file system that the
	// host uses: leaving one out would switch it off for the node.
	if b.Node.Unified && !hasNamespace(b.spec, specs.CgroupNamespace) {
		cgroup.Options = append(cgroup.Options, b.Node.CgroupOptions...)
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: devShm, Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		b.sysfs(access),
		cgroup,
	}
}

// sysfs is mounted afresh, but for the host's network in a user namespace: the kernel lets only the owner of a network
// namespace mount its sysfs, so the host's is bound there, with all that is mounted below it.
func (b *builder) sysfs(access string) specs.Mount {
	if UserMapping(b.Sandbox) == nil || hasNamespace(b.spec, specs.NetworkNamespace) {
		return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs",
			Options: []string{"nosuid", "noexec", "nodev", access}}
	}
	if access == "ro" && b.Node.RecursiveReadOnly {
		access = "rro"
	}
	return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys",
		Options: []string{"rbind", access, "nosuid", "noexec", "nodev"}}
}
