package launch

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/caps"
	"github.com/berth-node/berth/internal/enter"
)

// This is the translation of what libcontainer's init is told into what package enter's program is told, for containers as nearly
// all are. unusual knows which are not: it is to name whatever translate does not speak of.

// unusual says why package enter cannot make the init of a container as libcontainer's init would; "" if it can. It is asked when
// the launcher has made what it makes ahead.
func unusual(config *configs.Config, p *libcontainer.Process) string {
	for _, part := range []func(*configs.Config, *libcontainer.Process) string{unusualProcess, unusualRest, unusualNamespaces, unusualSeccomp} {
		if why := part(config, p); why != "" {
			return why
		}
	}
	return unusualMounts(config)
}

// firstOf returns the name of the first that is so. Its arguments are names and bools by turns.
func firstOf(all ...any) string {
	for i := 0; i < len(all); i += 2 {
		if all[i+1].(bool) {
			return all[i].(string)
		}
	}
	return ""
}

func unusualProcess(c *configs.Config, p *libcontainer.Process) string {
	return firstOf(
		"it has a terminal", p.ConsoleSocket != nil,
		"it has no standard streams", p.Stdin == nil || p.Stdout == nil || p.Stderr == nil,
		"it has more descriptors", len(p.ExtraFiles) > 0 || p.PidfdSocket != nil,
		"it has an SELinux label", p.Label != "" || c.ProcessLabel != "" || c.MountLabel != "",
		"it has a scheduler", p.Scheduler != nil || c.Scheduler != nil,
		"it has an I/O priority", p.IOPriority != nil || c.IOPriority != nil,
		"it has a CPU affinity", p.CPUAffinity != nil || c.ExecCPUAffinity != nil,
		"its capabilities are those of the launcher", capabilitiesOf(c, p) == nil,
		"a resource limit is not known", slices.ContainsFunc(limitsOf(c, p), func(r configs.Rlimit) bool { return r.Type < 0 }),
		"it has a personality", c.Personality != nil,
		"it has a memory policy", c.MemoryPolicy != nil,
		"it ends with the launcher", c.ParentDeathSignal != 0,
		"it has the session keyring of the launcher", c.NoNewKeyring,
		"it has sysctls", len(c.Sysctl) > 0,
	)
}

func unusualRest(c *configs.Config, _ *libcontainer.Process) string {
	hooks := false
	for _, list := range c.Hooks {
		hooks = hooks || len(list) > 0
	}
	return firstOf(
		"it has hooks", hooks,
		"it has Intel RDT", c.IntelRdt != nil,
		"it has network interfaces", len(c.NetDevices) > 0 || len(c.Networks) > 0 || len(c.Routes) > 0,
		"it has a host name", c.Hostname != "" || c.Domainname != "",
		"its root is not pivoted to", c.NoPivotRoot,
		"it is rootless", c.RootlessEUID || c.RootlessCgroups,
		"it has no cgroup", c.Cgroups == nil || c.Cgroups.Resources == nil || c.Cgroups.Resources.SkipDevices,
	)
}

// cloneFlags are the namespaces that package enter makes and joins.
var cloneFlags = map[configs.NamespaceType]uint32{
	configs.NEWPID: unix.CLONE_NEWPID, configs.NEWNET: unix.CLONE_NEWNET, configs.NEWNS: unix.CLONE_NEWNS,
	configs.NEWIPC: unix.CLONE_NEWIPC, configs.NEWUTS: unix.CLONE_NEWUTS, configs.NEWCGROUP: unix.CLONE_NEWCGROUP,
}

func unusualNamespaces(c *configs.Config, _ *libcontainer.Process) string {
	for _, ns := range c.Namespaces {
		if cloneFlags[ns.Type] == 0 {
			return fmt.Sprintf("it has a namespace %s", ns.Type)
		}
	}
	return firstOf(
		"it has a user namespace", len(c.UIDMappings) > 0 || len(c.GIDMappings) > 0,
		"it has time offsets", len(c.TimeOffsets) > 0,
		"its mounts are not its own", !c.Namespaces.IsPrivate(configs.NEWNS),
	)
}

func unusualSeccomp(c *configs.Config, _ *libcontainer.Process) string {
	s := c.Seccomp
	return firstOf("it has a seccomp agent", s != nil && (s.ListenerPath != "" || s.DefaultAction == configs.Notify ||
		slices.ContainsFunc(s.Syscalls, func(call *configs.Syscall) bool { return call == nil || call.Action == configs.Notify })))
}

// unusualMounts wants /proc to come first: what is mounted afterwards can then be told from what is in it.
func unusualMounts(c *configs.Config) string {
	if len(c.Mounts) == 0 || c.Mounts[0].Device != "proc" || c.Mounts[0].Destination != "/proc" {
		return "its first mount is not /proc"
	}
	if len(c.Devices) > 0 || !slices.ContainsFunc(c.Mounts, madeDev) {
		return "its /dev is not made ahead"
	}
	for i, m := range c.Mounts {
		if why := unusualPlace(c.Rootfs, m, i == 0); why != "" {
			return fmt.Sprintf("mount %s: %s", m.Destination, why)
		}
		if why := unusualMount(m); why != "" {
			return fmt.Sprintf("mount %s: %s", m.Destination, why)
		}
	}
	return ""
}

