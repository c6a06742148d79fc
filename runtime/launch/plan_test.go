package launch

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/enter"
)

// plain is a container that package enter makes, as it is when the launcher has made /dev and the mounts of cgroups.
func plain() (*configs.Config, *libcontainer.Process) {
	score, privs := 900, true
	c := &configs.Config{
		Rootfs: "/run/root",
		Mounts: []*configs.Mount{
			{Destination: "/proc", Device: "proc", Source: "proc", Flags: unix.MS_NOSUID},
			{Destination: "/dev", Device: "tmpfs", Source: "/places/dev", Flags: unix.MS_BIND | unix.MS_REC},
		},
		Namespaces: configs.Namespaces{
			{Type: configs.NEWNS}, {Type: configs.NEWPID}, {Type: configs.NEWNET, Path: "/ns/net"}, {Type: configs.NEWIPC, Path: "/ns/ipc"},
		},
		Capabilities: &configs.Capabilities{Bounding: []string{"CAP_KILL"}},
		Cgroups:      &cgroups.Cgroup{Resources: &cgroups.Resources{}},
		OomScoreAdj:  &score,
		Hooks:        configs.Hooks{},
	}
	p := &libcontainer.Process{
		Args: []string{"sleep", "1"}, Env: []string{"A=b"}, Cwd: "/work", UID: 1, GID: 2, AdditionalGroups: []int{3},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, NoNewPrivileges: &privs, AppArmorProfile: "profile",
		Rlimits: []configs.Rlimit{{Type: unix.RLIMIT_NOFILE, Soft: 4, Hard: 5}},
	}
	return c, p
}

func TestPlanOfAnInit(t *testing.T) {
	c, p := plain()
	umask := uint32(0o022)
	want := &enter.Plan{
		OOMScoreAdj: 900, Rlimits: []enter.Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 4, Hard: 5}}, Keyring: "_ses.id",
		NoNewPrivileges: true, Umask: &umask, Cwd: "/work", UID: 1, GID: 2, Groups: []uint32{3}, Bounding: 1 << unix.CAP_KILL,
		AppArmor: "profile", Args: []string{"sleep", "1"}, Env: []string{"A=b"},
		Init: &enter.Init{
			// In libcontainer's order, which is not the configuration's.
			Join:   []enter.Join{{Path: "/ns/ipc", Kind: unix.CLONE_NEWIPC}, {Path: "/ns/net", Kind: unix.CLONE_NEWNET}},
			New:    unix.CLONE_NEWNS | unix.CLONE_NEWPID,
			Rootfs: "/run/root",
			Mounts: []enter.Mount{
				{Target: "/proc", Source: "proc", Type: "proc", Flags: unix.MS_NOSUID},
				{Target: "/dev", Tree: "/places/dev", Recursive: true},
			},
		},
	}
	if why := unusual(c, p); why != "" {
		t.Fatal(why)
	}
	if got := translate("id", c, p); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\n%+v\nwant %+v\n%+v", got, got.Init, want, want.Init)
	}
	if _, err := translate("id", c, p).Encode(); err != nil {
		t.Error(err)
	}

	mask := uint32(0o77)
	c.Umask, c.Readonlyfs, c.RootPropagation = &mask, true, unix.MS_SHARED|unix.MS_REC
	c.ReadonlyPaths, c.MaskPaths = []string{"/a", "/a"}, []string{"/m", "/n/", "/n", "/m/../n", "/M"}
	c.AppArmorProfile, c.NoNewPrivileges, c.Rlimits = "container's", true, []configs.Rlimit{{Type: unix.RLIMIT_CORE}}
	p.AppArmorProfile, p.NoNewPrivileges, p.Rlimits, p.Capabilities = "", nil, nil, &configs.Capabilities{Ambient: []string{"CAP_CHOWN"}}
	got := translate("id", c, p)
	if *got.Umask != mask || !got.Init.ReadonlyRoot || got.AppArmor != "container's" || !got.NoNewPrivileges || got.Bounding != 0 ||
		got.Ambient != 1<<unix.CAP_CHOWN || len(got.Rlimits) != 1 || got.Rlimits[0].Resource != unix.RLIMIT_CORE {
		t.Errorf("got %+v", got)
	}
	if in := got.Init; strings.Join(in.MaskedPaths, " ") != "/m /n/ /M" || strings.Join(in.ReadonlyPaths, " ") != "/a /a" {
		t.Errorf("masked are %q, read-only %q", in.MaskedPaths, in.ReadonlyPaths)
	}
}

