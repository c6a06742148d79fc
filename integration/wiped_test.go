//go:build integration

package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
	"github.com/berth-node/berth/integration/leaks"
)

// wipe removes below the run dir whatever can be unlinked, as systemd-tmpfiles does: what is mounted stays.
func wipe(t *testing.T, n *harness.Node) {
	t.Helper()
	mounted := map[string]bool{}
	below, err := leaks.MountsBelow(n.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range below {
		mounted[point] = true
	}
	var all []string
	err = filepath.WalkDir(n.RunDir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case mounted[path] && d.IsDir():
			return fs.SkipDir
		case path != n.RunDir && !mounted[path]:
			all = append(all, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(all) // what is in a folder before it
	for _, path := range all {
		_ = os.Remove(path) // a folder above a mount stays
	}
}

// awaitDoors waits until all is back in an emptied run dir by which node and keeper are found.
func awaitDoors(t *testing.T, n *harness.Node) {
	t.Helper()
	for _, name := range []string{"berth.lock", "keeper.lock", "keeper.sock", "admin.sock", "cri.sock", "metrics.sock"} {
		harness.Eventually(t, 10*time.Second, name+" to come back", func() error {
			_, err := os.Lstat(filepath.Join(n.RunDir, name))
			return err
		})
	}
}

// oneKeeper fails unless the node has this keeper and no other.
func oneKeeper(t *testing.T, n *harness.Node, pid int) {
	t.Helper()
	out, err := exec.Command("pgrep", "-f", "berth-keeper --run-dir "+n.RunDir+" ").Output()
	if got := strings.Fields(string(out)); err != nil || len(got) != 1 || got[0] != strconv.Itoa(pid) {
		t.Fatalf("keepers %v, %v; want %d alone", got, err, pid)
	}
}

// The run dir is emptied while pods run, again and again: they run on under the same keeper, all doors come back, a next
// daemon finds what runs, new containers start in old pods, and stop and remove leave nothing.
func TestWipedRunDir(t *testing.T) {
	n := ownNode(t)
	all := []*target{newTarget(t, n, "first"), newTarget(t, n, "second", sharePID)}
	keeper := keeperPid(t, n)
	whole := func(when string) {
		t.Helper()
		awaitDoors(t, n)
		oneKeeper(t, n, keeper)
		for _, tg := range all {
			tg.wantAlive(t)
			if t.Failed() {
				t.Fatalf("%s: %s", when, tg.name)
			}
		}
		if said := check(t, n); strings.Contains(said, "emptied") {
			t.Errorf("%s: %s", when, said)
		}
	}
	for _, tg := range all {
		wantCounted(t, tg.app, 3) // a pause process may be on its way to its program yet, which is in the run dir
	}
	wipe(t, n)
	whole("the daemon goes on")
	late := all[0].pod.Sh(t, "late", counter) // needs the pod's files, which are gone for those that run
	wantCounted(t, late, 0)
	n.Restart(t)
	whole("a restart")
	wipe(t, n)
	awaitDoors(t, n)
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	whole("a daemon that was killed")
	all = append(all, newTarget(t, n, "new", sharePID))
	whole("a new pod")
	wantCounted(t, all[2].app, 3)
	// The next keeper in place of this one keeps watch too.
	n.Berth(t, "upgrade")
	wipe(t, n)
	whole("an upgrade")

	// What a stop and a removal need is not in the run dir.
	wipe(t, n)
	all[1].app.Stop(t, 0)
	if s := all[1].app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("a stopped container: %v", s)
	}
	all[1].pod.Remove(t)
}

// It is emptied while no daemon is there: the next one finds the keeper and the pods. What it cannot know any more, it says.
func TestWipedRunDirWithoutDaemon(t *testing.T) {
	n := ownNode(t)
	tg := newTarget(t, n, "old", sharePID)
	keeper := keeperPid(t, n)
	wantCounted(t, tg.app, 3)
	n.Kill9(t)
	wipe(t, n)
	harness.Eventually(t, 10*time.Second, "the keeper's socket to come back", func() error {
		_, err := os.Lstat(filepath.Join(n.RunDir, "keeper.sock"))
		return err
	})
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	oneKeeper(t, n, keeper)
	if s := tg.app.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || containerPid(t, tg.app) != tg.pid {
		t.Errorf("the container: %v", s)
	}
	wantCounted(t, tg.app, 0)
	if said := check(t, n); !strings.Contains(said, n.RunDir+" was emptied: no exec") || !strings.Contains(said, tg.app.ID) {
		t.Errorf("berth check does not say what is lost:\n%s", said)
	}
	newTarget(t, n, "new", sharePID).wantAlive(t)
	late := tg.pod.Sh(t, "late", counter)
	wantCounted(t, late, 0)
	tg.app.Stop(t, 0)
	if s := tg.app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("the stopped container: %v", s)
	}
	tg.pod.Remove(t)
	if said := check(t, n); strings.Contains(said, "emptied") {
		t.Errorf("berth check after the removal:\n%s", said)
	}
}

// It is emptied in the moment in which a pod is ready, or a container started: what was let go then may not be its program yet.
func TestWipedRunDirJustAfterAStart(t *testing.T) {
	n := ownNode(t)
	var pods []*harness.Pod
	var apps []*harness.Container
	for i := range 20 {
		pod := n.RunPod(t, fmt.Sprintf("moment-%d", i), sharePID)
		pods = append(pods, pod)
		wipe(t, n)
		awaitDoors(t, n)
		apps = append(apps, pod.Sh(t, "app", counter))
		wipe(t, n)
		awaitDoors(t, n)
	}
	for i, pod := range pods {
		if s := pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY {
			t.Fatalf("%s is %s", pod.Config.Metadata.Name, s.State)
		}
		if s := apps[i].Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("the container of %s is %v", pod.Config.Metadata.Name, s)
		}
		wantCounted(t, apps[i], 3)
	}
}

