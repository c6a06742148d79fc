package launch_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
)

// These tests compare four ways to the same container: with libcontainer as it is (no folder of filters), with a filter that
// is compiled ahead and kept, with one that was there already, and with what of libcontainer's is loaded by an init of our own.

// profiles are seccomp profiles of all kinds.
func profiles() map[string]*specs.LinuxSeccomp {
	native := []specs.Arch{map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}[runtime.GOARCH]}
	ret := func(n uint) *uint { return &n }
	var many []specs.LinuxSyscall
	for _, call := range seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}}).Syscalls {
		if len(call.Args) == 0 {
			many = append(many, call)
		}
	}
	profiles := map[string]*specs.LinuxSeccomp{
		"RuntimeDefault":                       seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}}),
		"many rules, one architecture":         {DefaultAction: specs.ActErrno, Architectures: native, Syscalls: many},
		"another error, no instructions ahead": {DefaultAction: specs.ActErrno, DefaultErrnoRet: ret(uint(unix.ENOSYS)), Architectures: native, Syscalls: many},
		"few rules with arguments": {DefaultAction: specs.ActAllow, Architectures: native, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: ret(uint(unix.EDQUOT))},
			{Names: []string{"personality"}, Action: specs.ActKillProcess, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 8, Op: specs.OpEqualTo}}},
			{Names: []string{"clone"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0x10000000, ValueTwo: 0x10000000, Op: specs.OpMaskedEqual}}},
		}},
		"one argument twice": {DefaultAction: specs.ActAllow, Architectures: native, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"socket"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{
				{Index: 0, Value: 38, Op: specs.OpEqualTo}, {Index: 0, Value: 40, Op: specs.OpEqualTo}}},
		}},
		"flags": {DefaultAction: specs.ActAllow, Architectures: native,
			Flags:    []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActLog}, {Names: []string{"rmdir"}, Action: specs.ActTrap}}},
		"notify": {DefaultAction: specs.ActAllow, Architectures: native, ListenerMetadata: "m",
			Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}},
	}
	return profiles
}

// agent listens as an agent of seccomp notifications does, and tells for each connection what came: text and descriptors.
func agent(t *testing.T) (path string, got <-chan string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "agent")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	came := make(chan string, 16)
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			text, oob := make([]byte, 4096), make([]byte, 128)
			n, oobn, _, _, err := conn.ReadMsgUnix(text, oob)
			conn.Close()
			fds := 0
			if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
				for _, m := range messages {
					rights, _ := unix.ParseUnixRights(&m)
					fds += len(rights)
					for _, fd := range rights {
						unix.Close(fd)
					}
				}
			}
			came <- fmt.Sprint(err, " ", strings.Contains(string(text[:n]), `"metadata":"m"`), " ", fds)
		}
	}()
	return path, came
}

// seen is what a container with a filter shows.
type seen struct {
	status, fds string
	filters     []string // as the kernel has them, with their flags
}

// look reads it off a process of the workload that has paused.
func look(t *testing.T, pid int) seen {
	t.Helper()
	dir := filepath.Join("/proc", itoa(pid))
	data, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		t.Fatal(err)
	}
	var s seen
	for line := range strings.Lines(string(data)) {
		switch name, _, _ := strings.Cut(line, ":"); name {
		case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters":
			s.status += line
		}
	}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		s.fds += fd.Name() + " "
	}
	s.filters = filtersOf(t, pid)
	return s
}