func unusualPlace(rootfs string, m *configs.Mount, first bool) string {
	at := filepath.Clean(m.Destination)
	return firstOf(
		"its place is no absolute path", !filepath.IsAbs(at),
		"its place is the root filesystem", at == "/",
		"its place has the root filesystem's path", at == rootfs || strings.HasPrefix(at, rootfs+"/"),
		"it is in /proc", (at == "/proc" || strings.HasPrefix(at, "/proc/")) && !first,
		"it is another /dev", at == "/dev" && !madeDev(m),
	)
}

const (
	// bindFlags are those of a bind mount that are no attributes of it.
	bindFlags = unix.MS_BIND | unix.MS_REC
	// strangeFlags make of a mount something else.
	strangeFlags = unix.MS_REMOUNT | unix.MS_MOVE | unix.MS_SHARED | unix.MS_PRIVATE | unix.MS_SLAVE | unix.MS_UNBINDABLE
)

func unusualMount(m *configs.Mount) string {
	if m.IDMapping != nil || m.Extensions != 0 || m.Flags&strangeFlags != 0 || m.RecAttr != nil && m.RecAttr.Userns_fd != 0 {
		return "it has options of a kind that few have"
	}
	if m.Device == "bind" {
		return firstOf(
			"it is none", m.Flags&unix.MS_BIND == 0,
			"its source is no absolute path", !filepath.IsAbs(m.Source),
			"it has a propagation of no kind", slices.ContainsFunc(m.PropagationFlags, func(f int) bool { return f&^(propagations|unix.MS_REC) != 0 }),
		)
	}
	if madeDev(m) {
		return ""
	}
	return firstOf(
		"it has no type", m.Device == "",
		"it is a bind mount of a type", m.Flags&bindFlags != 0,
		"it is of cgroup v1", m.Device == "cgroup" && !cgroups.IsCgroup2UnifiedMode(),
		"it is a second /proc", m.Device == "proc" && m.Destination != "/proc",
		"its mode is that of what is there", m.Device == "tmpfs" && !hasMode(m.Data), // or that of nothing, if we made it and then failed
		"it has a propagation", len(m.PropagationFlags) > 0,
		"it has recursive options", m.RecAttr != nil,
	)
}

// hasMode tells whether the options of a tmpfs say its mode.
func hasMode(data string) bool {
	return slices.ContainsFunc(strings.Split(data, ","), func(option string) bool { return strings.HasPrefix(option, "mode=") })
}

// madeDev tells a /dev that mountDev has made.
func madeDev(m *configs.Mount) bool {
	return m.Device == "tmpfs" && m.Destination == "/dev" && m.Flags == bindFlags
}

// translate says what the program is to do. The filter is the caller's to add.
func translate(id string, c *configs.Config, p *libcontainer.Process) *enter.Plan {
	capabilities := capabilitiesOf(c, p)
	umask := uint32(0o022)
	if c.Umask != nil {
		umask = *c.Umask
	}
	plan := &enter.Plan{
		Keyring:         "_ses." + id,
		NoNewPrivileges: c.NoNewPrivileges,
		Umask:           &umask,
		Cwd:             p.Cwd,
		UID:             uint32(p.UID),
		GID:             uint32(p.GID),
		Bounding:        caps.Bits(capabilities.Bounding),
		Effective:       caps.Bits(capabilities.Effective),
		Permitted:       caps.Bits(capabilities.Permitted),
		Inheritable:     caps.Bits(capabilities.Inheritable),
		Ambient:         caps.Bits(capabilities.Ambient),
		AppArmor:        c.AppArmorProfile,
		Args:            p.Args,
		Env:             p.Env,
		Init:            translateInit(c),
	}
	if c.OomScoreAdj != nil {
		plan.OOMScoreAdj = *c.OomScoreAdj
	}
	if p.NoNewPrivileges != nil {
		plan.NoNewPrivileges = *p.NoNewPrivileges
	}
	if p.AppArmorProfile != "" {
		plan.AppArmor = p.AppArmorProfile
	}
	for _, r := range limitsOf(c, p) {
		plan.Rlimits = append(plan.Rlimits, enter.Rlimit{Resource: uint32(r.Type), Soft: r.Soft, Hard: r.Hard})
	}
	for _, gid := range p.AdditionalGroups {
		plan.Groups = append(plan.Groups, uint32(gid))
	}
	return plan
}

// What the process does not say of itself it has from the container.

func capabilitiesOf(c *configs.Config, p *libcontainer.Process) *configs.Capabilities {
	if p.Capabilities != nil {
		return p.Capabilities
	}
	return c.Capabilities
}

func limitsOf(c *configs.Config, p *libcontainer.Process) []configs.Rlimit {
	if len(p.Rlimits) > 0 {
		return p.Rlimits
	}
	return c.Rlimits
}

