package launch_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
)

// Whatever the image has where the container's own things are to come, it ends as with libcontainer, and nothing outside of the
// root file system is touched.
func TestInitIsNotDeceived(t *testing.T) {
	pod := newPod(t)
	for name, adjust := range hostileImages() {
		t.Run(name, func(t *testing.T) {
			var outside, mounts string
			var made *container
			s := shape{mayFail: true, left: slices.Contains(madeUp, name), either: strings.Contains(name, "a descriptor"), adjust: func(c *container) {
				made.untouched(outside, mounts) // the one before
				c.file("outside/victim", "of the host")
				c.folder("outside/victims", 0o755)
				adjust(c)
				made, outside, mounts = c, c.files(c.path("outside"), 9), hostMounts(t)
			}}
			s.compare(t, pod)
			made.untouched(outside, mounts)
		})
	}
}

// madeUp are images with which libcontainer makes a container that package enter refuses to make: it has links that lead to what is
// not there, or has the root covered.
var madeUp = []string{
	"dev leads to nowhere", "dev leads to outside", "etc leads to nowhere", "etc leads to outside",
	"a target leads to nowhere", "a target leads to outside", "a target leads to above", "a target leads to a missing file",
	"read-only by its root", "read-only by init's cwd", "what is read-only leads to the root", "what is read-only leads to what is above",
}

// untouched wants what is outside to be as it was, if there is such a container.
func (c *container) untouched(outside, mounts string) {
	if c == nil {
		return
	}
	c.t.Helper()
	if now := c.files(c.path("outside"), 9); now != outside {
		c.t.Errorf("what is outside of the container has changed:\n%s", differ(outside, now))
	}
	if now := hostMounts(c.t); now != mounts {
		c.t.Errorf("the mounts of the host have changed:\n%s", differ(mounts, now))
	}
}

// hostMounts are the mounts of the host, but for those of tests of other packages, which run meanwhile.
func hostMounts(t testing.TB) string {
	t.Helper()
	own, _, _ := strings.Cut(t.Name(), "/")
	var all strings.Builder
	for line := range strings.Lines(mountsOf(t, os.Getpid())) {
		at := strings.Fields(line)[4]
		others := strings.HasPrefix(at, os.TempDir()+"/") && !strings.HasPrefix(at, filepath.Join(os.TempDir(), own))
		if !others && !strings.HasPrefix(at, "/run/netns") {
			all.WriteString(line)
		}
	}
	return all.String()
}