// filtersOf asks the kernel for the filters of a process, the newest first.
func filtersOf(t testing.TB, pid int) []string {
	t.Helper()
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		t.Fatal("ptrace: ", err)
	}
	defer func() { _ = unix.PtraceDetach(pid) }()
	if err := unix.PtraceInterrupt(pid); err != nil {
		t.Fatal("ptrace: ", err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || !status.Stopped() {
		t.Fatalf("the process does not stop: %v, %#x", err, status)
	}
	ask := func(request int, addr uintptr, data unsafe.Pointer) (int, error) {
		n, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, uintptr(data), 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
	var all []string
	for i := uintptr(0); ; i++ {
		n, err := ask(unix.PTRACE_SECCOMP_GET_FILTER, i, nil)
		if err == unix.ENOENT || err == unix.EINVAL { // no more, or none
			return all
		}
		if err != nil {
			t.Skip("the kernel does not show filters: ", err)
		}
		program := make([]byte, 8*n)
		if _, err := ask(unix.PTRACE_SECCOMP_GET_FILTER, i, unsafe.Pointer(&program[0])); err != nil {
			t.Fatal(err)
		}
		meta := struct{ number, flags uint64 }{number: uint64(i)}
		if _, err := ask(unix.PTRACE_SECCOMP_GET_METADATA, unsafe.Sizeof(meta), unsafe.Pointer(&meta)); err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("flags %#x\n%s", meta.flags, normal(program)))
	}
}

// normal writes a program down, an instruction a line. libcontainer puts its own instructions for several architectures in
// front in an order that changes from run to run, so those are sorted and without the lengths of their jumps; they end with
// the one instruction that answers ENOSYS.
func normal(program []byte) string {
	type insn struct {
		Code   uint16
		Jt, Jf uint8
		K      uint32
	}
	insns := make([]insn, len(program)/8)
	if err := binary.Read(bytes.NewReader(program), binary.NativeEndian, insns); err != nil {
		panic(err)
	}
	const ret = unix.BPF_RET | unix.BPF_K
	head := 1 + slices.IndexFunc(insns[:min(len(insns), 40)], func(i insn) bool {
		return i.Code == ret && i.K == uint32(unix.SECCOMP_RET_ERRNO|int(unix.ENOSYS))
	})
	for i := range insns[:head] {
		insns[i].Jt, insns[i].Jf = 0, 0
		if insns[i].Code == unix.BPF_JMP|unix.BPF_JA {
			insns[i].K = 0
		}
	}
	slices.SortFunc(insns[:head], func(a, b insn) int { return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.K, b.K)) })
	var b strings.Builder
	for _, i := range insns {
		fmt.Fprintf(&b, "%04x %d %d %08x\n", i.Code, i.Jt, i.Jf, i.K)
	}
	return b.String()
}

// kept returns how many filters are kept, compiled and as they are loaded.
func (n *node) kept() (compiled, loaded int) {
	entries, _ := os.ReadDir(n.filters)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "-loaded") {
			loaded++
		} else {
			compiled++
		}
	}
	return compiled, loaded
}

// The four ways.
const (
	wayAlone    = "libcontainer alone"
	wayCompiled = "compiled ahead"
	wayKept     = "kept"
	wayOwn      = "by an init of our own"
)

// ways runs do for the ways, and wants an entry to be made by the second and used by the third. Own says that the last can
// make the container.
func ways(t *testing.T, n *node, own bool, do func(way string)) {
	t.Helper()
	folder := n.filters
	for _, way := range []string{wayAlone, wayCompiled, wayKept, wayOwn} {
		n.filters, n.init = folder, ""
		before, _ := n.kept()
		switch way {
		case wayAlone:
			n.filters = ""
		case wayKept:
			n.init = libcontainersInit
		case wayOwn:
			if !own {
				continue
			}
			n.init = ownInit
		}
		do(way)
		n.filters = folder
		if after, _ := n.kept(); after-before != map[string]int{wayCompiled: 1}[way] {
			t.Errorf("%s: %d filters were kept", way, after-before)
		}
	}
}

func TestFilterFromTheCacheIsLibcontainers(t *testing.T) {
	for name, profile := range profiles() {
		for _, noNewPrivs := range []bool{true, false} {
			for _, userns := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/noNewPrivs=%v/userns=%v", name, noNewPrivs, userns), func(t *testing.T) {
					sameFilter(t, *profile, noNewPrivs, userns)
				})
			}
		}
	}
}

