//go:build integration

package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/harness"
)

// reboot takes from a node what a reboot takes: its processes, its mounts and its run dir.
func (n *node) reboot() {
	n.t.Helper()
	pods := n.pods()
	n.Kill9(n.t)
	for _, dir := range []string{n.RunDir, "/run/netns"} {
		for _, pid := range n.processes(pods) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, mount := range mountsBelow(n.t, dir) {
			if slices.Contains(n.foreign, mount) {
				continue
			}
			if err := syscall.Unmount(mount, syscall.MNT_DETACH); err != nil {
				n.t.Fatalf("%s: %v", mount, err)
			}
		}
	}
	entries, err := os.ReadDir(n.RunDir)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(n.RunDir, e.Name())); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := n.Start(); err != nil {
		n.t.Fatal(err)
	}
}

// processes are the node's keeper and launchers, and all that runs in the cgroups of these pods.
func (n *node) processes(pods []*v1.Pod) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		args, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		groups, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if strings.Contains(string(args), n.RunDir) && pid != os.Getpid() || slices.ContainsFunc(pods, func(p *v1.Pod) bool {
			uid := string(p.UID)
			return strings.Contains(string(groups), uid) || strings.Contains(string(groups), strings.ReplaceAll(uid, "-", "_")) // as systemd's slices have it
		}) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// mountsBelow are the mount points below a folder, the last first.
func mountsBelow(t testing.TB, dir string) (all []string) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			all = append([]string{at}, all...)
		}
	}
	return all
}

func TestAfterAReboot(t *testing.T) {
	n, d := start(t, quick), newDiary(t)
	n.write("p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"+d.volume()+"  initContainers:\n"+
		strings.ReplaceAll(noted("init"), "while :; do sleep 1000 & wait; done", "true")+"  containers:\n"+noted("main"))
	n.write("never.yaml", podText("never", sleeper)+"  restartPolicy: Never\n")
	n.write("done.yaml", podText("done", "true")+"  restartPolicy: Never\n")
	before := n.awaitReady("p")
	d.await(t, "init main")
	n.awaitReady("never")
	n.awaitPhase("done", v1.PodSucceeded)
	n.reboot()
	harness.Eventually(t, 30*time.Second, "p runs again", func() error {
		p := n.pod("p")
		if p == nil || !isReady(p) || status(p, "main").RestartCount != 1 || status(p, "init").RestartCount != 1 {
			return fmt.Errorf("%+v", p)
		}
		if p.UID != before.UID {
			return fmt.Errorf("it is another one")
		}
		return nil
	})
	d.await(t, "init main init main")
	n.awaitPhase("never", v1.PodFailed)
	if p := n.awaitPhase("done", v1.PodSucceeded); status(p, "main").RestartCount != 0 {
		t.Error("what was done ran again")
	}
}