// hostileImages lie about what is where.
func hostileImages() map[string]func(*container) {
	link := func(name, target string) func(*container) {
		return func(c *container) { c.symlink("rootfs"+name, strings.ReplaceAll(target, "OUTSIDE", c.path("outside"))) }
	}
	file := func(name string) func(*container) {
		return func(c *container) { c.clear(name); c.file("rootfs"+name, "") }
	}
	fifo := func(name string) func(*container) {
		return func(c *container) {
			c.clear(name)
			if err := unix.Mkfifo(c.path("rootfs"+name), 0o644); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	with := func(fs ...func(*container)) func(*container) {
		return func(c *container) {
			for _, f := range fs {
				f(c)
			}
		}
	}
	bind := func(destination string) func(*container) {
		return func(c *container) { c.bind("victims", destination) }
	}
	tmpfs := func(destination string) func(*container) {
		return func(c *container) { c.tmpfs(destination, "mode=0777") }
	}
	masks := func(masked, readonly string) func(*container) {
		return func(c *container) {
			c.spec.Linux.MaskedPaths, c.spec.Linux.ReadonlyPaths = strings.Fields(masked), strings.Fields(readonly)
		}
	}
	cwd := func(path string) func(*container) { return func(c *container) { c.spec.Process.Cwd = path } }

	all := map[string]func(*container){}
	// Folders on which file systems come, or in which files do.
	for _, name := range []string{"/proc", "/sys", "/dev", "/etc"} {
		for what, target := range map[string]string{
			"the root": "/", "what is above": "../../../../../..", "outside": "OUTSIDE", "proc": "/proc", "settings": "/proc/sys", "descriptors": "/proc/self/fd", "the host's root": "/proc/1/root",
			"its own root": "/proc/self/root", "a descriptor": "/proc/self/fd/7", "nowhere": "/no/where", "itself": name, "a folder": "/tmp", "a file": "/prog", "a folder beside": "tmp",
		} {
			all[name[1:]+" leads to "+what] = link(name, target)
		}
		all[name[1:]+" is a file"] = file(name)
		all[name[1:]+" is a FIFO"] = fifo(name)
	}
	// Files on which others come.
	for what, target := range map[string]string{
		"a setting": "/proc/sys/kernel/core_pattern", "nothing": "/dev/null", "its program": "/proc/self/exe", "outside": "OUTSIDE/victim", "above": "../../../outside/victim", "nowhere": "/no/where",
		"a missing file": "missing", "itself": "hosts", "a folder": "/tmp", "a descriptor": "/proc/self/fd/1", "its memory": "/proc/1/mem", "a device": "/dev/random", "the command": "/prog",
	} {
		all["a target leads to "+what] = link("/etc/hosts", target)
	}
	all["a target is a folder"] = func(c *container) { c.clear("/etc/hosts"); c.folder("rootfs/etc/hosts", 0o755) }
	all["a target is a FIFO"] = fifo("/etc/hosts")
	all["a target's folder is a file"] = with(file("/var"), bind("/var/lib/x"))
	all["a target's folder is a FIFO"] = with(fifo("/var"), bind("/var/lib/x"))
	all["a folder for a file"] = func(c *container) { c.bind("victim", "/tmp") }
	all["a file for a folder"] = with(file("/made"), bind("/made"))
	all["a target that is the root"] = with(link("/root", "/"), bind("/root"))
	all["a tmpfs that is the root"] = with(link("/root", "../.."), tmpfs("/root"))
	all["a target below itself"] = with(link("/loop", "loop/x"), bind("/loop/x"))
	all["forty links"] = func(c *container) {
		for i := range 45 {
			c.symlink(fmt.Sprintf("rootfs/l%d", i), fmt.Sprintf("l%d", i+1))
		}
		c.bind("victims", "/l10/x")
		c.bind("victims", "/l0")
	}
	// Ways below proc.
	for what, target := range map[string]string{"proc": "/proc", "settings": "/proc/sys/kernel", "itself": "/proc/self", "its descriptors": "/proc/self/fd", "its root": "/proc/self/root", "init's cwd": "/proc/1/cwd"} {
		for _, below := range []string{"", "/x", "/1/x", "/hostname", "/root/made"} {
			all["a folder by "+what+below] = with(link("/way", target), bind("/way"+below))
			all["a tmpfs by "+what+below] = with(link("/way", target), tmpfs("/way"+below))
		}
		all["a file by "+what] = with(link("/way", target), func(c *container) { c.bind("victim", "/way/hostname") })
		all["masked by "+what] = with(link("/way", target), masks("/way /way/x /way/hostname", ""))
		all["read-only by "+what] = with(link("/way", target), masks("", "/way /way/x /way/hostname"))
		all["a working directory by "+what] = with(link("/way", target), cwd("/way/x"))
	}
	// What is hidden in the end.
	for what, target := range map[string]string{"the root": "/", "what is above": "../../../..", "outside": "OUTSIDE", "nowhere": "/no/where", "itself": "/hidden", "a descriptor": "/proc/self/fd/5", "nothing": "/dev/null"} {
		all["what is masked leads to "+what] = with(link("/hidden", target), masks("/hidden", ""))
		all["what is read-only leads to "+what] = with(link("/hidden", target), masks("", "/hidden"))
		all["the working directory leads to "+what] = with(link("/hidden", target), cwd("/hidden"))
		all["below the working directory it leads to "+what] = with(link("/hidden", target), cwd("/hidden/x/y"))
	}
	all["what is masked is a FIFO"] = with(fifo("/hidden"), masks("/hidden", ""))
	all["what is read-only is a FIFO"] = with(fifo("/hidden"), masks("", "/hidden"))
	all["the working directory is a FIFO"] = with(fifo("/hidden"), cwd("/hidden"))
	// The container's own /dev/null.
	all["another null"] = func(c *container) { c.bind("victim", "/dev/null") }
	all["a null that is another device"] = func(c *container) { c.hostFile("/dev/zero", "/dev/null") }
	all["a null that is read-only"] = func(c *container) { c.hostFile("/dev/null", "/dev/null", "ro") }
	for i := range 12 {
		all[fmt.Sprintf("the working directory is descriptor %d", i)] = cwd(fmt.Sprintf("/proc/self/fd/%d", i))
		all[fmt.Sprintf("the working directory is beside descriptor %d", i)] = cwd(fmt.Sprintf("/proc/self/fd/%d/..", i))
	}
	return all
}

// clear removes what the image has there.
func (c *container) clear(name string) {
	c.t.Helper()
	if err := os.RemoveAll(c.path("rootfs" + name)); err != nil {
		c.t.Fatal(err)
	}
}

// An init that waits shows the program that made it, and has descriptors; neither gives away the host.
func TestInitGivesNothingAway(t *testing.T) {
	n := newNode(t)
	n.pod = newPod(t)
	c := shape{}.usual(n).create()
	if by := c.madeBy(); by != ownInit {
		t.Errorf("it was made by %s", by)
	}
	exe, err := os.Open(c.proc("exe"))
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if seals, err := unix.FcntlInt(exe.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&all != all {
		t.Errorf("its program has the seals %#x, %v", seals, err)
	}
	fds, err := os.ReadDir(c.proc("fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if st, err := os.Stat(c.proc("fd/" + fd.Name())); err == nil && st.IsDir() {
			t.Errorf("it has a folder open: %s", c.descriptor(fd.Name()))
		}
	}
	c.start()
	c.waitForName("done")
}

// What init has open until it becomes the workload is no program for it.
func TestDescriptorsOfInitAreNoPrograms(t *testing.T) {
	n := newNode(t)
	n.pod = newPod(t)
	for _, command := range append(descriptors(3, 12), "/proc/self/exe", "/script") {
		c := shape{adjust: func(c *container) {
			c.file("rootfs/script", "#!/proc/self/exe")
			if err := os.Chmod(c.path("rootfs/script"), 0o755); err != nil {
				t.Fatal(err)
			}
			c.spec.Process.Args = []string{command}
		}}.usual(n)
		files := c.streams()
		failure := c.tryCreate(files)
		closeEach(files)
		c.stdin.Close()
		if failure == "" {
			c.start()
			code := c.wait()
			if said := <-c.out; code == 0 || strings.Contains(said, "keyring:") {
				t.Errorf("%s ended with %d and said %q", command, code, said)
			}
			if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
				t.Error(result.Error)
			}
		} else if !strings.HasPrefix(failure, "failure command: ") {
			t.Errorf("%s: %s", command, failure)
		}
		c.wantNothingLeft()
	}
}

func descriptors(first, last int) (paths []string) {
	for i := first; i <= last; i++ {
		paths = append(paths, fmt.Sprintf("/proc/self/fd/%d", i))
	}
	return paths
}

// A step that fails leaves nothing, and the container can be made once what was wrong is not.
func TestFailedInitLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.pod = newPod(t)
	process := func(f func(*specs.Process)) func(*container) { return func(c *container) { f(c.spec.Process) } }
	for name, adjust := range map[string]func(*container){
		"data of a tmpfs":  func(c *container) { c.tmpfs("/there", "size=much") },
		"a file system":    func(c *container) { c.mount(specs.Mount{Destination: "/there", Type: "nosuchfs", Source: "none"}) },
		"a source":         func(c *container) { c.bind("missing", "/there") },
		"a target":         func(c *container) { c.bind("etc", "/prog/there") },
		"a last mount":     func(c *container) { c.bind("etc", "/a"); c.tmpfs("/b"); c.bind("etc", "/sys/kernel/none") },
		"a masked path":    func(c *container) { c.spec.Linux.MaskedPaths = []string{"/proc/keys", "/prog/below"} },
		"a read-only path": func(c *container) { c.spec.Linux.ReadonlyPaths = []string{"/prog/below"} },
		"a namespace":      func(c *container) { setNamespace(c.spec, specs.NetworkNamespace, filepath.Join(c.pod, "ipc")) },
		"a limit": process(func(p *specs.Process) {
			p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 40, Hard: 1 << 40}}
		}),
		"a cgroup":            func(c *container) { c.spec.Linux.Resources.CPU.Cpus = "4000" },
		"a working directory": process(func(p *specs.Process) { p.Cwd = "/prog" }),
		"a user":              process(func(p *specs.Process) { p.User.UID = 1<<32 - 1 }),
		"a profile":           process(func(p *specs.Process) { p.ApparmorProfile = "no-such-profile" }),
		"a command":           process(func(p *specs.Process) { p.Args = []string{"/no/such"} }),
		"a command in PATH":   process(func(p *specs.Process) { p.Args = []string{"no-such"} }),
		"a folder":            process(func(p *specs.Process) { p.Args = []string{"/etc"} }),
		"a plain file":        process(func(p *specs.Process) { p.Args = []string{"/etc/hosts"} }),
	} {
		t.Run(name, func(t *testing.T) {
			n.t = t
			c := shape{adjust: adjust}.usual(n)
			files := c.streams()
			defer closeEach(files)
			if failure := c.tryCreate(files); failure == "" {
				t.Error("it was made")
			}
			c.wantNothingLeft()
			again := shape{}.usual(n)
			again.id = c.id
			again.create()
			if by := again.madeBy(); by != ownInit {
				t.Errorf("the next one was made by %s", by)
			}
		})
	}
	n.t = t
}

