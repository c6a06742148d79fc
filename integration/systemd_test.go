//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// systemdNode returns the shared node if systemd makes its cgroups.
func systemdNode(t *testing.T) *harness.Node {
	t.Helper()
	n := sharedNode(t)
	if !systemdDriver(t, n) {
		t.Skip("systemd does not make the cgroups of this node (it is not PID 1, or BERTH_TEST_CGROUP_DRIVER is not systemd)")
	}
	return n
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func scopeOf(c *harness.Container) string { return "cri-berth-" + c.ID + ".scope" }

// wantNoUnit waits until systemd knows nothing of a unit any more: neither that it runs nor that it failed.
func wantNoUnit(t *testing.T, unit string) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "the end of "+unit, func() error {
		if out := systemctl(t, "list-units", "--all", "--plain", "--no-legend", unit); out != "" {
			return fmt.Errorf("systemd still has %s", out)
		}
		return nil
	})
}

func TestSystemdScope(t *testing.T) {
	n := systemdNode(t)
	pod := n.RunPod(t, "scope")
	app := pod.Idle(t, "app", withResources(&cri.LinuxContainerResources{CpuShares: 2048, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}))
	if dir := hostCgroup(t, app); filepath.Base(dir) != scopeOf(app) || filepath.Base(filepath.Dir(dir)) != "berth.slice" {
		t.Errorf("the container is in %s", dir)
	}
	properties := func() string {
		return systemctl(t, "show", scopeOf(app), "-p", "Slice,CPUQuotaPerSecUSec,MemoryMax")
	}
	for _, want := range []string{"Slice=berth.slice", "CPUQuotaPerSecUSec=500ms", "MemoryMax=67108864"} {
		if err := wantIn(properties(), want); err != nil {
			t.Error(err)
		}
	}

	// systemd writes the limits that it knows whenever it is told to read its units again.
	update := &cri.LinuxContainerResources{CpuQuota: 80000, CpuPeriod: 100000, MemoryLimitInBytes: 96 << 20}
	if _, err := n.Runtime.UpdateContainerResources(harness.Ctx(t), &cri.UpdateContainerResourcesRequest{ContainerId: app.ID, Linux: update}); err != nil {
		t.Fatal(err)
	}
	systemctl(t, "daemon-reload")
	for _, want := range []string{"CPUQuotaPerSecUSec=800ms", "MemoryMax=100663296"} {
		if err := wantIn(properties(), want); err != nil {
			t.Error(err)
		}
	}
	if memory := ownLimit(t, app, "memory.max", "memory/memory.limit_in_bytes"); memory != "100663296" {
		t.Errorf("memory.max is %s", memory)
	}
	if cgroup2() {
		if quota := ownLimit(t, app, "cpu.max", ""); quota != "80000 100000" {
			t.Errorf("cpu.max is %s", quota)
		}
	}
	app.Stop(t, 0)
	wantNoUnit(t, scopeOf(app))
}

// A slice that a kubelet names by its whole path.
func TestSystemdSliceOfAPod(t *testing.T) {
	n := systemdNode(t)
	pod := n.RunPod(t, "slice", func(c *cri.PodSandboxConfig) {
		c.Linux.CgroupParent = "/berthtest.slice/berthtest-burstable.slice/berthtest-burstable-pod1.slice"
	})
	app := pod.Idle(t, "app")
	want := "/berthtest.slice/berthtest-burstable.slice/berthtest-burstable-pod1.slice/" + scopeOf(app)
	if dir := hostCgroup(t, app); !strings.HasSuffix(dir, want) {
		t.Errorf("the container is in %s, want %s", dir, want)
	}
	config := n.PodConfig("no-slice")
	config.Linux.CgroupParent = "/kubepods/pod1"
	if resp, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config}); err == nil {
		t.Errorf("a parent that is no slice was taken: %s", resp.PodSandboxId)
	}
	pod.Remove(t)
	wantNoUnit(t, "berthtest-burstable-pod1.slice") // the ones above it are those of others

	again := n.RunPod(t, "slice-again", func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/berthtest.slice" })
	app = again.Idle(t, "app")
	systemctl(t, "stop", "berthtest.slice") // as a machine does when it goes down
	app.WaitExit(t)
}

