//go:build integration

package pods

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/harness"
)

func failed(reason, message string) func(*v1.Pod) bool {
	return func(p *v1.Pod) bool {
		return p.Status.Phase == v1.PodFailed && p.Status.Reason == reason && strings.Contains(p.Status.Message, message)
	}
}

func running(p *v1.Pod) bool {
	return p.Status.Phase == v1.PodRunning && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready
}

// A disk that fills costs the pod that fills it, and no other; when there is room again it comes back.
func TestDiskPressure(t *testing.T) {
	n := startOn(t, []harness.Tmpfs{{Path: "root", Options: "size=200m"}},
		"  evictionHard: {nodefs.available: 25%, imagefs.available: 0%, nodefs.inodesFree: 0%, imagefs.inodesFree: 0%, memory.available: 0%}\n  evictionPressureTransitionPeriod: 1s\n")
	n.write("modest.yaml", podText("modest", sleeper))
	n.await("modest", "running", running)
	const fills = "[ -e /shared/full ] || { touch /shared/full; dd if=/dev/zero of=/data/file bs=1M count=160; }; " + sleeper
	shared := t.TempDir()
	volumes := fmt.Sprintf("    volumeMounts: [{name: data, mountPath: /data}, {name: shared, mountPath: /shared}]\n  volumes: [{name: data, emptyDir: {}}, {name: shared, hostPath: {path: %s}}]\n", shared)
	n.write("filler.yaml", podText("filler", fills, volumes))
	first := n.await("filler", "evicted", failed("Evicted", "The node was low on resource: ephemeral-storage. Threshold quantity: "))
	if got := disruption(first); got != "TerminationByKubelet: "+first.Status.Message {
		t.Errorf("DisruptionTarget is %q", got)
	}
	again := n.await("filler", "running again", running)
	if again.UID == first.UID {
		t.Error("an evicted pod goes on with its UID")
	}
	if p := n.pod("modest"); !running(p) || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the other pod: %v", p.Status)
	}
}

// disruption is what the condition DisruptionTarget says.
func disruption(p *v1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.DisruptionTarget && c.Status == v1.ConditionTrue {
			return c.Reason + ": " + c.Message
		}
	}
	return ""
}

// A volume that grows above its limit ends its pod.
func TestEmptyDirLimit(t *testing.T) {
	n := start(t)
	n.write("filler.yaml", podText("filler", "dd if=/dev/zero of=/data/file bs=1M count=3; "+sleeper,
		"    volumeMounts: [{name: data, mountPath: /data}]\n  volumes: [{name: data, emptyDir: {sizeLimit: 2Mi}}]\n"))
	n.await("filler", "evicted", failed("Evicted", `Usage of EmptyDir volume "data" exceeds the limit "2Mi". `))
}

// What it writes to its /etc/hosts and as its last words counts too (CVE-2020-8557).
func TestEphemeralStorageLimit(t *testing.T) {
	n := start(t)
	for name, file := range map[string]string{"hosts": "/etc/hosts", "words": "/dev/termination-log"} {
		n.write(name+".yaml", podText(name, "dd if=/dev/zero of="+file+" bs=1M count=3; "+sleeper, "    resources: {limits: {ephemeral-storage: 2Mi}}\n"))
		n.await(name, "evicted", failed("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "))
	}
}

// Too few processes that may yet begin cost pods too, and what the node counts is the kernel's number of tasks.
func TestProcessPressure(t *testing.T) {
	n := start(t)
	config := func(least string) string {
		return n.config("  evictionHard: {pid.available: " + least + ", memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}\n  evictionPressureTransitionPeriod: 1s\n")
	}
	n.write("p.yaml", podText("p", sleeper))
	n.awaitReady("p")
	n.Reconfigure(t, config("1G"))
	p := n.await("p", "evicted or refused", failed("Evicted", "pids"))
	var least string
	var available int
	if _, err := fmt.Sscanf(p.Status.Message, "The node was low on resource: pids. Threshold quantity: %s available: %d.", &least, &available); err != nil || least != "1G," {
		t.Fatalf("%q: %v", p.Status.Message, err)
	}
	if got := n.berth().ok(t, "get", "node", "self", "-o", "jsonpath={.status.conditions[?(@.type=='PIDPressure')].status}"); got != "True" {
		t.Errorf("PIDPressure is %q", got)
	}
	most := min(numberIn(t, "/proc/sys/kernel/pid_max"), numberIn(t, "/proc/sys/kernel/threads-max"))
	if now := numberIn(t, "/proc/loadavg"); most-available < 1 || most-available > 10*now { // they come and go
		t.Errorf("%d tasks by %q; now there are %d", most-available, p.Status.Message, now)
	}
	n.Reconfigure(t, config("0%"))
	n.awaitReady("p")
}

