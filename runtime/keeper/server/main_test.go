package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// The test binary plays all parts: it is the keeper and the launcher (see fakelaunch_test.go) when it is started under
// their names. So the keeper under test is a process of its own, which can be killed, and has no children of the tests.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "berth-keeper":
		os.Exit(keeperMain())
	case "berth-launch":
		syscall.Exit(launchMain()) // os.Exit takes a second with the race detector
	case "berth-init":
		syscall.Exit(initMain())
	case "berth-writer":
		os.Exit(writerMain())
	case "berth-reaper":
		os.Exit(reaperMain())
	}
	if code, ok := contained(); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// containedVariable is set where the tests are in a PID namespace of their own already.
const containedVariable = "BERTH_TEST_CONTAINED"

// contained runs the tests in a PID namespace that ends with this process, however that ends: keepers, inits and what
// these have started outlive a test that is killed. Without the right to make one, ok is false.
func contained() (code int, ok bool) {
	if os.Getenv(containedVariable) != "" {
		return 0, false
	}
	runtime.LockOSThread() // with this thread the reaper would die
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = "berth-reaper"
	cmd.Env = append(os.Environ(), containedVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if cmd.Start() != nil {
		return 0, false
	}
	cmd.Wait()
	return cmd.ProcessState.ExitCode(), true
}

// reaperMain is pid 1 of the namespace: it runs the tests and reaps what they leave to it.
func reaperMain() int {
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
	)
	self, linkErr := os.Readlink("/proc/self/exe")
	if err := errors.Join(err, linkErr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	pid, err := syscall.ForkExec(self, append([]string{self}, os.Args[1:]...), &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
	})
	for err == nil || err == unix.EINTR {
		var status unix.WaitStatus
		var ended int
		if ended, err = unix.Wait4(-1, &status, 0, nil); ended == pid {
			if status.Signaled() {
				return 128 + int(status.Signal())
			}
			return status.ExitStatus()
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func keeperMain() int {
	var cfg Config
	flags := flag.NewFlagSet("berth-keeper", flag.ExitOnError)
	flags.StringVar(&cfg.RunDir, "run-dir", "", "")
	flags.StringVar(&cfg.Launch, "launch", "", "")
	flags.IntVar(&cfg.Launchers, "launchers", 0, "")
	flags.IntVar(&cfg.TakeOver, TakeOverFlag, 0, "")
	describe := flags.Bool(DescribeFlag, false, "")
	logPath := flags.String("log-file", "", "")
	wantsReady := flags.Bool("ready", false, "")
	flags.Parse(os.Args[1:])
	cfg.Build = os.Args[0]
	if *describe {
		syscall.Exit(describeMain(Describe(cfg.Build)))
	}
	if *wantsReady {
		unix.CloseOnExec(keeper.ReadyFD)
		ready := os.NewFile(keeper.ReadyFD, "ready")
		cfg.Ready = func() {
			ready.Write([]byte{0})
			ready.Close()
		}
	}
	cfg.Args = []string{"--log-file", *logPath}
	out, err := OpenLogFile(*logPath)
	if err == nil {
		cfg.Log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		err = Run(context.Background(), cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// node is a run dir with a keeper and a client, the daemon.
type node struct {
	t      *testing.T
	dir    string
	binary string
	c      *keeper.Client
	launch string
}

// newNode starts a keeper. When the test ends it must have nothing left to complain of.
func newNode(t *testing.T) *node {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir: with the name of the test in it, the path of the socket may be too long.
	dir, err := os.MkdirTemp("", "keeper")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{t: t, dir: dir, binary: filepath.Join(dir, "berth-keeper"), launch: self}
	if err := os.Symlink(self, n.binary); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.c = n.dial()
	t.Cleanup(n.end)
	return n
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) start() {
	n.t.Helper()
	if err := keeper.Start(n.ctx(), n.binary, n.launch, n.dir, slog.New(slog.DiscardHandler)); err != nil {
		n.t.Fatalf("%v\n%s", err, n.log())
	}
}

func (n *node) dial() *keeper.Client {
	n.t.Helper()
	c, err := keeper.Dial(n.ctx(), filepath.Join(n.dir, keeper.SocketName))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}

func (n *node) log() string {
	data, _ := os.ReadFile(filepath.Join(n.dir, keeper.LogName))
	return string(data)
}

// end kills what lives and shuts the keeper down.
func (n *node) end() {
	c := n.dial()
	go func() {
		for range c.Exits() {
		}
	}()
	for n.t.Context() != nil {
		states, err := c.List(n.ctx())
		if err != nil {
			n.t.Fatal(err)
		}
		for _, s := range states {
			if s.Exit == nil {
				// With what a shell has started: there is no cgroup here, and it would outlive the tests with what it inherited.
				_ = unix.Kill(-s.Process.Pid, unix.SIGKILL)
			}
			c.Signal(n.ctx(), s.ID, "", int(unix.SIGKILL))
			for _, e := range s.Execs {
				c.Signal(n.ctx(), s.ID, e.ExecID, int(unix.SIGKILL))
			}
		}
		if err = c.Shutdown(n.ctx()); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond) // an exit is on its way
	}
	<-c.Done()
	eventually(n.t, "the keeper to be gone", func() bool { return !alive(c.Keeper().Pid) })
	if log := n.log(); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") || strings.Contains(log, "level=ERROR") || n.t.Failed() {
		n.t.Errorf("the keeper says:\n%s", log)
	}
}

// bundle is the fake of an OCI bundle: what the fake launcher is to do.
type bundle struct {
	Args []string
	// Do is what goes wrong: "", fail, die, hang, hang-with-init, hooks.
	Do      string
	Failure keeper.Failure
}

// prepare makes a container's folder, as the daemon does.
func (n *node) prepare(id string, b bundle) keeper.CreateRequest {
	n.t.Helper()
	dir := filepath.Join(n.dir, keeper.ContainersDir, id)
	data, err := json.Marshal(b)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return keeper.CreateRequest{ID: id, Bundle: dir, LogPath: filepath.Join(n.dir, id+".log")}
}

func sh(script string) bundle { return bundle{Args: []string{"/bin/sh", "-c", script}} }

// create makes a container that runs script, with what adjust changes.
func (n *node) create(id, script string, adjust ...func(*keeper.CreateRequest)) keeper.Process {
	n.t.Helper()
	req := n.prepare(id, sh(script))
	for _, f := range adjust {
		f(&req)
	}
	p, err := n.c.Create(n.ctx(), req)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// run creates and starts a container.
func (n *node) run(id, script string, adjust ...func(*keeper.CreateRequest)) keeper.Process {
	n.t.Helper()
	p := n.create(id, script, adjust...)
	if err := n.c.Start(n.ctx(), id); err != nil {
		n.t.Fatal(err)
	}
	return p
}

// exit waits for the next exit, which is to be of that process.
func (n *node) exit(id, execID string) keeper.Exit {
	n.t.Helper()
	select {
	case e, ok := <-n.c.Exits():
		if !ok {
			n.t.Fatalf("the connection was lost: %v", n.c.Err())
		}
		if e.ID != id || e.ExecID != execID {
			n.t.Fatalf("the exit is of %s %q, want %s %q", e.ID, e.ExecID, id, execID)
		}
		return e
	case <-n.ctx().Done():
		n.t.Fatalf("no exit of %s %q\n%s", id, execID, n.log())
		panic("unreachable")
	}
}

func (n *node) wantCode(e keeper.Exit, code int) {
	n.t.Helper()
	if e.Code != code || e.Unknown || e.At.IsZero() || e.Seq == 0 {
		n.t.Errorf("the exit is %+v, want code %d", e, code)
	}
}

// logged returns the content of a container's log, per stream; a partial record has no newline.
func (n *node) logged(id string) (stdout, stderr string) {
	n.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.dir, id+".log"))
	if err != nil {
		n.t.Fatal(err)
	}
	var out, errs strings.Builder
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 {
			n.t.Fatalf("the log has the line %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
			n.t.Fatalf("the log has the line %q: %v", line, err)
		}
		to := &out
		if f[1] == "stderr" {
			to = &errs
		}
		to.WriteString(f[3])
		if f[2] == "F" {
			to.WriteByte('\n')
		}
	}
	return out.String(), errs.String()
}

func (n *node) state(id string) keeper.State {
	n.t.Helper()
	states, err := n.c.List(n.ctx())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, s := range states {
		if s.ID == id {
			return s
		}
	}
	return keeper.State{}
}

// numbers checks that text is the lines 1 to last, none missing, torn or doubled.
func numbers(t *testing.T, text string, last int) {
	t.Helper()
	i := 0
	scan := bufio.NewScanner(strings.NewReader(text))
	for scan.Scan() {
		i++
		if scan.Text() != strconv.Itoa(i) {
			t.Fatalf("line %d is %q", i, scan.Text())
		}
	}
	if i != last {
		t.Fatalf("there are %d lines, want %d", i, last)
	}
}

// eventually is for what follows an answer and has no event of its own.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }
