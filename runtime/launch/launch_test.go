package launch_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/mountns"
	"github.com/berth-node/berth/internal/nsfile"
	"github.com/berth-node/berth/internal/startfifo"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
)

// patience bounds each wait of these tests. It is no measure of time: a test that reaches it has failed.
const patience = 30 * time.Second

// built is the folder of the binaries that the tests share: the launcher and the workload.
var built string

func TestMain(m *testing.M) {
	// The tests stand in for the keeper: what a launcher leaves behind becomes theirs.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	var err error
	if built, err = os.MkdirTemp("", "berth-launch-test"); err != nil {
		panic(err)
	}
	if pinned, err = os.MkdirTemp("", "berth-launch-net"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(built)
	_ = nsfile.Unbind(filepath.Join(pinned, "net"))
	os.RemoveAll(pinned)
	os.Exit(code)
}

// launcher returns a path of berth-launch, built as the Makefile does or taken from BERTH_LAUNCH, in a sealed memfd as
// the keeper holds it: libcontainer would otherwise copy the binary for each container.
var launcher = sync.OnceValues(func() (string, error) {
	path := os.Getenv("BERTH_LAUNCH")
	if path == "" {
		path = filepath.Join(built, "berth-launch")
		cmd := exec.Command("go", "build", "-tags", "seccomp netgo osusergo", "-ldflags", "-s -w -extldflags -static",
			"-o", path, "github.com/berth-node/berth/cmd/berth-launch")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	fd, err := unix.MemfdCreate("berth-launch", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return "", err
	}
	sealed = os.NewFile(uintptr(fd), "berth-launch")
	if _, err := sealed.Write(data); err != nil {
		return "", err
	}
	_, err = unix.FcntlInt(sealed.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), sealed.Fd()), err
})

// sealed keeps the memfd of launcher open.
var sealed *os.File

// workload returns a path of the static program that the containers run, built here or taken from BERTH_LAUNCH_WORKLOAD.
var workload = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("BERTH_LAUNCH_WORKLOAD"); path != "" {
		return path, nil
	}
	path := filepath.Join(built, "prog")
	out, err := exec.Command("gcc", "-static", "-O1", "-o", path, "testdata/prog.c").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// network is a namespace for the containers of the tests, as a pod's for its containers. One that has none starts with the loopback
// interface to be set up, which no container of Kubernetes does.
var network = sync.OnceValues(func() (string, error) {
	path := filepath.Join(pinned, "net")
	return path, nsfile.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return nsfile.Bind("/proc/thread-self/ns/net", path)
	})
})

// pinned is the folder of network.
var pinned string

// A node is what surrounds the containers of one test.
type node struct {
	t        testing.TB
	launcher string
	state    string
	filters  string // folder of compiled seccomp filters
	cgroups  string // parent of the containers' cgroups, in all hierarchies
	places   string // folder of mount points for launchers away from the host's mounts
	amidst   bool   // launchers are started among the host's mounts
	pod      string // folder with the namespaces of a pod that containers may join
	init     string // the program that the inits of containers are to be, if that is known
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	path, err := launcher()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{
		t:        t,
		launcher: path,
		state:    filepath.Join(t.TempDir(), "state"),
		filters:  filepath.Join(t.TempDir(), "seccomp"),
		cgroups:  fmt.Sprintf("/berth-launch-test-%d", os.Getpid()),
		places:   filepath.Join(t.TempDir(), "places"),
	}
	for _, dir := range []string{n.state, n.places} { // as the keeper does
		if err := os.Mkdir(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, dir := range n.cgroupDirs("") {
			if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
				t.Errorf("the test's cgroup is not empty: %v", err)
			}
		}
	})
	return n
}

// The programs that an init can be before it is the workload.
const (
	ownInit           = "berth-enter"
	libcontainersInit = "berth-launch"
)

