// Package spec turns what CRI asks of a container, and what its image says, into an OCI runtime spec.
//
// Build is pure: the same Input gives the same spec. What has to be looked up on the node (devices, limits, the users of
// an image, the files of a sandbox) is looked up by the small functions beside it, or by the caller, and is given in the
// Input. The order of a container's life is
//
//	ValidateContainer   is the request possible at all? (before anything is made)
//	ResolveUser         who runs it, by the mounted root filesystem
//	Build               the spec
//	ApplyCDI            devices of the container device interface; NRI plugins come after it
//	Clamp               what a plugin raised above what the node can give
//
// An error that wraps errdefs.ErrInvalidArgument names the CRI field that is wrong. What the node cannot give, but a
// container can do without, is not an error: Build returns it as a limitation, one sentence each, for the log.
package spec

import (
	"fmt"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// Input is all that a container's spec is made of.
type Input struct {
	// SandboxID and Sandbox are the pod; Container is the request. Neither config is changed.
	SandboxID string
	Sandbox   *cri.PodSandboxConfig
	Container *cri.ContainerConfig

	// Image is the config of the container's image, ImageName what the request called it.
	Image     ocispec.ImageConfig
	ImageName string

	// Rootfs is the absolute path of the mounted root filesystem.
	Rootfs string
	// User is who runs the container, from ResolveUser.
	User User

	// Namespaces are the pod's, see there.
	Namespaces Namespaces
	// CgroupsPath goes into the spec as it is: a path, or slice:prefix:name for the systemd driver.
	CgroupsPath string

	// Hostname becomes the variable HOSTNAME: the pod's host name, or the node's in a pod with host network.
	Hostname string
	// HostnameFile, HostsFile and ResolvConf are host paths of what a container sees as the files of these names in /etc,
	// unless a CRI mount is there; "" means none.
	HostnameFile, HostsFile, ResolvConf string
	// Shm is the host path of the pod's tmpfs for /dev/shm. Without one a pod with the host's IPC gets the host's, any
	// other its own.
	Shm string
	// Mounts are the CRI mounts in the request's order, their sources resolved (see NewMount).
	Mounts []Mount
	// Volumes are the folders that stand for the VOLUMEs of the image; a CRI mount at the same place wins.
	Volumes []Volume
	// Devices are the CRI devices, from ResolveDevices.
	Devices []Device

	// LoadSeccomp reads the Localhost profile with this absolute path; LoadSeccompFile is the usual one.
	LoadSeccomp func(path string) (*specs.LinuxSeccomp, error)
	// ProcessLabel and MountLabel are the SELinux labels of the container, from SELinuxLabels; "" where SELinux is off. The
	// process of a privileged container is not confined.
	ProcessLabel, MountLabel string

	// Rlimits are the resource limits of every container; nil means DefaultRlimits.
	Rlimits []specs.POSIXRlimit

	Handler Handler
	Node    Node
}

// A Volume is a folder of the host that stands for a VOLUME of the image.
type Volume struct {
	// Source is the folder on the host, Destination the path that the image names.
	Source, Destination string
}

// A Handler is what the configuration of a runtime handler says about specs.
type Handler struct {
	// PodAnnotations are patterns (path.Match; a trailing * matches everything) of the annotations of the pod that go into
	// the spec, where hooks and plugins see them. Those of the container always do.
	PodAnnotations []string
	// PrivilegedWithoutHostDevices keeps the host's devices out of privileged containers.
	PrivilegedWithoutHostDevices bool
	// CgroupWritable mounts /sys/fs/cgroup read-write in all containers. Sound with an own cgroup namespace only.
	CgroupWritable bool
}

// Node is what the node can do, probed once at the daemon's start.
type Node struct {
	// Unified says that the node has cgroup v2 only.
	Unified bool
	// CgroupOptions are the options of the host's cgroup2 file system, from HostCgroupOptions.
	CgroupOptions []string
	// Capabilities are those that berth can give away ("CAP_CHOWN"), from HostCapabilities; nil means all known ones.
	Capabilities []string
	// Devices are all devices of the host, for privileged containers, from HostDevices. They change: ask each time.
	Devices []specs.LinuxDevice
	// OOMScoreFloor is the lowest oom_score_adj that can be written here; nil means any. Without CAP_SYS_RESOURCE it is
	// what the daemon was started with.
	OOMScoreFloor *int
	// RlimitCeilings are the highest hard limits that can be set, by name ("RLIMIT_NOFILE"); nil means any.
	RlimitCeilings map[string]uint64

	// HugePageSizes are the sizes of huge pages that can be limited ("2MB"); none without the controller hugetlb.
	HugePageSizes []string

	// RecursiveReadOnly: mount_setattr works (Linux 5.12). Swap: the kernel accounts swap by cgroup. Seccomp and AppArmor:
	// the kernel has them switched on.
	RecursiveReadOnly, Swap, Seccomp, AppArmor bool
	// AppArmorDefault is the name of the loaded profile that RuntimeDefault means.
	AppArmorDefault string
	// AppArmorLoaded tells whether a profile is loaded; nil means that the kernel shall find out at the start.
	AppArmorLoaded func(profile string) bool
}

// Build makes the spec of a container. The second result says what the node could not give.
func Build(in Input) (*specs.Spec, []string, error) {
	if err := ValidateContainer(in.Sandbox, in.Container); err != nil {
		return nil, nil, err
	}
	b := &builder{Input: in, sc: in.Container.GetLinux().GetSecurityContext(), spec: &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: in.Rootfs},
		Process: &specs.Process{},
		Linux:   &specs.Linux{},
	}}
	b.spec.Root.Readonly = b.sc.GetReadonlyRootfs()
	// The order matters where one step reads what another wrote: the cgroup mount looks at the namespaces, the default
	// seccomp profile at the capabilities.
	for _, step := range []func() error{
		b.namespaces, b.process, b.capabilities, b.mounts, b.paths, b.resources, b.devices,
		b.seccomp, b.apparmor, b.annotations,
	} {
		if err := step(); err != nil {
			return nil, nil, err
		}
	}
	return b.spec, b.limits, nil
}

// A builder holds a spec in the making. Each of its methods fills one part.
type builder struct {
	Input
	sc     *cri.LinuxContainerSecurityContext
	spec   *specs.Spec
	limits []string
}

// limited notes something that the node cannot give.
func (b *builder) limited(format string, args ...any) {
	b.limits = append(b.limits, fmt.Sprintf(format, args...))
}

// paths sets what is hidden and what is read-only. CRI names all of it: a request without is one without, as the kubelet
// asks for procMount: Unmasked in this way. Privileged containers see everything.
func (b *builder) paths() error {
	if b.sc.GetPrivileged() {
		return nil
	}
	b.spec.Linux.MaskedPaths = slices.Clone(b.sc.GetMaskedPaths())
	b.spec.Linux.ReadonlyPaths = slices.Clone(b.sc.GetReadonlyPaths())
	return nil
}

// invalid is an error of class ErrInvalidArgument about a field of the request.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}
