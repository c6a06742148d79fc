//go:build integration

package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

func TestOutOfMemoryIsTheReason(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "oom")
	app := pod.Sh(t, "hungry", "dd if=/dev/zero of=/dev/null bs=60M", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 24 << 20, MemorySwapLimitInBytes: 24 << 20}
	})
	if s := app.WaitExit(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("exit code %d, reason %s", s.ExitCode, s.Reason)
	}
	killed := pod.Idle(t, "killed")
	killed.Exec(t, "sh", "-c", "kill -9 1 || true") // pid 1 of its own namespace: the kernel refuses
	killed.Stop(t, 0)
	if s := killed.Status(t); s.Reason == "OOMKilled" {
		t.Error("a container that was stopped is said to have run out of memory")
	}
}

func TestUpdateResources(t *testing.T) {
	n := sharedNode(t)
	app := n.RunPod(t, "resize").Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 100 << 20}
	})
	update := &cri.LinuxContainerResources{CpuShares: 1024, CpuQuota: 80000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}
	if _, err := n.Runtime.UpdateContainerResources(harness.Ctx(t), &cri.UpdateContainerResourcesRequest{ContainerId: app.ID, Linux: update}); err != nil {
		t.Fatal(err)
	}
	got := app.Status(t).GetResources().GetLinux()
	if got.GetCpuQuota() != 80000 || got.GetMemoryLimitInBytes() != 64<<20 || got.GetCpuShares() != 1024 {
		t.Errorf("status tells of %v", got)
	}
	// The container sees its own cgroup, whichever version it is.
	memory := app.Exec(t, "sh", "-c", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true")
	cpu := app.Exec(t, "sh", "-c", "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null; true")
	if err := wantIn(memory, "67108864"); err != nil {
		t.Error(err)
	}
	if err := wantIn(cpu, "80000"); err != nil {
		t.Error(err)
	}
}

func TestCPULimitBinds(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "limits")
	busy := pod.Sh(t, "busy", "while :; do :; done", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 100000}
	})
	usage := func() (time.Duration, time.Time) {
		resp, err := pod.Node.Runtime.ContainerStats(harness.Ctx(t), &cri.ContainerStatsRequest{ContainerId: busy.ID})
		if err != nil {
			t.Fatal(err)
		}
		cpu := resp.GetStats().GetCpu()
		return time.Duration(cpu.GetUsageCoreNanoSeconds().GetValue()), time.Unix(0, cpu.GetTimestamp())
	}
	used, at := usage()
	time.Sleep(2 * time.Second)
	more, later := usage()
	if share := float64(more-used) / float64(later.Sub(at)); share > 0.35 || share < 0.01 {
		t.Errorf("with a limit of 0.2 CPUs it used %.2f", share)
	}
}

func TestPidLimitBinds(t *testing.T) {
	if !cgroup2() {
		t.Skip("the CRI can set pids.max on cgroup v2 alone")
	}
	few := sharedNode(t).RunPod(t, "pids").Idle(t, "few", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{Unified: map[string]string{"pids.max": "8"}}
	})
	resp, err := few.ExecSync(harness.Ctx(t), 0, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 30 & done")
	if err == nil && !strings.Contains(string(resp.Stderr), "Resource temporarily unavailable") {
		t.Errorf("nine more processes in a cgroup of eight: %v", resp)
	}
}

func cgroup2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

func TestOOMScore(t *testing.T) {
	app := sharedNode(t).RunPod(t, "scores").Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: 321}
	})
	if got := app.Exec(t, "cat", "/proc/1/oom_score_adj"); got != "321" {
		t.Errorf("oom_score_adj: %s", got)
	}
}
