package launch_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
)

// A view is what can be seen of a container, in lines that are the same for every container of its shape.
type view struct {
	strings.Builder
	c *container
}

// add adds a line for each of the text. What is the container's own gets a name.
func (v *view) add(what, text string) {
	what, text = v.c.unnamed(what), v.c.unnamed(text)
	for line := range strings.Lines(text) {
		fmt.Fprintf(v, "%s: %s\n", what, strings.TrimRight(line, "\n"))
	}
}

// unnamed puts names in the places of what differs from container to container.
func (c *container) unnamed(text string) string {
	names := []string{c.bundle, "BUNDLE", c.state, "STATE", c.id, "ID"}
	for _, other := range c.others {
		names = append(names, fmt.Sprintf("/proc/%d/", other.pid), "/proc/OTHER/")
	}
	return strings.NewReplacer(names...).Replace(text)
}

func (c *container) proc(name string) string { return filepath.Join("/proc", itoa(c.pid), name) }

// read returns what a file of /proc says, or why it does not.
func (c *container) read(name string) string {
	c.t.Helper()
	data, err := os.ReadFile(c.proc(name))
	if err != nil {
		return "error: " + strings.ReplaceAll(err.Error(), "/"+itoa(c.pid)+"/", "/PID/") + "\n"
	}
	return string(data)
}

func (c *container) link(name string) string {
	c.t.Helper()
	target, err := os.Readlink(c.proc(name))
	if err != nil {
		return err.Error()
	}
	return target
}

// madeBy tells who has made the container, which its init's program shows until it becomes the workload.
func (c *container) madeBy() string {
	c.t.Helper()
	return strings.TrimSuffix(strings.TrimPrefix(c.link("exe"), "/memfd:"), " (deleted)")
}

// waits describes a container that was not started yet, as far as its init is not a matter of who made it.
func (c *container) waits() string {
	c.t.Helper()
	v := &view{c: c}
	v.common("created")
	for _, dir := range c.cgroupDirs(c.id) {
		if procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err == nil {
			v.add("created, in "+dir, strings.ReplaceAll("+"+string(procs), "+"+itoa(c.pid)+"\n", "PID alone\n"))
		}
	}
	v.add("created, record", c.record())
	fifo, err := os.Stat(filepath.Join(c.state, c.id, "exec.fifo"))
	if err != nil {
		c.t.Fatal(err)
	}
	v.add("created, FIFO", fmt.Sprint(fifo.Mode(), fifo.Sys().(*syscall.Stat_t).Uid))
	return v.String()
}

