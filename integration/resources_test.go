//go:build integration

package integration

import (
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
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

func TestOOMScore(t *testing.T) {
	app := sharedNode(t).RunPod(t, "scores").Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: 321}
	})
	if got := app.Exec(t, "cat", "/proc/1/oom_score_adj"); got != "321" {
		t.Errorf("oom_score_adj: %s", got)
	}
}
