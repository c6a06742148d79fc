package enter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// programFile returns Binary as an executable file.
func programFile(t testing.TB) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "enter")
	if err := os.WriteFile(path, Binary(), 0o755); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	// Above the numbers that the program's own get.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 20)
	if err != nil {
		t.Fatal(err)
	}
	high := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { high.Close() })
	return high
}

// container starts a process in namespaces of its own and returns its pidfd.
func container(t testing.TB) *os.File {
	t.Helper()
	runtime.LockOSThread() // the process ends with its thread, on which else another goroutine might end
	t.Cleanup(runtime.UnlockOSThread)
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Pdeathsig: unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		// A pid namespace does not end before all that was in it is reaped.
		for {
			if _, err := syscall.Wait4(-1, nil, syscall.WALL, nil); err != nil && err != syscall.EINTR {
				return
			}
		}
	})
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close() })
	return f
}

// restless is the variable by which this program is one that executes itself again and again, each time from another thread than
// its first.
const restless = "BERTH_TEST_RESTLESS"

func TestMain(m *testing.M) {
	if os.Getenv(restless) == "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // the first
	done := make(chan error)
	go func() { done <- syscall.Exec("/proc/self/exe", os.Args, os.Environ()) }()
	panic(<-done)
}

// A container whose first process executes another program just then is not one that has ended.
func TestInitThatExecutes(t *testing.T) {
	w := newWorld(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), restless+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.init = os.NewFile(uintptr(fd), "pidfd")
	defer w.init.Close()
	for range 300 {
		p := base()
		p.Namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
		p.Args = []string{"true"}
		if _, _, err := w.run(p); err != nil {
			t.Fatal(err)
		}
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to enter namespaces")
	}
}

// A world is what runs in the tests' container.
type world struct {
	program, init, proc *os.File
	t                   testing.TB
}

func newWorld(t testing.TB) *world {
	needRoot(t)
	return &world{program: programFile(t), init: container(t), proc: open(t, "/proc"), t: t}
}

// ownCaps are the capabilities that this process has: a container of a confined machine has not all of them.
var ownCaps = sync.OnceValue(func() uint64 {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		panic(err) // it takes no argument that could be wrong
	}
	return uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
})

func base() *Plan {
	return &Plan{
		Namespaces: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Cwd:        "/",
		Env:        []string{"PATH=/usr/bin:/bin"},
		Bounding:   ownCaps(), Effective: ownCaps(), Permitted: ownCaps(),
	}
}

// run returns what the command of the plan printed, and how it ended.
func (w *world) run(p *Plan) (string, syscall.WaitStatus, error) {
	w.t.Helper()
	data, err := p.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	path := filepath.Join(w.t.TempDir(), "plan")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.t.Fatal(err)
	}
	out, err := os.CreateTemp(w.t.TempDir(), "out")
	if err != nil {
		w.t.Fatal(err)
	}
	defer out.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer null.Close()
	pid, pidfd, err := Start(context.Background(), Files{
		Program: w.program, Plan: open(w.t, path), Init: int(w.init.Fd()), Proc: w.proc, Stdio: [3]*os.File{null, out, out},
	})
	if err != nil {
		return "", 0, err
	}
	defer pidfd.Close()
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		w.t.Fatal(err)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text), status, nil
}

func TestRunsInTheNamespaces(t *testing.T) {
	w := newWorld(t)
	p := base()
	p.Args = []string{"sh", "-c", `echo $$ "$1" "$HOME"; cat /proc/1/comm; exit 7`, "sh", "a b"}
	out, status, err := w.run(p)
	if err != nil {
		t.Fatal(err)
	}
	// /proc is the node's here, since nothing was mounted in the mount namespace: its pid 1 is not ours. $$ is.
	fields := strings.Fields(out)
	if len(fields) < 4 || len(fields[0]) > 3 || fields[1] != "a" || fields[2] != "b" || fields[3] != "/root" {
		t.Errorf("it printed %q", out)
	}
	if status.ExitStatus() != 7 {
		t.Errorf("it ended with %v, want exit status 7", status)
	}
}