// withBothInits does a test with the inits of package enter, and with libcontainer's.
func withBothInits(t *testing.T, do func(*testing.T, *node)) {
	for _, program := range []string{ownInit, libcontainersInit} {
		t.Run(program, func(t *testing.T) {
			n := newNode(t)
			n.init = program
			do(t, n)
		})
	}
}

// learn makes a container as the ones to come, so that its seccomp filter is known to package enter.
func (n *node) learn(adjust func(*specs.Spec)) {
	n.t.Helper()
	want := n.init
	n.init = ""
	defer func() { n.init = want }()
	c := n.bundle([]string{"pause"}, adjust)
	files := c.streams()
	result, pidfd := n.run(c.job(keeper.JobCreate), files...)
	closeEach(files)
	if result.Error != "" {
		n.t.Fatal(result.Error)
	}
	c.take(result, pidfd)
	c.kill()
	if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
		n.t.Fatal(result.Error)
	}
}

// cgroupDirs returns the folders, there or not, of a container's cgroup in all hierarchies.
func (n *node) cgroupDirs(id string) []string {
	if unified() {
		return []string{filepath.Join("/sys/fs/cgroup", n.cgroups, id)}
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	var dirs []string
	for _, root := range roots {
		dirs = append(dirs, filepath.Join(filepath.Dir(root), n.cgroups, id))
	}
	return dirs
}

// unified tells whether this machine has cgroup v2 alone.
func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// A waiting launcher is one that was started ahead.
type waiting struct {
	conn *net.UnixConn
	cmd  *exec.Cmd
	out  *bytes.Buffer
}

func (n *node) launch() *waiting {
	n.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		n.t.Fatal(err)
	}
	w := &waiting{conn: conn.(*net.UnixConn), cmd: exec.Command(n.launcher), out: new(bytes.Buffer)}
	w.cmd.ExtraFiles = []*os.File{theirs}
	w.cmd.Stdout, w.cmd.Stderr = w.out, w.out
	start := w.cmd.Start
	if !n.amidst {
		start = w.startLean
	}
	if err := start(); err != nil {
		n.t.Fatal(err)
	}
	return w
}

// lean is a namespace for all launchers of the tests, and the host's.
var lean = sync.OnceValues(func() (ns [2]*os.File, err error) {
	ns[0], ns[1], err = mountns.NewLean(built, os.TempDir())
	return ns, err
})

// startLean starts the launcher as the keeper does.
func (w *waiting) startLean() error {
	ns, err := lean()
	if err != nil {
		return err
	}
	w.cmd.Args = append(w.cmd.Args, keeper.LeanArg)
	w.cmd.ExtraFiles = append(w.cmd.ExtraFiles, ns[1])
	return nsfile.OnThread(func() error {
		if err := mountns.Enter(ns[0]); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		return w.cmd.Start()
	})
}

// run hands the job to a launcher, wants an answer and a clean exit, and returns the answer and the pidfd with it.
func (n *node) run(job keeper.Job, files ...*os.File) (keeper.JobResult, *os.File) {
	n.t.Helper()
	w := n.launch()
	result, pidfd := w.do(n.t, job, files...)
	w.end(n.t)
	return result, pidfd
}

func (w *waiting) do(t testing.TB, job keeper.Job, files ...*os.File) (keeper.JobResult, *os.File) {
	t.Helper()
	if err := wire.Write(w.conn, &job, files...); err != nil {
		t.Fatal(err)
	}
	if err := w.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var result keeper.JobResult
	got, err := wire.Read(w.conn, &result)
	if err != nil {
		t.Fatalf("no answer to the job %s: %v: %s", job.Kind, err, w.out)
	}
	if result.Stays {
		var ready keeper.JobResult
		if _, err := wire.Read(w.conn, &ready); err != nil || !ready.Stays {
			t.Fatalf("the launcher that stays is not ready again: %+v, %v: %s", ready, err, w.out)
		}
	}
	if len(got) == 0 {
		return result, nil
	}
	return result, got[0]
}

