package evict

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const mib = 1 << 20

// A node has what it is told, and writes down what is done to it.
type node struct {
	t         *testing.T
	manager   *Manager
	now       time.Time
	there     map[Signal]Observation
	pods      []*v1.Pod
	use       map[string]Use
	reclaim   func()
	evicted   []string
	orders    []Order
	events    []string
	changed   int
	reclaimed int
}

func newNode(t *testing.T, rules Rules) *node {
	t.Helper()
	thresholds, err := rules.Parse()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, now: time.Unix(1e9, 0), use: map[string]Use{}}
	n.calm()
	n.manager = New(Config{Thresholds: thresholds, MaxGrace: 20, Log: slog.New(slog.DiscardHandler),
		Now:     func() time.Time { return n.now },
		Observe: func(context.Context) (map[Signal]Observation, error) { return n.there, nil },
		Pods:    func() []*v1.Pod { return n.pods },
		Use: func(_ context.Context, pod *v1.Pod) (Use, bool) {
			u, ok := n.use[pod.Name]
			return u, ok
		},
		Reclaim: func(context.Context) error {
			n.reclaimed++
			if n.reclaim != nil {
				n.reclaim()
			}
			return nil
		},
		Evict: func(_ context.Context, pod *v1.Pod, o Order) error {
			n.evicted, n.orders = append(n.evicted, pod.Name), append(n.orders, o)
			n.pods = slices.DeleteFunc(n.pods, func(p *v1.Pod) bool { return p == pod })
			return nil
		},
		Event:   func(eventType, reason, message string) { n.events = append(n.events, reason+" "+message) },
		Changed: func() { n.changed++ },
	})
	return n
}

// calm is a node with plenty of everything.
func (n *node) calm() {
	n.there = map[Signal]Observation{
		MemoryAvailable: {4000 * mib, 8000 * mib}, NodeFsAvailable: {50 * mib, 100 * mib}, NodeFsInodesFree: {5000, 10000},
		ImageFsAvailable: {50 * mib, 100 * mib}, ImageFsInodesFree: {5000, 10000}, PIDAvailable: {900, 1000},
	}
}

func (n *node) step(after time.Duration) {
	n.t.Helper()
	n.now = n.now.Add(after)
	if _, err := n.manager.Step(context.Background()); err != nil {
		n.t.Fatal(err)
	}
}

// pod adds a pod with a container c, whose requests and limits are texts such as "memory=10Mi".
func (n *node) pod(name string, priority int32, requests, limits string) *v1.Pod {
	list := func(text string) v1.ResourceList {
		all := v1.ResourceList{}
		for _, word := range strings.Fields(text) {
			k, v, _ := strings.Cut(word, "=")
			all[v1.ResourceName(k)] = resource.MustParse(v)
		}
		return all
	}
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.Spec.Priority = name, "default", &priority
	pod.Spec.Containers = []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}}}
	n.pods = append(n.pods, pod)
	return pod
}

func (n *node) want(evicted ...string) {
	n.t.Helper()
	if fmt.Sprint(n.evicted) != fmt.Sprint(evicted) {
		n.t.Errorf("evicted %v, want %v", n.evicted, evicted)
	}
}

func (n *node) wantConditions(want ...v1.NodeConditionType) {
	n.t.Helper()
	if got := n.manager.Conditions(); fmt.Sprint(got) != fmt.Sprint(want) {
		n.t.Errorf("conditions %v, want %v", got, want)
	}
}

func memory(mibs int64) Use {
	return Use{Memory: mibs * mib, Containers: map[string]ContainerUse{"c": {Memory: mibs * mib}}}
}

func TestNothingIsScarce(t *testing.T) {
	n := newNode(t, DefaultRules())
	n.pod("a", 0, "", "")
	n.step(0)
	n.want()
	n.wantConditions()
	if len(n.events) > 0 || n.changed > 0 || n.reclaimed > 0 {
		t.Errorf("events %q, changed %d, reclaimed %d", n.events, n.changed, n.reclaimed)
	}
}