func TestCredentials(t *testing.T) {
	w := newWorld(t)
	p := base()
	umask := uint32(0o027)
	p.UID, p.GID, p.Groups, p.Umask, p.NoNewPrivileges = 1234, 2345, []uint32{10, 20}, &umask, true
	p.Bounding, p.Permitted, p.Inheritable, p.Effective, p.Ambient = 1<<5|1<<10, 1<<10, 1<<10, 1<<10, 1<<10
	p.Rlimits = []Rlimit{{unix.RLIMIT_NOFILE, 77, 88}}
	p.OOMScoreAdj = 555
	p.Env = append(p.Env, "HOME=/a", "HOME=/b", "X=")
	p.Args = []string{"sh", "-c", `grep -E '^(Uid|Gid|Groups|Umask|Cap|NoNewPrivs|Sig(Blk|Ign))' /proc/thread-self/status; cat /proc/thread-self/oom_score_adj
		ulimit -Sn; ulimit -Hn; echo $HOME; env | grep -c ^HOME=; ls /proc/thread-self/fd; cut -d' ' -f6 /proc/thread-self/stat >/dev/null`}
	out, status, err := w.run(p)
	if err != nil || status.ExitStatus() != 0 {
		t.Fatalf("%v %v %s", err, status, out)
	}
	want := `Umask:	0027
Uid:	1234	1234	1234	1234
Gid:	2345	2345	2345	2345
Groups:	10 20 
SigBlk:	0000000000000000
SigIgn:	0000000000000000
CapInh:	0000000000000400
CapPrm:	0000000000000400
CapEff:	0000000000000400
CapBnd:	0000000000000420
CapAmb:	0000000000000400
NoNewPrivs:	1
555
77
88
/b
1
0
1
2
3
`
	if out != want { // descriptor 3 is the folder that ls reads
		t.Errorf("it printed\n%s\nwant\n%s", out, want)
	}
}

func TestFailuresNameTheStep(t *testing.T) {
	w := newWorld(t)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("echo hi\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Plan)
		step   Step
		errno  syscall.Errno
	}{
		"not in PATH":      {func(p *Plan) { p.Args = []string{"no-such-program"} }, StepNotInPath, unix.ENOENT},
		"no PATH":          {func(p *Plan) { p.Args, p.Env = []string{"true"}, nil }, StepNotInPath, unix.ENOENT},
		"no such file":     {func(p *Plan) { p.Args = []string{"/no/such/program"} }, StepCommand, unix.ENOENT},
		"a folder":         {func(p *Plan) { p.Args = []string{"/tmp"} }, StepCommand, unix.EISDIR},
		"not executable":   {func(p *Plan) { p.Args = []string{plain} }, StepCommand, unix.EACCES},
		"relative in PATH": {func(p *Plan) { p.Args, p.Env, p.Cwd = []string{"true"}, []string{"PATH=."}, "/bin" }, StepRelative, unix.ENOENT},
		"no such cwd":      {func(p *Plan) { p.Cwd = "/no/such" }, 13, unix.ENOENT},
		"no such cgroup":   {func(p *Plan) { p.CgroupProcs = []string{"/no/cgroup.procs"} }, 3, unix.ENOENT},
	} {
		t.Run(name, func(t *testing.T) {
			p := base()
			p.Args = []string{"true"}
			c.change(p)
			_, _, err := w.run(p)
			var e *Error
			if !errors.As(err, &e) || e.Report.Step != c.step || e.Report.Errno != c.errno {
				t.Errorf("the error is %v, want %s: %v", err, c.step, c.errno)
			}
		})
	}
}

// What cannot be told any more is said on stderr, as libcontainer's init does.
func TestWhatTheKernelDoesNotExecute(t *testing.T) {
	w := newWorld(t)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("echo hi\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := base()
	p.Args = []string{script}
	out, status, err := w.run(p)
	if err != nil || status.ExitStatus() != 255 || out != "exec "+script+": exec format error\n" {
		t.Errorf("%v, %v, %q", err, status, out)
	}
}

func TestFilter(t *testing.T) {
	w := newWorld(t)
	// Everything but uname is allowed, which fails with EDEADLK.
	nr := map[bool]uint32{true: 63, false: 160}[binaryIsAMD64()]
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EDEADLK)},
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW},
	}
	for _, nnp := range []bool{false, true} {
		p := base()
		p.NoNewPrivileges = nnp
		for _, c := range code {
			p.Filter = append(p.Filter, byte(c.Code), byte(c.Code>>8), c.Jt, c.Jf, byte(c.K), byte(c.K>>8), byte(c.K>>16), byte(c.K>>24))
		}
		p.Bounding, p.Effective, p.Permitted = 0, 0, 0
		p.Args = []string{"sh", "-c", "uname; grep Seccomp: /proc/thread-self/status"}
		out, _, err := w.run(p)
		if err != nil || !strings.Contains(out, "deadlock") || !strings.Contains(out, "Seccomp:\t2") {
			t.Errorf("no_new_privs %v: %v, %q", nnp, err, out)
		}
	}
}