func (w *waiting) end(t testing.TB) {
	t.Helper()
	w.conn.Close()
	if err := w.cmd.Wait(); err != nil || w.out.Len() > 0 {
		t.Errorf("the launcher ended with %v and said %q", err, w.out)
	}
}

// A container of a test, and the process in it that the test looks at.
type container struct {
	*node
	id, bundle string
	spec       *specs.Spec
	stdin      *os.File
	out        <-chan string
	pid        int
	pidfd      *os.File
	others     []*container // those that this one needs
	fallback   string       // why libcontainer has made it
}

// bundle writes a bundle whose spec runs the workload with these words; adjust may change the spec.
func (n *node) bundle(args []string, adjust func(*specs.Spec)) *container {
	n.t.Helper()
	prog, err := workload()
	if err != nil {
		n.t.Skipf("the workload needs gcc and static libraries: %v", err)
	}
	net, err := network()
	if err != nil {
		n.t.Fatal(err)
	}
	c := &container{node: n, id: "c" + strconv.FormatInt(time.Now().UnixNano(), 36), bundle: n.t.TempDir()}
	root := filepath.Join(c.bundle, "rootfs")
	for _, dir := range []string{"proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	data, err := os.ReadFile(prog)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "prog"), data, 0o755); err != nil {
		n.t.Fatal(err)
	}
	for dir := c.bundle; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { // a user namespace's root must reach the root filesystem
			n.t.Fatal(err)
		}
	}
	c.spec = &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Args: append([]string{"/prog"}, args...), Cwd: "/", Env: []string{"PATH=/"}, Capabilities: &specs.LinuxCapabilities{}},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join(n.cgroups, c.id),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace, Path: net}, {Type: specs.CgroupNamespace},
			},
		},
	}
	if adjust != nil {
		adjust(c.spec)
	}
	data, err = json.Marshal(c.spec)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), data, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return c
}

func (c *container) job(kind keeper.JobKind) keeper.Job {
	return keeper.Job{
		Kind: kind, Root: c.state, ID: c.id, Bundle: c.bundle, Filters: c.filters, Places: c.places, Libcontainer: c.init == libcontainersInit,
	}
}

// streams returns the descriptors for a job, and sets stdin and out to their other ends. Stdout and stderr are one.
func (c *container) streams() []*os.File {
	c.t.Helper()
	inR, inW, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out := make(chan string, 1)
	go func() {
		data, _ := io.ReadAll(outR)
		outR.Close()
		out <- string(data)
	}()
	c.stdin, c.out = inW, out
	return []*os.File{inR, outW, outW}
}

// create makes the container and wants that to work. The container is destroyed at the end of the test.
func (c *container) create() *container {
	c.t.Helper()
	return c.createWith(c.streams())
}

// createWith is create with these standard streams.
func (c *container) createWith(files []*os.File) *container {
	c.t.Helper()
	result, pidfd := c.run(c.job(keeper.JobCreate), files...)
	closeEach(files)
	if result.Error != "" {
		c.t.Fatalf("create: %s", result.Error)
	}
	c.take(result, pidfd)
	c.t.Cleanup(func() {
		c.kill()
		if result, _ := c.run(c.job(keeper.JobDestroy)); result.Error != "" {
			c.t.Errorf("destroy: %s", result.Error)
		}
		c.wantNothingLeft()
	})
	return c
}

// take notes the process of an answer.
func (c *container) take(result keeper.JobResult, pidfd *os.File) {
	c.t.Helper()
	if pidfd == nil || result.Pid == 0 || result.StartTime == 0 {
		c.t.Fatalf("the answer lacks something: %+v, pidfd %v", result, pidfd)
	}
	c.pid, c.pidfd = result.Pid, pidfd
	if c.init == "" || c.bundle == "" { // of an exec
		return
	}
	if link, err := os.Readlink(filepath.Join("/proc", itoa(c.pid), "exe")); !strings.HasPrefix(link, "/memfd:"+c.init) {
		c.t.Errorf("the init is %s, %v; want %s. The launcher says: %s", link, err, c.init, result.Fallback)
	}
}