// systemd removes the scope as soon as its last process is gone, and with it the count of what was killed.
func TestSystemdOutOfMemory(t *testing.T) {
	n := systemdNode(t)
	pod := n.RunPod(t, "oom-scope")
	for i := range 8 {
		app := pod.Sh(t, fmt.Sprintf("hungry-%d", i), "exec dd if=/dev/zero of=/dev/null bs=60M", withResources(&cri.LinuxContainerResources{MemoryLimitInBytes: 24 << 20}))
		if s := app.WaitExit(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
			t.Errorf("exit code %d, reason %s", s.ExitCode, s.Reason)
		}
		wantNoUnit(t, scopeOf(app))
	}
	fine := pod.Sh(t, "fine", "exit 3")
	if s := fine.WaitExit(t); s.ExitCode != 3 || s.Reason != "Error" {
		t.Errorf("exit code %d, reason %s of a container that had memory", s.ExitCode, s.Reason)
	}
}

// systemd follows the node from one daemon to the next: stop, restart and kill mean the one that has it.
func TestSystemdFollowsUpgrades(t *testing.T) {
	systemdNode(t) // skips where systemd is not pid 1
	n := ownNode(t)
	unit := fmt.Sprintf("berth-test-upgrade-%d.service", os.Getpid())
	command := n.Hire(t) // the daemon's command line; none runs
	t.Cleanup(func() {
		_ = exec.Command("systemctl", "stop", unit).Run()
		_ = exec.Command("systemctl", "reset-failed", unit).Run()
	})
	out, err := exec.Command("systemd-run", append([]string{
		"--unit", unit, "-p", "Type=notify", "-p", "NotifyAccess=all", "-p", "KillMode=process", "-p", "Restart=always",
		"-p", "RestartSec=100ms", "-p", "Delegate=yes",
		"-p", "ExecReload=" + command[0] + " upgrade --run-dir " + n.RunDir, "--",
	}, command...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-run: %v\n%s", err, out)
	}
	mainPid := func() int {
		pid, err := strconv.Atoi(systemctl(t, "show", unit, "-p", "MainPID", "--value"))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	app := n.RunPod(t, "followed").Idle(t, "app")
	talk := converse(t, n, "exec", "-i", app.ID, "sh", "-c", parrot)
	talk.say(t, "before")
	first := mainPid()
	for range 2 {
		before := mainPid()
		systemctl(t, "reload", unit)
		if pid := mainPid(); pid == before || pid != n.DaemonPid(t) {
			t.Errorf("systemd follows process %d, before %d, and %d has the node", pid, before, n.DaemonPid(t))
		}
		talk.say(t, "after a reload")
	}
	if found := lingering(t, n); len(found) != 1 || !strings.Contains(found[0], fmt.Sprint("process ", first, ",")) {
		t.Errorf("lingering: %q", found)
	}
	// While the first daemon lingers, the end of the present one is seen all the same.
	killed := mainPid()
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "a new daemon", func() error {
		if pid := mainPid(); pid == 0 || pid == killed {
			return fmt.Errorf("systemd follows process %d", pid)
		}
		if out := systemctl(t, "show", unit, "-p", "SubState", "--value"); out != "running" {
			return fmt.Errorf("the unit is %s", out)
		}
		return nil
	})
	talk.say(t, "after a kill")
	if got := app.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
	// A stop of the unit is a stop of all.
	systemctl(t, "stop", unit)
	_ = talk.cmd.Wait() // it ends; what crictl makes of that is its own business
	harness.Eventually(t, 30*time.Second, "the end of the first daemon", func() error {
		if _, err := os.Stat(fmt.Sprint("/proc/", first)); err == nil {
			return fmt.Errorf("process %d is there", first)
		}
		return nil
	})
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
}