// sameFilter compares the three ways, each with a container and an exec in it.
func sameFilter(t *testing.T, profile specs.LinuxSeccomp, noNewPrivs, userns bool) {
	n := newNode(t)
	var notified <-chan string
	if profile.ListenerMetadata != "" {
		profile.ListenerPath, notified = agent(t)
	}
	var want []seen
	ways(t, n, !userns && notified == nil, func(way string) {
		process := &specs.Process{
			User:            specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{7}},
			NoNewPrivileges: noNewPrivs,
			Capabilities:    &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL", "CAP_CHOWN"}, Permitted: []string{"CAP_KILL"}, Effective: []string{"CAP_KILL"}, Inheritable: []string{"CAP_KILL"}, Ambient: []string{"CAP_KILL"}},
		}
		c := n.bundle([]string{"pause"}, func(s *specs.Spec) {
			p := *process
			p.Args, p.Cwd, p.Env = s.Process.Args, "/", s.Process.Env
			s.Process, s.Linux.Seccomp = &p, &profile
			if userns {
				s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
				s.Linux.GIDMappings = s.Linux.UIDMappings
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			}
		})
		if userns {
			if err := os.Chown(filepath.Join(c.bundle, "rootfs"), 200000, 200000); err != nil {
				t.Fatal(err)
			}
		}
		c.create().start()
		p := *process
		p.Args, p.Cwd = []string{"/prog", "pause"}, "/"
		e, result := c.exec(func(job *keeper.Job) { job.Process = mustJSON(t, p) })
		if result.Error != "" {
			t.Fatalf("%s: exec: %s", way, result.Error)
		}
		waitForProgram(t, c.pid)
		waitForProgram(t, e.pid)
		got := []seen{look(t, c.pid), look(t, e.pid)}
		e.kill()
		c.kill()
		if len(got[0].filters) != 1 || got[0].fds != "0 1 2 " {
			t.Fatalf("%s: %d filters, descriptors %s", way, len(got[0].filters), got[0].fds)
		}
		if want == nil {
			want = got
		}
		for i, what := range []string{"container", "exec"} {
			if got[i].status != want[i].status || got[i].fds != want[i].fds || !slices.Equal(got[i].filters, want[i].filters) {
				t.Errorf("%s, %s:\n%v\nlibcontainer alone:\n%v", way, what, got[i], want[i])
			}
		}
		for range 2 {
			if notified == nil {
				break
			}
			if got := <-notified; got != "<nil> true 1" {
				t.Errorf("%s: the agent got %s", way, got)
			}
		}
	})
}

// TestExecHasTheWholeProfile: what libcontainer has on record of it was for the init that was handed its filter, and nothing else goes
// by that.
func TestExecHasTheWholeProfile(t *testing.T) { withBothInits(t, execHasTheWholeProfile) }

