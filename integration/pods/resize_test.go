//go:build integration

package pods

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/harness"
)

// resources are lines of a container's spec.
func resources(cpu, memory, cpuLimit, memoryLimit string) string {
	return fmt.Sprintf("    resources: {requests: {cpu: %s, memory: %s}, limits: {cpu: %s, memory: %s}}\n", cpu, memory, cpuLimit, memoryLimit)
}

// awaitResources waits until a container's status tells these resources, of requests and limits, and the pod is through with the resize.
func (n *node) awaitResources(pod, container, want string) *v1.Pod {
	n.t.Helper()
	return n.await(pod, "as large as "+want, func(p *v1.Pod) bool {
		s := status(p, container)
		if s.Resources == nil || s.State.Running == nil || condition(p, v1.PodResizeInProgress)+condition(p, v1.PodResizePending) != "" {
			return false
		}
		r := s.Resources
		return fmt.Sprint(r.Requests.Cpu(), r.Requests.Memory(), r.Limits.Cpu(), r.Limits.Memory()) == want && isReady(p)
	})
}

func (n *node) wantLimits(p *v1.Pod, memory, quota string) {
	n.t.Helper()
	for what, got := range map[string]string{
		"the pod": n.podLimit(p, "memory/memory.limit_in_bytes", "memory.max"), "the container": n.limit(p, "main", "memory/memory.limit_in_bytes", "memory.max"),
	} {
		if got != memory {
			n.t.Errorf("memory of %s: %s, want %s", what, got, memory)
		}
	}
	for what, got := range map[string]string{
		"the pod": n.podLimit(p, "cpu/cpu.cfs_quota_us", "cpu.max"), "the container": n.limit(p, "main", "cpu/cpu.cfs_quota_us", "cpu.max"),
	} {
		if got != quota && got != quota+" 100000" {
			n.t.Errorf("CPU time of %s: %s, want %s", what, got, quota)
		}
	}
}

// An edit of resources alone changes the pod that runs: its cgroups, its status, its volumes, and nothing else.
func TestAResizeInPlace(t *testing.T) {
	n := start(t)
	const down = "  volumes: [{name: down, downwardAPI: {items: [{path: memory, resourceFieldRef: {containerName: main, resource: limits.memory}}]}}]\n"
	text := func(r string) string {
		return spec("p", down, r+"    volumeMounts: [{name: down, mountPath: /down}]\n")
	}
	n.write("p.yaml", text(resources("100m", "32Mi", "200m", "64Mi")))
	before := n.awaitResources("p", "main", "100m 32Mi 200m 64Mi")
	pid := n.sh("p", "main", "cut -d ' ' -f 22 /proc/1/stat")
	n.wantLimits(before, "67108864", "20000")
	for _, step := range []struct{ resources, want, memory, quota string }{
		{resources("250m", "48Mi", "500m", "128Mi"), "250m 48Mi 500m 128Mi", "134217728", "50000"},
		{resources("150m", "40Mi", "300m", "96Mi"), "150m 40Mi 300m 96Mi", "100663296", "30000"},
	} {
		n.write("p.yaml", text(step.resources))
		p := n.awaitResources("p", "main", step.want)
		n.wantLimits(p, step.memory, step.quota)
		s := status(p, "main")
		if p.UID != before.UID || s.ContainerID != status(before, "main").ContainerID || s.RestartCount != 0 || n.sh("p", "main", "cut -d ' ' -f 22 /proc/1/stat") != pid {
			t.Errorf("the container is another one: %+v", s)
		}
		if got := fmt.Sprint(s.AllocatedResources.Cpu(), s.AllocatedResources.Memory()); !strings.HasPrefix(step.want, got+" ") {
			t.Errorf("given: %s", got)
		}
		n.eventuallySh("p", "main", "cat /down/memory", step.memory)
	}
	events := n.berth().ok(t, "events")
	wants(t, "events", events, `ResizeStarted +Pod/p +Pod resize started: \{"containers":\[\{"name":"main","resources":\{"limits":\{"cpu":"500m"`, `ResizeCompleted +Pod/p +Pod resize completed: `)
	if describe := n.berth().ok(t, "describe", "pod", "p"); !strings.Contains(describe, "cpu:     300m") {
		t.Errorf("describe shows\n%s", describe)
	}
	_, errOut, code := n.kubectl().run(t, "", "patch", "pod", "p", "--subresource", "resize", "--patch", `{"spec":{"containers":[{"name":"main","resources":{"limits":{"cpu":"1"}}}]}}`)
	if code != 1 || !strings.Contains(errOut, "an object is changed where it is declared: edit its file, or change it with berth apply") {
		t.Errorf("kubectl patch --subresource resize: %d, %s", code, errOut)
	}
	// What changes the class of the pod, or takes a limit away, makes another one.
	n.write("p.yaml", text("    resources: {requests: {cpu: 150m}}\n"))
	n.await("p", "another one", func(p *v1.Pod) bool { return p.UID != before.UID && isReady(p) })
}

