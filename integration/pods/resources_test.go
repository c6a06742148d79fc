//go:build integration

package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/capability"
	v1 "k8s.io/api/core/v1"
)

// podLimit reads a limit of a pod's cgroup: by controller and file on v1, by file on v2.
func (n *node) podLimit(p *v1.Pod, v1File, v2File string) string {
	n.t.Helper()
	return n.cgroupFile("pod "+p.Name, v1File, v2File, func(name string) bool {
		return strings.HasSuffix(strings.ReplaceAll(strings.TrimSuffix(name, ".slice"), "_", "-"), "pod"+string(p.UID))
	})
}

// limit reads one of a container's cgroup.
func (n *node) limit(p *v1.Pod, container, v1File, v2File string) string {
	n.t.Helper()
	_, id, _ := strings.Cut(status(p, container).ContainerID, "://")
	return n.cgroupFile(container, v1File, v2File, func(name string) bool { return strings.Contains(name, id) })
}

// cgroupFile reads a file of the uppermost cgroup with such a name.
func (n *node) cgroupFile(what, v1File, v2File string, is func(name string) bool) string {
	n.t.Helper()
	for _, root := range []string{filepath.Join("/sys/fs/cgroup", filepath.Dir(v1File)), "/sys/fs/cgroup"} {
		found := ""
		_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || found != "" || !d.IsDir() || !is(d.Name()) {
				return nil // it went, or is another one
			}
			for _, file := range []string{filepath.Base(v1File), v2File} {
				if data, err := os.ReadFile(filepath.Join(path, file)); err == nil {
					found = strings.TrimSpace(string(data))
				}
			}
			return nil
		})
		if found != "" {
			return found
		}
	}
	n.t.Fatalf("no limit %s or %s of %s", v1File, v2File, what)
	return ""
}

func TestLimits(t *testing.T) {
	n := start(t, "  podPidsLimit: 64\n")
	n.write("sure.yaml", spec("sure", "", "    resources: {limits: {cpu: 500m, memory: 64Mi}}\n"))
	n.write("burstable.yaml", spec("burstable", "", "    resources: {requests: {cpu: 250m, memory: 32Mi}}\n"))
	n.write("best.yaml", spec("best", "", ""))
	sure, burstable, best := n.awaitReady("sure"), n.awaitReady("burstable"), n.awaitReady("best")
	if sure.Status.QOSClass != v1.PodQOSGuaranteed || burstable.Status.QOSClass != v1.PodQOSBurstable || best.Status.QOSClass != v1.PodQOSBestEffort {
		t.Errorf("%s %s %s", sure.Status.QOSClass, burstable.Status.QOSClass, best.Status.QOSClass)
	}
	if got := n.podLimit(sure, "memory/memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("memory of the pod: %s", got)
	}
	if got := n.podLimit(sure, "cpu/cpu.cfs_quota_us", "cpu.max"); got != "50000" && got != "50000 100000" {
		t.Errorf("CPU time of the pod: %s", got)
	}
	if got := n.podLimit(burstable, "cpu/cpu.shares", "cpu.weight"); got != "256" && got != "35" {
		t.Errorf("shares of the pod: %s", got)
	}
	if got := n.podLimit(best, "pids/pids.max", "pids.max"); got != "64" {
		t.Errorf("processes of the pod: %s", got)
	}
	if got := n.sh("best", "main", "cat /proc/1/oom_score_adj"); got != "1000" {
		t.Errorf("best has the score %s", got)
	}
	// Without CAP_SYS_RESOURCE a score cannot be lowered.
	if got := n.sh("sure", "main", "cat /proc/1/oom_score_adj"); got != "-997" && (got != "0" || canLowerScores(t)) {
		t.Errorf("sure has the score %s", got)
	}
	if got := n.sh("burstable", "main", "cat /proc/1/oom_score_adj"); got < "3" || got == "1000" {
		t.Errorf("burstable has the score %s", got)
	}
}

func canLowerScores(t *testing.T) bool {
	t.Helper()
	set, err := capability.NewPid2(0)
	if err == nil {
		err = set.Load()
	}
	if err != nil {
		t.Fatal(err)
	}
	return set.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE)
}