func TestMemory(t *testing.T) {
	n := newNode(t, DefaultRules())
	n.there[MemoryAvailable] = Observation{60 * mib, 8000 * mib}
	n.pod("modest", 0, "memory=500Mi", "")
	n.pod("important", 10, "", "")
	n.pod("greedy", 0, "memory=100Mi", "")
	n.pod("greedier", 0, "memory=100Mi", "")
	n.pod("critical", systemCritical, "", "")
	n.use = map[string]Use{"modest": memory(450), "important": memory(900), "greedy": memory(200), "greedier": memory(250), "critical": memory(2000)}
	for range 6 {
		n.step(time.Second)
	}
	n.want("greedier", "greedy", "important", "modest") // and never what is critical
	want := Order{Grace: 1, Disrupted: true, Message: "The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi. Container c was using 250Mi, request is 100Mi, has larger consumption of memory. "}
	if n.orders[0] != want {
		t.Errorf("%+v, want %+v", n.orders[0], want)
	}
	if n.events[0] != "EvictionThresholdMet Attempting to reclaim memory" {
		t.Errorf("event %q", n.events[0])
	}
	n.wantConditions(v1.NodeMemoryPressure)
	if n.reclaimed > 0 {
		t.Error("images do not give memory back")
	}
}

// A pod whose numbers nobody knows goes first.
func TestUnknownUse(t *testing.T) {
	n := newNode(t, DefaultRules())
	n.there[MemoryAvailable] = Observation{60 * mib, 8000 * mib}
	n.pod("known", 0, "", "")
	n.pod("unknown", 0, "", "")
	n.use["known"] = memory(450)
	n.step(0)
	n.want("unknown")
	if n.orders[0].Message != "The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi. " {
		t.Errorf("%q", n.orders[0].Message)
	}
}

func TestDisk(t *testing.T) {
	n := newNode(t, DefaultRules())
	n.pod("small", 0, "", "")
	n.pod("large", 0, "ephemeral-storage=1Mi", "")
	n.use = map[string]Use{"small": {Volumes: map[string]FsUse{"v": {2 * mib, 100}}},
		"large": {Containers: map[string]ContainerUse{"c": {Rootfs: FsUse{3 * mib, 5}, Logs: FsUse{2 * mib, 1}}}}}
	n.there[NodeFsAvailable] = Observation{9 * mib, 100 * mib}
	n.reclaim = n.calm
	n.step(0)
	n.want() // it was enough to remove what nobody needs
	n.wantConditions(v1.NodeDiskPressure)

	n.reclaim = nil
	n.there[NodeFsAvailable] = Observation{9 * mib, 100 * mib}
	n.step(time.Minute)
	n.want("large")
	if want := "The node was low on resource: ephemeral-storage. Threshold quantity: 10Mi, available: 9Mi. Container c was using 5Mi, request is 1Mi, has larger consumption of ephemeral-storage. "; n.orders[0].Message != want {
		t.Errorf("%q, want %q", n.orders[0].Message, want)
	}
}

func TestInodesAndProcesses(t *testing.T) {
	rules := DefaultRules()
	rules.EvictionHard["pid.available"] = "10%"
	n := newNode(t, rules)
	n.pod("files", 0, "", "")
	n.pod("forks", 0, "", "")
	n.use = map[string]Use{"files": {Volumes: map[string]FsUse{"v": {1, 8000}}, Processes: 1}, "forks": {Volumes: map[string]FsUse{"v": {mib, 1}}, Processes: 800}}
	n.there[NodeFsInodesFree] = Observation{100, 10000}
	n.step(0)
	n.calm()
	n.there[PIDAvailable] = Observation{50, 1000}
	n.step(time.Second)
	n.want("files", "forks")
	if want := "The node was low on resource: inodes. Threshold quantity: 500, available: 100. "; n.orders[0].Message != want {
		t.Errorf("%q, want %q", n.orders[0].Message, want)
	}
	n.wantConditions(v1.NodeDiskPressure, v1.NodePIDPressure)
}