func binaryIsAMD64() bool { return bytes.Equal(Binary()[18:20], []byte{62, 0}) } // EM_X86_64

func TestHomeComesFromPasswd(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("x", 9000)
	for passwd, want := range map[string]string{
		"": "/",
		"a:x:1:1::/one:/bin/sh\nb:x:12:1::/twelve:/bin/sh\n":                "/twelve",
		"b:x:12:1::/no-newline":                                             "/no-newline",
		"b:x:12:1:\nc:x:12:1:a b:/second:/bin/sh\n":                         "", // of the first, as with libcontainer
		"#b:x:+12:1::/plus:\n":                                              "/plus",
		" \tb:x:12:1::/spaces \r\n":                                         "/spaces",
		"long:" + long + ":12:1::/long:\nc:x:12:1::/after:\n":               "/after",
		"#comment\n\n:::\nb:x:012:1::/zero:/bin/sh\n":                       "/zero",
		"b:x:4294967308:1::/overflow:\nb:x:12345:1::/prefix:\n":             "/",
		strings.Repeat("u:x:7:7::/u:/bin/sh\n", 2000) + "v:x:12:1::/far:\n": "/far",
	} {
		file := filepath.Join(t.TempDir(), "passwd")
		if err := os.WriteFile(file, []byte(passwd), 0o644); err != nil {
			t.Fatal(err)
		}
		// The container's own /etc/passwd, which the node does not see.
		mount := base()
		mount.Args = []string{"sh", "-c", `mount --make-rprivate / && mount --bind "$1" /etc/passwd`, "sh", file}
		if out, status, err := w.run(mount); err != nil || status.ExitStatus() != 0 {
			t.Fatalf("%v %v %s", err, status, out)
		}
		p := base()
		p.UID = 12
		p.Args = []string{"sh", "-c", `echo "$HOME"`}
		if out, _, err := w.run(p); err != nil || out != want+"\n" {
			t.Errorf("passwd %.60q: %v, HOME is %q, want %q", passwd, err, out, want)
		}
	}
}

// A script sees by which path it was found.
func TestPathOfACommandIsClean(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte("#!/bin/sh\necho $0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := base()
	p.Args, p.Env = []string{"script"}, []string{"PATH=/none:" + dir + "//x/.././:."}
	if out, _, err := w.run(p); err != nil || out != dir+"/script\n" {
		t.Errorf("%v, its path is %q", err, out)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*Plan){
		"no command":     func(p *Plan) { p.Args = nil },
		"zero byte":      func(p *Plan) { p.Args = []string{"a\x00b"} },
		"relative cwd":   func(p *Plan) { p.Cwd = "x" },
		"env without =":  func(p *Plan) { p.Env = []string{"X"} },
		"env of nothing": func(p *Plan) { p.Env = []string{"=x"} },
		"too much":       func(p *Plan) { p.Args = []string{"x", strings.Repeat("y", MaxSize)} },
		"half a filter":  func(p *Plan) { p.Filter = make([]byte, 12) },
	} {
		p := base()
		p.Args = []string{"true"}
		change(p)
		if _, err := p.Encode(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	fifo := filepath.Join(t.TempDir(), "cgroup.procs")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	p := base()
	p.Args = []string{"true"}
	p.CgroupProcs = []string{fifo} // nobody reads it, so the program hangs in open
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "plan")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	null := open(t, os.DevNull)
	if _, _, err := Start(ctx, Files{Program: w.program, Plan: open(t, path), Init: int(w.init.Fd()), Proc: w.proc, Stdio: [3]*os.File{null, null, null}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v, want that of the context", err)
	}
}

// Nothing of the program's own can be made the command: its descriptors are closed by then.
func TestOwnDescriptorsAreNoCommand(t *testing.T) {
	w := newWorld(t)
	for fd := FilePlan; fd <= FileProc; fd++ {
		p := base()
		p.Args = []string{fmt.Sprintf("/proc/self/fd/%d", fd)}
		_, status, err := w.run(p)
		if err == nil && status.ExitStatus() != 255 {
			t.Errorf("descriptor %d: it ended with %v", fd, status)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	w := newWorld(b)
	p := base()
	p.Args = []string{"true"}
	for b.Loop() {
		if _, _, err := w.run(p); err != nil {
			b.Fatal(err)
		}
	}
}