// A pod that does not fit says so, and runs when there is room; a more important one makes room.
func TestPodsThatDoNotFit(t *testing.T) {
	n := start(t, "  maxPods: 2\n")
	n.write("a.yaml", spec("a", "", ""))
	n.write("b.yaml", spec("b", "  priority: 5\n", ""))
	n.awaitReady("a")
	n.awaitReady("b")
	n.write("c.yaml", spec("c", "", ""))
	c := n.awaitPhase("c", v1.PodFailed)
	if c.Status.Reason != "OutOfpods" || c.Status.Message != "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2" {
		t.Errorf("%s: %s", c.Status.Reason, c.Status.Message)
	}
	n.write("d.yaml", spec("d", "  priority: 10\n", ""))
	n.awaitReady("d")
	a := n.awaitPhase("a", v1.PodFailed)
	if !strings.Contains(a.Status.Reason+a.Status.Message, "Preempt") && a.Status.Reason != "OutOfpods" {
		t.Errorf("%s: %s", a.Status.Reason, a.Status.Message)
	}
	if b := n.awaitReady("b"); b.Status.Phase != v1.PodRunning {
		t.Errorf("b is %s", b.Status.Phase)
	}
	n.remove("d.yaml")
	n.awaitGone("d")
	n.await("a", "or c ready", func(*v1.Pod) bool {
		for _, p := range n.pods() {
			if (p.Name == "a" || p.Name == "c") && isReady(p) {
				return true
			}
		}
		return false
	})
	// Who had to go for a more important one is let in again by the next daemon too.
	n.remove("c.yaml")
	n.awaitGone("c")
	n.awaitReady("a")
	n.write("d.yaml", spec("d", "  priority: 10\n", ""))
	n.awaitReady("d")
	a = n.awaitPhase("a", v1.PodFailed)
	if got := disruption(a); got != "TerminationByKubelet: Pod was preempted by Kubelet to accommodate a critical pod." {
		t.Errorf("DisruptionTarget is %q", got)
	}
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	n.remove("d.yaml")
	n.awaitGone("d")
	n.awaitReady("a")
}

func TestPortsThatAreTaken(t *testing.T) {
	n := start(t)
	port := func(name, address string) string {
		return spec(name, "", fmt.Sprintf("    ports: [{containerPort: 80, hostPort: 18080, hostIP: '%s'}]\n", address))
	}
	n.write("a.yaml", port("a", "127.0.0.1"))
	n.awaitReady("a")
	// The same port of the other family is another one (trap 40).
	n.write("b.yaml", port("b", "::1"))
	n.awaitReady("b")
	n.write("c.yaml", port("c", "0.0.0.0"))
	c := n.awaitPhase("c", v1.PodFailed)
	if c.Status.Reason != "NodePorts" {
		t.Errorf("%s: %s", c.Status.Reason, c.Status.Message)
	}
	n.remove("a.yaml")
	n.awaitReady("c")
}

// Huge pages that the machine has not set aside are not to be had, and a pod that asks for them says so.
func TestHugePagesThatAreNotThere(t *testing.T) {
	n := start(t)
	amounts := "{cpu: 100m, memory: 64Mi, hugepages-2Mi: 4Ti}"
	n.write("p.yaml", spec("p", "  volumes: [{name: huge, emptyDir: {medium: HugePages}}]\n",
		"    resources: {requests: "+amounts+", limits: "+amounts+"}\n    volumeMounts: [{name: huge, mountPath: /huge}]\n"))
	n.await("p", "refused", failed("OutOfhugepages-2Mi", "Pod was rejected: Node didn't have enough resource: hugepages-2Mi, requested: 4398046511104, used: 0, capacity: "))
}

// Nobody swaps, whatever the machine has of it, unless the node is told to let them.
func TestNobodySwaps(t *testing.T) {
	_, uncounted := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	if _, v2 := os.Stat("/sys/fs/cgroup/cgroup.controllers"); v2 != nil && uncounted != nil {
		t.Skip("this kernel does not account for swap (swapaccount=1)")
	}
	n := start(t)
	n.write("sure.yaml", spec("sure", "", "    resources: {limits: {cpu: 100m, memory: 64Mi}}\n"))
	n.write("burstable.yaml", spec("burstable", "", "    resources: {requests: {memory: 32Mi}, limits: {memory: 64Mi}}\n"))
	for _, name := range []string{"sure", "burstable"} {
		// On cgroup v1 it is memory and swap together.
		if got := n.limit(n.awaitReady(name), "main", "memory/memory.memsw.limit_in_bytes", "memory.swap.max"); got != "67108864" && got != "0" {
			t.Errorf("%s may swap: %s", name, got)
		}
	}
}

// Where the machine has set huge pages aside, a pod has as many of them as it asks for, and a volume of them.
func TestHugePages(t *testing.T) {
	n := start(t)
	if all := n.berth().ok(t, "get", "node", "self", "-o", "jsonpath={.status.allocatable['hugepages-2Mi']}"); all == "" || all == "0" {
		t.Skip("this node has no huge pages of 2 MiB: none are set aside (vm.nr_hugepages), or there is no cgroup controller hugetlb")
	}
	if numberIn(t, "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") < 2 {
		t.Skip("all huge pages are in use")
	}
	amounts := "{cpu: 100m, memory: 64Mi, hugepages-2Mi: 4Mi}"
	n.write("p.yaml", spec("p", "  volumes: [{name: huge, emptyDir: {medium: HugePages}}]\n",
		"    resources: {requests: "+amounts+", limits: "+amounts+"}\n    volumeMounts: [{name: huge, mountPath: /huge}]\n"))
	p := n.awaitReady("p")
	if got := n.sh("p", "main", "grep -c ' /huge hugetlbfs .*pagesize=2M' /proc/mounts; stat -f -c %S /huge"); got != "1\n2097152" {
		t.Errorf("the volume is %q", got)
	}
	if got := n.limit(p, "main", "hugetlb/hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"); got != "4194304" {
		t.Errorf("it may have %s bytes", got)
	}
}
