package resource

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// named returns a pod with a name and a priority.
func named(t *testing.T, name string, priority int32, spec string) *v1.Pod {
	t.Helper()
	pod := podOf(t, spec)
	pod.Name, pod.Spec.Priority = name, &priority
	return pod
}

func TestObstacles(t *testing.T) {
	allocatable := v1.ResourceList{
		v1.ResourceCPU: resource.MustParse("2"), v1.ResourceMemory: resource.MustParse("2Gi"), v1.ResourcePods: resource.MustParse("2"),
		v1.ResourceEphemeralStorage: resource.MustParse("10Gi"), "example.com/gpu": resource.MustParse("1"),
	}
	other := podOf(t, "containers: [{name: a, ports: [{containerPort: 1, hostPort: 80, hostIP: 127.0.0.1}, {containerPort: 2, hostPort: 81}], resources: {requests: {cpu: 1500m, memory: 1Gi}, limits: {example.com/gpu: 1}}}]")
	for name, c := range map[string]struct {
		spec   string
		others []*v1.Pod
		want   []string
	}{
		"it fits":          {spec: one("{requests: {cpu: 500m, memory: 1Gi}}"), others: []*v1.Pod{other}},
		"nothing asked":    {spec: one("{}"), others: []*v1.Pod{other}},
		"too little CPU":   {spec: one("{requests: {cpu: 501m}}"), others: []*v1.Pod{other}, want: []string{"OutOfcpu: Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000 (1)"}},
		"too little alone": {spec: one("{requests: {memory: 3Gi}}"), want: []string{"OutOfmemory: Node didn't have enough resource: memory, requested: 3221225472, used: 0, capacity: 2147483648 (1073741824)"}},
		"init containers":  {spec: "initContainers: [{name: i, resources: {requests: {cpu: 1}}}]\n" + one("{}"), others: []*v1.Pod{other}, want: []string{"OutOfcpu: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000 (500)"}},
		"overhead":         {spec: "overhead: {cpu: 1}\n" + one("{}"), others: []*v1.Pod{other}, want: []string{"OutOfcpu: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000 (500)"}},
		"two of them": {spec: one("{requests: {memory: 3Gi, cpu: 3}}"), want: []string{
			"OutOfcpu: Node didn't have enough resource: cpu, requested: 3000, used: 0, capacity: 2000 (1000)",
			"OutOfmemory: Node didn't have enough resource: memory, requested: 3221225472, used: 0, capacity: 2147483648 (1073741824)"}},
		"disk":               {spec: one("{requests: {ephemeral-storage: 11Gi}}"), want: []string{"OutOfephemeral-storage: Node didn't have enough resource: ephemeral-storage, requested: 11811160064, used: 0, capacity: 10737418240 (1073741824)"}},
		"too many pods":      {spec: one("{}"), others: []*v1.Pod{other, podOf(t, "{}")}, want: []string{"OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2 (1)"}},
		"a device":           {spec: one("{limits: {example.com/gpu: 1}}"), others: []*v1.Pod{other}, want: []string{"OutOfexample.com/gpu: Node didn't have enough resource: example.com/gpu, requested: 1, used: 1, capacity: 1 (1)"}},
		"unknown devices":    {spec: one("{limits: {example.com/tpu: 1}}")},
		"huge pages":         {spec: one("{limits: {hugepages-2Mi: 2Mi}}"), want: []string{"OutOfhugepages-2Mi: Node didn't have enough resource: hugepages-2Mi, requested: 2097152, used: 0, capacity: 0 (2097152)"}},
		"a port":             {spec: "containers: [{name: a, ports: [{containerPort: 9, hostPort: 81, hostIP: 127.0.0.9}]}]", others: []*v1.Pod{other}, want: []string{"NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports (0)"}},
		"its other protocol": {spec: "containers: [{name: a, ports: [{containerPort: 9, hostPort: 81, protocol: UDP}]}]", others: []*v1.Pod{other}},
		"its other family":   {spec: "containers: [{name: a, ports: [{containerPort: 9, hostPort: 80, hostIP: '::1'}]}]", others: []*v1.Pod{other}},
		"all of the other":   {spec: "containers: [{name: a, ports: [{containerPort: 9, hostPort: 80, hostIP: '::'}]}]", others: []*v1.Pod{other}},
		"another address":    {spec: "containers: [{name: a, ports: [{containerPort: 9, hostPort: 80, hostIP: 127.0.0.2}]}]", others: []*v1.Pod{other}},
		"all addresses":      {spec: "containers: [{name: a, ports: [{containerPort: 9, hostPort: 80, hostIP: 0.0.0.0}]}]", others: []*v1.Pod{other}, want: []string{"NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports (0)"}},
		"the host's network": {spec: "hostNetwork: true\ncontainers: [{name: a, ports: [{containerPort: 81}]}]", others: []*v1.Pod{other}, want: []string{"NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports (0)"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, o := range Obstacles(podOf(t, c.spec), c.others, allocatable) {
				got = append(got, fmt.Sprintf("%s: %s (%d)", o.Reason, o.Message, o.Missing))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestPreempt(t *testing.T) {
	const gi = "{requests: {cpu: 1, memory: 1Gi}}"
	best := named(t, "best", 0, one("{}"))
	small := named(t, "small", 0, one("{requests: {memory: 100Mi}}"))
	middle := named(t, "middle", 0, one(gi))
	large := named(t, "large", 0, one("{requests: {memory: 4Gi}}"))
	sure := named(t, "sure", 0, one("{limits: {cpu: 1, memory: 1Gi}}"))
	better := named(t, "better", 5, one(gi))
	equal := named(t, "equal", 10, one(gi))
	memory := func(mi int64) Obstacle { return Obstacle{Resource: v1.ResourceMemory, Missing: mi << 20} }
	for name, c := range map[string]struct {
		others    []*v1.Pod
		obstacles []Obstacle
		want      string
		fault     string
	}{
		"one that is enough":        {others: []*v1.Pod{best, small, middle, large}, obstacles: []Obstacle{memory(1024)}, want: "middle"},
		"the smallest that will do": {others: []*v1.Pod{large, small, middle}, obstacles: []Obstacle{memory(50)}, want: "small"},
		"as few as possible":        {others: []*v1.Pod{small, middle, large}, obstacles: []Obstacle{memory(3000)}, want: "large"},
		"several":                   {others: []*v1.Pod{small, middle}, obstacles: []Obstacle{memory(1100)}, want: "middle small"},
		"guaranteed last":           {others: []*v1.Pod{sure, middle}, obstacles: []Obstacle{memory(1024)}, want: "middle"},
		"guaranteed too":            {others: []*v1.Pod{sure, small}, obstacles: []Obstacle{memory(1024)}, want: "sure"},
		"the least priority":        {others: []*v1.Pod{better, middle}, obstacles: []Obstacle{memory(1024)}, want: "middle"},
		"more priority too":         {others: []*v1.Pod{better, middle}, obstacles: []Obstacle{memory(2048)}, want: "better middle"},
		"best effort gives a place": {others: []*v1.Pod{middle, best}, obstacles: []Obstacle{{Resource: v1.ResourcePods, Missing: 1}}, want: "best"},
		"nobody is lesser":          {others: []*v1.Pod{equal}, obstacles: []Obstacle{memory(1)}, fault: "no set of running pods found to reclaim resources: [(res: memory, q: 1048576)]"},
		"not enough":                {others: []*v1.Pod{small, equal}, obstacles: []Obstacle{memory(1024)}, fault: "no set of running pods found"},
		"it would not help":         {others: []*v1.Pod{small}, obstacles: []Obstacle{{Reason: "NodePorts", Message: "ports"}}, fault: "that others go does not help: ports"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Preempt(named(t, "new", 10, one(gi)), c.others, c.obstacles)
			if c.fault != "" {
				if err == nil || !strings.Contains(err.Error(), c.fault) {
					t.Errorf("%v", err)
				}
				return
			}
			var names []string
			for _, p := range got {
				names = append(names, p.Name)
			}
			slices.Sort(names)
			if err != nil || strings.Join(names, " ") != c.want {
				t.Errorf("%v, %v; want %s", names, err, c.want)
			}
		})
	}
}
