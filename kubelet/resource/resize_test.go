package resource

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// partsOf are the containers of a pod as they run with what another one says.
func partsOf(n *Node, old, pod *v1.Pod, usage uint64) (parts []Part) {
	had := map[string]*cri.LinuxContainerResources{}
	eachContainer(old, func(c *v1.Container) { had[c.Name] = n.Container(old, c) })
	eachContainer(pod, func(c *v1.Container) {
		parts = append(parts, Part{ID: c.Name, Container: c, Has: had[c.Name], usage: usage})
	})
	return parts
}

// What grows, grows at the pod first; what shrinks, shrinks in the containers first (trap 37).
func TestResizeSteps(t *testing.T) {
	for name, c := range map[string]struct{ from, to, want string }{
		"all grows": {one("{requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1500m, memory: 1Gi}}"), one("{requests: {cpu: 2, memory: 1Gi}, limits: {cpu: 3, memory: 2Gi}}"),
			"memory 2147483648, main memory 2147483648, quota 300000, shares 2048, main cpu 2048 300000"},
		"all shrinks": {one("{requests: {cpu: 2, memory: 1Gi}, limits: {cpu: 3, memory: 2Gi}}"), one("{requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1500m, memory: 1Gi}}"),
			"main memory 1073741824, memory 1073741824, main cpu 1024 150000, shares 1024, quota 150000"},
		"nothing":            {one("{requests: {cpu: 1}}"), one("{requests: {cpu: 1}}"), ""},
		"a limit comes":      {one("{requests: {cpu: 1}}"), one("{requests: {cpu: 1}, limits: {cpu: 2, memory: 1Gi}}"), "main memory 1073741824, memory 1073741824, main cpu 1024 200000, quota 200000"},
		"shares cannot tell": {one("{requests: {cpu: 1001m}}"), one("{requests: {cpu: 1001m}}"), ""},
		"who gets less is first": {
			"containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}, {name: b, resources: {limits: {cpu: 2, memory: 2Gi}}}]",
			"containers: [{name: a, resources: {limits: {cpu: 2, memory: 2Gi}}}, {name: b, resources: {limits: {cpu: 1, memory: 1Gi}}}]",
			"b memory 1073741824, a memory 2147483648, b cpu 1024 100000, a cpu 2048 200000"},
		"the pod's alone": {
			"resources: {limits: {cpu: 2, memory: 1Gi}}\ncontainers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}]",
			"resources: {limits: {cpu: 3, memory: 2Gi}}\ncontainers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}]",
			"memory 2147483648, quota 300000"},
	} {
		t.Run(name, func(t *testing.T) {
			n, old, pod := &Node{}, podOf(t, c.from), podOf(t, c.to)
			var got []string
			for _, s := range n.resizeSteps(n.Pod(old), pod, partsOf(n, old, pod, 0)) {
				got = append(got, describe(s))
			}
			if strings.Join(got, ", ") != c.want {
				t.Errorf("%s\nwant %s", strings.Join(got, ", "), c.want)
			}
		})
	}
}

func describe(s resizeStep) string {
	switch r := s.pod; {
	case r == nil && s.to.MemoryLimitInBytes != 0:
		return fmt.Sprint(s.id, " memory ", s.to.MemoryLimitInBytes)
	case r == nil:
		return fmt.Sprint(s.id, " cpu ", s.to.CpuShares, s.to.CpuQuota)
	case r.Memory != nil:
		return fmt.Sprint("memory ", *r.Memory.Limit)
	case r.CPU.Quota != nil:
		return fmt.Sprint("quota ", *r.CPU.Quota)
	default:
		return fmt.Sprint("shares ", *r.CPU.Shares)
	}
}

func TestCheckResize(t *testing.T) {
	const mi = 1 << 20
	from := podOf(t, "containers: [{name: a, resources: {limits: {memory: 100Mi}}}, {name: b, resources: {limits: {memory: 100Mi}}}]")
	to := podOf(t, "containers: [{name: a, resources: {limits: {memory: 50Mi}}}, {name: b, resources: {limits: {memory: 100Mi}}}]")
	for name, c := range map[string]struct {
		old, pod *v1.Pod
		used     uint64
		each     uint64
		want     string
	}{
		"room":               {from, to, 100 * mi, 10 * mi, ""},
		"the pod's limit":    {from, to, 150 * mi, 0, "attempting to set pod memory limit (157286400) below current usage (157286400)"},
		"the container's":    {from, to, 60 * mi, 60 * mi, `attempting to set container "a" memory limit (52428800) below current usage (62914560)`},
		"what grows may use": {to, from, 500 * mi, 500 * mi, ""},
	} {
		n := &Node{}
		err := n.checkResize(n.Pod(c.old), c.used, c.pod, partsOf(n, c.old, c.pod, c.each))
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != "cannot decrease memory limits: "+c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A limit that is new is less than none.
	n, free := &Node{}, podOf(t, "containers: [{name: a}, {name: b}]")
	if err := n.checkResize(&specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}}, 200*mi, to, partsOf(n, free, to, 10*mi)); err == nil {
		t.Error("a new limit below what is used was taken")
	}
}

func TestNeedsRestart(t *testing.T) {
	c := podOf(t, "containers: [{name: a, resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, {resourceName: memory, restartPolicy: RestartContainer}]}]").Spec.Containers[0]
	resources := func(text string) v1.ResourceRequirements { return podOf(t, one(text)).Spec.Containers[0].Resources }
	has := resources("{requests: {cpu: 1, memory: 1Gi}, limits: {memory: 2Gi}}")
	for to, want := range map[string]bool{
		"{requests: {cpu: 1, memory: 1Gi}, limits: {memory: 2Gi}}":         false,
		"{requests: {cpu: 2, memory: 1Gi}, limits: {memory: 2Gi}}":         false,
		"{requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 3, memory: 2Gi}}": false,
		"{requests: {cpu: 1, memory: 1500Mi}, limits: {memory: 2Gi}}":      true,
		"{requests: {cpu: 1, memory: 1Gi}, limits: {memory: 3Gi}}":         true,
	} {
		if got := NeedsRestart(&c, has, resources(to)); got != want {
			t.Errorf("%s: %v", to, got)
		}
	}
}

func TestInfeasible(t *testing.T) {
	swapping := &Node{Unified: true, SwapAccounting: true, LimitedSwap: true, MemoryCapacity: 4 << 30, SwapCapacity: 1 << 30}
	old, pod := podOf(t, one("{requests: {memory: 1Gi}}")), podOf(t, one("{requests: {memory: 2Gi}}"))
	if got := swapping.Infeasible(old, pod); got != "In-place resize of containers with swap is not supported." {
		t.Errorf("%q", got)
	}
	if got := (&Node{Unified: true, SwapAccounting: true}).Infeasible(old, pod); got != "" {
		t.Errorf("without swap: %q", got)
	}
	if got := swapping.Infeasible(old, podOf(t, one("{requests: {cpu: 1, memory: 1Gi}}"))); got != "" {
		t.Errorf("of the CPU: %q", got)
	}
}