func TestPropagationOfTheRoot(t *testing.T) {
	for given, want := range map[int][2]uint32{
		0:                             {0, 0},
		unix.MS_PRIVATE:               {unix.MS_PRIVATE, 0},
		unix.MS_SLAVE | unix.MS_REC:   {unix.MS_SLAVE | unix.MS_REC, 0},
		unix.MS_SHARED | unix.MS_REC:  {unix.MS_SHARED | unix.MS_REC, unix.MS_SHARED | unix.MS_REC},
		unix.MS_UNBINDABLE:            {unix.MS_UNBINDABLE, unix.MS_UNBINDABLE},
		unix.MS_PRIVATE | unix.MS_REC: {unix.MS_PRIVATE | unix.MS_REC, 0},
	} {
		c, _ := plain()
		c.RootPropagation = given
		if in := translateInit(c); in.Propagation != want[0] || in.RootPropagation != want[1] {
			t.Errorf("%#x: %#x, %#x; want %#x", given, in.Propagation, in.RootPropagation, want)
		}
	}
}

func TestPlanOfAMount(t *testing.T) {
	const plainClear = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW
	const timeClear = plainClear | unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_NODIRATIME
	bind := func(flags, cleared int, propagation ...int) configs.Mount {
		return configs.Mount{Destination: "/v", Device: "bind", Source: "/s", Flags: unix.MS_BIND | flags, ClearedFlags: cleared, PropagationFlags: propagation}
	}
	tree := func(recursive bool, attributes ...enter.Attributes) enter.Mount {
		return enter.Mount{Target: "/v", Tree: "/s", Recursive: recursive, Attributes: attributes}
	}
	recursive := bind(unix.MS_REC, 0)
	recursive.RecAttr = &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Attr_clr: unix.MOUNT_ATTR_NOEXEC}
	for name, test := range map[string]struct {
		mount configs.Mount
		want  enter.Mount
	}{
		"as its source": {bind(0, 0), tree(false)},
		"all of it":     {bind(unix.MS_REC, 0), tree(true)},
		"not read-only": {bind(unix.MS_REC, unix.MS_RDONLY), tree(true, enter.Attributes{Clear: plainClear})},
		"a volume": {bind(unix.MS_REC|unix.MS_RDONLY, 0, unix.MS_PRIVATE|unix.MS_REC), tree(true,
			enter.Attributes{Recursive: true, Propagation: unix.MS_PRIVATE},
			enter.Attributes{Set: unix.MOUNT_ATTR_RDONLY, Clear: plainClear})},
		"twice": {bind(0, 0, unix.MS_SLAVE, unix.MS_SHARED|unix.MS_REC), tree(false,
			enter.Attributes{Propagation: unix.MS_SLAVE}, enter.Attributes{Recursive: true, Propagation: unix.MS_SHARED})},
		"all flags": {bind(unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSYMFOLLOW, 0), tree(false,
			enter.Attributes{Set: plainClear &^ unix.MOUNT_ATTR_RDONLY, Clear: plainClear})},
		"of no attribute": {bind(unix.MS_SYNCHRONOUS, 0), tree(false, enter.Attributes{Clear: plainClear})},
		"noatime":         {bind(unix.MS_NOATIME, 0), tree(false, enter.Attributes{Set: unix.MOUNT_ATTR_NOATIME, Clear: timeClear})},
		"relatime":        {bind(unix.MS_RELATIME, 0), tree(false, enter.Attributes{Set: unix.MOUNT_ATTR_RELATIME, Clear: timeClear})},
		"both":            {bind(unix.MS_RELATIME|unix.MS_NOATIME, 0), tree(false, enter.Attributes{Set: unix.MOUNT_ATTR_NOATIME, Clear: timeClear})},
		"strictatime":     {bind(unix.MS_STRICTATIME|unix.MS_NOATIME, 0), tree(false, enter.Attributes{Set: unix.MOUNT_ATTR_STRICTATIME, Clear: timeClear})},
		"nodiratime":      {bind(unix.MS_NODIRATIME, 0), tree(false, enter.Attributes{Set: unix.MOUNT_ATTR_NODIRATIME, Clear: timeClear})},
		"recursive": {recursive, tree(true,
			enter.Attributes{Recursive: true, Set: unix.MOUNT_ATTR_RDONLY, Clear: unix.MOUNT_ATTR_NOEXEC})},
		"tmpfs": {configs.Mount{Destination: "/t", Device: "tmpfs", Source: "tmpfs", Data: "size=1m", Flags: unix.MS_RDONLY | unix.MS_NOSUID},
			enter.Mount{Target: "/t", Type: "tmpfs", Source: "tmpfs", Data: "size=1m", Flags: unix.MS_NOSUID}},
		"sysfs": {configs.Mount{Destination: "/sys", Device: "sysfs", Source: "sysfs", Flags: unix.MS_RDONLY, ClearedFlags: unix.MS_NODEV},
			enter.Mount{Target: "/sys", Type: "sysfs", Source: "sysfs", Flags: unix.MS_RDONLY}},
		"cgroups": {configs.Mount{Destination: "/sys/fs/cgroup", Device: "cgroup", Source: "cgroup", Flags: unix.MS_RDONLY, Data: "nsdelegate"},
			enter.Mount{Target: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup", Flags: unix.MS_RDONLY, Data: "nsdelegate"}},
	} {
		if got := translateMount(&test.mount); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v\nwant %+v", name, got, test.want)
		}
	}
}

