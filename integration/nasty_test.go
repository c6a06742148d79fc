//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// A container that ignores all signals it can lives until its grace is over, and not longer.
func TestIgnoresAllSignals(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "deaf")
	c := pod.Sh(t, "app", `trap "" $(seq 1 31); echo deaf; while :; do sleep 7654; done`)
	waitForText(t, c, "stdout", "deaf")
	c.Stop(t, time.Second)
	if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("after the stop: %v", s)
	}
	wantGone(t, "sleep\x007654")
}

// wantGone fails if a process with this command is left.
func wantGone(t *testing.T, command string) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "end of all processes "+command, func() error {
		if left := processesWith(command); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}

// forkChains are processes each of which has a child and ends, without end: however fast they are read, those that live
// are others by then. Init ignores SIGTERM.
const forkChains = `trap "" TERM; f() { f & exit; }; for i in 1 2 3 4 5 6 7 8; do f & done; echo forking; while :; do sleep 8765; done`

// A container that forks without end is stopped all the same, with a limit of processes and without one.
func TestForksWithoutEnd(t *testing.T) {
	n := sharedNode(t)
	neighbour := n.RunPod(t, "neighbour").Idle(t, "app")
	for name, c := range map[string]struct {
		script  string
		pids    int
		hostPID bool
	}{
		"chains":                        {forkChains, 0, false},
		"chains in the host's pid tree": {forkChains, 0, true},
		"bomb within a limit":           {`trap "" TERM; f() { f & f & wait; }; echo forking; f & exec sleep 8765`, 100, false},
	} {
		t.Run(name, func(t *testing.T) {
			pod := n.RunPod(t, "forks", func(p *cri.PodSandboxConfig) {
				if c.hostPID {
					p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE
				}
			})
			app := pod.Create(t, harness.ContainerConfig("app", images.Tools, "sh", "-c", c.script), func(config *cri.ContainerConfig) {
				if c.hostPID {
					config.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_NODE}
				}
			})
			if c.pids > 0 { // which the kubelet sets for the pod
				file := filepath.Join(hostCgroup(t, app), "pids.max")
				if err := os.WriteFile(file, []byte(strconv.Itoa(c.pids)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			app.Start(t)
			waitForText(t, app, "stdout", "forking")
			group := hostCgroup(t, app)
			if got := neighbour.Exec(t, "echo", "alive"); got != "alive" {
				t.Errorf("the neighbour says %q", got)
			}
			app.Stop(t, 0)
			if s := app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
				t.Errorf("after the stop: %v", s)
			}
			harness.Eventually(t, 20*time.Second, "end of the cgroup", func() error {
				if _, err := os.Stat(group); !os.IsNotExist(err) {
					pids, _ := os.ReadFile(filepath.Join(group, "cgroup.procs"))
					return fmt.Errorf("%s: %v, with %q", group, err, pids)
				}
				return nil
			})
		})
	}
}

// What a container detaches from itself, by double fork and in a session of its own, ends with it. In the host's PID
// namespace nothing but the cgroup tells whose it is.
func TestDaemonsEndWithTheirContainer(t *testing.T) {
	n := sharedNode(t)
	for name, mode := range map[string]cri.NamespaceMode{"own": cri.NamespaceMode_CONTAINER, "pod's": cri.NamespaceMode_POD, "host's": cri.NamespaceMode_NODE} {
		t.Run(name+" PID namespace", func(t *testing.T) {
			pod := n.RunPod(t, "daemons", func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions.Pid = mode })
			inMode := func(c *cri.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: mode}
			}
			other := pod.Idle(t, "other", inMode)
			c := pod.Sh(t, "app", `(setsid sh -c '(trap "" TERM HUP; sleep 6543) &' &); sleep 1; echo detached`, inMode)
			s := c.WaitExit(t)
			if s.ExitCode != 0 {
				t.Errorf("exit code %d", s.ExitCode)
			}
			wantGone(t, "sleep\x006543")
			if got := other.Exec(t, "echo", "alive"); got != "alive" {
				t.Errorf("the other container says %q", got)
			}
		})
	}
}

