package launch_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/nsfile"
	"github.com/berth-node/berth/runtime/keeper"
)

// Containers of launchers among the host's mounts are made by libcontainer alone. Those away from there make init by package enter
// where it is usual, and everything that anybody can see of it has to be the same.

// A shape is what a container is like.
type shape struct {
	// adjust changes a usual container.
	adjust func(*container)
	// left says that it is made by libcontainer anyway.
	left bool
	// fails says that it cannot be made, mayFail that it does not matter whether it can.
	fails, mayFail bool
	// either says that it does not matter who makes it.
	either bool
	// streams, if it is not nil, makes the standard streams.
	streams func(*container) []*os.File
	// filter says that it has a seccomp profile.
	filter bool
	// exec has a further process started in it, by libcontainer, before its start and after.
	exec bool
	// umask, if it is not 0, is that of the launcher.
	umask int
	// rootMounted makes the root filesystem a mount of its own.
	rootMounted bool
	// processor, if it is not nil, is the only one of the launcher.
	processor *int
}

func TestInitIsAsLibcontainer(t *testing.T) {
	pod := newPod(t)
	for name, s := range shapes() {
		s.rootMounted = true
		t.Run(name, func(t *testing.T) { s.compare(t, pod) })
	}
}

// compare wants a container of this shape to be the same whoever has made it.
func (s shape) compare(t *testing.T, pod string) {
	n := newNode(t)
	n.pod = pod
	n.amidst = true
	want, _, _ := s.sees(n)
	n.amidst = false
	if s.filter {
		s.sees(n) // after which it has been kept
	}
	got, by, why := s.sees(n)
	if failed := by == ""; failed != s.fails && !s.mayFail {
		t.Errorf("it could not be made: %v, want %v\n%s", failed, s.fails, got)
	}
	if diff := differ(want, got); diff != "" {
		t.Errorf("what is seen of it, - of libcontainer's, + of that made by %s:\n%s", by, diff)
	}
	if by == "" || s.either {
		return
	}
	if s.left && by != libcontainersInit || !s.left && by != ownInit {
		t.Errorf("it was made by %s (%s); is it left to libcontainer: %v", by, why, s.left)
	}
}

// sees makes a container and returns what can be seen of it, who has made it, and why not package enter.
func (s shape) sees(n *node) (saw, by, why string) {
	n.t.Helper()
	c := s.usual(n)
	if s.rootMounted {
		c.mountRoot()
	}
	if s.streams == nil {
		s.streams = (*container).streams
	}
	files := s.streams(c)
	v := &view{c: c}
	asBefore := s.launchesFrom(n.t)
	failure := c.tryCreate(files)
	asBefore()
	closeEach(files)
	if failure == "" {
		by = c.madeBy()
		v.WriteString(c.waits())
		if s.exec {
			v.add("exec, created", c.execsIn())
		}
		c.start()
		c.waitForName("done")
		v.WriteString(c.runs())
		if s.exec {
			v.add("exec", c.execsIn())
		}
		c.kill()
	} else {
		v.add("", failure)
	}
	c.stdin.Close()
	v.add("said", <-c.out)
	c.endOthers()
	if failure == "" {
		if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
			n.t.Errorf("destroy: %s", result.Error)
		}
	}
	c.wantNothingLeft()
	v.add("bundle", c.files(c.bundle, 9))
	return v.String(), by, c.fallback
}

// mountRoot makes the root filesystem a mount of its own, as that of a container is. Otherwise libcontainer, which makes private what the
// root is mounted on, would do that to the node's root, and to all that containers take of it.
func (c *container) mountRoot() {
	c.t.Helper()
	root := filepath.Join(c.bundle, "rootfs")
	if is, err := nsfile.IsMount(root); is || err != nil {
		return // of one that is not there libcontainer has something to say
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			c.t.Errorf("unmount %s: %v", root, err)
		}
	})
}

// launchesFrom makes this process what launchers of the shape are to come from, and returns what undoes it.
func (s shape) launchesFrom(t testing.TB) (undo func()) {
	t.Helper()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	if s.processor != nil {
		var one unix.CPUSet
		one.Set(*s.processor)
		setAffinity(t, one)
	}
	umask := unix.Umask(0o022)
	if s.umask != 0 {
		unix.Umask(s.umask)
	}
	return func() {
		unix.Umask(umask)
		if s.processor != nil {
			setAffinity(t, before)
		}
	}
}

// setAffinity is for all threads of this process; those to come have it of one of them.
func setAffinity(t testing.TB, set unix.CPUSet) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil && err != unix.ESRCH {
			t.Fatal(err)
		}
	}
}

// execsIn says what a process finds that libcontainer starts in the container.
func (c *container) execsIn() string {
	c.t.Helper()
	e, result := c.exec(nil, "self", "cat", "/proc/self/cgroup", "cat", "/proc/self/status", "done")
	if result.Error != "" {
		return result.Error
	}
	e.stdin.Close()
	code := e.wait()
	var kept []string
	for line := range strings.Lines(<-e.out) {
		name, _, isStatus := strings.Cut(line, ":\t")
		if !isStatus || statusIsOwn(name, "running") {
			kept = append(kept, line)
		}
	}
	return fmt.Sprint(strings.Join(kept, ""), "exit ", code, "\n")
}