func TestAResizeThatRestarts(t *testing.T) {
	n := start(t)
	const policy = "    resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, {resourceName: memory, restartPolicy: RestartContainer}]\n"
	n.write("p.yaml", spec("p", "", policy+resources("100m", "32Mi", "200m", "64Mi")))
	before := n.awaitResources("p", "main", "100m 32Mi 200m 64Mi")
	n.write("p.yaml", spec("p", "", policy+resources("200m", "32Mi", "300m", "64Mi")))
	p := n.awaitResources("p", "main", "200m 32Mi 300m 64Mi")
	if status(p, "main").ContainerID != status(before, "main").ContainerID {
		t.Error("it was restarted for CPU")
	}
	n.write("p.yaml", spec("p", "", policy+resources("200m", "48Mi", "300m", "96Mi")))
	p = n.awaitResources("p", "main", "200m 48Mi 300m 96Mi")
	if s := status(p, "main"); p.UID != before.UID || s.RestartCount != 1 || s.ContainerID == status(before, "main").ContainerID {
		t.Errorf("it was not restarted for memory: %+v", s)
	}
	n.wantLimits(p, "100663296", "30000")
	wants(t, "events", n.berth().ok(t, "events"), `Killing +Pod/p +Container main resize requires restart`)
}

// What does not fit waits, is shown so, and comes when there is room.
func TestAResizeThatDoesNotFit(t *testing.T) {
	n := start(t)
	all := n.awaitNodeMilliCPU()
	n.write("a.yaml", spec("a", "", "    resources: {requests: {cpu: 100m}}\n"))
	n.write("b.yaml", spec("b", "", fmt.Sprintf("    resources: {requests: {cpu: %dm}}\n", all-200)))
	before := n.awaitReady("a")
	n.awaitReady("b")
	n.write("a.yaml", spec("a", "", "    resources: {requests: {cpu: 300m}}\n"))
	p := n.await("a", "deferred", func(p *v1.Pod) bool { return condition(p, v1.PodResizePending) != "" })
	for _, c := range p.Status.Conditions {
		if want := fmt.Sprintf("Node didn't have enough resource: cpu, requested: 300, used: %d, capacity: %d", all-200, all); c.Type == v1.PodResizePending &&
			(c.Reason != v1.PodReasonDeferred || c.Message != want || c.ObservedGeneration != 2) {
			t.Errorf("%+v", c)
		}
	}
	if got := n.berth().ok(t, "get", "pod", "a", "-o", "jsonpath={.spec.containers[0].resources.requests.cpu} {.status.containerStatuses[0].allocatedResources.cpu}"); got != "300m 100m" {
		t.Errorf("wished and given: %s", got)
	}
	wants(t, "events", n.berth().ok(t, "events"), `Warning +ResizeDeferred +Pod/a +Pod resize OutOfcpu: `)
	// It waits over a restart, and what it does not have is nobody else's loss.
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	n.write("c.yaml", spec("c", "", "    resources: {requests: {cpu: 90m}}\n"))
	n.awaitReady("c")
	if p := n.awaitReady("a"); condition(p, v1.PodResizePending) == "" {
		t.Error("it was forgotten")
	}
	n.remove("b.yaml")
	p = n.await("a", "as it wishes to be", func(p *v1.Pod) bool {
		s := status(p, "main")
		return s.Resources != nil && s.Resources.Requests.Cpu().String() == "300m" && condition(p, v1.PodResizePending)+condition(p, v1.PodResizeInProgress) == ""
	})
	if p.UID != before.UID || status(p, "main").ContainerID != status(before, "main").ContainerID {
		t.Error("it was restarted")
	}
	if got := n.podLimit(p, "cpu/cpu.shares", "cpu.weight"); got != "307" && got != "40" {
		t.Errorf("shares of the pod: %s", got)
	}
	// A wish that is taken back is gone.
	n.write("a.yaml", spec("a", "", fmt.Sprintf("    resources: {requests: {cpu: %dm}}\n", all+100)))
	n.await("a", "deferred", func(p *v1.Pod) bool { return condition(p, v1.PodResizePending) != "" })
	n.write("a.yaml", spec("a", "", "    resources: {requests: {cpu: 300m}}\n"))
	n.await("a", "content", func(p *v1.Pod) bool { return condition(p, v1.PodResizePending) == "" })
}

func (n *node) awaitNodeMilliCPU() (milli int) {
	n.t.Helper()
	harness.Eventually(n.t, 20*time.Second, "the node tells its CPUs", func() error {
		text := n.berth().ok(n.t.(*testing.T), "get", "node", "self", "-o", "jsonpath={.status.allocatable.cpu}")
		if _, err := fmt.Sscanf(text, "%d", &milli); err != nil {
			return fmt.Errorf("%q: %w", text, err)
		}
		if !strings.HasSuffix(text, "m") {
			milli *= 1000
		}
		return nil
	})
	return milli
}

