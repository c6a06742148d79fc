package nri

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A Pod is what plugins are told of a pod. Nothing in it is changed.
type Pod struct {
	ID, Name, UID, Namespace string
	Labels, Annotations      map[string]string
	RuntimeHandler           string
	// CgroupParent is as the request named it.
	CgroupParent string
	// NetNS is the path of the network namespace, "" with the host's network.
	NetNS string
	// Pid of the pause process, 0 without one.
	Pid int
	// IPs in the order of the pod's status.
	IPs []netip.Addr
	// Overhead and Resources are as the request named them, nil if it did not.
	Overhead, Resources *cri.LinuxContainerResources
	// Stopped says that the pod's sandbox is stopped (for List).
	Stopped bool
}

// A Container is what plugins are told of a container.
type Container struct {
	ID, PodID, Name     string
	Labels, Annotations map[string]string
	// State is created, running or exited.
	State string
	// Spec is what the container is made of; nil if it is not known any more. It is not changed.
	Spec *specs.Spec
	// Pid of the container's init, 0 if it has none.
	Pid int
	// CreatedAt, StartedAt and FinishedAt are zero for what did not happen yet.
	CreatedAt, StartedAt, FinishedAt time.Time
	ExitCode                         int32
	Reason, Message                  string
	// CDIDevices are the qualified names of the request.
	CDIDevices []string
	// Seccomp is the profile that was asked for, nil if none was.
	Seccomp *cri.SecurityProfile
	// Image is the reference of the request, ImageDigest that of the image's manifest or index, ImageID that of its config.
	Image, ImageDigest, ImageID string
}

// An Update is a plugin's wish to change the resources of a container.
type Update struct {
	ContainerID string
	// Resources are those to change: what is nil or empty stays.
	Resources *specs.LinuxResources
	// IgnoreFailure says that the plugin can do without.
	IgnoreFailure bool
}

func (p Pod) message() *api.PodSandbox {
	m := &api.PodSandbox{
		Id:             p.ID,
		Name:           p.Name,
		Uid:            p.UID,
		Namespace:      p.Namespace,
		Labels:         maps.Clone(p.Labels),
		Annotations:    maps.Clone(p.Annotations),
		RuntimeHandler: p.RuntimeHandler,
		Pid:            uint32(p.Pid),
		Linux: &api.LinuxPodSandbox{
			PodOverhead:  resourcesMessage(p.Overhead),
			PodResources: resourcesMessage(p.Resources),
			CgroupParent: p.CgroupParent,
		},
	}
	for _, ip := range p.IPs {
		m.Ips = append(m.Ips, ip.String())
	}
	if p.NetNS != "" {
		m.Linux.Namespaces = []*api.LinuxNamespace{{Type: string(specs.NetworkNamespace), Path: p.NetNS}}
	}
	return m
}