// A launcher that is killed while it makes a container leaves no process but one that is on record, and that ends where it is
// killed as a keeper does it.
func TestKilledLauncherLeavesNoInit(t *testing.T) {
	n := newNode(t)
	n.pod = newPod(t)
	found := map[string]int{}
	for i := range 40 {
		w := n.launch()
		first := shape{}.usual(n)
		files := first.streams()
		result, pidfd := w.do(t, first.job(keeper.JobCreate), files...)
		closeEach(files)
		first.take(result, pidfd) // from here on the launcher waits for the next job
		c := shape{}.usual(n)
		files = c.streams()
		if err := wire.Write(w.conn, c.job(keeper.JobCreate), files...); err != nil {
			t.Fatal(err)
		}
		closeEach(files)
		c.awaitStage(i % len(stages))
		time.Sleep(rand.N(300 * time.Microsecond))
		// It is dead late: what does not wait for it gets far.
		if err := w.cmd.Process.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		if err := w.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = w.cmd.Wait() // says that it was killed
		w.conn.Close()
		first.kill()
		if result, _ := n.run(first.job(keeper.JobDestroy)); result.Error != "" {
			t.Fatal(result.Error)
		}
		found[fmt.Sprintf("stage %d, %s", i%len(stages), c.killHalfMade())]++
		if wantNoChildren(t); t.Failed() {
			t.FailNow()
		}
		c.stdin.Close()
		if said := <-c.out; strings.Contains(said, "keyring:") { // an init may complain
			t.Errorf("the workload ran: %s", said)
		}
		for _, dir := range c.cgroupDirs(c.id) {
			removeCgroup(t, dir)
		}
		if err := os.RemoveAll(filepath.Join(n.state, c.id)); err != nil {
			t.Error(err)
		}
		if i%10 == 0 {
			again := shape{}.usual(n)
			again.id = c.id
			again.create().start().waitForName("done")
			again.kill()
		}
	}
	t.Logf("found: %v", found)
}