// Too few files that may yet be made cost the pod that has made them.
func TestInodePressure(t *testing.T) {
	n := startOn(t, []harness.Tmpfs{{Path: "root", Options: "size=200m,nr_inodes=20000"}},
		"  evictionHard: {nodefs.inodesFree: 25%, nodefs.available: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%, memory.available: 0%}\n  evictionPressureTransitionPeriod: 1s\n")
	n.write("modest.yaml", podText("modest", sleeper))
	n.await("modest", "running", running)
	shared := t.TempDir()
	const fills = "[ -e /shared/full ] || { touch /shared/full; cd /data; i=0; while [ $i -lt 16000 ]; do : > $i; i=$((i+1)); done; }; " + sleeper
	n.write("filler.yaml", podText("filler", fills, fmt.Sprintf("    volumeMounts: [{name: data, mountPath: /data}, {name: shared, mountPath: /shared}]\n"+
		"  volumes: [{name: data, emptyDir: {}}, {name: shared, hostPath: {path: %s}}]\n", shared)))
	first := n.await("filler", "evicted", failed("Evicted", "The node was low on resource: inodes. Threshold quantity: "))
	if again := n.await("filler", "running again", running); again.UID == first.UID {
		t.Error("an evicted pod goes on with its UID")
	}
	if p := n.pod("modest"); !running(p) || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the other pod: %v", p.Status)
	}
}

// Too little memory costs first the pod that has most of it beyond what it asked for. As long as there is too little, no pod
// begins that asks for none.
func TestMemoryPressure(t *testing.T) {
	n := start(t)
	config := func(least string) string {
		return n.config("  evictionHard: {memory.available: " + least + ", nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}\n  evictionPressureTransitionPeriod: 1s\n")
	}
	n.write("large.yaml", podText("large", "dd if=/dev/zero of=/data/file bs=1M count=64; touch /tmp/done; "+sleeper,
		"    readinessProbe: {periodSeconds: 1, exec: {command: [test, -e, /tmp/done]}}\n    volumeMounts: [{name: data, mountPath: /data}]\n  volumes: [{name: data, emptyDir: {medium: Memory}}]\n"))
	n.write("small.yaml", podText("small", sleeper))
	n.awaitReady("large")
	n.awaitReady("small")
	n.Reconfigure(t, config("99.9%")) // which no machine has
	n.await("large", "evicted", failed("Evicted", "memory"))
	if got := n.berth().ok(t, "get", "node", "self", "-o", "jsonpath={.status.conditions[?(@.type=='MemoryPressure')].status}"); got != "True" {
		t.Errorf("MemoryPressure is %q", got)
	}
	n.write("late.yaml", podText("late", sleeper))
	n.await("late", "refused", failed("Evicted", "The node had condition: [MemoryPressure]. "))
	n.await("small", "evicted", failed("Evicted", "memory"))
	var evicted []string
	for line := range strings.Lines(n.berth().ok(t, "events", "-A", "--types", "Warning")) {
		if strings.Contains(line, "The node was low on resource: memory. Threshold quantity: ") {
			evicted = append(evicted, strings.Join(strings.Fields(line)[3:5], " "))
		}
	}
	if got := strings.Join(evicted, ", "); got != "Evicted Pod/large, Evicted Pod/small" {
		t.Errorf("events of %s", got)
	}
	n.Reconfigure(t, config("0%"))
	for _, pod := range []string{"large", "small", "late"} {
		n.awaitReady(pod)
	}
}

// numberIn reads a file with one number, or the number of tasks in loadavg.
func numberIn(t *testing.T, file string) int {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	number := strings.TrimSpace(string(text))
	if _, tasks, found := strings.Cut(number, "/"); found {
		number, _, _ = strings.Cut(tasks, " ")
	}
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
