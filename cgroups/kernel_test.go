package cgroups

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// childMode makes the test binary a process to be put into a cgroup. It writes a line when it is there, waits for one,
// and then does what the mode says.
const childMode = "BERTH_CGROUPS_TEST_CHILD"

func child(mode string) {
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		select {}
	}
	switch mode {
	case "eat": // more memory than it may have
		var hoard [][]byte
		for range 256 {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			hoard = append(hoard, b)
		}
		runtime.KeepAlive(hoard)
	case "spin": // 20 ms of CPU time
		var u unix.Rusage
		for u.Utime.Nano()+u.Stime.Nano() < int64(20*time.Millisecond) {
			_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
		}
	case "fork":
		_, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
		if errors.Is(err, syscall.EAGAIN) {
			os.Exit(7)
		}
	case "storm": // forks faster than anybody can list
		for range 4 {
			go func() {
				for {
					_, _ = syscall.ForkExec("/bin/sleep", []string{"sleep", "0.02"}, nil)
				}
			}()
		}
		fmt.Println("storming")
		select {}
	}
	os.Exit(0)
}

// process is a child in a cgroup.
type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Reader
}

func (c *process) line(t *testing.T) string {
	t.Helper()
	s, err := c.lines.ReadString('\n')
	if err != nil {
		t.Fatalf("child: %v", err)
	}
	return strings.TrimSpace(s)
}

// start starts a child and puts it into g.
func start(t *testing.T, g *Group, mode string) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childMode+"="+mode)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &process{cmd: cmd, in: in, lines: bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	c.line(t)
	join(t, g, cmd.Process.Pid)
	return c
}

// join does what libcontainer does with the cgroups path of a container.
func join(t *testing.T, g *Group, pid int) {
	t.Helper()
	if g.host.Unified && g.host.mounts[""] != root {
		// The v2 tree of a hybrid node is a real one, but not where the library looks for it.
		if err := os.MkdirAll(g.paths[""], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(g.paths[""], "cgroup.procs", fmt.Sprint(pid)); err != nil {
			t.Fatal(err)
		}
		return
	}
	m, err := g.manager()
	if err == nil {
		err = m.Apply(pid)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// hosts runs a test on each kind of cgroup that this machine has: its own, and the v2 tree of a hybrid node.
func hosts(t *testing.T, test func(t *testing.T, h *Host, g *Group)) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes cgroups")
	}
	own, err := Probe("", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*Host{"own " + string(own.Driver): own}
	if own.Driver == Systemd {
		if all["own cgroupfs"], err = Probe(Cgroupfs, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	}
	if dir, ok := own.mounts[""]; ok && !own.Unified {
		all["v2 of hybrid"] = &Host{Unified: true, Driver: Cgroupfs, AtomicKill: true, mounts: map[string]string{"": dir}}
	}
	for name, h := range all {
		t.Run(name, func(t *testing.T) {
			h.DefaultParent = fmt.Sprintf("/berth-test-%d", os.Getpid())
			if h.Driver == Systemd {
				h.DefaultParent = fmt.Sprintf("berthtest%d.slice", os.Getpid())
			}
			path, err := h.ContainerPath("", "c1")
			if err != nil {
				t.Fatal(err)
			}
			g, err := h.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				ctx := context.Background()
				if err := g.Remove(ctx); err != nil {
					t.Error(err)
				}
				if err := h.RemoveParentIfEmpty(ctx, ""); err != nil {
					t.Error(err)
				}
				parent, err := h.OpenParent("")
				if err != nil || parent.Exists() {
					t.Errorf("cgroup %s is left (%v)", parent, err)
				}
			})
			test(t, h, g)
		})
	}
}

func TestLife(t *testing.T) {
	hosts(t, func(t *testing.T, h *Host, g *Group) {
		ctx := t.Context()
		if g.Exists() {
			t.Fatal("it is there before it is made")
		}
		for what, f := range map[string]func(context.Context) error{"kill": g.Kill, "remove": g.Remove} {
			if err := f(ctx); err != nil {
				t.Errorf("%s of what is not there: %v", what, err)
			}
		}
		if err := g.Freeze(ctx); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("freeze of what is not there: %v", err)
		}
		if err := g.Sub("exec-1").Create(); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("sub-cgroup of what is not there: %v", err)
		}
		c := start(t, g, "idle")
		pids, err := g.Pids()
		if err != nil || len(pids) != 1 || pids[0] != c.cmd.Process.Pid {
			t.Fatalf("pids %v, %v; want %d", pids, err, c.cmd.Process.Pid)
		}
		if s, err := g.Stats(); err != nil || s.CPU == nil {
			t.Errorf("stats %+v, %v", s, err)
		}
		for range 2 { // twice: both are idempotent
			if err := g.Freeze(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Thaw(ctx); err != nil {
			t.Fatal(err)
		}
		if err := g.Freeze(ctx); err != nil { // a frozen one must die too
			t.Fatal(err)
		}
		if err := g.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		if g.Exists() {
			t.Error("it is there after Remove")
		}
		if err := g.Remove(ctx); err != nil {
			t.Errorf("second Remove: %v", err)
		}
	})
}

// An exec ends with all its children, and the container runs on.
func TestSubGroup(t *testing.T) {
	hosts(t, func(t *testing.T, h *Host, g *Group) {
		c := start(t, g, "idle")
		sub := g.Sub("exec-1")
		if err := sub.Create(); err != nil {
			t.Fatal(err)
		}
		if err := sub.Create(); !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("second Create: %v", err)
		}
		e := exec.Command("/bin/sh", "-c", "sleep 1000 & wait")
		if err := e.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.Process.Kill(); _ = e.Wait() })
		for _, dir := range sub.Paths() {
			if err := writeFile(dir, "cgroup.procs", fmt.Sprint(e.Process.Pid)); err != nil {
				t.Fatal(err)
			}
		}
		if sub.RemoveEmpty() || !sub.Exists() {
			t.Error("one with a process in it was removed as empty")
		}
		if err := sub.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := sub.Create(); err != nil {
			t.Fatal(err)
		}
		if !sub.RemoveEmpty() || sub.Exists() {
			t.Error("an empty one was not removed")
		}
		if !sub.RemoveEmpty() {
			t.Error("one that is not there is said to be there")
		}
		if sub.Exists() {
			t.Error("the sub-cgroup is left")
		}
		if pids, err := g.Pids(); err != nil || len(pids) != 1 || pids[0] != c.cmd.Process.Pid {
			t.Errorf("pids %v, %v; want %d alone", pids, err, c.cmd.Process.Pid)
		}
	})
}

