package resource

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"

	"github.com/berth-node/berth/cgroups"
)

// podOf reads the spec of a pod and sets the defaults, requests for limits among them.
func podOf(t *testing.T, spec string) *v1.Pod {
	t.Helper()
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "web", "shop", "11111111-2222-3333-4444-555555555555"
	if err := yaml.Unmarshal([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	if len(pod.Spec.Containers) == 0 {
		pod.Spec.Containers = []v1.Container{{Name: "main", Image: "app:1"}}
	}
	corev1.SetObjectDefaults_Pod(pod)
	return pod
}

// one returns the spec of a pod with one container of these resources.
func one(resources string) string { return "containers: [{name: main, resources: " + resources + "}]" }

func TestSharesAndQuota(t *testing.T) {
	for _, c := range []struct{ milli, shares, quota, back int64 }{
		{0, 2, 0, 2}, {1, 2, 1000, 2}, {2, 2, 1000, 2}, {10, 10, 1000, 10}, {100, 102, 10000, 100}, {250, 256, 25000, 250},
		{1000, 1024, 100000, 1000}, {1500, 1536, 150000, 1500}, {300_000, 262144, 30_000_000, 256_000},
	} {
		if got := int64(Shares(c.milli)); got != c.shares {
			t.Errorf("shares of %dm: %d, want %d", c.milli, got, c.shares)
		}
		if got := Quota(c.milli, 100_000); got != c.quota {
			t.Errorf("quota of %dm: %d, want %d", c.milli, got, c.quota)
		}
		if got := MilliCPUOfShares(c.shares); got != c.back {
			t.Errorf("request of %d shares: %dm, want %dm", c.shares, got, c.back)
		}
	}
	if got := Quota(500, 5000); got != 2500 {
		t.Errorf("quota of half a CPU in 5 ms: %d", got)
	}
	for _, c := range []struct{ quota, period, want int64 }{{50_000, 100_000, 500}, {-1, 100_000, 0}, {0, 100_000, 0}, {5, 0, 0}} {
		if got := MilliCPUOfQuota(c.quota, c.period); got != c.want {
			t.Errorf("limit of %d in %d: %d, want %d", c.quota, c.period, got, c.want)
		}
	}
}

// A request that was turned into shares and back must not look like a change: it may be larger by what shares cannot tell.
func TestSharesRound(t *testing.T) {
	for milli := int64(2); milli < 10_000; milli++ {
		shares := Shares(milli)
		if again := Shares(MilliCPUOfShares(int64(shares))); again != shares {
			t.Fatalf("%dm: %d shares, and %d the second time", milli, shares, again)
		}
	}
}

func TestClass(t *testing.T) {
	for spec, want := range map[string]v1.PodQOSClass{
		one("{}"):                                      v1.PodQOSBestEffort,
		one("{limits: {cpu: 1, memory: 1Gi}}"):         v1.PodQOSGuaranteed,
		one("{limits: {cpu: 1}}"):                      v1.PodQOSBurstable,
		one("{requests: {memory: 1Gi}}"):               v1.PodQOSBurstable,
		one("{limits: {ephemeral-storage: 1Gi}}"):      v1.PodQOSBestEffort,
		"resources: {limits: {cpu: 1, memory: 1Gi}}":   v1.PodQOSGuaranteed,
		"resources: {requests: {cpu: 1, memory: 1Gi}}": v1.PodQOSBurstable,
		"containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}, {name: b}]":                                     v1.PodQOSBurstable,
		"initContainers: [{name: i}]\n" + one("{limits: {cpu: 1, memory: 1Gi}}"):                                             v1.PodQOSBurstable,
		"initContainers: [{name: i, resources: {limits: {cpu: 2, memory: 1Gi}}}]\n" + one("{limits: {cpu: 1, memory: 1Gi}}"): v1.PodQOSGuaranteed,
	} {
		if got := Class(podOf(t, spec)); got != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
}

func TestContainerResources(t *testing.T) {
	plain := Node{MemoryCapacity: 4 << 30}
	for name, c := range map[string]struct {
		node Node
		spec string
		want *cri.LinuxContainerResources
	}{
		"nothing": {plain, one("{}"), &cri.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100000, OomScoreAdj: 1000}},
		"requests": {plain, one("{requests: {cpu: 100m, memory: 1Gi}}"),
			&cri.LinuxContainerResources{CpuShares: 102, CpuPeriod: 100000, OomScoreAdj: 750}},
		"limits alone": {plain, one("{limits: {cpu: 2, memory: 1Gi}}"),
			&cri.LinuxContainerResources{CpuShares: 2048, CpuPeriod: 100000, CpuQuota: 200000, MemoryLimitInBytes: 1 << 30, OomScoreAdj: -997}},
		"a request of nothing": {plain, one("{requests: {cpu: 0}, limits: {cpu: 2}}"),
			&cri.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100000, CpuQuota: 200000, OomScoreAdj: 999}},
		"another period": {Node{MemoryCapacity: 4 << 30, CPUPeriod: 5 * time.Millisecond}, one("{limits: {cpu: 500m}}"),
			&cri.LinuxContainerResources{CpuShares: 512, CpuPeriod: 5000, CpuQuota: 2500, OomScoreAdj: 999}},
		"no quota": {Node{MemoryCapacity: 4 << 30, NoCPUQuota: true}, one("{limits: {cpu: 500m}}"),
			&cri.LinuxContainerResources{CpuShares: 512, OomScoreAdj: 999}},
		"the pod's limits": {plain, "resources: {limits: {cpu: 1, memory: 2Gi}}\ncontainers: [{name: a, resources: {limits: {cpu: 500m}}}]",
			&cri.LinuxContainerResources{CpuShares: 512, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 2 << 30, OomScoreAdj: 500}},
		"v2": {Node{MemoryCapacity: 4 << 30, Unified: true, SwapAccounting: true}, one("{}"),
			&cri.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100000, OomScoreAdj: 1000,
				Unified: map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"}}},
		"v2, one process": {Node{MemoryCapacity: 4 << 30, Unified: true, SingleProcessOOMKill: true}, one("{}"),
			&cri.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100000, OomScoreAdj: 1000}},
		"v1, swap": {Node{MemoryCapacity: 4 << 30, SwapAccounting: true}, one("{limits: {memory: 1Gi}}"),
			&cri.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100000, MemoryLimitInBytes: 1 << 30, MemorySwapLimitInBytes: 1 << 30, OomScoreAdj: 750}},
		"huge pages": {Node{MemoryCapacity: 4 << 30, HugePageSizes: []string{"1GB", "2MB"}}, one("{limits: {hugepages-2Mi: 8Mi, memory: 1Gi, cpu: 1}}"),
			&cri.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100000, CpuQuota: 100000, MemoryLimitInBytes: 1 << 30, OomScoreAdj: -997,
				HugepageLimits: []*cri.HugepageLimit{{PageSize: "1GB"}, {PageSize: "2MB", Limit: 8 << 20}}}},
		"huge pages of the pod": {Node{MemoryCapacity: 4 << 30, HugePageSizes: []string{"2MB"}}, "resources: {limits: {hugepages-2Mi: 8Mi, memory: 1Gi, cpu: 1}}",
			&cri.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100000, CpuQuota: 100000, MemoryLimitInBytes: 1 << 30, OomScoreAdj: -997,
				HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 8 << 20}}}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(t, c.spec)
			if got := c.node.Container(pod, &pod.Spec.Containers[0]); !proto.Equal(got, c.want) {
				t.Errorf("got %v\nwant %v", got, c.want)
			}
		})
	}
}