// removeCgroup removes one that may be there. The kernel takes a moment to see that the last process has left it.
func removeCgroup(t testing.TB, dir string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := os.Remove(dir)
		if err == nil || os.IsNotExist(err) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("the cgroup is not empty: %v", err)
			return
		}
	}
}

// stages are what can be seen of a creation, one after the other.
var stages = []func(*container) bool{
	func(*container) bool { return true },
	func(c *container) bool { return c.exists("") },
	func(c *container) bool { return c.exists("exec.fifo") },
	func(c *container) bool { return len(c.processes()) > 0 },
	func(c *container) bool { // init: a process that another one in the cgroup has made
		return slices.ContainsFunc(c.processes(), func(pid string) bool {
			status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
			return err == nil && regexp.MustCompile(`NSpid:.*\t1\n`).Match(status)
		})
	},
	func(c *container) bool { return c.exists("state.json") },
}

// awaitStage returns when the creation has got as far as that.
func (c *container) awaitStage(stage int) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); !stages[stage](c); time.Sleep(20 * time.Microsecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("the creation does not get to stage %d", stage)
		}
	}
}

// exists tells whether libcontainer's folder of the container has a file.
func (c *container) exists(name string) bool {
	_, err := os.Stat(filepath.Join(c.state, c.id, name))
	return err == nil
}

// processes are those in the container's cgroup.
func (c *container) processes() (pids []string) {
	for _, dir := range c.cgroupDirs(c.id) {
		procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		pids = append(pids, strings.Fields(string(procs))...)
	}
	return pids
}

// killHalfMade does what a keeper does with what a launcher has left, and says what it found.
func (c *container) killHalfMade() string {
	c.t.Helper()
	var state struct {
		Pid       int    `json:"init_process_pid"`
		StartTime uint64 `json:"init_process_start"`
	}
	data, err := os.ReadFile(filepath.Join(c.state, c.id, "state.json"))
	if err != nil {
		return "no record"
	}
	if err := json.Unmarshal(data, &state); err != nil {
		c.t.Errorf("half a record: %v", err)
	}
	fd, err := unix.PidfdOpen(state.Pid, 0)
	if err != nil {
		return "a record of what has ended"
	}
	defer unix.Close(fd)
	c.pid = state.Pid
	if stat := c.read("stat"); strings.Fields(stat[strings.LastIndex(stat, ")")+1:])[19] != fmt.Sprint(state.StartTime) {
		c.t.Errorf("the start on record is %d, and stat says %s", state.StartTime, stat)
	}
	by := c.madeBy()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return "a record of what has ended" // meanwhile
	}
	if !poll(fd) {
		c.t.Error("an init that is half made does not die")
	}
	c.pid = 0
	return "an init of " + by
}

// To criu it is a container as any other.
func TestCheckpointOfOwnInit(t *testing.T) {
	n := newNode(t)
	n.pod = newPod(t)
	c := shape{}.usual(n).create()
	if by := c.madeBy(); by != ownInit {
		t.Errorf("it was made by %s", by)
	}
	c.start().waitForName("done")
	c.checkpoint()
}
