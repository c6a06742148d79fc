//go:build integration

package pods

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/harness"
)

// log is what the daemons of the node have logged so far.
func (n *node) log() string {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.Dir, "berth.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

func (n *node) awaitLog(words string) {
	n.t.Helper()
	harness.Eventually(n.t, 20*time.Second, "the log has "+words, func() error {
		if !strings.Contains(n.log(), words) {
			return fmt.Errorf("it has not")
		}
		return nil
	})
}

// check is what "berth check" says, and how it ends.
func (n *node) check() (string, error) {
	out, err := exec.Command(filepath.Join(harness.Root(), "bin", "berth"), "check", "--run-dir", n.RunDir).CombinedOutput()
	return string(out), err
}

// same checks that a pod still is the one it was, and none of its containers was started again.
func (n *node) same(before *v1.Pod, after string) {
	n.t.Helper()
	p := n.pod(before.Name)
	if p == nil || p.UID != before.UID || status(p, "main").ContainerID != status(before, "main").ContainerID {
		n.t.Errorf("after %s, %s is not what it was", after, before.Name)
	}
}

// exec runs a command in the container "main" of a pod.
func (n *node) exec(pod string, command ...string) string {
	n.t.Helper()
	args := append([]string{"exec", "-s", strings.TrimPrefix(status(n.awaitReady(pod), "main").ContainerID, "berth://")}, command...)
	ctx, cancel := deadline()
	defer cancel()
	var stderr bytes.Buffer
	cmd := n.Crictl(ctx, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("exec %q in %s: %v %s", command, pod, err, stderr.String())
	}
	return strings.TrimRight(string(out), "\n") // crictl adds some
}

const greeting = `---
apiVersion: v1
kind: ConfigMap
metadata: {name: greeting}
data: {word: %s}
`

const greets = "    env: [{name: WORD, valueFrom: {configMapKeyRef: {name: greeting, key: word}}}]\n"

// A file with several documents, in which things change, break and go.
func TestAFileOfManyDocuments(t *testing.T) {
	n := start(t)
	n.write("all.yaml", podText("one", sleeper, greets)+fmt.Sprintf(greeting, "hello")+"---\n"+podText("two", sleeper))
	one, two := n.awaitReady("one"), n.awaitReady("two")
	if got := n.exec("one", "sh", "-c", "echo $WORD"); got != "hello" {
		t.Errorf("its environment has %q", got)
	}
	n.write("json.json", `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "three"}, "spec": {"terminationGracePeriodSeconds": 1,
		"containers": [{"name": "main", "image": "`+one.Spec.Containers[0].Image+`", "command": ["sleep", "1000"]}]}}`)
	n.awaitReady("three")

	// What cannot be read changes nothing, and says where it is wrong; also to the next daemon.
	n.write("all.yaml", podText("one", sleeper, "    livenesProbe: {}\n"))
	n.awaitLog("all.yaml:11: spec.containers[0].livenesProbe: unknown field")
	if out, err := n.check(); err == nil || !strings.Contains(out, "manifests      "+filepath.Join(n.manifests, "all.yaml")+":11: spec.containers[0].livenesProbe: unknown field") {
		t.Errorf("check: %v\n%s", err, out)
	}
	n.Restart(t)
	n.awaitReady("three")
	n.write("later.yaml", podText("four", sleeper)) // when that runs, the rest has been looked at
	n.awaitReady("four")
	n.same(one, "a broken file")
	n.same(two, "a broken file")

	// Nor does an empty file.
	n.write("all.yaml", "")
	n.awaitLog("all.yaml: it is empty")
	n.same(one, "an empty file")

	// One document of the file goes, and its pod alone.
	n.write("all.yaml", podText("one", sleeper, greets)+fmt.Sprintf(greeting, "hello"))
	n.awaitGone("two")
	n.same(one, "an edit of something else")
	if out, _ := n.check(); strings.Contains(out, "manifests") {
		t.Errorf("check: %s", out)
	}
	n.remove("all.yaml")
	n.awaitGone("one")
	for _, file := range []string{"json.json", "later.yaml"} {
		n.remove(file)
	}
	n.awaitGone("three")
	n.awaitGone("four")
}

// Editors put a new file in the place of the old one; the pod must not notice, but for what was edited.
func TestEditorsRestartNothing(t *testing.T) {
	n := start(t)
	text := podText("p", sleeper)
	path := filepath.Join(n.manifests, "p.yaml")
	n.write("p.yaml", text)
	before := n.awaitReady("p")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for {
		gone := time.Now()
		must(os.Rename(path, path+"~"))
		time.Sleep(100 * time.Millisecond)
		must(os.WriteFile(path, []byte("# vim\n"+text), 0o644))
		must(os.Remove(path + "~"))
		must(os.Remove(path))
		must(os.WriteFile(path, []byte("# git\n"+text), 0o644))
		if time.Since(gone) < time.Second/2 {
			break
		}
		// What is gone for a second is gone, and this program was kept from running for about as long.
		time.Sleep(2 * time.Second)
		before = n.awaitReady("p")
	}
	must(os.Rename(path, filepath.Join(n.manifests, "q.yaml")))
	n.write("other.yaml", podText("other", sleeper))
	n.awaitReady("other")
	time.Sleep(1500 * time.Millisecond) // what was taken for gone would be by now
	n.same(before, "edits")
}

// Two files with one name: the first has it. When it goes the other one has its turn, and there are never two at once
// (kubernetes/kubernetes#104743, #107733).
func TestTwoFilesWithOneName(t *testing.T) {
	n, d := start(t), newDiary(t)
	text := func(word string) string {
		return singleText(d, "    env: [{name: FROM, value: "+word+"}]\n")
	}
	n.write("z.yaml", text("first"))
	before := n.awaitReady("p")
	n.write("a.yaml", text("second"))
	n.awaitLog("a.yaml:1: Pod default/p is declared by " + filepath.Join(n.manifests, "z.yaml") + " already")
	n.Restart(t)
	n.write("other.yaml", podText("other", sleeper))
	n.awaitReady("other")
	n.same(before, "a conflict")
	n.remove("z.yaml")
	n.await("p", "the one of the other file", func(p *v1.Pod) bool {
		return isReady(p) && p.UID != before.UID && p.Spec.Containers[0].Env[0].Value == "second"
	})
	if got := d.notes(t); got != "" {
		t.Errorf("two copies ran at once: %s", got)
	}
}

// A pod that is taken away and declared again while it still ends comes back, when the old one has ended
// (kubernetes/kubernetes#104648, #104847, #113145).
func TestDeclaredAgainWhileItEnds(t *testing.T) {
	n, d := start(t), newDiary(t)
	text := singleText(d)
	n.write("p.yaml", text)
	before := n.awaitReady("p")
	n.remove("p.yaml")
	harness.Eventually(t, 20*time.Second, "it ends", func() error {
		_, err := os.Stat(filepath.Join(d.dir, "ended"))
		return err
	})
	n.write("p.yaml", text)
	n.await("p", "there again", func(p *v1.Pod) bool { return p.UID != before.UID && isReady(p) })
	if got := d.notes(t); got != "" {
		t.Errorf("two copies ran at once: %s", got)
	}
	if all := n.containers("p"); len(all) != 1 {
		t.Errorf("%d containers", len(all))
	}
}

// A folder that is not there when the daemon starts, as on a disk that is mounted late, says nothing of what should run.
func TestTheFolderComesLate(t *testing.T) {
	n := start(t)
	n.write("p.yaml", podText("p", sleeper))
	before := n.awaitReady("p")
	away := n.manifests + ".away"
	n.Kill9(t)
	if err := os.Rename(n.manifests, away); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	n.awaitLog("the folder of manifests cannot be read")
	time.Sleep(2 * time.Second)
	n.same(before, "a start without the folder")
	if err := os.Rename(away, n.manifests); err != nil {
		t.Fatal(err)
	}
	n.write("q.yaml", podText("q", sleeper))
	n.awaitReady("q")
	n.same(before, "the folder's return")
}

func TestFoldersBelow(t *testing.T) {
	n := start(t, "manifestsRecursive: true\n")
	deep := filepath.Join(n.manifests, "team", "app")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	n.write("team/app/p.yaml", podText("p", sleeper))
	before := n.awaitReady("p")
	if err := os.Rename(filepath.Join(n.manifests, "team"), filepath.Join(n.manifests, "crew")); err != nil {
		t.Fatal(err)
	}
	n.write("crew/app/q.yaml", podText("q", sleeper))
	n.awaitReady("q")
	time.Sleep(1500 * time.Millisecond)
	n.same(before, "a folder got another name")
	if err := os.RemoveAll(filepath.Join(n.manifests, "crew")); err != nil {
		t.Fatal(err)
	}
	n.awaitGone("p")
	n.awaitGone("q")
}

// Values that are no text, references to what is not there, and variables within variables.
func TestEnvironmentFromObjects(t *testing.T) {
	n := start(t)
	raw := []byte{0xff, 0xfe, 'x', 0xc3}
	n.write("p.yaml", fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: {name: bytes}
data: {raw: %s}
stringData: {LATE: secret, 1bad: x}
---
`, base64.StdEncoding.EncodeToString(raw))+podText("p", sleeper, `    envFrom:
    - secretRef: {name: bytes}
      prefix: IN_
    - configMapRef: {name: nobody, optional: true}
    env:
    - {name: A, value: a}
    - {name: B, value: $(A)-$(MISSING)-$$(A)-$(C)}
    - {name: C, value: c}
    - {name: D, value: $(IN_LATE)}
    - {name: E, valueFrom: {secretKeyRef: {name: bytes, key: nokey, optional: true}}}
    volumeMounts: [{name: s, mountPath: /s}]
`)+"  volumes: [{name: s, secret: {secretName: bytes, items: [{key: raw, path: raw}]}}]\n")
	n.awaitReady("p")
	if got := n.exec("p", "sh", "-c", `echo "$B $D [${E-unset}]"`); got != "a-$(MISSING)-$(A)-$(C) secret [unset]" {
		t.Errorf("the environment has %q", got)
	}
	for what, script := range map[string]string{"file": "base64 /s/raw", "variable": `printf %s "$IN_raw" | base64`} {
		if got := n.exec("p", "sh", "-c", script); got != base64.StdEncoding.EncodeToString(raw) {
			t.Errorf("the %s has %q", what, got)
		}
	}
	if st, err := os.Stat(filepath.Join(n.RootDir, "kubelet", "objects")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("what is declared rests as %v, %v", st.Mode(), err)
	}
}

// A node whose pods only run waits for events: the daemon wakes up no more often than with none. A poll of upstream's shortest
// kind, ten times a second, would show for each pod.
func TestPodsThatRunCostNoPolls(t *testing.T) {
	const pods, seconds = 8, 4
	n := start(t)
	idle := n.wakeups(seconds)
	for i := range pods {
		n.write(fmt.Sprintf("p%d.yaml", i), podText(fmt.Sprintf("p%d", i), sleeper))
	}
	for i := range pods {
		n.awaitReady(fmt.Sprintf("p%d", i))
	}
	time.Sleep(2 * time.Second) // what follows from a start has been done
	// A collection of garbage, or what is done once a minute, falls into one such time or another; a poll into each.
	harness.Eventually(t, 10*seconds*time.Second, "rest", func() error {
		if busy := n.wakeups(seconds); busy-idle > pods*seconds {
			return fmt.Errorf("in %d s the daemon woke up %d times with %d pods, %d times without", seconds, busy, pods, idle)
		}
		return nil
	})
}

// wakeups counts how often the threads of the daemon gave the processor away of themselves in some seconds.
func (n *node) wakeups(seconds int) int {
	n.t.Helper()
	count := func() (sum int) {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", n.Pid()))
		if err != nil {
			n.t.Fatal(err)
		}
		for _, file := range files {
			text, _ := os.ReadFile(file)
			for line := range strings.Lines(string(text)) {
				if value, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
					number, _ := strconv.Atoi(strings.TrimSpace(value))
					sum += number
				}
			}
		}
		return sum
	}
	before := count()
	time.Sleep(time.Duration(seconds) * time.Second)
	return count() - before
}

// What is applied rests for root alone, over a restart of the daemon too; a Secret is on a tmpfs in its pod. A file that declares the
// same waits until it is deleted.
func TestAppliedObjects(t *testing.T) {
	n := start(t)
	const word = "c2VzYW1lLWFwcGxpZWQ=" // sesame-applied
	file := filepath.Join(t.TempDir(), "mine.yaml")
	text := "apiVersion: v1\nkind: Secret\nmetadata: {name: key}\ndata: {word: " + word + "}\n---\n" +
		podText("p", sleeper, "    volumeMounts: [{name: key, mountPath: /key}]\n") + "  volumes: [{name: key, secret: {secretName: key}}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Berth(t, "apply", "-f", file)
	before := n.awaitReady("p")
	if got := n.exec("p", "sh", "-c", "cat /key/word; echo; grep ' /key ' /proc/mounts | cut -d' ' -f3"); got != "sesame-applied\ntmpfs" {
		t.Errorf("the secret is %q", got)
	}
	found := 0
	err := filepath.WalkDir(filepath.Join(n.RootDir, "kubelet"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(content, []byte(word)) && !bytes.Contains(content, []byte("sesame-applied")) {
			return err
		}
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		var fs syscall.Statfs_t
		if err := syscall.Statfs(path, &fs); err != nil || fs.Type == 0x01021994 { // a tmpfs: that of the pod
			return err
		}
		found++
		if st.Mode().Perm() != 0o600 || !strings.HasPrefix(path, filepath.Join(n.RootDir, "kubelet", "objects")) {
			t.Errorf("the secret is in %s, mode %v", path, st.Mode())
		}
		return nil
	})
	if err != nil || found != 1 {
		t.Errorf("the secret rests in %d files, %v", found, err)
	}
	n.Restart(t)
	n.write("p.yaml", podText("p", "exec sleep 1000"))
	n.awaitLog("p.yaml:1: Pod default/p is declared by berth apply already")
	n.same(before, "a file that declares the same")
	n.Berth(t, "delete", "-f", file)
	n.await("p", "that of the file", func(p *v1.Pod) bool { return p.UID != before.UID && isReady(p) && len(p.Spec.Volumes) == 0 })
}