func TestSwap(t *testing.T) {
	for name, c := range map[string]struct {
		spec  string
		never bool
		want  string
	}{
		"its part":        {spec: one("{requests: {memory: 1Gi}}"), want: "536870912"},
		"no swap at all":  {spec: one("{requests: {memory: 1Gi}}"), never: true, want: "0"},
		"best effort":     {spec: one("{}"), want: "0"},
		"guaranteed":      {spec: one("{limits: {cpu: 1, memory: 1Gi}}"), want: "0"},
		"no memory asked": {spec: one("{requests: {cpu: 1}}"), want: "0"},
		"no more allowed": {spec: one("{requests: {cpu: 1, memory: 1Gi}, limits: {memory: 1Gi}}"), want: "0"},
		"more than all":   {spec: one("{requests: {memory: 5Gi}}"), want: "0"},
		"critical":        {spec: "priority: 2000000000\n" + one("{requests: {memory: 1Gi}}"), want: "0"},
	} {
		n := Node{MemoryCapacity: 4 << 30, SwapCapacity: 2 << 30, Unified: true, SwapAccounting: true, LimitedSwap: !c.never}
		pod := podOf(t, c.spec)
		if got := n.Container(pod, &pod.Spec.Containers[0]).Unified["memory.swap.max"]; got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestOOMScoreAdj(t *testing.T) {
	const burstable = "{requests: {memory: 1Gi}}"
	for name, c := range map[string]struct {
		spec string
		want []int // init containers, then the others
	}{
		"best effort":      {one("{}"), []int{1000}},
		"guaranteed":       {one("{limits: {cpu: 1, memory: 1Gi}}"), []int{-997}},
		"a quarter":        {one(burstable), []int{750}},
		"nothing":          {one("{requests: {cpu: 1}}"), []int{999}},
		"everything":       {one("{requests: {memory: 4Gi}}"), []int{3}},
		"node critical":    {"{priority: 2000001000, priorityClassName: system-node-critical, containers: [{name: a, resources: " + burstable + "}]}", []int{-997}},
		"its class alone":  {"{priorityClassName: system-node-critical, containers: [{name: a, resources: " + burstable + "}]}", []int{-997}},
		"cluster critical": {"{priorityClassName: system-cluster-critical, containers: [{name: a, resources: " + burstable + "}]}", []int{750}},
		"sidecar": {"initContainers: [{name: i, restartPolicy: Always}, {name: once}]\ncontainers: [{name: a, resources: " + burstable + "}, {name: b, resources: {requests: {memory: 2Gi}}}]",
			[]int{750, 999, 750, 500}},
		"larger sidecar": {"initContainers: [{name: i, restartPolicy: Always, resources: {requests: {memory: 3Gi}}}]\ncontainers: [{name: a, resources: " + burstable + "}]",
			[]int{250, 750}},
		"shared by the pod": {"resources: {requests: {memory: 3Gi}}\ncontainers: [{name: a, resources: " + burstable + "}, {name: b}]", []int{500, 750}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(t, c.spec)
			var got []int
			for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
				for i := range list {
					got = append(got, OOMScoreAdj(pod, &list[i], 4<<30))
				}
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
	pod := podOf(t, one(burstable))
	if got := OOMScoreAdj(pod, &pod.Spec.Containers[0], 0); got != 999 {
		t.Errorf("of an unknown capacity: %d", got)
	}
}

func TestPodResources(t *testing.T) {
	n := Node{HugePageSizes: []string{"2MB"}, PodPids: 100}
	for name, c := range map[string]struct {
		spec          string
		shares        uint64
		quota, memory int64 // 0 for none
	}{
		"best effort":       {one("{}"), 2, 0, 0},
		"burstable":         {one("{requests: {cpu: 1}}"), 1024, 0, 0},
		"all limited":       {one("{requests: {cpu: 1}, limits: {cpu: 2, memory: 1Gi}}"), 1024, 200000, 1 << 30},
		"memory limited":    {one("{limits: {memory: 1Gi}}"), 2, 0, 1 << 30},
		"one is not":        {"containers: [{name: a, resources: {requests: {cpu: 1}, limits: {cpu: 1, memory: 1Gi}}}, {name: b}]", 1024, 0, 0},
		"an init container": {"initContainers: [{name: i, resources: {limits: {cpu: 3, memory: 3Gi}}}]\n" + one("{limits: {cpu: 1, memory: 1Gi}}"), 3072, 300000, 3 << 30},
		"a sidecar":         {"initContainers: [{name: i, restartPolicy: Always, resources: {limits: {cpu: 3, memory: 3Gi}}}]\n" + one("{limits: {cpu: 1, memory: 1Gi}}"), 4096, 400000, 4 << 30},
		"overhead":          {"overhead: {cpu: 500m, memory: 1Gi}\n" + one("{limits: {cpu: 1, memory: 1Gi}}"), 1536, 150000, 2 << 30},
		"guaranteed":        {one("{limits: {cpu: 1, memory: 1Gi}}"), 1024, 100000, 1 << 30},
		"the pod's own":     {"resources: {requests: {cpu: 1}, limits: {cpu: 2, memory: 2Gi}}\ncontainers: [{name: a}]", 1024, 200000, 2 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			got := n.Pod(podOf(t, c.spec))
			want := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &c.shares}, Memory: &specs.LinuxMemory{}, Pids: &specs.LinuxPids{Limit: &n.PodPids},
				HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}}
			if c.quota > 0 {
				want.CPU.Quota, want.CPU.Period = &c.quota, new(uint64(100_000))
			}
			if c.memory > 0 {
				want.Memory.Limit = &c.memory
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", said(got), said(want))
			}
		})
	}
}