func TestSoftThreshold(t *testing.T) {
	n := newNode(t, Rules{EvictionSoft: map[string]string{"memory.available": "1Gi"}, EvictionSoftGracePeriod: map[string]string{"memory.available": "1m"}})
	long, short := int64(60), int64(5)
	n.pod("long", 0, "", "").Spec.TerminationGracePeriodSeconds = &long
	n.pod("short", 0, "", "").Spec.TerminationGracePeriodSeconds = &short
	n.use = map[string]Use{"long": memory(450), "short": memory(40)}
	n.there[MemoryAvailable] = Observation{1000 * mib, 8000 * mib}
	n.step(0)
	n.step(59 * time.Second)
	n.want()
	n.wantConditions(v1.NodeMemoryPressure)
	n.calm()
	n.step(0)
	n.there[MemoryAvailable] = Observation{1000 * mib, 8000 * mib}
	n.step(time.Second)
	n.want() // the time begins anew
	n.step(time.Minute)
	n.step(0)
	n.want("long", "short")
	if n.orders[0].Grace != 20 || n.orders[1].Grace != 5 {
		t.Errorf("graces %d and %d, want the most that is given, and less where the pod wants less", n.orders[0].Grace, n.orders[1].Grace)
	}
}

// Once a threshold was met, more has to be there than it says.
func TestMinimumReclaim(t *testing.T) {
	rules := DefaultRules()
	rules.EvictionMinimumReclaim = map[string]string{"memory.available": "500Mi"}
	n := newNode(t, rules)
	for _, name := range []string{"a", "b", "c"} {
		n.pod(name, 0, "", "")
		n.use[name] = memory(100)
	}
	n.there[MemoryAvailable] = Observation{300 * mib, 8000 * mib}
	n.step(0)
	n.want()
	n.there[MemoryAvailable] = Observation{60 * mib, 8000 * mib}
	n.step(time.Second)
	n.there[MemoryAvailable] = Observation{300 * mib, 8000 * mib}
	n.step(time.Second)
	n.there[MemoryAvailable] = Observation{700 * mib, 8000 * mib}
	n.step(time.Second)
	n.want("a", "b")
}

func TestConditionsStay(t *testing.T) {
	n := newNode(t, DefaultRules())
	n.there[MemoryAvailable] = Observation{60 * mib, 8000 * mib}
	n.step(0)
	n.calm()
	n.step(DefaultTransition - time.Second)
	n.wantConditions(v1.NodeMemoryPressure)
	n.step(time.Second)
	n.wantConditions()
	if n.changed != 2 {
		t.Errorf("told of %d changes, want 2", n.changed)
	}
}

func TestAdmit(t *testing.T) {
	n := newNode(t, DefaultRules())
	best, burstable, critical := n.pod("best", 0, "", ""), n.pod("burstable", 0, "memory=1Mi", ""), n.pod("critical", systemCritical, "", "")
	tolerant := n.pod("tolerant", 0, "", "")
	tolerant.Spec.Tolerations = []v1.Toleration{{Key: v1.TaintNodeMemoryPressure, Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoSchedule}}
	admitted := func(want ...*v1.Pod) {
		t.Helper()
		for _, pod := range []*v1.Pod{best, burstable, critical, tolerant} {
			if why := n.manager.Admit(pod); (why == "") != slices.Contains(want, pod) {
				t.Errorf("%s: %q", pod.Name, why)
			}
		}
	}
	n.pods = nil
	n.step(0)
	admitted(best, burstable, critical, tolerant)
	n.there[MemoryAvailable] = Observation{60 * mib, 8000 * mib}
	n.step(0)
	admitted(burstable, critical, tolerant)
	n.there[NodeFsAvailable] = Observation{mib, 100 * mib}
	n.step(0)
	admitted(critical)
	if why := n.manager.Admit(best); why != "The node had condition: [MemoryPressure DiskPressure]. " {
		t.Errorf("%q", why)
	}
}

