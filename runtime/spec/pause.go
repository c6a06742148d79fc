package spec

import (
	"math"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// pauseOOMScore is the kubelet's for what holds a pod together.
	pauseOOMScore = -998
	// pauseShares is the least weight there is.
	pauseShares = 2
)

// PauseInput is what the spec of a pause container is made of.
type PauseInput struct {
	ID      string
	Sandbox *cri.PodSandboxConfig
	// Rootfs holds nothing but /pause and the empty folders /proc and /dev.
	Rootfs      string
	Namespaces  Namespaces
	CgroupsPath string
	// LoadSeccomp is as in Input.
	LoadSeccomp func(path string) (*specs.LinuxSeccomp, error)
	// ProcessLabel and MountLabel are the pod's SELinux labels.
	ProcessLabel, MountLabel string
	Node                     Node
}

// PauseSpec is the spec of the process that holds, and reaps in, the pid namespace that the containers of a pod share. It
// has no capabilities and sees no more than it needs. The second result is as with Build.
func PauseSpec(in PauseInput) (*specs.Spec, []string, error) {
	sc := in.Sandbox.GetLinux().GetSecurityContext()
	user, err := pauseUser(sc)
	if err != nil {
		return nil, nil, err
	}
	// The namespaces are those of a container in this pod that asks for nothing, but that the pid namespace is new.
	b := &builder{spec: &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: in.Rootfs, Readonly: true},
		Process: &specs.Process{
			Args: []string{"/pause"}, Cwd: "/", Env: []string{defaultPath}, User: user.oci(),
			NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{}, SelinuxLabel: in.ProcessLabel,
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}},
		},
		Linux: &specs.Linux{
			CgroupsPath: in.CgroupsPath, MountLabel: in.MountLabel,
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
		},
	}}
	b.Sandbox, b.User, b.Node = in.Sandbox, user, in.Node
	b.Namespaces = in.Namespaces
	b.Namespaces.PID = ""
	if err := b.namespaces(); err != nil {
		return nil, nil, err
	}
	b.spec.Hostname = ""
	shares := uint64(pauseShares)
	b.spec.Linux.Resources = &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		CPU:     &specs.LinuxCPU{Shares: &shares},
	}
	score := pauseOOMScore
	b.spec.Process.OOMScoreAdj = &score
	// Nobody asked for these: that the node cannot give them is no news.
	_ = clampProcess(b.spec.Process, in.Node)
	b.spec.Annotations = podAnnotations(in.ID, in.Sandbox, ContainerTypeSandbox)
	b.spec.Annotations[AnnotationSandboxLogDir] = in.Sandbox.GetLogDirectory()
	if sc.GetPrivileged() {
		return b.spec, b.limits, nil
	}
	//lint:ignore SA1019 clients still send the deprecated field, and its successor wins
	profile, err := securityProfile("linux.security_context.seccomp", sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil {
		return nil, nil, err
	}
	b.spec.Linux.Seccomp, err = seccompFilter(profile, b.spec.Process.Capabilities, in.Node, in.LoadSeccomp)
	return b.spec, b.limits, err
}

// pauseUser is the sandbox's user: numbers only, and root if it says nothing.
func pauseUser(sc *cri.LinuxSandboxSecurityContext) (User, error) {
	const field = "linux.security_context."
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return User{}, invalid(field+"run_as_group", "a group needs run_as_user")
	}
	uid, gid := sc.GetRunAsUser().GetValue(), sc.GetRunAsGroup().GetValue()
	if uid < 0 || uid > math.MaxInt32 {
		return User{}, invalid(field+"run_as_user", "id %d is out of range", uid)
	}
	if gid < 0 || gid > math.MaxInt32 {
		return User{}, invalid(field+"run_as_group", "id %d is out of range", gid)
	}
	return User{UID: uint32(uid), GID: uint32(gid)}, nil
}