// runs describes the container whose workload has paused, and what it said.
func (c *container) runs() string {
	c.t.Helper()
	v := &view{c: c}
	v.common("running")
	for _, name := range []string{"limits", "environ", "cmdline", "comm", "coredump_filter"} {
		v.add(name, strings.ReplaceAll(c.read(name), "\x00", "\n"))
	}
	v.add("exe", c.link("exe"))
	if c.spec.Linux.Seccomp != nil {
		v.add("filter", strings.Join(filtersOf(c.t, c.pid), "\n"))
	}
	fds, err := os.ReadDir(c.proc("fd"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, fd := range fds {
		v.add("descriptor", c.descriptor(fd.Name()))
	}
	v.add("mount", c.mounts())
	v.add("file", c.files(c.proc("root"), 3))
	for _, dir := range c.cgroupDirs(c.id) {
		v.add("limit", limitsOf(dir))
	}
	return v.String()
}

// common is what there is of a process at all times.
func (v *view) common(when string) {
	c := v.c
	for line := range strings.Lines(c.read("status")) {
		if name, _, _ := strings.Cut(line, ":"); statusIsOwn(name, when) {
			v.add(when+", status", line)
		}
	}
	for _, name := range []string{
		"oom_score_adj", "cgroup", "personality", "loginuid", "attr/current", "attr/exec", "timerslack_ns", "uid_map", "gid_map", "setgroups",
	} {
		v.add(when+", "+name, c.read(name))
	}
	v.add(when+", stat", c.stat())
	v.add(when+", cwd", c.link("cwd"))
	v.add(when+", root", c.link("root"))
	v.add(when+", namespaces", c.namespaces())
	if st, err := os.Stat(c.proc("status")); err == nil {
		v.add(when+", owner", fmt.Sprint(st.Sys().(*syscall.Stat_t).Uid))
	}
}

// statusIsOwn tells whether the line of /proc/PID/status is the same for each process that was made in the same way. Those of
// signals are also a matter of the program.
func statusIsOwn(name, when string) bool {
	if strings.HasPrefix(name, "Sig") || strings.HasPrefix(name, "Shd") {
		// The signals that libcontainer's starters ignore it passes on; they are none if we ignore none.
		return when == "running" && name != "SigQ" && (name != "SigIgn" || ignoresNothing())
	}
	return regexp.MustCompile(`^(Umask|Uid|Gid|Groups|Cap\w+|NoNewPrivs|Seccomp\w*|Speculation\w*|Cpus_allowed|Mems_allowed|THP_enabled|TracerPid)$`).MatchString(name)
}

func ignoresNothing() bool {
	status, err := os.ReadFile("/proc/self/status")
	return err == nil && strings.Contains(string(status), "SigIgn:\t0000000000000000\n")
}

// stat is what there is of /proc/PID/stat that does not count something: parent, group, session, terminal, the signal at its
// end, and how it is scheduled.
func (c *container) stat() string {
	c.t.Helper()
	line := c.read("stat")
	fields := strings.Fields(line[strings.LastIndex(line, ")")+1:])
	if len(fields) < 39 {
		c.t.Fatalf("stat says %q", line)
	}
	named := func(field int) string { // numbered as in proc(5)
		switch text := fields[field-3]; text {
		case itoa(c.pid):
			return "PID"
		case itoa(os.Getpid()):
			return "KEEPER"
		default:
			return text
		}
	}
	return fmt.Sprintln("parent", named(4), "group", named(5), "session", named(6), "terminal", named(7), named(8),
		"priority", named(18), named(19), "exit signal", named(38), "realtime", named(40), named(41))
}

// namespaces says of each whose it is.
func (c *container) namespaces() string {
	c.t.Helper()
	all, err := os.ReadDir(c.proc("ns"))
	if err != nil {
		c.t.Fatal(err)
	}
	var b strings.Builder
	for _, ns := range all {
		kind, _, _ := strings.Cut(ns.Name(), "_")
		is, whose := fileAt(c.proc("ns/"+ns.Name())), "own"
		switch is {
		case fileAt("/proc/self/ns/" + kind):
			whose = "host's"
		case fileAt(filepath.Join(c.pod, kind)):
			whose = "pod's"
		case unix.Stat_t{}:
			whose = "nobody's"
		}
		fmt.Fprintln(&b, ns.Name(), whose)
	}
	return b.String()
}

// fileAt is what makes a file the same as another.
func fileAt(path string) unix.Stat_t {
	var st unix.Stat_t
	_ = unix.Stat(path, &st)
	return unix.Stat_t{Dev: st.Dev, Ino: st.Ino}
}

// descriptor describes an open file of the process.
func (c *container) descriptor(fd string) string {
	c.t.Helper()
	path := c.proc("fd/" + fd)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		c.t.Fatal(err)
	}
	info := c.read("fdinfo/" + fd)
	field := func(name string) string {
		_, rest, _ := strings.Cut(info, name+":\t")
		value, _, _ := strings.Cut(rest, "\n")
		return value
	}
	mount := "elsewhere"
	for _, m := range c.mountTable() {
		if m.id == field("mnt_id") {
			mount = m.point
		}
	}
	target := regexp.MustCompile(`\d+`).ReplaceAllString(c.unnamed(c.link("fd/"+fd)), "N")
	return fmt.Sprintf("%s is %s of %s, flags %s, mode %o, owner %d:%d, device %d", fd, target, mount, field("flags"), st.Mode, st.Uid, st.Gid, st.Rdev)
}

// A mounted is a line of mountinfo.
type mounted struct {
	id, parent, device, root, point, options, tags, rest string
}

func (c *container) mountTable() (all []mounted) {
	c.t.Helper()
	return mountTable(c.t, mountsOf(c.t, c.pid))
}

func mountTable(t testing.TB, text string) (all []mounted) {
	t.Helper()
	for line := range strings.Lines(text) {
		head, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f := strings.Fields(head)
		if !ok || len(f) < 6 {
			t.Fatalf("a line of mountinfo: %q", line)
		}
		all = append(all, mounted{f[0], f[1], f[2], f[3], f[4], f[5], strings.Join(f[6:], " "), rest})
	}
	return all
}

// mounts writes the mounts down as a tree, so that it does not matter in which order those beside each other were made. Devices
// and groups of propagation are numbered as they come; a group that is the host's has the name of its mount there.
func (c *container) mounts() string {
	c.t.Helper()
	all := c.mountTable()
	peers, hosts := map[string]string{}, map[string]string{}
	for _, m := range mountTable(c.t, mountsOf(c.t, os.Getpid())) {
		for tag := range strings.FieldsSeq(m.tags) {
			// The first has the name: later ones may be of other tests, which run meanwhile.
			if group, ok := strings.CutPrefix(tag, "shared:"); ok && hosts[group] == "" {
				hosts[group] = m.point
			}
		}
	}
	devices := map[string]string{}
	number := func(of map[string]string, key string) string {
		if of[key] == "" {
			of[key] = itoa(len(of) + 1)
		}
		return of[key]
	}
	var b strings.Builder
	var print func(m mounted, depth int)
	below := func(parent string, depth int) {
		var children []mounted
		for _, m := range all {
			if m.parent == parent && m.id != parent {
				children = append(children, m)
			}
		}
		slices.SortFunc(children, func(a, b mounted) int { return strings.Compare(a.point+a.root+a.rest, b.point+b.root+b.rest) })
		for _, m := range children {
			print(m, depth)
		}
	}
	print = func(m mounted, depth int) {
		tags := regexp.MustCompile(`\d+`).ReplaceAllStringFunc(m.tags, func(group string) string {
			if hosts[group] != "" {
				return hosts[group]
			}
			return number(peers, group)
		})
		fmt.Fprintf(&b, "%s%s %s device %s %s %s - %s\n", strings.Repeat("  ", depth), m.point, m.root, number(devices, m.device), m.options, tags, m.rest)
		below(m.id, depth+1)
	}
	for _, m := range all {
		if !slices.ContainsFunc(all, func(other mounted) bool { return other.id == m.parent && other.id != m.id }) {
			print(m, 0)
		}
	}
	return b.String()
}

// files describes a tree of files, without what the kernel shows of processes and devices.
func (c *container) files(root string, depth int) string {
	c.t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root+"/", func(path string, e fs.DirEntry, err error) error {
		name := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err != nil { // a folder that nobody may read, for one
			fmt.Fprintln(&b, "/"+name, "error:", strings.ReplaceAll(err.Error(), root, ""))
			return nil
		}
		size := ""
		if st.Mode&unix.S_IFMT == unix.S_IFREG && !strings.HasPrefix(name, "proc/") && !strings.HasPrefix(name, "sys/") {
			size = fmt.Sprint(" size ", st.Size)
		}
		target, _ := os.Readlink(path)
		kernels := name == "proc" || name == "sys" && st.Dev == sysfsDevice()
		links := fmt.Sprint(st.Nlink)
		if kernels || strings.HasPrefix(name, "dev/pts/") || strings.HasPrefix(name, "dev/mqueue") {
			links = "-"
		}
		fmt.Fprintf(&b, "/%s %o %d:%d links %s device %d:%d%s %s\n", name, st.Mode, st.Uid, st.Gid, links,
			unix.Major(st.Rdev), unix.Minor(st.Rdev), size, target)
		if kernels || name == "sys" || st.Mode&unix.S_IFMT == unix.S_IFDIR && name != "" && strings.Count(name, "/") >= depth-1 {
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return b.String()
}

func sysfsDevice() uint64 {
	var st unix.Stat_t
	_ = unix.Stat("/sys", &st)
	return st.Dev
}

// limitsOf reads those files of a cgroup that say what its processes may use.
func limitsOf(dir string) string {
	var b strings.Builder
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, name := range names {
		base := filepath.Base(name)
		if !regexp.MustCompile(`(\.max|\.low|\.min|\.high|\.weight|limit_in_bytes|limit_bytes|shares|_quota_us|_period_us|devices\.list|cpuset\.(cpus|mems)|swappiness|oom_control|oom\.group)$`).MatchString(base) {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			data = []byte(err.Error() + "\n")
		}
		for line := range strings.Lines(string(data)) {
			fmt.Fprintf(&b, "%s %s\n", base, strings.TrimSpace(line))
		}
	}
	return b.String()
}

// record is libcontainer's of the container, without what a launcher has done before anybody made init: mounts made ahead, a filter
// compiled ahead.
func (c *container) record() string {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(c.state, c.id, "state.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	var state map[string]any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&state); err != nil {
		c.t.Fatal(err)
	}
	if fmt.Sprint(state["init_process_pid"]) != itoa(c.pid) {
		c.t.Errorf("the process on record is %v, want %d", state["init_process_pid"], c.pid)
	}
	if created, err := time.Parse(time.RFC3339, fmt.Sprint(state["created"])); err != nil || time.Since(created).Abs() > time.Hour {
		c.t.Errorf("created on record: %v, %v", state["created"], err)
	}
	if line := c.read("stat"); strings.Fields(line[strings.LastIndex(line, ")")+1:])[19] != fmt.Sprint(state["init_process_start"]) {
		c.t.Errorf("the start on record is %v, and stat says %s", state["init_process_start"], line)
	}
	delete(state, "created")
	delete(state, "init_process_start")
	if config, ok := state["config"].(map[string]any); ok {
		delete(config, "mounts")
		delete(config, "devices")
		delete(config, "seccomp")
	}
	if fds, ok := state["external_descriptors"].([]any); !ok || len(fds) != 3 {
		c.t.Errorf("descriptors on record: %v", state["external_descriptors"])
	}
	out, err := json.MarshalIndent(state, "", " ")
	if err != nil {
		c.t.Fatal(err)
	}
	text := strings.ReplaceAll(string(out), "/proc/"+itoa(c.pid)+"/", "/proc/PID/")
	text = strings.ReplaceAll(text, `"init_process_pid": `+itoa(c.pid), `"init_process_pid": PID`)
	return regexp.MustCompile(`(pipe|socket):\[\d+\]`).ReplaceAllString(text, "$1")
}

// differ says in which lines two views differ; nothing if they do not.
func differ(want, got string) string {
	if want == got {
		return ""
	}
	count := map[string]int{}
	for line := range strings.Lines(got) {
		count[line]++
	}
	var b strings.Builder
	for line := range strings.Lines(want) {
		if count[line]--; count[line] < 0 {
			b.WriteString("- " + line)
		}
	}
	for line := range strings.Lines(got) {
		if count[line] > 0 {
			count[line]--
			b.WriteString("+ " + line)
		}
	}
	if b.Len() == 0 {
		return "the order alone: " + got
	}
	return b.String()
}

// waitForName waits until the process has this name.
func (c *container) waitForName(name string) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); c.read("comm") != name+"\n"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) || c.hasEnded() {
			c.t.Fatalf("the workload did not get as far as it should; it is %q", c.read("comm"))
		}
	}
}