// A workload with cgroups of its own nests them deeper than a path can be long.
func TestDeepCgroups(t *testing.T) {
	hosts(t, func(t *testing.T, h *Host, g *Group) {
		c := start(t, g, "idle")
		freezer := g.paths["freezer"]
		if h.Unified {
			freezer = g.paths[""]
		}
		at, err := os.Open(freezer)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { at.Close() }()
		name := strings.Repeat("d", 200)
		for range 25 { // of which 20 are enough
			if err := unix.Mkdirat(int(at.Fd()), name, 0o755); err != nil {
				t.Fatal(err)
			}
			next, err := openBelow(at, name)
			if err != nil {
				t.Fatal(err)
			}
			at.Close()
			at = next
		}
		deep := start(t, g, "idle")
		if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/cgroup.procs", at.Fd()), []byte(fmt.Sprint(deep.cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
		at.Close()
		want := []int{c.cmd.Process.Pid, deep.cmd.Process.Pid}
		slices.Sort(want)
		if pids, err := g.Pids(); err != nil || !slices.Equal(pids, want) {
			t.Errorf("pids %v, %v; want %v", pids, err, want)
		}
		if _, err := g.OOMKills(); err != nil {
			t.Error(err)
		}
		if err := g.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if g.Exists() {
			t.Error("it is there after Remove")
		}
	})
}

func TestKillStorm(t *testing.T) {
	hosts(t, func(t *testing.T, h *Host, g *Group) {
		c := start(t, g, "storm")
		if h.Has("pids") { // for the machine's sake
			if err := g.Set(t.Context(), &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p[int64](200)}}); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Fprintln(c.in)
		c.line(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := g.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		if pids, err := g.Pids(); err != nil || len(pids) != 0 {
			t.Errorf("pids %v, %v; want none", pids, err)
		}
	})
}

