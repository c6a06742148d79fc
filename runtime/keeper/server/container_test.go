package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

func TestLife(t *testing.T) {
	n := newNode(t)
	p := n.create("web", `i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo $i; done; echo oops >&2; printf tail; exit 3`)
	s := n.state("web")
	if s.Phase != keeper.PhaseCreated || s.Process != p || s.Request.ID != "web" {
		t.Errorf("after Create the state is %+v", s)
	}
	if got, err := readProcess(p.Pid); err != nil || got != p {
		t.Errorf("Create returned %+v, the process is %+v, %v", p, got, err)
	}
	if err := n.c.Delete(n.ctx(), "web"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Delete of a created container: %v", err)
	}
	if err := n.c.Start(n.ctx(), "web"); err != nil {
		t.Fatal(err)
	}
	e := n.exit("web", "")
	n.wantCode(e, 3)
	// The log is complete when the exit is reported.
	stdout, stderr := n.logged("web")
	if text, ok := strings.CutSuffix(stdout, "tail"); !ok {
		t.Errorf("the output ends in %q", stdout[max(0, len(stdout)-20):])
	} else {
		numbers(t, text, 20000)
	}
	if stderr != "oops\n" {
		t.Errorf("stderr is %q", stderr)
	}
	s = n.state("web")
	if s.Phase != keeper.PhaseExited || s.Exit == nil || s.Exit.Code != 3 || s.LogBytes == 0 || s.LogDropped != 0 {
		t.Errorf("after the exit the state is %+v", s)
	}
	n.c.Ack(e.Seq)
	for range 2 {
		if err := n.c.Delete(n.ctx(), "web"); err != nil {
			t.Fatal(err)
		}
	}
	if s := n.state("web"); s.ID != "" {
		t.Errorf("after Delete there is %+v", s)
	}
	wantOnly(t, filepath.Join(n.dir, keeper.ContainersDir, "web"), "config.json")
	wantOnly(t, filepath.Join(n.dir, keeper.LibcontainerDir))
}

func wantOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(names) {
		t.Errorf("%s holds %v, want %v", dir, got, names)
	}
}