// It is emptied while containers are created and not started: whoever dies then, they stay created, and start.
func TestWipedRunDirBeforeAStart(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "waiting")
	var waiting []*harness.Container
	for i := range 4 {
		waiting = append(waiting, pod.Create(t, harness.ContainerConfig(fmt.Sprintf("app-%d", i), images.Tools, "sh", "-c", counter)))
	}
	wipe(t, n)
	awaitDoors(t, n)
	for i, step := range []struct {
		what string
		do   func()
	}{
		{"all go on", func() {}},
		{"another daemon", func() { n.Restart(t) }},
		{"the keeper has died", func() { killKeeper(t, n) }},
		{"keeper and daemon have died", func() {
			n.Kill9(t)
			killKeeper(t, n)
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		step.do()
		for _, c := range waiting[i:] {
			if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_CREATED {
				t.Fatalf("%s: %v", step.what, s)
			}
		}
		waiting[i].Start(t)
		wantCounted(t, waiting[i], 3)
	}
}

// It is emptied, and then the keeper dies, alone or with the daemon: the next one finds the pipes of what runs, though they
// have no names any more.
func TestKeeperDiesInAWipedRunDir(t *testing.T) {
	n := ownNode(t)
	tg := newTarget(t, n, "old")
	cat := tg.pod.Sh(t, "cat", "exec cat", func(c *cri.ContainerConfig) { c.Stdin = true })
	say := func(word string) {
		t.Helper()
		sayTo(t, cat, word, word)
	}
	say("before")
	wipe(t, n)
	awaitDoors(t, n)
	say("wiped")
	lines := len(harness.Texts(tg.app.Log(t), "stdout"))
	for i, withDaemon := range []bool{false, true} {
		keeper := keeperPid(t, n)
		if withDaemon {
			n.Kill9(t)
		}
		if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if withDaemon {
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
		}
		harness.Eventually(t, 20*time.Second, "output after the keeper's death", func() error {
			if got := len(harness.Texts(tg.app.Log(t), "stdout")); got < lines+5 {
				return fmt.Errorf("%d lines, and before %d", got, lines)
			}
			return nil
		})
		if s := tg.app.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || containerPid(t, tg.app) != tg.pid {
			t.Errorf("the container: %v", s)
		}
		say(fmt.Sprintf("again-%d", i))
		lines = len(harness.Texts(tg.app.Log(t), "stdout"))
	}
}