// A Kill that cannot end says who stays. A process that is frozen from above is one that no v1 signal ends; on v2 nothing
// short of a broken disk does that, so there the context is over from the start.
func TestKillSaysWhoStays(t *testing.T) {
	hosts(t, func(t *testing.T, h *Host, g *Group) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		c := start(t, g, "idle")
		if h.Unified {
			err := g.stuck(context.DeadlineExceeded)
			if want := fmt.Sprintf("1 processes do not end: %d (", c.cmd.Process.Pid); !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			return
		}
		above := g.paths["freezer"][:len(g.paths["freezer"])-len("/c1")]
		if err := writeFile(above, "freezer.state", frozenV1); err != nil {
			t.Fatal(err)
		}
		err := g.Kill(ctx)
		if err := writeFile(above, "freezer.state", thawedV1); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprintf("%d (", c.cmd.Process.Pid)) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLimitsBind(t *testing.T) {
	for _, tc := range []struct {
		controller, mode string
		limit            specs.LinuxResources
		check            func(t *testing.T, g *Group, exit *os.ProcessState)
	}{
		{"memory", "eat", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p[int64](32 << 20), Swap: p[int64](32 << 20)}},
			func(t *testing.T, g *Group, exit *os.ProcessState) {
				if exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Errorf("it ended with %v, want to be killed", exit)
				}
			}},
		// A hundredth of a CPU is used up where a busy machine leaves no more than that, too.
		{"cpu", "spin", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p[int64](1000), Period: p[uint64](100000)}},
			func(t *testing.T, g *Group, exit *os.ProcessState) {}},
		{"pids", "fork", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p[int64](1)}},
			func(t *testing.T, g *Group, exit *os.ProcessState) {
				if exit.ExitCode() != 7 {
					t.Errorf("it ended with %v, want 7: it could not fork", exit)
				}
			}},
	} {
		t.Run(tc.controller, func(t *testing.T) {
			hosts(t, func(t *testing.T, h *Host, g *Group) {
				if !h.Has(tc.controller) {
					t.Skip("no controller " + tc.controller)
				}
				keepAlive := start(t, g, "idle") // so that systemd keeps the scope
				c := start(t, g.inside(), tc.mode)
				if err := g.Set(t.Context(), &tc.limit); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintln(c.in)
				_ = c.cmd.Wait()
				tc.check(t, g, c.cmd.ProcessState)
				s, err := g.Stats()
				if err != nil {
					t.Fatal(err)
				}
				kills, err := g.OOMKills()
				if err != nil {
					t.Fatal(err)
				}
				switch tc.controller {
				case "memory":
					if kills == 0 || s.Memory.OOMKills != kills || s.Memory.Limit != 32<<20 {
						t.Errorf("%d kills, stats %+v", kills, s.Memory)
					}
				case "cpu":
					if s.CPU.ThrottledPeriods == 0 || s.CPU.Quota != time.Millisecond || s.CPU.Period != 100*time.Millisecond {
						t.Errorf("not throttled: %+v", s.CPU)
					}
				case "pids":
					if s.Pids.Limit != 1 {
						t.Errorf("limit %d, want 1", s.Pids.Limit)
					}
				}
				_ = keepAlive
			})
		})
	}
}

// inside returns the same cgroup for a second process: the unit is there already, so it is joined by its files.
func (g *Group) inside() *Group {
	return &Group{host: g.host, paths: g.paths}
}

// The scope of a container is collected by systemd as soon as it is empty; what was killed must be known nevertheless.
func TestOOMWatcher(t *testing.T) {
	hosts(t, func(t *testing.T, h *Host, g *Group) {
		if !h.Has("memory") {
			t.Skip("no controller memory")
		}
		w, err := NewOOMWatcher(h, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if err := w.Add("none", g); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("watch of what is not there: %v", err)
		}
		path, _ := h.ContainerPath("", "c2")
		g2, _ := h.Open(path)
		t.Cleanup(func() { _ = g2.Remove(context.Background()) })
		c, other := start(t, g, "eat"), start(t, g2, "idle")
		for id, g := range map[string]*Group{"c1": g, "c2": g2} {
			if err := w.Add(id, g); err != nil {
				t.Fatal(err)
			}
			if w.Killed(id) {
				t.Errorf("%s is killed before it is", id)
			}
		}
		limit := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p[int64](32 << 20), Swap: p[int64](32 << 20)}}
		if err := g.Set(t.Context(), limit); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(c.in)
		_ = c.cmd.Wait()
		if h.Driver == Systemd {
			for g.Exists() { // systemd collects it
				runtime.Gosched()
			}
		}
		_ = other.cmd.Process.Kill()
		_ = other.cmd.Wait()
		if !w.Killed("c1") {
			t.Error("c1 was killed for lack of memory, and nobody knows")
		}
		if w.Killed("c2") {
			t.Error("c2 was killed by hand, and is said to have lacked memory")
		}
		w.Remove("c1")
		w.Remove("c1")
		if w.Killed("c1") {
			t.Error("c1 is known after Remove")
		}
	})
}

// A read of the container that comes too late is made up for by the pod's count.
func TestOOMWatcherTooLate(t *testing.T) {
	dir := tree(t, map[string]string{
		"pod/memory.events": "oom_kill 5\n", "pod/a/memory.events": "oom_kill 0\n", "pod/b/memory.events": "oom_kill 0\n",
	})
	h := &Host{Unified: true, Controllers: []string{"memory"}, mounts: map[string]string{"": dir}}
	w, err := NewOOMWatcher(h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, id := range []string{"a", "b"} {
		g, _ := h.Open("/pod/" + id)
		if err := w.Add(id, g); err != nil {
			t.Fatal(err)
		}
	}
	if w.Killed("a") || w.Killed("b") {
		t.Fatal("the pod's past is taken for a container's")
	}
	for _, id := range []string{"a", "b"} {
		if err := os.RemoveAll(filepath.Join(dir, "pod", id)); err != nil {
			t.Fatal(err)
		}
	}
	if w.Killed("b") {
		t.Fatal("a container that is gone is not one that was killed")
	}
	if err := os.WriteFile(dir+"/pod/memory.events", []byte("oom_kill 6\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // asking does not use it up
		if !w.Killed("a") {
			t.Error("the kill that only the pod counted is lost")
		}
	}
	if w.Killed("b") {
		t.Error("one kill is told of two containers")
	}
}