func TestReadonlyMountsComeLast(t *testing.T) {
	c, _ := plain()
	c.Mounts = append(c.Mounts,
		&configs.Mount{Destination: "/t", Device: "tmpfs", Flags: unix.MS_RDONLY | unix.MS_NODEV},
		&configs.Mount{Destination: "/u", Device: "tmpfs"},
		&configs.Mount{Destination: "/sys", Device: "sysfs", Flags: unix.MS_RDONLY})
	want := []enter.Remount{{Path: "/t", Flags: unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NODEV}}
	if got := translateInit(c).ReadonlyMounts; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestWhatIsUnusual(t *testing.T) {
	extra := func(m configs.Mount) func(*configs.Config, *libcontainer.Process) {
		return func(c *configs.Config, _ *libcontainer.Process) { c.Mounts = append(c.Mounts, &m) }
	}
	for name, change := range map[string]func(*configs.Config, *libcontainer.Process){
		"terminal":        func(_ *configs.Config, p *libcontainer.Process) { p.ConsoleSocket = os.Stdin },
		"more files":      func(_ *configs.Config, p *libcontainer.Process) { p.ExtraFiles = []*os.File{os.Stdin} },
		"process label":   func(_ *configs.Config, p *libcontainer.Process) { p.Label = "x" },
		"container label": func(c *configs.Config, _ *libcontainer.Process) { c.ProcessLabel = "x" },
		"mount label":     func(c *configs.Config, _ *libcontainer.Process) { c.MountLabel = "x" },
		"scheduler":       func(_ *configs.Config, p *libcontainer.Process) { p.Scheduler = &configs.Scheduler{} },
		"its scheduler":   func(c *configs.Config, _ *libcontainer.Process) { c.Scheduler = &configs.Scheduler{} },
		"I/O priority":    func(_ *configs.Config, p *libcontainer.Process) { p.IOPriority = &configs.IOPriority{} },
		"CPU affinity":    func(c *configs.Config, _ *libcontainer.Process) { c.ExecCPUAffinity = &configs.CPUAffinity{} },
		"no capabilities": func(c *configs.Config, _ *libcontainer.Process) { c.Capabilities = nil },
		"unknown limit":   func(_ *configs.Config, p *libcontainer.Process) { p.Rlimits[0].Type = -1 },
		"personality":     func(c *configs.Config, _ *libcontainer.Process) { c.Personality = &configs.LinuxPersonality{} },
		"memory policy":   func(c *configs.Config, _ *libcontainer.Process) { c.MemoryPolicy = &configs.LinuxMemoryPolicy{} },
		"death signal":    func(c *configs.Config, _ *libcontainer.Process) { c.ParentDeathSignal = 9 },
		"keyring":         func(c *configs.Config, _ *libcontainer.Process) { c.NoNewKeyring = true },
		"sysctl":          func(c *configs.Config, _ *libcontainer.Process) { c.Sysctl = map[string]string{"a": "b"} },
		"hook": func(c *configs.Config, _ *libcontainer.Process) {
			c.Hooks[configs.Poststop] = make(configs.HookList, 1)
		},
		"RDT":      func(c *configs.Config, _ *libcontainer.Process) { c.IntelRdt = &configs.IntelRdt{} },
		"loopback": func(c *configs.Config, _ *libcontainer.Process) { c.Networks = make([]*configs.Network, 1) },
		"route":    func(c *configs.Config, _ *libcontainer.Process) { c.Routes = make([]*configs.Route, 1) },
		"device":   func(c *configs.Config, _ *libcontainer.Process) { c.Devices = make([]*devices.Device, 1) },
		"network device": func(c *configs.Config, _ *libcontainer.Process) {
			c.NetDevices = map[string]*configs.LinuxNetDevice{"a": nil}
		},
		"host name":       func(c *configs.Config, _ *libcontainer.Process) { c.Hostname = "x" },
		"domain":          func(c *configs.Config, _ *libcontainer.Process) { c.Domainname = "x" },
		"no pivot":        func(c *configs.Config, _ *libcontainer.Process) { c.NoPivotRoot = true },
		"rootless":        func(c *configs.Config, _ *libcontainer.Process) { c.RootlessCgroups = true },
		"devices skipped": func(c *configs.Config, _ *libcontainer.Process) { c.Cgroups.Resources.SkipDevices = true },
		"user namespace":  func(c *configs.Config, _ *libcontainer.Process) { c.Namespaces.Add(configs.NEWUSER, "/ns/user") },
		"time namespace":  func(c *configs.Config, _ *libcontainer.Process) { c.Namespaces.Add(configs.NEWTIME, "") },
		"time offset": func(c *configs.Config, _ *libcontainer.Process) {
			c.TimeOffsets = map[string]specs.LinuxTimeOffset{"a": {}}
		},
		"others' mounts": func(c *configs.Config, _ *libcontainer.Process) { c.Namespaces.Add(configs.NEWNS, "/ns/mnt") },
		"the host's":     func(c *configs.Config, _ *libcontainer.Process) { c.Namespaces.Remove(configs.NEWNS) },
		"agent":          func(c *configs.Config, _ *libcontainer.Process) { c.Seccomp = &configs.Seccomp{ListenerPath: "/x"} },
		"default agent": func(c *configs.Config, _ *libcontainer.Process) {
			c.Seccomp = &configs.Seccomp{DefaultAction: configs.Notify}
		},
		"agent of a call": func(c *configs.Config, _ *libcontainer.Process) {
			c.Seccomp = &configs.Seccomp{Syscalls: []*configs.Syscall{{Action: configs.Notify}}}
		},
		"no mounts":   func(c *configs.Config, _ *libcontainer.Process) { c.Mounts = nil },
		"/proc later": func(c *configs.Config, _ *libcontainer.Process) { c.Mounts[0], c.Mounts[1] = c.Mounts[1], c.Mounts[0] },
		"the host's /proc": func(c *configs.Config, _ *libcontainer.Process) {
			c.Mounts[0].Device, c.Mounts[0].Flags = "bind", unix.MS_BIND
		},
		"/dev to be made": func(c *configs.Config, _ *libcontainer.Process) { c.Mounts[1].Flags = unix.MS_NOSUID },
		"no /dev":         func(c *configs.Config, _ *libcontainer.Process) { c.Mounts = c.Mounts[:1] },
		"another /dev":    extra(configs.Mount{Destination: "/dev/", Device: "bind", Source: "/s", Flags: unix.MS_BIND}),
		"over /proc":      extra(configs.Mount{Destination: "/a/../proc", Device: "proc"}),
		"in /proc":        extra(configs.Mount{Destination: "/proc/cpuinfo", Device: "bind", Source: "/s", Flags: unix.MS_BIND}),
		"on the root":     extra(configs.Mount{Destination: "/a/..", Device: "tmpfs"}),
		"relative":        extra(configs.Mount{Destination: "a", Device: "tmpfs"}),
		"root's own path": extra(configs.Mount{Destination: "/run/root/a", Device: "tmpfs"}),
		"proc elsewhere":  extra(configs.Mount{Destination: "/p", Device: "proc"}),
		"mapped":          extra(configs.Mount{Destination: "/a", Device: "bind", Source: "/s", Flags: unix.MS_BIND, IDMapping: &configs.MountIDMapping{}}),
		"copied":          extra(configs.Mount{Destination: "/a", Device: "tmpfs", Extensions: configs.EXT_COPYUP}),
		"remount":         extra(configs.Mount{Destination: "/a", Device: "bind", Source: "/s", Flags: unix.MS_BIND | unix.MS_REMOUNT}),
		"relative source": extra(configs.Mount{Destination: "/a", Device: "bind", Source: "s", Flags: unix.MS_BIND}),
		"bind of a type":  extra(configs.Mount{Destination: "/a", Device: "tmpfs", Source: "/s", Flags: unix.MS_BIND}),
		"no type":         extra(configs.Mount{Destination: "/a"}),
		"shared tmpfs":    extra(configs.Mount{Destination: "/a", Device: "tmpfs", PropagationFlags: []int{unix.MS_SHARED}}),
		"recursive tmpfs": extra(configs.Mount{Destination: "/a", Device: "tmpfs", RecAttr: &unix.MountAttr{}}),
		"odd propagation": extra(configs.Mount{Destination: "/a", Device: "bind", Source: "/s", Flags: unix.MS_BIND, PropagationFlags: []int{1 << 29}}),
	} {
		c, p := plain()
		change(c, p)
		if why := unusual(c, p); why == "" {
			t.Errorf("%s: it is usual", name)
		}
	}
}

// TestNothingIsOverlooked fails when libcontainer's configuration gets a field of which nobody has decided whether it is unusual.
func TestNothingIsOverlooked(t *testing.T) {
	decided := map[reflect.Type]string{
		reflect.TypeFor[configs.Config](): `NoPivotRoot ParentDeathSignal Rootfs Umask Readonlyfs RootPropagation Mounts Devices NetDevices
			MountLabel Hostname Domainname Namespaces Capabilities Networks Routes Cgroups AppArmorProfile ProcessLabel Rlimits OomScoreAdj
			UIDMappings GIDMappings MaskPaths ReadonlyPaths Sysctl Seccomp NoNewPrivileges Hooks Version Labels NoNewKeyring IntelRdt
			MemoryPolicy RootlessEUID RootlessCgroups TimeOffsets Scheduler Personality IOPriority ExecCPUAffinity`,
		reflect.TypeFor[configs.Mount](): `Source Destination Device Flags ClearedFlags PropagationFlags Data Relabel RecAttr Extensions IDMapping`,
		reflect.TypeFor[libcontainer.Process](): `Args Env UID GID AdditionalGroups Cwd Stdin Stdout Stderr ExtraFiles ConsoleWidth
			ConsoleHeight Capabilities AppArmorProfile Label NoNewPrivileges Rlimits ConsoleSocket PidfdSocket Init LogLevel SubCgroupPaths
			Scheduler IOPriority CPUAffinity`,
	}
	for kind, known := range decided {
		for i := range kind.NumField() {
			field := kind.Field(i)
			if found := " " + strings.Join(strings.Fields(known), " ") + " "; field.IsExported() && !strings.Contains(found, " "+field.Name+" ") {
				t.Errorf("%s.%s is new", kind, field.Name)
			}
		}
	}
}