func said(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func TestPodHugePages(t *testing.T) {
	n := Node{HugePageSizes: []string{"2MB", "1GB"}}
	got := n.Pod(podOf(t, "containers: [{name: a, resources: {limits: {hugepages-2Mi: 4Mi, cpu: 1, memory: 1Gi}}}, {name: b, resources: {limits: {hugepages-2Mi: 6Mi, cpu: 1, memory: 1Gi}}}]"))
	want := []specs.LinuxHugepageLimit{{Pagesize: "1GB"}, {Pagesize: "2MB", Limit: 10 << 20}}
	if !reflect.DeepEqual(got.HugepageLimits, want) {
		t.Errorf("%v", got.HugepageLimits)
	}
}

func TestPodWithoutQuota(t *testing.T) {
	n := Node{NoCPUQuota: true}
	if got := n.Pod(podOf(t, one("{limits: {cpu: 1, memory: 1Gi}}"))); *got.CPU.Quota != -1 {
		t.Errorf("quota %d", *got.CPU.Quota)
	}
}

func TestPaths(t *testing.T) {
	const uid = "1-2-3"
	for _, c := range []struct {
		tree                             Tree
		node, burstable, pod, besteffort string
	}{
		{Tree{}, "/kubepods", "/kubepods/burstable", "/kubepods/pod1-2-3", "/kubepods/besteffort/pod1-2-3"},
		{Tree{Root: "/a/b"}, "/a/b/kubepods", "/a/b/kubepods/burstable", "/a/b/kubepods/pod1-2-3", "/a/b/kubepods/besteffort/pod1-2-3"},
		{Tree{Root: "/", Driver: cgroups.Systemd}, "/kubepods.slice", "/kubepods.slice/kubepods-burstable.slice",
			"/kubepods.slice/kubepods-pod1_2_3.slice", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2_3.slice"},
		{Tree{Root: "/my-root.slice", Driver: cgroups.Systemd}, "/my_root.slice/my_root-kubepods.slice",
			"/my_root.slice/my_root-kubepods.slice/my_root-kubepods-burstable.slice",
			"/my_root.slice/my_root-kubepods.slice/my_root-kubepods-pod1_2_3.slice",
			"/my_root.slice/my_root-kubepods.slice/my_root-kubepods-besteffort.slice/my_root-kubepods-besteffort-pod1_2_3.slice"},
	} {
		for _, x := range []struct{ got, want string }{
			{c.tree.Node(), c.node}, {c.tree.Class(v1.PodQOSBurstable), c.burstable},
			{c.tree.Pod(uid, v1.PodQOSGuaranteed), c.pod}, {c.tree.Pod(uid, v1.PodQOSBestEffort), c.besteffort},
		} {
			if x.got != x.want {
				t.Errorf("%+v: %s, want %s", c.tree, x.got, x.want)
			}
		}
		name := c.besteffort[strings.LastIndexByte(c.besteffort, '/')+1:]
		if got, ok := c.tree.uidOf(name); !ok || got != uid {
			t.Errorf("uid of %s: %q, %v", name, got, ok)
		}
		for _, other := range []string{"burstable", "pod", "kubepods-burstable.slice", "crio-1.scope", ""} {
			if got, ok := c.tree.uidOf(other); ok {
				t.Errorf("uid of %s: %q", other, got)
			}
		}
	}
}