// start lets init go on from the exec FIFO.
func (c *container) start() *container {
	c.t.Helper()
	fifo := c.fifo()
	defer fifo.Close()
	for !startfifo.LetGo(fifo.Fd()) {
		if !poll(int(fifo.Fd())) {
			c.t.Fatal("init has not written to the exec FIFO")
		}
	}
	if err := os.Remove(fifo.Name()); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// fifo opens the exec FIFO.
func (c *container) fifo() *os.File {
	c.t.Helper()
	fifo, err := startfifo.Open(filepath.Join(c.state, c.id, "exec.fifo"))
	if err != nil {
		c.t.Fatal(err)
	}
	return fifo
}

// wait returns the exit code of the process, or the signal that ended it with 128 added.
func (c *container) wait() int {
	c.t.Helper()
	if !poll(int(c.pidfd.Fd())) {
		c.t.Fatalf("process %d did not end", c.pid)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(c.pid, &status, 0, nil); err != nil {
		c.t.Fatalf("wait for process %d: %v", c.pid, err)
	}
	c.pidfd.Close()
	c.pid = 0
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// output starts the container and returns all that it writes before it ends.
func (c *container) output() string {
	c.t.Helper()
	c.start()
	c.stdin.Close()
	if code := c.wait(); code != 0 {
		c.t.Errorf("the workload ended with %d", code)
	}
	return <-c.out
}

func (c *container) kill() {
	if c.pid == 0 {
		return
	}
	if err := unix.PidfdSendSignal(int(c.pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil {
		c.t.Errorf("kill: %v", err)
	}
	c.wait()
}

// exec starts the workload with these words in the running container.
func (c *container) exec(adjust func(*keeper.Job), args ...string) (*container, keeper.JobResult) {
	c.t.Helper()
	process, err := json.Marshal(&specs.Process{Args: append([]string{"/prog"}, args...), Cwd: "/"})
	if err != nil {
		c.t.Fatal(err)
	}
	job := c.job(keeper.JobExec)
	job.Process = process
	if adjust != nil {
		adjust(&job)
	}
	e := &container{node: c.node, id: c.id}
	files := e.streams()
	result, pidfd := c.run(job, files...)
	closeEach(files)
	if result.Error == "" {
		e.take(result, pidfd)
	}
	return e, result
}

func (c *container) wantNothingLeft() {
	c.t.Helper()
	if _, err := os.Lstat(filepath.Join(c.state, c.id)); !os.IsNotExist(err) {
		c.t.Errorf("the state of %s is left behind (%v)", c.id, err)
	}
	for _, dir := range c.cgroupDirs(c.id) {
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			c.t.Errorf("cgroup %s is left behind (%v)", dir, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), c.id) {
		c.t.Errorf("a mount of %s is left behind (%v)", c.id, err)
	}
	wantNoChildren(c.t)
}

// wantNoChildren looks for processes that a launcher or a container left to us. Those that have ended it reaps, as the keeper
// would: libcontainer's stage 1, and an init that it gave up.
func wantNoChildren(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		left := liveChildren(t)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("processes are left behind: %v", left)
			return
		}
	}
}

// liveChildren returns our children, and reaps those that have ended.
func liveChildren(t testing.TB) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(files) == 0 {
		t.Fatalf("no list of children: %v", err)
	}
	for _, file := range files {
		data, _ := os.ReadFile(file) // the thread may have gone
		for field := range strings.FieldsSeq(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			if reaped, _ := unix.Wait4(pid, nil, unix.WNOHANG, nil); reaped != pid {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// poll waits until fd can be read.
func poll(fd int) bool {
	deadline := time.Now().Add(patience)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		if err != unix.EINTR {
			return err == nil && n == 1
		}
	}
}

func closeEach(files []*os.File) {
	for _, f := range slices.Compact(slices.Clone(files)) {
		f.Close()
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