func (c *container) hasEnded() bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.pidfd.Fd()), Events: unix.POLLIN}}, 0)
	return n != 0 || err != nil
}

// newPod pins the namespaces of a pod.
func newPod(t *testing.T) (dir string) {
	t.Helper()
	return pinAll(t, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}, "net", "ipc", "uts")
}

// setNamespace gives the container a namespace of its own, or that at the path.
func setNamespace(s *specs.Spec, kind specs.LinuxNamespaceType, path string) {
	i := slices.IndexFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
	if i < 0 {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind})
		i = len(s.Linux.Namespaces) - 1
	}
	s.Linux.Namespaces[i].Path = path
}

// tryCreate makes the container, or returns why not, as the keeper is told.
func (c *container) tryCreate(files []*os.File) (failure string) {
	c.t.Helper()
	result, pidfd := c.run(c.job(keeper.JobCreate), files...)
	if result.Error != "" {
		// What libcontainer has logged beside it depends on what a launcher has made ahead, and so do the flags with which it is
		// mounted; pids and descriptors are numbers.
		said, _, _ := strings.Cut(result.Error, " (log: ")
		said = regexp.MustCompile(`dst=/dev, dstFd=\S+ flags=\S+ data=[^:]*:`).ReplaceAllString(said, "dst=/dev:")
		return fmt.Sprintf("failure %s: %s", result.Failure, regexp.MustCompile(`\[\d+\]|/fd/\d+`).ReplaceAllString(said, "N"))
	}
	c.take(result, pidfd)
	c.fallback = result.Fallback
	return ""
}
