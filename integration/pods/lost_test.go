//go:build integration

package pods

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// A container whose end nobody saw, because daemon and keeper were both gone, has failed as far as a pod can know: it says so, is
// counted, and begins anew if it is to, once. It does not in a pod that never restarts.
func TestEndsThatNobodySaw(t *testing.T) {
	n := start(t)
	n.write("always.yaml", podText("always", sleeper))
	n.write("never.yaml", podText("never", sleeper)+"  restartPolicy: Never\n")
	n.write("other.yaml", podText("other", sleeper))
	other := n.awaitReady("other")
	before := map[string]*v1.Pod{"always": n.awaitReady("always"), "never": n.awaitReady("never")}
	pids := map[string]int{}
	for name := range before {
		pids[name] = n.initOf(name)
	}
	n.Kill9(t)
	for _, pid := range n.processes(nil) { // keeper and launchers
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	// As long as nobody has reaped them, the kernel can still tell of their ends, and does tell the next keeper.
	harness.Eventually(t, 20*time.Second, "their ends to be reaped", func() error {
		for name, pid := range pids {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("%d of %s: %v", pid, name, err)
			}
		}
		return nil
	})
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	lost := func(e *v1.ContainerStateTerminated) bool {
		return e != nil && e.Reason == "Unknown" && e.ExitCode == 255 && e.Message == "the container ended while nobody could see how"
	}
	p := n.await("always", "running again", func(p *v1.Pod) bool { return isReady(p) && status(p, "main").RestartCount > 0 })
	if s := status(p, "main"); p.UID != before["always"].UID || s.RestartCount != 1 || !lost(s.LastTerminationState.Terminated) {
		t.Errorf("it runs as %+v", s)
	}
	p = n.awaitPhase("never", v1.PodFailed)
	if s := status(p, "main"); s.RestartCount != 0 || !lost(s.State.Terminated) {
		t.Errorf("it ended as %+v", s)
	}
	if all := n.containers("never"); len(all) != 1 {
		t.Errorf("%d containers", len(all))
	}
	n.same(other, "the end of its keeper")
}

// initOf is the first process of a pod's container.
func (n *node) initOf(pod string) int {
	n.t.Helper()
	resp, err := n.Runtime.ContainerStatus(harness.Ctx(n.t), &cri.ContainerStatusRequest{ContainerId: n.containers(pod)[0].Id, Verbose: true})
	if err != nil {
		n.t.Fatal(err)
	}
	var info struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil || info.Pid == 0 {
		n.t.Fatal(resp.Info, err)
	}
	return info.Pid
}