// usual is a container as the kubelet asks for most, and as the shape has changed it.
func (s shape) usual(n *node) *container {
	n.t.Helper()
	c := n.bundle([]string{"self", "cat", "/proc/self/cgroup", "done", "pause"}, nil)
	for _, dir := range []string{"outside/etc", "outside/shm", "rootfs/etc", "rootfs/var/lib"} {
		c.folder(dir, 0o755)
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf", "log"} {
		c.file("outside/etc/"+name, name)
	}
	c.file("rootfs/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh")
	c.file("rootfs/etc/hosts", "the image's")
	p, l := c.spec.Process, c.spec.Linux
	caps := strings.Fields("CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_SETGID CAP_SETUID CAP_SETFCAP CAP_SETPCAP CAP_KILL")
	p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	p.Env = []string{"PATH=/usr/bin:/", "HOSTNAME=pod", "KUBERNETES_SERVICE_HOST=10.96.0.1"}
	score := 999
	p.OOMScoreAdj = &score
	setNamespace(c.spec, specs.NetworkNamespace, filepath.Join(n.pod, "net"))
	setNamespace(c.spec, specs.IPCNamespace, filepath.Join(n.pod, "ipc"))
	setNamespace(c.spec, specs.UTSNamespace, filepath.Join(n.pod, "uts"))
	if !unified() {
		c.leave(specs.CgroupNamespace)
	}
	l.MaskedPaths = strings.Fields("/proc/asound /proc/acpi /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list " +
		"/proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap")
	l.ReadonlyPaths = strings.Fields("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger")
	limit, pids, shares := int64(64<<20), int64(100), uint64(512)
	l.Resources = &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: &limit},
		Pids:    &specs.LinuxPids{Limit: &pids},
		CPU:     &specs.LinuxCPU{Shares: &shares},
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
	}
	own := strings.Fields("rbind rprivate rw")
	c.spec.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		{Destination: "/etc/hosts", Type: "bind", Source: c.outside("etc/hosts"), Options: own},
		{Destination: "/etc/hostname", Type: "bind", Source: c.outside("etc/hostname"), Options: own},
		{Destination: "/etc/resolv.conf", Type: "bind", Source: c.outside("etc/resolv.conf"), Options: own},
		{Destination: "/dev/shm", Type: "bind", Source: c.outside("shm"), Options: own},
		{Destination: "/dev/termination-log", Type: "bind", Source: c.outside("etc/log"), Options: own},
	}
	if s.adjust != nil {
		s.adjust(c)
	}
	if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), mustJSON(c.t, c.spec), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// The helpers below build shapes. Paths of files are those in the bundle.

func (c *container) path(name string) string { return filepath.Join(c.bundle, name) }

// outside is a path of what a container may be given.
func (c *container) outside(name string) string { return c.path("outside/" + name) }