func TestLocalStorageLimits(t *testing.T) {
	volume := func(pod *v1.Pod) {
		limit := resource.MustParse("1Mi")
		pod.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &limit}}}}
	}
	for _, c := range []struct {
		what, limits string
		change       func(*v1.Pod)
		use          Use
		want         string
	}{
		{"within", "ephemeral-storage=3Mi", volume, Use{Volumes: map[string]FsUse{"v": {mib, 1}}, Other: FsUse{mib, 1}, Containers: map[string]ContainerUse{"c": {Rootfs: FsUse{mib, 1}}}}, ""},
		{"volume", "", volume, Use{Volumes: map[string]FsUse{"v": {mib + 1, 1}}}, `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `},
		{"sum", "ephemeral-storage=3Mi", volume, Use{Volumes: map[string]FsUse{"v": {mib, 1}}, Other: FsUse{mib + 1, 1}, Containers: map[string]ContainerUse{"c": {Rootfs: FsUse{mib, 1}}}}, "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "},
		{"container", "ephemeral-storage=3Mi", func(pod *v1.Pod) {
			pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: "d", Resources: pod.Spec.Containers[0].Resources})
		}, Use{Containers: map[string]ContainerUse{"c": {Rootfs: FsUse{2 * mib, 1}, Logs: FsUse{2 * mib, 1}}}}, `Container c exceeded its local ephemeral storage limit "3Mi". `},
		{"no limit", "", func(*v1.Pod) {}, Use{Containers: map[string]ContainerUse{"c": {Rootfs: FsUse{200 * mib, 1}}}}, ""},
	} {
		n := newNode(t, DefaultRules())
		pod := n.pod("a", 0, "", c.limits)
		c.change(pod)
		n.use["a"] = c.use
		n.step(0)
		var got Order
		if len(n.orders) > 0 {
			got = n.orders[0]
		}
		if want := (Order{Message: c.want, Grace: 1}); c.want != "" && got != want || c.want == "" && len(n.orders) > 0 {
			t.Errorf("%s: %+v, want %+v", c.what, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	thresholds, err := Rules{EvictionHard: map[string]string{"nodefs.available": "12.5%", "memory.available": "200Mi", "pid.available": "0", "imagefs.available": "0%"},
		EvictionSoft: map[string]string{"imagefs.inodesFree": "7"}, EvictionSoftGracePeriod: map[string]string{"imagefs.inodesFree": "90s"},
		EvictionMinimumReclaim: map[string]string{"imagefs.inodesFree": "2%"}}.Parse()
	want := []Threshold{{Signal: MemoryAvailable, Least: Amount{Units: 200 * mib}}, {Signal: NodeFsAvailable, Least: Amount{Part: 0.125}},
		{Signal: ImageFsInodesFree, Least: Amount{Units: 7}, Grace: 90 * time.Second, MinReclaim: Amount{Part: 0.02}}}
	if err != nil || !slices.Equal(thresholds, want) {
		t.Errorf("%+v (%v), want %+v", thresholds, err, want)
	}
	for _, c := range []struct {
		rules Rules
		want  string
	}{
		{Rules{EvictionHard: map[string]string{"memory.free": "1"}}, "evictionHard: memory.free: there is no such signal here; there are imagefs.available"},
		{Rules{EvictionHard: map[string]string{"memory.available": "much"}}, `evictionHard: memory.available: "much" is neither`},
		{Rules{EvictionHard: map[string]string{"memory.available": "-1Mi"}}, "evictionHard: memory.available"},
		{Rules{EvictionHard: map[string]string{"memory.available": "100%"}}, "is no percentage"},
		{Rules{EvictionSoft: map[string]string{"memory.available": "1Gi"}}, "needs a grace period"},
		{Rules{EvictionSoftGracePeriod: map[string]string{"memory.available": "1m"}}, "evictionSoft has no such threshold"},
		{Rules{EvictionMinimumReclaim: map[string]string{"x": "1"}}, "evictionMinimumReclaim: x"},
	} {
		if _, err := c.rules.Parse(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.rules, err, c.want)
		}
	}
}