// A log that is filled at full speed without a newline costs bounded memory, is rotated, loses nothing and delays nobody.
func TestLogFloodWithoutNewlines(t *testing.T) {
	const size = 96 << 20
	n := ownNode(t)
	pod := n.RunPod(t, "flood")
	steady := pod.Sh(t, "steady", counter)
	keeper := keeperPid(t, n)
	before := []int{peak(t, keeper), peak(t, n.Pid())}
	flood := pod.Sh(t, "flood", fmt.Sprintf("head -c %d /dev/zero", size))
	parts := []string{flood.LogPath()}
	for i := 0; flood.Status(t).State == cri.ContainerState_CONTAINER_RUNNING; i++ {
		part := fmt.Sprintf("%s.%d", flood.LogPath(), i)
		if err := os.Rename(flood.LogPath(), part); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Runtime.ReopenContainerLog(harness.Ctx(t), &cri.ReopenContainerLogRequest{ContainerId: flood.ID}); err != nil &&
			flood.Status(t).State == cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("reopen: %v", err)
		}
		parts = append(parts, part)
		time.Sleep(100 * time.Millisecond)
	}
	flood.WaitExit(t)
	for i, pid := range []int{keeper, n.Pid()} {
		if grown := peak(t, pid) - before[i]; grown > 48<<10 {
			t.Errorf("%s grew by %d KiB", []string{"the keeper", "the daemon"}[i], grown)
		}
	}
	total := 0
	for _, part := range parts {
		data, err := os.ReadFile(part)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		total += bytes.Count(data, []byte{0})
	}
	if total != size {
		t.Errorf("%d of %d bytes are in the logs", total, size)
	}
	if len(parts) < 3 {
		t.Logf("only %d parts: this machine is quick", len(parts))
	}
	lines := len(steady.Log(t))
	harness.Eventually(t, 10*time.Second, "the other container's log to go on", func() error {
		if now := len(steady.Log(t)); now < lines+3 {
			return fmt.Errorf("%d lines, were %d", now, lines)
		}
		return nil
	})
	wantCounted(t, steady, lines+3)
}

// peak is the most memory that a process has had, in KiB.
func peak(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Fatalf("no VmHWM in %s", data)
	return 0
}

// usage is what many calls could leak.
type usage struct {
	descriptors, threads, children, goroutines, cgroups, rss int
}

func usageOf(t *testing.T, n *harness.Node, c *harness.Container, pid int) usage {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	u := usage{descriptors: countFiles(t, proc+"fd"), threads: countFiles(t, proc+"task")}
	tasks, err := filepath.Glob(proc + "task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		data, _ := os.ReadFile(task) // a thread that has ended has none
		u.children += len(strings.Fields(string(data)))
	}
	status, err := os.ReadFile(proc + "statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(status))[1])
	if err != nil {
		t.Fatal(err)
	}
	u.rss = pages * os.Getpagesize() >> 10
	if pid == n.Pid() {
		count, ok := n.Metric(t, "go_goroutines")
		if !ok {
			t.Fatal("the metrics have no go_goroutines")
		}
		u.goroutines = int(count)
	}
	err = filepath.WalkDir(hostCgroup(t, c), func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			u.cgroups++
		}
		return nil // what goes meanwhile is no leak
	})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func countFiles(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Many ExecSync calls leave nothing behind: no descriptor, thread, child, goroutine or cgroup, and no memory that grows
// with their number. BERTH_TEST_EXECS says how many; 600 is the usual.
func TestManyExecs(t *testing.T) {
	execs := 600
	if v, err := strconv.Atoi(os.Getenv("BERTH_TEST_EXECS")); err == nil {
		execs = v
	}
	n := ownNode(t)
	c := n.RunPod(t, "execs").Idle(t, "app")
	run := func(count int) {
		t.Helper()
		const atOnce = 4
		var all sync.WaitGroup
		for worker := range atOnce {
			all.Go(func() {
				for i := worker; i < count; i += atOnce {
					want := strconv.Itoa(i)
					resp, err := c.ExecSync(t.Context(), 0, "echo", want)
					if err != nil || strings.TrimSpace(string(resp.Stdout)) != want || resp.ExitCode != 0 {
						t.Errorf("exec %d: %v, %v", i, resp, err)
						return
					}
				}
			})
		}
		all.Wait()
	}
	run(100) // pools and caches are filled
	pids := map[string]int{"daemon": n.Pid(), "keeper": keeperPid(t, n)}
	before := map[string]usage{}
	for name, pid := range pids {
		before[name] = usageOf(t, n, c, pid)
	}
	run(execs)
	for name, pid := range pids {
		// Go's runtime keeps a few threads more or less, and a launcher may be on its way in or out.
		was, slack := before[name], usage{descriptors: 12, threads: 6, children: 3, goroutines: 12, cgroups: 0, rss: 24 << 10}
		harness.Eventually(t, 20*time.Second, "the "+name+" to be as before", func() error {
			is := usageOf(t, n, c, pid)
			if is.descriptors > was.descriptors+slack.descriptors || is.threads > was.threads+slack.threads || is.children > was.children+slack.children ||
				is.goroutines > was.goroutines+slack.goroutines || is.cgroups > was.cgroups || is.rss > was.rss+slack.rss {
				return fmt.Errorf("before %+v, after %d calls %+v", was, execs, is)
			}
			return nil
		})
		t.Logf("%s: before %+v, after %d calls %+v", name, was, execs, usageOf(t, n, c, pid))
	}
}