// resourcesMessage turns what CRI says into NRI's form; what it does not say is left out.
func resourcesMessage(r *cri.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	m := &api.LinuxResources{
		Memory: &api.LinuxMemory{},
		Cpu:    &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()},
	}
	for _, v := range []struct {
		value int64
		to    **api.OptionalInt64
	}{
		{r.GetMemoryLimitInBytes(), &m.Memory.Limit}, {r.GetMemorySwapLimitInBytes(), &m.Memory.Swap}, {r.GetCpuQuota(), &m.Cpu.Quota},
	} {
		if v.value != 0 {
			*v.to = api.Int64(v.value)
		}
	}
	if shares := r.GetCpuShares(); shares > 0 {
		m.Cpu.Shares = api.UInt64(uint64(shares))
	}
	if period := r.GetCpuPeriod(); period > 0 {
		m.Cpu.Period = api.UInt64(uint64(period))
	}
	for _, h := range r.GetHugepageLimits() {
		m.HugepageLimits = append(m.HugepageLimits, &api.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	m.Unified = maps.Clone(r.GetUnified())
	return m
}

// stopped reports whether the container has ended.
func (c Container) stopped() bool { return c.state() == api.ContainerState_CONTAINER_STOPPED }

func (c Container) state() api.ContainerState {
	switch c.State {
	case "created":
		return api.ContainerState_CONTAINER_CREATED
	case "running":
		return api.ContainerState_CONTAINER_RUNNING
	case "exited":
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

func (c Container) message() *api.Container {
	m := &api.Container{
		Id:            c.ID,
		PodSandboxId:  c.PodID,
		Name:          c.Name,
		State:         c.state(),
		Labels:        maps.Clone(c.Labels),
		Annotations:   maps.Clone(c.Annotations),
		Pid:           uint32(c.Pid),
		CreatedAt:     nanoseconds(c.CreatedAt),
		StartedAt:     nanoseconds(c.StartedAt),
		FinishedAt:    nanoseconds(c.FinishedAt),
		ExitCode:      c.ExitCode,
		StatusReason:  c.Reason,
		StatusMessage: c.Message,
		Linux:         &api.LinuxContainer{},
		Image:         &api.Image{Name: c.Image, Digest: c.ImageDigest, ConfigDigest: c.ImageID},
	}
	for _, name := range c.CDIDevices {
		m.CDIDevices = append(m.CDIDevices, &api.CDIDevice{Name: name})
	}
	if c.Spec != nil {
		m.Hooks = api.FromOCIHooks(c.Spec.Hooks)
		m.Mounts = api.FromOCIMounts(c.Spec.Mounts)
		if m.Annotations == nil {
			m.Annotations = map[string]string{}
		}
		maps.Copy(m.Annotations, c.Spec.Annotations)
		addProcess(m, c.Spec.Process)
		addLinux(m.Linux, c.Spec.Linux)
	}
	if c.Seccomp != nil {
		// Both enumerations have the same three values.
		m.Linux.SeccompProfile = &api.SecurityProfile{
			ProfileType:  api.SecurityProfile_ProfileType(c.Seccomp.GetProfileType()),
			LocalhostRef: c.Seccomp.GetLocalhostRef(),
		}
	}
	return m
}

// addProcess fills in what the process of a spec says.
func addProcess(m *api.Container, p *specs.Process) {
	if p == nil {
		return
	}
	m.Args, m.Env = slices.Clone(p.Args), slices.Clone(p.Env)
	m.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: slices.Clone(p.User.AdditionalGids)}
	for _, r := range p.Rlimits {
		m.Rlimits = append(m.Rlimits, &api.POSIXRlimit{Type: r.Type, Hard: r.Hard, Soft: r.Soft})
	}
	m.Linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
	m.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
	m.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
}

// addLinux fills in what the Linux part of a spec says.
func addLinux(m *api.LinuxContainer, l *specs.Linux) {
	if l == nil {
		return
	}
	m.Namespaces = api.FromOCILinuxNamespaces(l.Namespaces)
	m.Devices = api.FromOCILinuxDevices(l.Devices)
	m.Resources = api.FromOCILinuxResources(l.Resources, nil)
	m.CgroupsPath = l.CgroupsPath
	if l.Seccomp != nil { // the only conversion that does not take nil
		m.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	m.Sysctl = maps.Clone(l.Sysctl)
	m.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	if r := l.IntelRdt; r != nil {
		m.Rdt = &api.LinuxRdt{
			ClosId: api.String(r.ClosID), Schemata: api.RepeatedString(r.Schemata),
			EnableMonitoring: api.Bool(r.EnableMonitoring),
		}
	}
}

// nanoseconds is the Unix time, 0 for what did not happen.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// newUpdates leaves out the gaps that the library has for containers without updates.
func newUpdates(from []*api.ContainerUpdate) []Update {
	var out []Update
	for _, u := range from {
		if u == nil || u.GetContainerId() == "" {
			continue
		}
		out = append(out, Update{
			ContainerID:   u.GetContainerId(),
			Resources:     u.GetLinux().GetResources().ToOCI(),
			IgnoreFailure: u.GetIgnoreFailure(),
		})
	}
	return out
}
