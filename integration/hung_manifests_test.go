//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// manifest is a pod that runs until it is told to end.
func manifest(name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n"+
		"  - {name: main, image: %s, command: [sh, -c, \"trap 'exit 0' TERM; while :; do sleep 1000 & wait; done\"]}\n", name, images.Tools)
}

// A folder of manifests that does not answer keeps nobody of the daemon: what it declared is looked after, also by a daemon that starts
// meanwhile; others are applied; the log and "berth check" say what is the matter. When it answers, what is new in it counts.
func TestManifestsOnAHungMount(t *testing.T) {
	m := mountHung(t)
	m.put("one.yaml", manifest("one"))
	dir := t.TempDir()
	n := ownNode(t, func(o *harness.Options) {
		o.Flags = []string{"--manifests", m.dir}
		o.Config = fmt.Sprintf("manifestsRescan: 1s\nkubelet:\n  nodeName: self\n  podLogsDir: %s\n"+
			"  evictionHard: {memory.available: 0%%, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%, imagefs.inodesFree: 0%%}\n", filepath.Join(dir, "logs"))
	})
	berth := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(20*time.Second))
		defer cancel()
		out, err := exec.CommandContext(ctx, filepath.Join(harness.Root(), "bin", "berth"), append([]string{args[0], "--run-dir", n.RunDir}, args[1:]...)...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	eventually := func(what, want string, args ...string) {
		t.Helper()
		harness.Eventually(t, 40*time.Second, what, func() error {
			out, err := berth(args...)
			if !strings.Contains(out, want) {
				return fmt.Errorf("%s, %v", out, err)
			}
			return nil
		})
	}
	ready := func(pod, restarts string) {
		t.Helper()
		eventually(pod+" is ready", "true "+restarts, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount}")
	}
	id := func(pod string) string {
		t.Helper()
		out, err := berth("get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
		if err != nil {
			t.Fatal(out, err)
		}
		return out
	}

	ready("one", "0")
	before := id("one")
	m.hang()
	n.Restart(t)
	ready("one", "0")
	if after := id("one"); after != before {
		t.Errorf("the container was %s, and is %s", before, after)
	}
	eventually("the fault is shown", m.dir+": the folder cannot be read: ", "check")
	// It is looked after: what ends begins anew.
	_, _ = berth("exec", "one", "--", "kill", "1") // which may end with the container
	ready("one", "1")
	file := filepath.Join(dir, "applied.yaml")
	if err := os.WriteFile(file, []byte(manifest("applied")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := berth("apply", "-f", file); err != nil {
		t.Fatal(out, err)
	}
	ready("applied", "0")
	if stuck := stuckThreads(t, n.Pid()); stuck != "" {
		t.Errorf("threads of the daemon stand in the kernel:\n%s", stuck)
	}
	before = id("one")

	m.put("two.yaml", manifest("two"))
	m.revive()
	ready("two", "0")
	ready("one", "1")
	if after := id("one"); after != before {
		t.Errorf("the container was %s, and is %s", before, after)
	}
	harness.Eventually(t, 20*time.Second, "nothing is wrong any more", func() error {
		if out, _ := berth("check"); strings.Contains(out, "manifests ") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	text, err := os.ReadFile(filepath.Join(n.Dir, "berth.log"))
	if err != nil || strings.Count(string(text), "the folder of manifests cannot be read") != 1 || !strings.Contains(string(text), "the folder of manifests can be read again") {
		t.Errorf("the log does not say so once: %v\n%s", err, text)
	}
	if out, err := berth("delete", "pod", "applied"); err != nil {
		t.Error(out, err)
	}

	// Who waits for an answer ends when he is told to.
	m.hang()
	harness.Eventually(t, 20*time.Second, "a look to hang", func() error {
		if m.waiting() == 0 {
			return errors.New("none does")
		}
		return nil
	})
	n.Restart(t)
	m.revive()
	ready("two", "0")
	harness.Eventually(t, 20*time.Second, "the helpers to end", func() error {
		if left := processesWith("berth-lookup"); len(left) > 1 { // one may be at work
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}
