//go:build integration

package pods

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/images"
)

// TestEphemeralContainers edits them into the manifest of a pod that runs: one sees the processes of the container that it is aimed
// at, and comes and goes without the others' noticing.
func TestEphemeralContainers(t *testing.T) {
	n := start(t, quick)
	text := podText("p", "trap 'exit 0' TERM; echo the target > /tmp/mark; while :; do sleep 4242 & wait; done",
		"    readinessProbe: {periodSeconds: 1, timeoutSeconds: 20, exec: {command: [test, -e, /tmp/mark]}}\n")
	debugger := func(name, script, more string) string {
		return fmt.Sprintf("  - {name: %s, image: %s, command: [sh, -c, %q]%s}\n", name, images.Tools, script, more)
	}
	n.write("p.yaml", text)
	before := n.awaitReady("p")
	same := func(p *v1.Pod) {
		t.Helper()
		a, b := status(before, "main"), status(p, "main")
		if p.UID != before.UID || a.ContainerID != b.ContainerID || b.RestartCount != 0 || p.Status.Phase != v1.PodRunning || !isReady(p) {
			t.Errorf("the pod was disturbed: %+v", p.Status)
		}
	}

	text += "  ephemeralContainers:\n" + debugger("look",
		"cat /proc/1/root/tmp/mark; until grep -qa [4]242 /proc/[0-9]*/cmdline; do sleep 0.1; done; echo saw it; exit 3", ", targetContainerName: main")
	n.write("p.yaml", text)
	p := n.await("p", "looked at", func(p *v1.Pod) bool { return status(p, "look").State.Terminated != nil })
	if e := status(p, "look").State.Terminated; e.ExitCode != 3 || e.Reason != "Error" {
		t.Errorf("it ended as %+v", e)
	}
	if p.Generation != before.Generation+1 {
		t.Errorf("generation %d became %d", before.Generation, p.Generation)
	}
	same(p)
	wants(t, "its log", n.berth().ok(t, "logs", "p", "-c", "look"), "^the target\nsaw it\n$")
	wants(t, "the log by kubectl", n.kubectl().ok(t, "logs", "p", "-c", "look"), "^the target\nsaw it\n$")

	// One without a target has its own processes, and can be talked to; the one before it stays as it ended.
	n.write("p.yaml", text+debugger("alone", sleeper, ""))
	p = n.await("p", "looked at by another", func(p *v1.Pod) bool { return status(p, "alone").State.Running != nil })
	if s := status(p, "look"); s.State.Terminated == nil || s.RestartCount != 0 {
		t.Errorf("the first is %+v after %d restarts", s.State, s.RestartCount)
	}
	same(p)
	if got := n.sh("p", "alone", "grep -la [4]242 /proc/[0-9]*/cmdline || echo nothing"); got != "nothing" {
		t.Errorf("it sees %q", got)
	}
	if got := n.sh("p", "alone", "hostname"); got != "p" {
		t.Errorf("it is in the pod of the name %q", got)
	}

	// What it is today goes on with the next daemon, and it ends with the pod.
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	p = n.awaitReady("p")
	same(p)
	if a, b := status(p, "alone"), status(p, "look"); a.State.Running == nil || b.State.Terminated == nil || a.RestartCount+b.RestartCount != 0 {
		t.Errorf("after the daemon they are %+v", p.Status.EphemeralContainerStatuses)
	}
	n.remove("p.yaml")
	n.awaitGone("p")
}

// TestNoOtherDoorForEphemeralContainers has kubectl debug be told where a pod is changed.
func TestNoOtherDoorForEphemeralContainers(t *testing.T) {
	n := start(t)
	n.write("p.yaml", podText("p", sleeper))
	before := n.awaitReady("p")
	_, errOut, code := n.kubectl().run(t, "", "debug", "p", "--image", images.Tools, "--", "true")
	if code == 0 || !strings.Contains(errOut, "an object is changed where it is declared: edit its file, or change it with berth apply") {
		t.Errorf("kubectl debug: %d, %q", code, errOut)
	}
	if p := n.pod("p"); p == nil || p.UID != before.UID || len(p.Spec.EphemeralContainers) != 0 {
		t.Error("it changed the pod")
	}
}