func (c *container) folder(name string, mode uint32) {
	c.t.Helper()
	if err := os.MkdirAll(c.path(name), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := unix.Chmod(c.path(name), mode); err != nil {
		c.t.Fatal(err)
	}
}

func (c *container) file(name, says string) {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), []byte(says+"\n"), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// symlink makes a link in place of what is there.
func (c *container) symlink(name, target string) {
	c.t.Helper()
	if err := os.RemoveAll(c.path(name)); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Symlink(target, c.path(name)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *container) own(name string, uid, gid int) {
	c.t.Helper()
	if err := os.Lchown(c.path(name), uid, gid); err != nil {
		c.t.Fatal(err)
	}
}

// hostMount mounts something on the host until the test ends.
func (c *container) hostMount(source, path, kind string, flags uintptr, data string, propagation uintptr) {
	c.t.Helper()
	if err := unix.Mount(source, path, kind, flags, data); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	if err := unix.Mount("", path, "none", propagation, ""); err != nil {
		c.t.Fatal(err)
	}
}

// tree makes a file system outside, with another in it, both with attributes of their own, private or shared.
func (c *container) tree(name string, propagation uintptr) (path string) {
	c.t.Helper()
	path = c.outside(name)
	c.folder("outside/"+name, 0o755)
	c.hostMount("outer", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, "mode=755", propagation)
	c.folder("outside/"+name+"/inner", 0o755)
	c.file("outside/"+name+"/file", "of "+name)
	c.hostMount("inner", path+"/inner", "tmpfs", unix.MS_NOEXEC|unix.MS_NODIRATIME, "mode=751", propagation)
	return path
}

func (c *container) mount(m specs.Mount) { c.spec.Mounts = append(c.spec.Mounts, m) }

// bind adds a bind mount; the source is a path outside.
func (c *container) bind(source, destination string, options ...string) {
	c.mount(specs.Mount{Destination: destination, Type: "bind", Source: c.outside(source), Options: append([]string{"rbind"}, options...)})
}

func (c *container) tmpfs(destination string, options ...string) {
	c.mount(specs.Mount{Destination: destination, Type: "tmpfs", Source: "tmpfs", Options: options})
}

// leave leaves the container in a namespace of the host.
func (c *container) leave(kind specs.LinuxNamespaceType) {
	c.spec.Linux.Namespaces = slices.DeleteFunc(c.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
}

// without takes mounts away.
func (c *container) without(destinations ...string) {
	c.spec.Mounts = slices.DeleteFunc(c.spec.Mounts, func(m specs.Mount) bool { return slices.Contains(destinations, m.Destination) })
}

func (c *container) mountAt(destination string) *specs.Mount {
	i := slices.IndexFunc(c.spec.Mounts, func(m specs.Mount) bool { return m.Destination == destination })
	return &c.spec.Mounts[i]
}

// user has the workload run as somebody.
func (c *container) user(uid, gid uint32, groups ...uint32) {
	c.spec.Process.User = specs.User{UID: uid, GID: gid, AdditionalGids: groups}
}

// shapes are those of containers, by what is special in them.
func shapes() map[string]shape {
	all := map[string]shape{}
	for _, some := range []map[string]shape{mountShapes(), targetShapes(), processShapes(), namespaceShapes(), otherShapes()} {
		maps.Copy(all, some)
	}
	return all
}

// fail has it fail.
func fail(s shape) shape {
	s.fails = true
	return s
}

// needs has it fail where this process has not the capability.
func needs(capability int, s shape) shape {
	s.fails = !has(capability)
	return s
}

// has tells whether this process has a capability: that of a confined machine has not all.
func has(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[capability/32].Effective>>(capability%32)&1 != 0
}

// leave has libcontainer make it.
func leave(s shape) shape {
	s.left = true
	return s
}

// eachOption binds a tree once for each of the lists of options: whole, the mount at its top alone, and the one in it.
func eachOption(propagation uintptr, lists ...string) func(*container) {
	return func(c *container) {
		source := c.tree("tree", propagation)
		for i, list := range lists {
			options := strings.Fields(list)
			c.mount(specs.Mount{Destination: fmt.Sprintf("/m/r%d", i), Type: "bind", Source: source, Options: append([]string{"rbind"}, options...)})
			c.mount(specs.Mount{Destination: fmt.Sprintf("/m/t%d", i), Source: source, Options: append([]string{"bind"}, options...)})
			c.mount(specs.Mount{Destination: fmt.Sprintf("/m/i%d", i), Source: source + "/inner", Options: append([]string{"bind"}, options...)})
		}
	}
}

const (
	private = unix.MS_PRIVATE | unix.MS_REC
	shared  = unix.MS_SHARED | unix.MS_REC
)

func mountShapes() map[string]shape {
	tmpfs := func(options ...string) shape {
		return shape{adjust: func(c *container) { c.tmpfs("/there", options...); c.tmpfs("/var/lib", options...) }}
	}
	sys := func(f func(*specs.Mount)) shape {
		return shape{adjust: func(c *container) { f(c.mountAt("/sys")) }}
	}
	cgroup := func(options ...string) func(*container) {
		return func(c *container) { c.mountAt("/sys/fs/cgroup").Options = options }
	}
	propagations := []string{"", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable", "rslave rshared", "rprivate shared", "ro rslave"}
	return map[string]shape{
		"as usual": {exec: true},
		"options of bind mounts": {adjust: eachOption(private, "", "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec",
			"relatime", "norelatime", "noatime", "atime", "strictatime", "nostrictatime", "nodiratime", "diratime", "nosymfollow", "symfollow")},
		"several options of bind mounts": {adjust: eachOption(private, "ro nosuid nodev noexec", "noatime nodiratime", "relatime nodiratime", "ro noatime", "ro rw", "rw ro",
			"suid dev exec", "rw suid dev exec atime", "nosuid suid", "noexec exec nodev", "rprivate rw nosuid noexec nodev relatime", "noatime relatime", "strictatime noatime")},
		"odd options of bind mounts": {adjust: eachOption(private, "sync", "dirsync", "mand", "silent", "lazytime", "async ro", "iversion")},
		"recursive options": {adjust: eachOption(private, "rro", "rro ro", "rrw", "rnosuid", "rsuid", "rnodev", "rdev", "rnoexec", "rexec", "rnoatime", "rrelatime",
			"rstrictatime", "rnosymfollow", "ro rrw", "rro rprivate", "rw rro", "rnosuid rnodev ro noexec")},
		"recursive directory times":        {adjust: eachOption(private, "rnodiratime", "rdiratime", "ratime")},
		"propagation of what is private":   {adjust: eachOption(private, propagations...)},
		"propagation of what is shared":    {adjust: eachOption(shared, propagations...)},
		"propagation of what is followed":  {adjust: func(c *container) { c.followed("rslave"); c.followed("rprivate"); c.followed("rshared") }},
		"tmpfs":                            leave(tmpfs()), // its mode is that of what is there
		"tmpfs with a size":                tmpfs("nosuid", "nodev", "noexec", "size=64k", "mode=1777", "nr_inodes=10"),
		"tmpfs with an owner":              tmpfs("uid=5", "gid=6", "mode=0700"),
		"tmpfs with attributes":            tmpfs("noatime", "nodiratime", "nosymfollow", "mode=0755"),
		"read-only tmpfs":                  tmpfs("ro", "nosuid", "size=1m", "mode=1777"),
		"tmpfs with propagation":           leave(tmpfs("rshared")),
		"tmpfs with two propagations":      leave(tmpfs("rslave", "rshared")),
		"tmpfs on a folder with its mode":  {adjust: func(c *container) { c.folder("rootfs/there", 0o3711); c.own("rootfs/there", 7, 8); c.tmpfs("/there") }, left: true},
		"tmpfs on a folder, another mode":  {adjust: func(c *container) { c.folder("rootfs/there", 0o1777); c.tmpfs("/there", "mode=0700") }},
		"tmpfs with what is in the folder": {adjust: func(c *container) { c.tmpfs("/etc", "tmpcopyup") }, left: true},
		"in a tmpfs": {adjust: func(c *container) {
			c.tmpfs("/run", "mode=0750")
			c.tmpfs("/run/lock/deep", "size=4k", "mode=755")
			c.bind("etc/hosts", "/run/secrets/a/hosts", "ro")
			c.bind("etc", "/run/secrets/b", "ro", "rprivate")
		}},
		"in a read-only tmpfs": {adjust: func(c *container) { c.tmpfs("/run", "ro", "mode=755"); c.bind("etc", "/run/a/b") }},
		"writable sysfs":       sys(func(m *specs.Mount) { m.Options = []string{"nosuid", "noexec", "nodev", "rw"} }),
		"sysfs as it is":       sys(func(m *specs.Mount) { m.Options = nil }),
		"the host's sysfs": {left: unified(), adjust: func(c *container) { // there it has cgroups already, which are not mounted twice
			*c.mountAt("/sys") = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rro", "nosuid", "noexec", "nodev"}}
		}},
		"no sysfs":                 {adjust: func(c *container) { c.without("/sys", "/sys/fs/cgroup") }},
		"no cgroups":               {adjust: func(c *container) { c.without("/sys/fs/cgroup") }},
		"writable cgroups":         {adjust: cgroup("nosuid", "noexec", "nodev", "relatime", "rw")},
		"cgroups with other times": {adjust: cgroup("nosuid", "noexec", "nodev", "noatime", "ro"), left: !unified()},
		"no message queues":        {adjust: func(c *container) { c.without("/dev/mqueue") }},
		"own shared memory": {adjust: func(c *container) {
			c.without("/dev/shm")
			c.tmpfs("/dev/shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k")
		}},
		"no terminals": {adjust: func(c *container) { c.without("/dev/pts") }},
		"no proc": fail(shape{adjust: func(c *container) {
			c.without("/proc")
			c.spec.Linux.MaskedPaths, c.spec.Linux.ReadonlyPaths = nil, nil
		}, left: true}),
		"proc with options": {adjust: func(c *container) { c.mountAt("/proc").Options = []string{"nosuid", "hidepid=2", "ro"} }},
		"the host's proc": {adjust: func(c *container) {
			*c.mountAt("/proc") = specs.Mount{Destination: "/proc", Type: "bind", Source: "/proc", Options: []string{"rbind"}}
		}, left: true},
		"below proc":         {adjust: func(c *container) { c.bind("etc/hosts", "/proc/meminfo", "ro") }, left: true},
		"the host's devices": {adjust: func(c *container) { c.hostDev() }, left: true},
		"devices of its own": {adjust: func(c *container) { c.device("/dev/fuse", 10, 229); c.device("/dev/mine", 1, 5) }},
		"a device elsewhere": {adjust: func(c *container) { c.device("/etc/mine", 1, 5) }, left: true},
		"devices as bind mounts": {adjust: func(c *container) {
			c.hostFile("/dev/zero", "/dev/zero2", "nosuid", "noexec")
			c.hostFile("/dev/null", "/nul")
		}},
		"another file system": {adjust: func(c *container) {
			c.mount(specs.Mount{Destination: "/fs", Type: "ramfs", Source: "none", Options: []string{"nodev", "mode=0711"}})
		}},
		"a read-only root":        {adjust: func(c *container) { c.spec.Root.Readonly = true }, exec: true},
		"a mounted root":          {adjust: func(c *container) { c.overlay(private) }},
		"a read-only mounted one": {adjust: func(c *container) { c.overlay(private); c.spec.Root.Readonly = true }},
	}
}

// followed binds a tree that follows what is mounted in another.
func (c *container) followed(option string) {
	source := c.tree("tree-"+option, shared)
	c.folder("outside/follower-"+option, 0o755)
	c.hostMount(source, c.outside("follower-"+option), "", unix.MS_BIND|unix.MS_REC, "", unix.MS_SLAVE|unix.MS_REC)
	c.bind("follower-"+option, "/follower-"+option, option)
}

func (c *container) hostFile(source, destination string, options ...string) {
	c.mount(specs.Mount{Destination: destination, Type: "bind", Source: source, Options: append([]string{"bind", "rprivate"}, options...)})
}

func (c *container) hostDev() {
	c.without("/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/termination-log")
	*c.mountAt("/dev") = specs.Mount{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind", "rprivate"}}
}

func (c *container) device(path string, major, minor int64) {
	mode, uid := os.FileMode(0o640), uint32(1000)
	c.spec.Linux.Devices = append(c.spec.Linux.Devices, specs.LinuxDevice{Path: path, Type: "c", Major: major, Minor: minor, FileMode: &mode, UID: &uid})
	c.spec.Linux.Resources.Devices = append(c.spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"})
}

// overlay mounts the root file system as that of an image is.
func (c *container) overlay(propagation uintptr) {
	c.t.Helper()
	if err := os.Rename(c.path("rootfs"), c.path("image")); err != nil {
		c.t.Fatal(err)
	}
	for _, dir := range []string{"rootfs", "upper", "work"} {
		c.folder(dir, 0o755)
	}
	// Its upper folder is no overlay, whatever the tests' own folder is.
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", c.path("image"), c.path("upper"), c.path("work"))
	c.hostMount("overlay", c.path("rootfs"), "overlay", 0, data, propagation)
}

func targetShapes() map[string]shape {
	image := func(c *container) {
		c.folder("rootfs/real/deep", 0o755)
		c.file("rootfs/real/file", "there")
		c.symlink("rootfs/relative", "real/deep")
		c.symlink("rootfs/absolute", "/real/deep")
		c.symlink("rootfs/real/up", "../real/deep")
		c.symlink("rootfs/real/far", "../../../../real/deep")
		c.symlink("rootfs/chain", "chain2")
		c.symlink("rootfs/chain2", "/chain3")
		c.symlink("rootfs/chain3", "real/up/../deep")
		c.symlink("rootfs/real/link", "file")
		c.symlink("rootfs/real/deep/back", "/relative/../file")
	}
	to := func(destinations ...string) shape {
		return shape{adjust: func(c *container) {
			image(c)
			for _, d := range destinations {
				c.bind("etc", d)
			}
		}}
	}
	file := func(destinations ...string) shape {
		return shape{adjust: func(c *container) {
			image(c)
			for _, d := range destinations {
				c.bind("etc/hosts", d, "ro")
			}
		}}
	}
	return map[string]shape{
		"onto missing folders":        to("/a", "/b/c/d/e/f", "/real/new", "/real/deep/x/y"),
		"onto folders that are there": to("/real", "/var/lib", "/tmp"),
		"onto missing files":          file("/a", "/b/c/d/e/f", "/real/new", "/var/lib/x/y"),
		"onto files that are there":   file("/real/file", "/etc/passwd"),
		"through a relative link":     to("/relative", "/relative/new/x"),
		"through an absolute link":    to("/absolute", "/absolute/new/x"),
		"through a link upwards":      to("/real/up", "/real/up/new", "/real/far/other"),
		"through a chain of links":    to("/chain", "/chain/new/x"),
		"a file through links":        file("/real/link", "/real/deep/back", "/relative/new", "/chain/x/y"),
		"paths that are not clean":    to("/real/../real//deep/./", "/x/../y", "//z//", "/../../outer"),
		"a tmpfs through links": {adjust: func(c *container) {
			image(c)
			c.folder("rootfs/real/deep", 0o1711)
			c.tmpfs("/chain", "mode=1711")
			c.tmpfs("/relative/new", "mode=700")
		}},
		"one on another":              to("/real", "/real", "/real/x", "/real"),
		"a path that is not absolute": leave(to("relative", "var/x")),
		"bind mounts in bind mounts":  {adjust: bindsInBinds},
		"what is no file":             {adjust: bindSpecialFiles},
		"of the bundle": {adjust: func(c *container) {
			c.file("own", "x")
			c.mount(specs.Mount{Destination: "/own", Source: "own", Options: []string{"bind"}})
		}},
		"a source that is a link": {adjust: func(c *container) {
			c.symlink("outside/link", "etc")
			c.bind("link", "/linked")
			c.symlink("outside/l2", "etc/hosts")
			c.bind("l2", "/linked2")
		}},
		"folders that are closed": {adjust: func(c *container) {
			c.folder("rootfs/closed", 0o700)
			c.own("rootfs/closed", 1000, 1000)
			c.user(2000, 2000)
			c.bind("etc", "/closed/a/b")
		}},
		"names of all kinds": to("/a b", "/ü", "/back\\slash", "/tab\there", "/"+strings.Repeat("long", 60)),
		"onto the workload": {adjust: func(c *container) {
			c.t.Helper()
			c.bind("prog", "/bin/prog", "ro")
			c.copyProg("outside/prog")
			c.spec.Process.Args[0] = "/bin/prog"
		}},
	}
}

func (c *container) copyProg(name string) {
	c.t.Helper()
	data, err := os.ReadFile(c.path("rootfs/prog"))
	if err == nil {
		err = os.WriteFile(c.path(name), data, 0o755)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// bindsInBinds has mount points made in what is not the container's.
func bindsInBinds(c *container) {
	c.folder("outside/volume", 0o755)
	c.tree("tree", private)
	c.bind("volume", "/volume", "rw", "rprivate")
	c.bind("tree", "/volume/sub/tree", "ro", "rprivate")
	c.bind("etc/hosts", "/volume/sub/hosts", "ro", "rprivate")
	c.tmpfs("/volume/tmp", "mode=0711")
	c.bind("tree", "/volume/tmp/tree", "rro")
	c.bind("etc", "/volume/tmp/tree/inner")
}

func bindSpecialFiles(c *container) {
	c.t.Helper()
	if err := unix.Mkfifo(c.outside("fifo"), 0o640); err != nil {
		c.t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer unix.Close(fd)
	dir, err := os.Open(c.path("outside")) // the whole path is too long for an address
	if err != nil {
		c.t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/socket", dir.Fd())}); err != nil {
		c.t.Fatal(err)
	}
	c.bind("fifo", "/run/fifo")
	c.bind("socket", "/run/socket", "ro")
	c.hostFile("/dev/zero", "/zero")
}

func processShapes() map[string]shape {
	process := func(f func(*specs.Process)) shape {
		return shape{adjust: func(c *container) { f(c.spec.Process) }}
	}
	user := func(uid, gid uint32, groups ...uint32) shape {
		return shape{adjust: func(c *container) { c.user(uid, gid, groups...) }, exec: true}
	}
	caps := func(bounding, effective, permitted, inheritable, ambient string) shape {
		return shape{adjust: func(c *container) {
			c.user(1000, 1000)
			c.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: strings.Fields(bounding), Effective: strings.Fields(effective),
				Permitted: strings.Fields(permitted), Inheritable: strings.Fields(inheritable), Ambient: strings.Fields(ambient)}
		}}
	}
	env := func(vars ...string) shape { return process(func(p *specs.Process) { p.Env = append(p.Env, vars...) }) }
	home := func(passwd string, uid uint32) shape {
		return shape{adjust: func(c *container) { c.file("rootfs/etc/passwd", passwd); c.user(uid, 1000) }}
	}
	cwd := func(path string) shape {
		return shape{adjust: func(c *container) { c.user(1000, 1000); c.spec.Process.Cwd = path }}
	}
	umask, low, zero := uint32(0o077), -500, 0
	return map[string]shape{
		"a user":                        user(1000, 1001, 5, 6, 70000),
		"a user without a name":         user(4242, 0),
		"root of another group":         user(0, 10, 0, 10),
		"many groups":                   user(1000, 1000, manyGroups()...),
		"no capabilities":               caps("", "", "", "", ""),
		"the bounding set alone":        caps("CAP_KILL CAP_CHOWN", "", "", "", ""),
		"ambient capabilities":          caps("CAP_KILL CAP_CHOWN", "CAP_KILL", "CAP_KILL CAP_CHOWN", "CAP_KILL", "CAP_KILL"),
		"capabilities without root":     caps("CAP_KILL CAP_CHOWN", "CAP_KILL", "CAP_KILL CAP_CHOWN", "CAP_CHOWN", ""),
		"unknown capabilities":          caps("CAP_KILL CAP_PATIENCE", "CAP_KILL CAP_PATIENCE", "CAP_KILL", "", ""),
		"ambient without inheritable":   caps("CAP_KILL", "CAP_KILL", "CAP_KILL", "", "CAP_KILL"),
		"capabilities that are not set": leave(process(func(p *specs.Process) { p.Capabilities = nil })),
		"root without capabilities":     process(func(p *specs.Process) { p.Capabilities = &specs.LinuxCapabilities{} }),
		"privileged":                    {adjust: privileged},
		"no new privileges":             process(func(p *specs.Process) { p.NoNewPrivileges = true }),
		"resource limits": process(func(p *specs.Process) {
			p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NPROC", Soft: 50, Hard: 100},
				{Type: "RLIMIT_MEMLOCK", Soft: 4096, Hard: 8192}, {Type: "RLIMIT_STACK", Soft: 1 << 20, Hard: 2 << 20}, {Type: "RLIMIT_FSIZE"}}
		}),
		"a limit that allows nothing": fail(process(func(p *specs.Process) {
			p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 3, Hard: 3}, {Type: "RLIMIT_FSIZE"}}
		})),
		"a soft limit above the hard": fail(process(func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 300, Hard: 200}} })),
		"umask":                       process(func(p *specs.Process) { p.User.Umask = &umask }),
		"a score below zero":          needs(unix.CAP_SYS_RESOURCE, process(func(p *specs.Process) { p.OOMScoreAdj = &low })),
		"no score":                    process(func(p *specs.Process) { p.OOMScoreAdj = nil }),
		"a score of zero":             process(func(p *specs.Process) { p.OOMScoreAdj = &zero }),
		"a missing working directory": cwd("/work/not/there"),
		"one that is not clean":       cwd("/work/../tmp/./x//"),
		"one on a tmpfs":              cwd("/dev/shm/x"),
		"one of the user": {adjust: func(c *container) {
			c.folder("rootfs/work", 0o700)
			c.own("rootfs/work", 1000, 1000)
			c.user(1000, 1000)
			c.spec.Process.Cwd = "/work"
		}},
		"one that the user cannot see":          {adjust: func(c *container) { c.folder("rootfs/work", 0o700); c.user(1000, 1000); c.spec.Process.Cwd = "/work" }},
		"one through a link":                    {adjust: func(c *container) { c.symlink("rootfs/work", "/var/lib"); c.spec.Process.Cwd = "/work" }},
		"one through a link that leads nowhere": fail(shape{adjust: func(c *container) { c.symlink("rootfs/work", "/nowhere/x"); c.spec.Process.Cwd = "/work" }}),
		"one that is a file":                    fail(cwd("/etc/passwd")),
		"one in a file":                         fail(cwd("/etc/passwd/x")),
		"one on a read-only volume":             fail(shape{adjust: func(c *container) { c.bind("etc", "/ro", "ro"); c.spec.Process.Cwd = "/ro/x" }}),
		"one in proc":                           cwd("/proc/self"),
		"one made in a read-only root":          {adjust: func(c *container) { c.spec.Root.Readonly = true; c.spec.Process.Cwd = "/made/here" }},
		"an empty HOME":                         env("HOME=", "X="),
		"a HOME":                                env("HOME=/somewhere"),
		"variables that come twice":             env("A=1", "B=2", "A=3", "PATH=/", "HOME=/1", "HOME=/2", "B=2"),
		"strange variables":                     env("A=a b\nc", "B==", "C=ü", "a.b-c=1", " =x"),
		"a variable without a value":            fail(env("NAME")),
		"a variable without a name":             fail(env("=value")),
		"HOME of many":                          home("a:b\n# no\n:::::\nroot:x:0:0::/r\n\nshort:x:1000\nbad:x:x:y::/bad:\nuser:x:1000:1000:a,b:/home/here:/bin/sh\nuser2:x:1000:1:::/", 1000),
		"HOME that is empty":                    home("user:x:1000:1000:::/bin/sh", 1000),
		"HOME of nobody":                        home("", 1000),
		"HOME in a line that does not end":      home(strings.Repeat("x", 5000)+":x:1:1::/x:/\nuser:x:1000:1000::/late:/bin/sh", 1000),
		"HOME with spaces":                      home("  user : x : 1000 : 1000 : : /a b : /bin/sh \n user:x:1000:1:: /c :", 1000),
		"HOME of root among what is no line":    home("# the users\nroot:x:0:0::/root:/bin/sh", 0),
		"HOME by a number with a sign":          home("a:x:-1:0::/a:\nb:x:+1000:0::/b:/bin/sh\nc:x:1000:0::/c:", 1000),
		"HOME in a short line":                  home("a:x:1000:0:\nb:x:1000:0::/b:/bin/sh", 1000),
		"HOME at the end":                       home("x:x:1:1::/x:/\n\t a:x:1000:0::/last \r", 1000),
		"a command in a PATH that is not clean": process(func(p *specs.Process) { p.Args[0], p.Env = "prog", []string{"PATH=/none:/var//../tmp/.././:/"} }),
		"a command in a PATH that ends empty":   fail(process(func(p *specs.Process) { p.Args[0], p.Env = "prog", []string{"PATH=/bin:"} })),
		"no passwd":                             {adjust: func(c *container) { os.Remove(c.path("rootfs/etc/passwd")); c.user(1000, 1000) }},
		"passwd is a link": {adjust: func(c *container) {
			c.file("rootfs/etc/other", "user:x:1000:1000::/linked:")
			c.symlink("rootfs/etc/passwd", "/etc/other")
			c.user(1000, 1000)
		}},
		"passwd is a folder": {adjust: func(c *container) {
			os.Remove(c.path("rootfs/etc/passwd"))
			c.folder("rootfs/etc/passwd", 0o755)
			c.user(1000, 1000)
		}},
		"a command in PATH":            process(func(p *specs.Process) { p.Args[0] = "prog" }),
		"a command by a relative path": process(func(p *specs.Process) { p.Args[0] = "./prog" }),
		"a command in a relative PATH": fail(process(func(p *specs.Process) { p.Args[0], p.Env = "prog", []string{"PATH=.:/"} })),
		"a command in an empty PATH":   fail(process(func(p *specs.Process) { p.Args[0], p.Env = "prog", []string{"PATH=:"} })),
		"many arguments":               process(func(p *specs.Process) { p.Args = append(p.Args, strings.Split(strings.Repeat("word ", 5000), " ")...) }),
	}
}

func manyGroups() (groups []uint32) {
	for g := range uint32(500) {
		groups = append(groups, 100000-7*g)
	}
	return append(groups, 0, 0)
}

func privileged(c *container) {
	c.spec.Linux.MaskedPaths, c.spec.Linux.ReadonlyPaths = nil, nil
	var all []string
	for capability, name := range allCaps {
		if has(capability) {
			all = append(all, "CAP_"+name)
		}
	}
	c.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: all}
	c.mountAt("/sys").Options = []string{"nosuid", "noexec", "nodev", "rw"}
	c.mountAt("/sys/fs/cgroup").Options = []string{"nosuid", "noexec", "nodev", "relatime", "rw"}
	c.leave(specs.CgroupNamespace)
	c.spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
}

// allCaps are in the order of their numbers.
var allCaps = strings.Fields("CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST " +
	"NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME " +
	"SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE")

func namespaceShapes() map[string]shape {
	own := func(kinds ...specs.LinuxNamespaceType) func(*container) {
		return func(c *container) {
			for _, kind := range kinds {
				setNamespace(c.spec, kind, "")
			}
		}
	}
	host := func(kinds ...specs.LinuxNamespaceType) func(*container) {
		return func(c *container) {
			for _, kind := range kinds {
				c.leave(kind)
			}
		}
	}
	root := func(propagation string, mounted uintptr) shape {
		return shape{adjust: func(c *container) {
			c.overlay(mounted)
			c.spec.Linux.RootfsPropagation = propagation
			c.tree("tree", shared)
			c.bind("tree", "/tree", "rslave")
			c.bind("tree", "/as-it-is")
			c.bind("tree", "/shared", "rshared")
		}}
	}
	return map[string]shape{
		"a network of its own":            {adjust: own(specs.NetworkNamespace), left: true}, // somebody has to bring lo up
		"own IPC":                         {adjust: own(specs.IPCNamespace)},
		"own UTS":                         {adjust: own(specs.UTSNamespace)},
		"own IPC and UTS":                 {adjust: own(specs.IPCNamespace, specs.UTSNamespace)},
		"own cgroups":                     {adjust: own(specs.CgroupNamespace), left: !unified()},
		"the host's cgroups":              {adjust: host(specs.CgroupNamespace)},
		"the host's network":              {adjust: host(specs.NetworkNamespace, specs.UTSNamespace)},
		"the host's IPC":                  {adjust: host(specs.IPCNamespace)},
		"the host's processes":            {adjust: host(specs.PIDNamespace)},
		"all of the host's":               {adjust: host(specs.NetworkNamespace, specs.UTSNamespace, specs.IPCNamespace, specs.PIDNamespace, specs.CgroupNamespace)},
		"another's processes":             {adjust: joinPID, exec: true},
		"clocks of its own":               {adjust: own(specs.TimeNamespace), left: true},
		"a namespace that is not there":   fail(shape{adjust: func(c *container) { setNamespace(c.spec, specs.NetworkNamespace, "/no/such") }}),
		"a namespace of another kind":     fail(shape{adjust: func(c *container) { setNamespace(c.spec, specs.NetworkNamespace, filepath.Join(c.pod, "ipc")) }}),
		"a file for a namespace":          fail(shape{adjust: func(c *container) { setNamespace(c.spec, specs.NetworkNamespace, c.outside("etc/hosts")) }}),
		"a user namespace":                {adjust: mapped, left: true},
		"root rslave":                     root("rslave", shared),
		"root rslave of what is private":  root("rslave", private),
		"root slave":                      root("slave", shared),
		"root rshared":                    root("rshared", shared),
		"root rshared of what is private": root("rshared", private),
		"root shared":                     root("shared", shared),
		"root rprivate":                   root("rprivate", shared),
		"root private":                    root("private", shared),
		"root as usual and shared":        root("", shared),
	}
}

// mapped gives the container a user namespace, and its files to root there.
func mapped(c *container) {
	c.t.Helper()
	mapRoot(c)
	c.without("/sys", "/sys/fs/cgroup", "/dev/mqueue")
	err := filepath.WalkDir(c.path("rootfs"), func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, 100000, 100000)
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// joinPID has the container join the processes of another, which ends with it.
func joinPID(c *container) {
	c.t.Helper()
	other := c.node.bundle([]string{"pause"}, nil)
	files := other.streams()
	if failure := other.tryCreate(files); failure != "" {
		c.t.Fatal(failure)
	}
	closeEach(files)
	other.start()
	setNamespace(c.spec, specs.PIDNamespace, fmt.Sprintf("/proc/%d/ns/pid", other.pid))
	c.others = append(c.others, other)
}

// endOthers ends the containers that this one has needed.
func (c *container) endOthers() {
	c.t.Helper()
	for _, other := range c.others {
		other.kill()
		if result, _ := c.run(other.job(keeper.JobDestroy)); result.Error != "" {
			c.t.Errorf("destroy: %s", result.Error)
		}
	}
}

func otherShapes() map[string]shape {
	paths := func(masked, readonly string) shape {
		return shape{adjust: func(c *container) {
			c.folder("rootfs/secret/deep", 0o755)
			c.file("rootfs/secret/file", "x")
			c.symlink("rootfs/link", "secret/deep")
			c.symlink("rootfs/filelink", "/secret/file")
			c.tmpfs("/tmpfs", "noexec", "nosuid", "mode=755")
			c.bind("etc", "/bound", "rw", "nodev")
			c.spec.Linux.MaskedPaths, c.spec.Linux.ReadonlyPaths = strings.Fields(masked), strings.Fields(readonly)
		}}
	}
	profile := func(noNewPrivs bool, uid uint32, f func(*specs.LinuxSeccomp)) shape {
		return shape{adjust: func(c *container) {
			c.user(uid, uid)
			c.spec.Process.NoNewPrivileges = noNewPrivs
			c.spec.Linux.Seccomp = seccomp.DefaultProfile(c.spec)
			if f != nil {
				f(c.spec.Linux.Seccomp)
			}
		}, filter: true, exec: true}
	}
	flags := func(flags ...specs.LinuxSeccompFlag) func(*specs.LinuxSeccomp) {
		return func(s *specs.LinuxSeccomp) { s.Flags = flags }
	}
	streams := func(f func(*container) []*os.File, uid uint32) shape {
		return shape{adjust: func(c *container) { c.user(uid, uid) }, streams: f}
	}
	left := func(f func(*container)) shape { return shape{adjust: f, left: true} }
	first := 0
	mountPoints := func(c *container) {
		c.bind("etc", "/a/b/c")
		c.bind("etc/hosts", "/d/e/f")
		c.tmpfs("/g/h", "mode=755")
	}
	return map[string]shape{
		"nothing masked":           paths("", ""),
		"masked twice":             paths("/secret /secret /secret/ /proc/kcore /proc/kcore", "/proc/sys /proc/sys /proc/sys/"),
		"masked through links":     paths("/link /filelink", "/link /bound"),
		"masked in what is masked": paths("/secret /secret/deep /secret/file", "/secret/deep"),
		"masked files and folders": paths("/secret/deep /secret/file /tmp /etc/passwd /bound/hosts /sys/fs", "/secret /tmpfs /bound /etc/hosts /sys/kernel"),
		"masked trees": {adjust: func(c *container) {
			c.tree("tree", shared)
			c.bind("tree", "/a", "rslave")
			c.bind("tree", "/b", "nosymfollow", "noatime")
			c.bind("tree", "/c", "rshared")
			c.spec.Linux.ReadonlyPaths = []string{"/a", "/b", "/b/inner", "/c", "/sys"}
			c.spec.Linux.MaskedPaths = []string{"/a/inner", "/c/inner", "/sys/fs"}
		}},
		"masked that is not there":                        paths("/no/such /secret/none", "/no/such /secret/none"),
		"masked in a file":                                fail(paths("/etc/passwd/x", "")),
		"read-only in a file":                             fail(paths("", "/etc/passwd/x")),
		"masked under a bad name":                         paths("relative ../up", "secret"),
		"all masked":                                      paths("/", ""),
		"all read-only":                                   leave(paths("", "/")), // what covers the root is not it
		"masked devices":                                  paths("/dev/null /dev/zero /dev/pts /dev/shm", "/dev/random"),
		"the default profile":                             profile(false, 1000, nil),
		"the default profile for root":                    profile(false, 0, nil),
		"the default profile without new privileges":      profile(true, 1000, nil),
		"the default profile for root without privileges": profile(true, 0, nil),
		"a profile with flags":                            profile(false, 1000, flags(specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow)),
		"a profile that allows what it does not name": profile(true, 1000, func(s *specs.LinuxSeccomp) {
			*s = specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}}}
		}),
		"a profile of nothing":      profile(false, 0, func(s *specs.LinuxSeccomp) { *s = specs.LinuxSeccomp{DefaultAction: specs.ActAllow} }),
		"streams of /dev/null":      streams(nullStreams("r", "w", "w"), 1000),
		"streams of /dev/null, all": streams(nullStreams("rw", "rw", "rw"), 0),
		"output to /dev/null":       streams(nullStreams("", "w", "w"), 1000),
		"input from /dev/null":      streams(nullStreams("r", "", ""), 1000),
		"pipes for a user":          {adjust: func(c *container) { c.user(1000, 1000) }},
		"FIFOs":                     streams(fileStreams(unix.S_IFIFO), 1000),
		"files":                     streams(fileStreams(unix.S_IFREG), 1000),
		"sockets":                   streams(socketStreams, 1000),
		"a name of its own":         left(func(c *container) { setNamespace(c.spec, specs.UTSNamespace, ""); c.spec.Hostname = "own" }),
		"settings of the kernel": left(func(c *container) {
			setNamespace(c.spec, specs.IPCNamespace, "")
			c.spec.Linux.Sysctl = map[string]string{"kernel.shm_rmid_forced": "1"}
		}),
		"a personality": left(func(c *container) { c.spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} }),
		"a scheduler":   left(func(c *container) { c.spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5} }),
		"priority of input and output": left(func(c *container) {
			c.spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
		}),
		"hooks": left(func(c *container) {
			c.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: c.path("rootfs/prog"), Args: []string{"prog", "mkdir", c.path("ran")}}}}
		}),
		"an AppArmor profile": fail(shape{adjust: func(c *container) { c.spec.Process.ApparmorProfile = "no-such-profile" }}),
		"limits of processors": {adjust: func(c *container) {
			quota, period := int64(50000), uint64(100000)
			c.spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period, Cpus: "0", Mems: "0"}
		}},
		"from a launcher that hides its files": {adjust: mountPoints, umask: 0o077},
		"from a launcher on one processor":     {processor: &first},
		"limits that cannot be":                fail(shape{adjust: func(c *container) { c.spec.Linux.Resources.CPU = &specs.LinuxCPU{Cpus: "4000"} }}),
	}
}