func execHasTheWholeProfile(t *testing.T, n *node) {
	n.learn(runtimeDefault)
	c := n.bundle([]string{"pause"}, runtimeDefault)
	c.create().start()
	defer c.kill()
	record, err := os.ReadFile(filepath.Join(n.state, c.id, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(record, []byte(`"epoll_create1"`)) {
		t.Error("all rules were written, and read by init")
	}
	waitForProgram(t, c.pid)
	want := filtersOf(t, c.pid)
	for _, filters := range []string{n.filters, ""} {
		e, result := c.exec(func(job *keeper.Job) { job.Filters = filters }, "pause")
		if result.Error != "" {
			t.Fatal(result.Error)
		}
		waitForProgram(t, e.pid)
		if got := filtersOf(t, e.pid); !slices.Equal(got, want) {
			t.Errorf("with filters in %q an exec has\n%v\nand the container\n%v", filters, got, want)
		}
		e.kill()
	}
	if err := os.Remove(filepath.Join(c.bundle, "config.json")); err != nil {
		t.Fatal(err)
	}
	if _, result := c.exec(nil, "pause"); result.Error == "" {
		t.Error("an exec goes without the profile")
	}
}

func runtimeDefault(s *specs.Spec) { s.Linux.Seccomp = profiles()["RuntimeDefault"] }

// waitForProgram waits until the process is the workload.
func waitForProgram(t *testing.T, pid int) {
	t.Helper()
	for {
		if name, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "comm")); err != nil || string(name) == "prog\n" {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

// What the workload sees of its own start, and the errors of commands that cannot be, are the same as well.
func TestStartWithAFilterIsLibcontainers(t *testing.T) {
	profile := profiles()["RuntimeDefault"]
	for _, noNewPrivs := range []bool{true, false} {
		for name, args := range map[string][]string{
			"self":           {"prog", "link", "/proc/self/exe", "link", "/proc/1/exe", "env", "HOME", "fds", "cat", "/proc/1/cmdline"},
			"not found":      {"no-such-program"},
			"no such path":   {"/no/such/program"},
			"not executable": {"/dev/null"},
			"a folder":       {"/tmp"},
			"no program":     {"/tmp/text"},
		} {
			t.Run(fmt.Sprintf("%s/noNewPrivs=%v", name, noNewPrivs), func(t *testing.T) {
				n := newNode(t)
				var want string
				ways(t, n, true, func(way string) {
					if way == wayOwn {
						n.learn(func(s *specs.Spec) { s.Linux.Seccomp = profile })
					}
					got := outcome(n, args, func(s *specs.Spec) {
						s.Process.Args, s.Process.NoNewPrivileges, s.Linux.Seccomp = args, noNewPrivs, profile
						s.Process.Capabilities = &specs.LinuxCapabilities{}
					})
					if want == "" {
						want = got
					}
					if got != want {
						t.Errorf("%s: %s\nlibcontainer alone: %s", way, got, want)
					}
				})
			})
		}
	}
}

// Until the workload runs, the filter is open in libcontainer's init, and other files in ours.
func TestAFilterIsNoProgram(t *testing.T) { withBothInits(t, aFilterIsNoProgram) }

func aFilterIsNoProgram(t *testing.T, n *node) {
	n.learn(runtimeDefault)
	if n.init == ownInit {
		n.init = "" // what it refuses may be libcontainer's to find in its own init
	}
	for fd := 3; fd < 8; fd++ {
		got := outcome(n, nil, func(s *specs.Spec) {
			runtimeDefault(s)
			s.Process.Args = []string{fmt.Sprintf("/proc/self/fd/%d", fd)}
		})
		if !strings.HasPrefix(got, "command: ") && !strings.HasPrefix(got, "exit 255: ") {
			t.Errorf("descriptor %d: %s", fd, got)
		}
	}
	if compiled, loaded := n.kept(); compiled != 1 || loaded != 1 {
		t.Error("there was no filter")
	}
}

// outcome is all that comes of a container: an error, or output and exit code.
func outcome(n *node, args []string, adjust func(*specs.Spec)) string {
	n.t.Helper()
	c := n.bundle(args, adjust)
	if err := os.WriteFile(filepath.Join(c.bundle, "rootfs/tmp/text"), []byte("no program\n"), 0o755); err != nil {
		n.t.Fatal(err)
	}
	files := c.streams()
	result, pidfd := c.run(c.job(keeper.JobCreate), files...)
	closeEach(files)
	defer func() {
		if result, _ := c.run(c.job(keeper.JobDestroy)); result.Error != "" {
			n.t.Errorf("destroy: %s", result.Error)
		}
		c.wantNothingLeft()
	}()
	if result.Error != "" {
		c.stdin.Close()
		return fmt.Sprint(result.Failure, ": ", result.Error)
	}
	c.take(result, pidfd)
	c.start()
	c.stdin.Close()
	code := c.wait()
	return fmt.Sprint("exit ", code, ": ", <-c.out)
}

// A kept filter is what is loaded, whatever the profile says, and one that was damaged is not.
func TestKeptFilterIsUsedAndADamagedOneIsNot(t *testing.T) { withBothInits(t, keptFilterIsUsed) }

func keptFilterIsUsed(t *testing.T, n *node) {
	refuses := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}}}
	adjust := func(s *specs.Spec) { s.Linux.Seccomp = refuses }
	wantRefused := func(when string) {
		t.Helper()
		if got := n.bundle([]string{"mkdir", "/tmp/x"}, adjust).create().output(); got != "mkdir refused\n" {
			t.Errorf("%s: %q", when, got)
		}
	}
	n.learn(adjust)
	wantRefused("with the filter")
	all, err := filepath.Glob(filepath.Join(n.filters, "*"))
	ours := map[string]bool{ownInit: true, libcontainersInit: false}[n.init]
	i := slices.IndexFunc(all, func(path string) bool { return strings.HasSuffix(path, "-loaded") == ours })
	if err != nil || len(all) != 2 || i < 0 {
		t.Fatalf("%d filters are kept, %v", len(all), err)
	}
	data, err := os.ReadFile(all[i])
	if err != nil {
		t.Fatal(err)
	}
	for name, damaged := range map[string][]byte{"truncated": data[:len(data)/2], "empty": nil, "noise": bytes.Repeat([]byte("noise"), 50)} {
		if err := os.WriteFile(all[i], damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		program := n.init
		if ours {
			n.init = "" // it is the other's
		}
		wantRefused(name)
		if n.init = program; ours {
			wantRefused(name + ", and learned anew")
		}
		if now, err := os.ReadFile(all[i]); err != nil || !bytes.Equal(now, data) {
			t.Errorf("%s: it was not replaced (%v)", name, err)
		}
	}
}
