//go:build integration

package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
)

// single runs a script in which two copies of it would find each other, and which takes its time to end. It has the lock when it
// minds signals: who is told to end before, and does not hear it, would leave the lock behind.
const single = "trap 'echo ends >> /diary/ended; sleep 1; rmdir /diary/lock; exit 0' TERM; mkdir /diary/lock || echo two >> /diary/notes; while :; do sleep 1000 & wait; done"

// singleText is a pod of that script. It is ready when it has the lock, and has long enough to give it back.
func singleText(d diary, more ...string) string {
	text := podText("p", single, diaryMount, "    readinessProbe: {periodSeconds: 1, timeoutSeconds: 20, exec: {command: [test, -d, /diary/lock]}}\n", strings.Join(more, ""), d.volume())
	return strings.Replace(text, "terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: 30", 1)
}

func TestAnEditReplacesInOrder(t *testing.T) {
	n, d := start(t), newDiary(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	text := func(edit int) string {
		return singleText(d, fmt.Sprintf("    env: [{name: EDIT, value: '%d'}]\n    ports: [{containerPort: 80, hostPort: %d}]\n", edit, port))
	}
	n.write("p.yaml", text(0))
	before := n.awaitReady("p")
	for edit := range 3 {
		n.write("p.yaml", text(edit+1))
		harness.Eventually(t, 20*time.Second, "the edit is there", func() error {
			p := n.pod("p")
			if p == nil || p.UID == before.UID || !isReady(p) {
				return fmt.Errorf("not yet")
			}
			if got := p.Spec.Containers[0].Env[0].Value; got != fmt.Sprint(edit+1) {
				return fmt.Errorf("EDIT=%s", got)
			}
			before = p
			return nil
		})
	}
	if got := d.notes(t); got != "" {
		t.Errorf("two copies ran at once: %s", got)
	}
	if all := n.containers("p"); len(all) != 1 {
		t.Errorf("%d containers", len(all))
	}
	// What means the same changes nothing.
	n.write("p.yaml", "# a comment\n"+strings.ReplaceAll(text(3), "kind: Pod", "kind:   Pod"))
	n.write("later.yaml", podText("later", sleeper)) // when that runs, the rest has been looked at
	n.awaitReady("later")
	if p := n.awaitReady("p"); p.UID != before.UID || status(p, "main").RestartCount != 0 {
		t.Error("a comment restarted the pod")
	}
}

func TestPodsOutliveTheDaemon(t *testing.T) {
	n := start(t)
	n.write("p.yaml", podText("p", sleeper, "    readinessProbe: {exec: {command: ['true']}}\n    livenessProbe: {exec: {command: ['true']}}\n"))
	before := n.awaitReady("p")
	for _, replace := range []func(){
		func() { n.Restart(t) },
		func() {
			n.Kill9(t)
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
		},
		func() { n.Berth(t, "upgrade") },
	} {
		replace()
		time.Sleep(500 * time.Millisecond)
		after := n.awaitReady("p")
		if after.UID != before.UID || status(after, "main").ContainerID != status(before, "main").ContainerID {
			t.Errorf("it was restarted")
		}
		for i, c := range after.Status.Conditions {
			if c != before.Status.Conditions[i] {
				t.Errorf("condition %+v was %+v", c, before.Status.Conditions[i])
			}
		}
	}
	// A pod whose file went while nobody looked goes with the next daemon, and what came starts.
	n.Kill9(t)
	n.remove("p.yaml")
	n.write("q.yaml", podText("q", sleeper))
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	n.awaitReady("q")
	n.awaitGone("p")
}

func TestADamagedRecordEndsNothing(t *testing.T) {
	for _, file := range []string{"pod.json", "state.json"} {
		t.Run(file, func(t *testing.T) {
			n := start(t)
			n.write("p.yaml", podText("p", sleeper))
			before := n.awaitReady("p")
			n.Kill9(t)
			if err := os.WriteFile(filepath.Join(n.RootDir, "kubelet", "pods", string(before.UID), file), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
			if after := n.awaitReady("p"); after.UID != before.UID || status(after, "main").ContainerID != status(before, "main").ContainerID {
				t.Errorf("it was restarted")
			}
		})
	}
}

// A daemon that is killed while it replaces a file leaves the new one under a name of its own, which the next removes.
func TestWhatAKilledDaemonWasWritingGoes(t *testing.T) {
	n := start(t)
	n.write("p.yaml", podText("p", sleeper))
	p := n.awaitReady("p")
	n.Kill9(t)
	var left []string
	for _, path := range []string{"pki/token", "objects/files/x.json", "images/x", "pods/" + string(p.UID) + "/state.json", "events.json"} {
		left = append(left, filepath.Join(n.RootDir, "kubelet", filepath.Dir(path), "."+filepath.Base(path)+".1x2y3z"))
	}
	left = append(left, filepath.Join(n.RunDir, ".kubeconfig.1x2y3z"))
	for _, path := range left {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	n.same(p, "a kill")
	for _, path := range left {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

func TestAPodThatNobodyKnowsGoes(t *testing.T) {
	n := start(t)
	n.write("p.yaml", podText("p", sleeper))
	p := n.awaitReady("p")
	n.Kill9(t)
	if err := os.RemoveAll(filepath.Join(n.RootDir, "kubelet", "pods", string(p.UID), "pod.json")); err != nil {
		t.Fatal(err)
	}
	n.remove("p.yaml")
	if err := os.RemoveAll(filepath.Join(n.RootDir, "kubelet", "objects")); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	n.awaitGone("p")
}

func TestDrainAndAgain(t *testing.T) {
	n, d := start(t), newDiary(t)
	n.write("p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"+d.volume()+"  containers:\n"+noted("main"))
	before := n.awaitReady("p")
	d.await(t, "main")
	if out := n.Berth(t, "drain"); !strings.Contains(out, "removed pod default/p") {
		t.Errorf("drain says %q", out)
	}
	if got := d.notes(t); got != "main main-end" {
		t.Errorf("it ended as %q", got)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if after := n.awaitReady("p"); after.UID == before.UID {
		t.Error("it has the UID of before")
	}
}