// A memory limit below what is in use is not set; it is when less is in use.
func TestAResizeBelowWhatIsInUse(t *testing.T) {
	n := start(t)
	text := func(limit string) string {
		return spec("p", "  volumes: [{name: memory, emptyDir: {medium: Memory}}]\n", resources("100m", "16Mi", "200m", limit)+"    volumeMounts: [{name: memory, mountPath: /memory}]\n")
	}
	n.write("p.yaml", text("128Mi"))
	n.awaitResources("p", "main", "100m 16Mi 200m 128Mi")
	n.sh("p", "main", "dd if=/dev/zero of=/memory/f bs=1M count=64 2>/dev/null")
	n.write("p.yaml", text("32Mi"))
	n.await("p", "refused", func(p *v1.Pod) bool {
		for _, c := range p.Status.Conditions {
			if c.Type == v1.PodResizeInProgress && c.Reason == v1.PodReasonError {
				return strings.HasPrefix(c.Message, "cannot decrease memory limits: ") && strings.Contains(c.Message, `attempting to set container "main" memory limit (33554432) below current usage (`)
			}
		}
		return false
	})
	p := n.awaitReady("p")
	n.wantLimits(p, "134217728", "20000")
	// Not even by the next daemon.
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	p = n.awaitReady("p")
	n.wantLimits(p, "134217728", "20000")
	n.sh("p", "main", "rm /memory/f")
	p = n.awaitResources("p", "main", "100m 16Mi 200m 32Mi")
	n.wantLimits(p, "33554432", "20000")
	if s := status(p, "main"); s.RestartCount != 0 {
		t.Errorf("%+v", s)
	}
}

// Resources of the pod as a whole change in place too.
func TestAResizeOfThePod(t *testing.T) {
	n := start(t)
	text := func(cpu, memory string) string {
		return spec("p", fmt.Sprintf("  resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: %s, memory: %s}}\n", cpu, memory), "")
	}
	n.write("p.yaml", text("200m", "64Mi"))
	before := n.awaitReady("p")
	n.write("p.yaml", text("400m", "128Mi"))
	p := n.await("p", "larger", func(p *v1.Pod) bool {
		r := p.Status.Resources
		return r != nil && r.Limits.Memory().String() == "128Mi" && r.Limits.Cpu().String() == "400m" && condition(p, v1.PodResizeInProgress) == ""
	})
	n.wantLimits(p, "134217728", "40000")
	if p.UID != before.UID || status(p, "main").ContainerID != status(before, "main").ContainerID {
		t.Error("it was restarted")
	}
}

// A daemon that is killed in the middle of a resize is followed by one that goes on with it.
func TestAResizeThatIsCutOff(t *testing.T) {
	n := start(t)
	n.write("p.yaml", spec("p", "", resources("100m", "32Mi", "200m", "64Mi")))
	before := n.awaitResources("p", "main", "100m 32Mi 200m 64Mi")
	for i, after := range []time.Duration{2, 4, 8, 12, 20, 40} {
		r, want, memory, quota := resources("250m", "48Mi", "500m", "128Mi"), "250m 48Mi 500m 128Mi", "134217728", "50000"
		if i%2 == 1 {
			r, want, memory, quota = resources("100m", "32Mi", "200m", "64Mi"), "100m 32Mi 200m 64Mi", "67108864", "20000"
		}
		n.write("p.yaml", spec("p", "", r))
		time.Sleep(after * time.Millisecond)
		n.Kill9(t)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		p := n.awaitResources("p", "main", want)
		n.wantLimits(p, memory, quota)
		if p.UID != before.UID || status(p, "main").ContainerID != status(before, "main").ContainerID {
			t.Fatal("it was restarted")
		}
	}
	// Between the end of a container for the sake of a resize and its new start.
	stubborn := func(r string) string {
		return podText("q", "trap '' TERM; while :; do sleep 1; done", "    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]\n", r)
	}
	n.write("q.yaml", stubborn(resources("100m", "32Mi", "200m", "64Mi")))
	q := n.awaitResources("q", "main", "100m 32Mi 200m 64Mi")
	n.write("q.yaml", stubborn(resources("100m", "32Mi", "200m", "96Mi")))
	n.await("q", "being resized", func(p *v1.Pod) bool { return condition(p, v1.PodResizeInProgress) != "" })
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	after := n.awaitResources("q", "main", "100m 32Mi 200m 96Mi")
	n.wantLimits(after, "100663296", "20000")
	if after.UID != q.UID || status(after, "main").RestartCount != 1 {
		t.Errorf("%+v", status(after, "main"))
	}
}