func translateInit(c *configs.Config) *enter.Init {
	in := &enter.Init{
		New:           uint32(c.Namespaces.CloneFlags()),
		Rootfs:        c.Rootfs,
		Propagation:   uint32(c.RootPropagation),
		ReadonlyRoot:  c.Readonlyfs,
		ReadonlyPaths: c.ReadonlyPaths,
		MaskedPaths:   onceEach(c.MaskPaths),
	}
	if c.RootPropagation&(unix.MS_PRIVATE|unix.MS_SLAVE) == 0 {
		in.RootPropagation = in.Propagation
	}
	for _, kind := range configs.NamespaceTypes() { // in libcontainer's order
		if path := c.Namespaces.PathOf(kind); path != "" {
			in.Join = append(in.Join, enter.Join{Path: path, Kind: cloneFlags[kind]})
		}
	}
	for _, m := range c.Mounts {
		in.Mounts = append(in.Mounts, translateMount(m))
		// What is put in there comes before.
		if m.Device == "tmpfs" && m.Flags&unix.MS_RDONLY != 0 {
			flags := uint32(m.Flags) | unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY
			in.ReadonlyMounts = append(in.ReadonlyMounts, enter.Remount{Path: m.Destination, Flags: flags})
		}
	}
	return in
}

// onceEach leaves out paths that come again in other words.
func onceEach(paths []string) []string {
	var once []string
	seen := map[string]bool{}
	for _, path := range paths {
		if clean := filepath.Clean("/" + path); !seen[clean] {
			seen[clean] = true
			once = append(once, path)
		}
	}
	return once
}

func translateMount(m *configs.Mount) enter.Mount {
	if m.Flags&unix.MS_BIND != 0 {
		tree := enter.Mount{Target: m.Destination, Tree: m.Source, Recursive: m.Flags&unix.MS_REC != 0}
		if m.Device == "bind" {
			tree.Attributes = bindAttributes(m)
		}
		return tree
	}
	mount := enter.Mount{Target: m.Destination, Source: m.Source, Type: m.Device, Data: m.Data, Flags: uint64(m.Flags)}
	switch m.Device {
	case "cgroup":
		mount.Type = "cgroup2"
	case "tmpfs":
		mount.Flags &^= unix.MS_RDONLY
	}
	return mount
}

// propagations are the kinds that a mount can have.
const propagations = unix.MS_SHARED | unix.MS_PRIVATE | unix.MS_SLAVE | unix.MS_UNBINDABLE

// bindAttributes are the steps by which libcontainer makes of a bind mount what is asked: its propagation; its flags, if there are
// any, even such that only say what it is not to have; and those of all that is mounted below.
func bindAttributes(m *configs.Mount) []enter.Attributes {
	var all []enter.Attributes
	for _, f := range m.PropagationFlags {
		all = append(all, enter.Attributes{Recursive: f&unix.MS_REC != 0, Propagation: uint64(f & propagations)})
	}
	if m.Flags&^bindFlags != 0 || m.ClearedFlags != 0 {
		attr := attributesOf(m.Flags)
		all = append(all, enter.Attributes{Set: attr.Attr_set, Clear: attr.Attr_clr})
	}
	if r := m.RecAttr; r != nil {
		all = append(all, enter.Attributes{Recursive: true, Set: r.Attr_set, Clear: r.Attr_clr, Propagation: r.Propagation})
	}
	return all
}

// attributesOf translates the flags of a remount of a bind mount, which has these afterwards and no others. When it notes access
// is left as it is, unless a flag speaks of it.
func attributesOf(flags int) *unix.MountAttr {
	attr := &unix.MountAttr{}
	for flag, attribute := range map[int]uint64{
		unix.MS_RDONLY: unix.MOUNT_ATTR_RDONLY, unix.MS_NOSUID: unix.MOUNT_ATTR_NOSUID, unix.MS_NODEV: unix.MOUNT_ATTR_NODEV,
		unix.MS_NOEXEC: unix.MOUNT_ATTR_NOEXEC, unix.MS_NOSYMFOLLOW: unix.MOUNT_ATTR_NOSYMFOLLOW,
	} {
		attr.Attr_clr |= attribute
		if flags&flag != 0 {
			attr.Attr_set |= attribute
		}
	}
	if flags&(unix.MS_NOATIME|unix.MS_NODIRATIME|unix.MS_RELATIME|unix.MS_STRICTATIME) == 0 {
		return attr
	}
	attr.Attr_clr |= unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_NODIRATIME
	switch { // as the kernel decides
	case flags&unix.MS_STRICTATIME != 0:
		attr.Attr_set |= unix.MOUNT_ATTR_STRICTATIME
	case flags&unix.MS_NOATIME != 0:
		attr.Attr_set |= unix.MOUNT_ATTR_NOATIME
	default:
		attr.Attr_set |= unix.MOUNT_ATTR_RELATIME
	}
	if flags&unix.MS_NODIRATIME != 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_NODIRATIME
	}
	return attr
}