func TestStartRefuses(t *testing.T) {
	n := newNode(t)
	if err := n.c.Start(n.ctx(), "none"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Start of nothing: %v", err)
	}
	n.run("twice", "sleep 1000")
	if err := n.c.Start(n.ctx(), "twice"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Start of a running container: %v", err)
	}
	n.create("dead", "true")
	if err := n.c.Signal(n.ctx(), "dead", "", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	n.wantCode(n.exit("dead", ""), 137)
	if err := n.c.Start(n.ctx(), "dead"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Start of a dead container: %v", err)
	}
	// An init that stands still does not hold up more than its own Start.
	p := n.create("stopped", "true")
	if err := unix.Kill(p.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(n.ctx())
	result := make(chan error)
	go func() { result <- n.c.Start(ctx, "stopped") }()
	n.state("stopped")
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Start of a stopped init: %v", err)
	}
	go func() { result <- n.c.Start(n.ctx(), "stopped") }()
	if err := n.c.Signal(n.ctx(), "stopped", "", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Start of an init that dies meanwhile: %v", err)
	}
	n.exit("stopped", "")
}

// A daemon that dies over a start, or whose call ends, takes nothing back: init goes on, or has gone. Who asks next hears of one start, not of two.
func TestCancelledStartGoesOn(t *testing.T) {
	n := newNode(t)
	for i := range 20 {
		id := fmt.Sprint("c", i)
		p := n.create(id, "echo once; exec sleep 1000")
		if err := unix.Kill(p.Pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(n.ctx())
		result := make(chan error)
		go func() { result <- n.c.Start(ctx, id) }()
		eventually(t, "init to be let go", func() bool {
			blocked, err := isBlocked(filepath.Join(n.dir, keeper.LibcontainerDir, id, "exec.fifo"))
			return err == nil && !blocked
		})
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled Start: %v", err)
		}
		if i%2 == 0 { // it joins
			go func() { result <- n.c.Start(n.ctx(), id) }()
		}
		if err := unix.Kill(p.Pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if err := <-result; err != nil {
				t.Fatalf("Start of what is being started: %v", err)
			}
		}
		eventually(t, "the workload", func() bool { out, _ := n.logged(id); return out == "once\n" })
		if s := n.state(id); s.Phase != keeper.PhaseRunning {
			t.Fatalf("the workload runs, and the keeper says %s", s.Phase)
		}
	}
}

func TestSignal(t *testing.T) {
	n := newNode(t)
	n.run("trap", `trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done`)
	eventually(t, "the trap", func() bool { out, _ := n.logged("trap"); return out == "ready\n" })
	n.run("kill", "exec sleep 1000")
	if err := n.c.Signal(n.ctx(), "trap", "", int(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	n.wantCode(n.exit("trap", ""), 7)
	if err := n.c.Signal(n.ctx(), "kill", "", int(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	e := n.exit("kill", "")
	n.wantCode(e, 143)
	if e.Signal != int(unix.SIGTERM) {
		t.Errorf("the signal is %d", e.Signal)
	}
	for _, ref := range []keeper.Ref{{ID: "kill"}, {ID: "none"}, {ID: "kill", ExecID: "none"}} {
		if err := n.c.Signal(n.ctx(), ref.ID, ref.ExecID, 15); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("Signal to %+v: %v", ref, err)
		}
	}
}

func TestCreateFailsAndLeavesNothing(t *testing.T) {
	n := newNode(t)
	for name, tc := range map[string]struct {
		bundle  bundle
		class   error
		failure keeper.Failure
		message string
		timeout time.Duration
	}{
		"no command":     {bundle: bundle{Do: "fail", Failure: keeper.FailureCommand}, failure: keeper.FailureCommand, message: "as told"},
		"unsupported":    {bundle: bundle{Do: "fail", Failure: keeper.FailureUnsupported}, class: errdefs.ErrUnimplemented, failure: keeper.FailureUnsupported},
		"wrong":          {bundle: bundle{Do: "fail", Failure: keeper.FailureArgument}, class: errdefs.ErrInvalidArgument, failure: keeper.FailureArgument},
		"launcher dies":  {bundle: bundle{Do: "die"}, failure: keeper.FailureSetup, message: "fatal error: as told"},
		"launcher hangs": {bundle: bundle{Do: "hang"}, class: context.DeadlineExceeded, timeout: 200 * time.Millisecond},
		"hangs with a process": {bundle: bundle{Do: "hang-with-init", Args: []string{"/bin/true"}}, class: context.DeadlineExceeded,
			timeout: 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := n.ctx()
			if tc.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tc.timeout)
				defer cancel()
			}
			_, err := n.c.Create(ctx, n.prepare("bad", tc.bundle))
			var launch *keeper.LaunchError
			if errors.As(err, &launch) != (tc.failure != "") || (launch != nil && launch.Failure != tc.failure) {
				t.Errorf("Create: %v, want failure %q", err, tc.failure)
			}
			if tc.class != nil && !errors.Is(err, tc.class) {
				t.Errorf("Create: %v, want class %v", err, tc.class)
			}
			if err == nil || !strings.Contains(err.Error(), tc.message) {
				t.Errorf("Create: %v, want %q in it", err, tc.message)
			}
			wantOnly(t, filepath.Join(n.dir, keeper.ContainersDir, "bad"), "config.json")
			wantOnly(t, filepath.Join(n.dir, keeper.LibcontainerDir))
			for _, pid := range children(t, n.c.Keeper().Pid) {
				if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.HasPrefix(string(name), "berth-init") {
					t.Errorf("init %d was left behind", pid)
				}
			}
			// The ID is free again.
			n.run("bad", "exit 4")
			n.wantCode(n.exit("bad", ""), 4)
			if err := n.c.Delete(n.ctx(), "bad"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestCreateRefuses(t *testing.T) {
	n := newNode(t)
	good := n.prepare("good", sh("sleep 1000"))
	for name, tc := range map[string]struct {
		adjust func(*keeper.CreateRequest)
		class  error
	}{
		"a path as ID":    {func(r *keeper.CreateRequest) { r.ID = "../good" }, errdefs.ErrInvalidArgument},
		"no ID":           {func(r *keeper.CreateRequest) { r.ID = "" }, errdefs.ErrInvalidArgument},
		"relative bundle": {func(r *keeper.CreateRequest) { r.Bundle = "good" }, errdefs.ErrInvalidArgument},
		"relative log":    {func(r *keeper.CreateRequest) { r.LogPath = "log" }, errdefs.ErrInvalidArgument},
		"no folder":       {func(r *keeper.CreateRequest) { r.ID = "nowhere" }, nil},
		"no log folder":   {func(r *keeper.CreateRequest) { r.LogPath = filepath.Join(n.dir, "none", "0.log") }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			req := good
			tc.adjust(&req)
			if _, err := n.c.Create(n.ctx(), req); err == nil || (tc.class != nil && !errors.Is(err, tc.class)) {
				t.Errorf("Create: %v, want class %v", err, tc.class)
			}
		})
	}
	if _, err := n.c.Create(n.ctx(), good); err != nil {
		t.Fatal(err)
	}
	if _, err := n.c.Create(n.ctx(), good); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("second Create: %v", err)
	}
}

func TestHooksAreLeftToALauncher(t *testing.T) {
	n := newNode(t)
	n.run("hooked", "true", func(r *keeper.CreateRequest) { r.Hooks = true })
	n.exit("hooked", "")
	if err := n.c.Delete(n.ctx(), "hooked"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "hooked.destroyed")); err != nil {
		t.Error(err)
	}
	if err := n.c.Checkpoint(n.ctx(), "none", keeper.CheckpointOptions{}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Checkpoint of nothing: %v", err)
	}
	n.run("dump", "sleep 1000")
	if err := n.c.Checkpoint(n.ctx(), "dump", keeper.CheckpointOptions{}); !errors.Is(err, errdefs.ErrUnimplemented) {
		t.Errorf("Checkpoint without criu: %v", err)
	}
}

func TestReopenLog(t *testing.T) {
	n := newNode(t)
	n.run("rotate", `echo one; read x; echo two`, func(r *keeper.CreateRequest) { r.Stdin = true })
	a := n.attach("rotate")
	log := filepath.Join(n.dir, "rotate.log")
	eventually(t, "the first line", func() bool { out, _ := n.logged("rotate"); return out == "one\n" })
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	if err := n.c.ReopenLog(n.ctx(), "rotate"); err != nil {
		t.Fatal(err)
	}
	io.WriteString(a.Stdin, "go\n")
	n.exit("rotate", "")
	if out, _ := n.logged("rotate"); out != "two\n" {
		t.Errorf("the new log holds %q", out)
	}
	if err := n.c.ReopenLog(n.ctx(), "rotate"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("ReopenLog of an exited container: %v", err)
	}
}

// What the workload leaves behind may have its output open; the exit does not wait for it, and neither do zombies stay.
func TestLeftBehindProcesses(t *testing.T) {
	n := newNode(t)
	n.run("parent", `sleep 1000 & echo $!; exit 5`)
	n.wantCode(n.exit("parent", ""), 5)
	out, _ := n.logged("parent")
	var pid int
	if _, err := fmt.Sscan(out, &pid); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the orphan to be reaped", func() bool { return !alive(pid) })
}

func TestDescriptorsAndZombies(t *testing.T) {
	n := newNode(t)
	pid := n.c.Keeper().Pid
	cycle := func() {
		n.run("c", `cat; exit 0`, func(r *keeper.CreateRequest) { r.Stdin, r.StdinOnce = true, true })
		if _, _, err := n.c.Exec(n.ctx(), execRequest("c", "e", "true")); err != nil {
			t.Fatal(err)
		}
		n.c.Ack(n.exit("c", "e").Seq)
		a, err := n.c.Attach(n.ctx(), "c")
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		if err := n.c.CloseStdin(n.ctx(), "c"); err != nil {
			t.Fatal(err)
		}
		n.c.Ack(n.exit("c", "").Seq)
		if err := n.c.Delete(n.ctx(), "c"); err != nil {
			t.Fatal(err)
		}
		n.run("c", `exit 0`, func(r *keeper.CreateRequest) { r.Terminal = true })
		n.c.Ack(n.exit("c", "").Seq)
		if err := n.c.Delete(n.ctx(), "c"); err != nil {
			t.Fatal(err)
		}
		n.c.Create(n.ctx(), n.prepare("c", bundle{Do: "fail"}))
	}
	cycle()
	// The launchers that wait, and the one that is being started, have two descriptors each.
	const launchers = 2 * (DefaultLaunchers + 1)
	before, ours := descriptors(t, pid), descriptors(t, os.Getpid())
	for range 10 {
		cycle()
	}
	eventually(t, "the descriptors to be closed", func() bool {
		return descriptors(t, pid) <= before+launchers && descriptors(t, os.Getpid()) <= ours+2
	})
	eventually(t, "the zombies to be reaped", func() bool {
		for _, child := range children(t, pid) {
			if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child)); strings.Contains(string(stat), ") Z ") {
				return false
			}
		}
		return true
	})
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// children returns the children of a process, zombies among them.
func children(t *testing.T, parent int) []int {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var state string
		var pid, ppid int
		fmt.Sscan(string(data), &pid)
		fmt.Sscan(string(data[strings.LastIndexByte(string(data), ')')+1:]), &state, &ppid)
		if ppid == parent {
			pids = append(pids, pid)
		}
	}
	return pids
}