// nullStreams opens /dev/null in these modes; where there is none the stream is a pipe.
func nullStreams(modes ...string) func(*container) []*os.File {
	flags := map[string]int{"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
	return func(c *container) []*os.File {
		c.t.Helper()
		files := c.streams()
		for i, mode := range modes {
			if mode == "" {
				continue
			}
			null, err := os.OpenFile(os.DevNull, flags[mode], 0)
			if err != nil {
				c.t.Fatal(err)
			}
			c.t.Cleanup(func() { null.Close() })
			if i != 1 {
				files[i].Close() // the other two are one
			}
			files[i] = null
		}
		return files
	}
}

// fileStreams are files of root outside.
func fileStreams(kind uint32) func(*container) []*os.File {
	return func(c *container) []*os.File {
		c.t.Helper()
		var files []*os.File
		for _, name := range []string{"0", "1", "2"} {
			if err := unix.Mknod(c.outside(name), kind|0o600, 0); err != nil {
				c.t.Fatal(err)
			}
			f, err := os.OpenFile(c.outside(name), os.O_RDWR|os.O_APPEND, 0)
			if err != nil {
				c.t.Fatal(err)
			}
			files = append(files, f)
		}
		c.noStreams()
		return files
	}
}

func socketStreams(c *container) []*os.File {
	c.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	c.t.Cleanup(func() { ours.Close() })
	c.noStreams()
	return []*os.File{theirs, theirs, theirs}
}

// noStreams stands in for streams where the test does not look at what is said.
func (c *container) noStreams() {
	out := make(chan string, 1)
	out <- ""
	c.out, c.stdin = out, os.NewFile(^uintptr(0), "none")
}
