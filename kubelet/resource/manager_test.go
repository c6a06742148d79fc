package resource

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
)

// eachDriver runs a test below a root of its own with each driver that this machine has.
func eachDriver(t *testing.T, test func(t *testing.T, m *Manager)) {
	if os.Getuid() != 0 {
		t.Skip("cgroups need root")
	}
	for _, driver := range []cgroups.Driver{cgroups.Cgroupfs, cgroups.Systemd} {
		t.Run(string(driver), func(t *testing.T) {
			host, err := cgroups.Probe(driver, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Skip(err)
			}
			root := "/berthtest" + strconv.Itoa(os.Getpid())
			node := &Node{MemoryCapacity: 8 << 30, Unified: host.Unified, HugePageSizes: host.HugePageSizes}
			whole := v1.ResourceList{v1.ResourceCPU: resource.MustParse("2"), v1.ResourceMemory: resource.MustParse("4Gi")}
			m := NewManager(host, root, node, whole, slog.New(slog.NewTextHandler(t.Output(), nil)))
			t.Cleanup(func() {
				top := root
				if driver == cgroups.Systemd {
					top = root + ".slice"
				}
				if err := host.RemoveParentIfEmpty(context.Background(), top); err != nil {
					t.Error(err)
				}
				if g, err := host.OpenParent(top); err != nil || g.Exists() {
					t.Errorf("%s is left: %v", top, err)
				}
			})
			test(t, m)
		})
	}
}

func ctxOf(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// limit reads a limit of a cgroup: shares on v1 and v2 alike, "max" for none.
func (m *Manager) limit(t *testing.T, path, what string) string {
	t.Helper()
	g, err := m.host.OpenParent(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func(controller, file string) string {
		dir := g.Paths()[""]
		if !m.host.Unified {
			dir = g.Paths()[controller]
		}
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	v2 := m.host.Unified
	switch {
	case what == "shares" && v2:
		return read("cpu", "cpu.weight")
	case what == "shares":
		return read("cpu", "cpu.shares")
	case what == "quota" && v2:
		quota, _, _ := strings.Cut(read("cpu", "cpu.max"), " ")
		return quota
	case what == "quota":
		if quota := read("cpu", "cpu.cfs_quota_us"); quota != "-1" {
			return quota
		}
		return "max"
	case what == "memory" && v2:
		return read("memory", "memory.max")
	case what == "memory":
		text := read("memory", "memory.limit_in_bytes")
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 1<<60 {
			return "max"
		}
		return text
	}
	return read("pids", "pids.max")
}

func (m *Manager) want(t *testing.T, path string, want map[string]string) {
	t.Helper()
	for what, value := range want {
		if got := m.limit(t, path, what); got != value {
			t.Errorf("%s of %s is %s, want %s", what, path, got, value)
		}
	}
}

// weight is the weight on cgroup v2 of these shares, or the shares themselves.
func (m *Manager) weight(shares, weight string) string {
	if m.host.Unified {
		return weight
	}
	return shares
}

func uidPod(t *testing.T, uid, spec string) *v1.Pod {
	t.Helper()
	pod := podOf(t, spec)
	pod.UID = types.UID(uid)
	return pod
}

func TestManager(t *testing.T) {
	eachDriver(t, func(t *testing.T, m *Manager) {
		ctx := ctxOf(t)
		m.node.PodPids = 50
		sure := uidPod(t, "a-1", one("{limits: {cpu: 500m, memory: 64Mi}}"))
		burstable := uidPod(t, "b-2", one("{requests: {cpu: 250m}}"))
		best := uidPod(t, "c-3", one("{}"))
		for _, pod := range []*v1.Pod{sure, burstable, best} {
			if err := m.EnsurePod(ctx, pod); err != nil {
				t.Fatal(err)
			}
		}
		m.want(t, m.tree.Node(), map[string]string{"memory": "4294967296", "shares": m.weight("2048", "174")})
		m.want(t, m.tree.Class(v1.PodQOSBurstable), map[string]string{"shares": m.weight("256", "35"), "memory": "max"})
		m.want(t, m.tree.Class(v1.PodQOSBestEffort), map[string]string{"shares": m.weight("2", "1"), "memory": "max"})
		m.want(t, m.Parent(sure), map[string]string{"memory": "67108864", "quota": "max", "pids": "50", "shares": m.weight("512", "59")})
		m.want(t, m.Parent(burstable), map[string]string{"memory": "max", "quota": "max", "shares": m.weight("256", "35")})
		m.want(t, m.Parent(best), map[string]string{"memory": "max", "shares": m.weight("2", "1")})

		if err := errors.Join(m.SetPod(ctx, sure), m.SetPod(ctx, burstable), m.SetPod(ctx, best)); err != nil {
			t.Fatal(err)
		}
		m.want(t, m.Parent(sure), map[string]string{"quota": "50000"})
		second := uidPod(t, "d-4", one("{requests: {cpu: 1}}"))
		if err := m.EnsurePod(ctx, second); err != nil {
			t.Fatal(err)
		}
		m.want(t, m.tree.Class(v1.PodQOSBurstable), map[string]string{"shares": m.weight("1280", "120")})

		uids, err := m.Pods()
		slices.Sort(uids)
		if err != nil || !slices.Equal(uids, []types.UID{"a-1", "b-2", "c-3", "d-4"}) {
			t.Errorf("%v, %v", uids, err)
		}
		if stats, err := m.Stats(sure); err != nil || stats == nil {
			t.Errorf("%v, %v", stats, err)
		}
		if err := m.RemovePod(ctx, "d-4"); err != nil {
			t.Fatal(err)
		}
		m.want(t, m.tree.Class(v1.PodQOSBurstable), map[string]string{"shares": m.weight("256", "35")})

		// A restarted daemon goes on with what is there.
		again := NewManager(m.host, m.tree.Root, m.node, m.whole, m.log)
		again.Adopt(sure, burstable, best)
		for _, uid := range []types.UID{"b-2", "b-2", "c-3", "none"} {
			if err := again.RemovePod(ctx, uid); err != nil {
				t.Error(err)
			}
		}
		for path, there := range map[string]bool{m.tree.Class(v1.PodQOSBurstable): false, m.tree.Class(v1.PodQOSBestEffort): false, m.Parent(sure): true} {
			if g, _ := m.host.OpenParent(path); g.Exists() != there {
				t.Errorf("%s is there: %v", path, !there)
			}
		}
		if err := again.RemovePod(ctx, "a-1"); err != nil {
			t.Fatal(err)
		}
		if g, _ := m.host.OpenParent(m.tree.Node()); g.Exists() {
			t.Error("the cgroup of all pods is left")
		}
	})
}

// A pod that nobody knows any more goes too, with the processes in it.
func TestRemoveUnknownPod(t *testing.T) {
	eachDriver(t, func(t *testing.T, m *Manager) {
		ctx := ctxOf(t)
		if err := m.EnsurePod(ctx, uidPod(t, "a-1", one("{requests: {cpu: 1}}"))); err != nil {
			t.Fatal(err)
		}
		other := NewManager(m.host, m.tree.Root, m.node, m.whole, m.log)
		uids, err := other.Pods()
		if err != nil || len(uids) != 1 {
			t.Fatalf("%v, %v", uids, err)
		}
		if err := other.RemovePod(ctx, uids[0]); err != nil {
			t.Fatal(err)
		}
		if uids, err := other.Pods(); err != nil || len(uids) != 0 {
			t.Errorf("%v, %v", uids, err)
		}
	})
}

func TestResize(t *testing.T) {
	eachDriver(t, func(t *testing.T, m *Manager) {
		ctx := ctxOf(t)
		from := uidPod(t, "a-1", one("{requests: {cpu: 250m, memory: 32Mi}, limits: {cpu: 500m, memory: 64Mi}}"))
		to := uidPod(t, "a-1", one("{requests: {cpu: 500m, memory: 32Mi}, limits: {cpu: 1, memory: 128Mi}}"))
		if err := errors.Join(m.EnsurePod(ctx, from), m.SetPod(ctx, from)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.RemovePod(ctxOf(t), "a-1"); err != nil {
				t.Error(err)
			}
		})
		var seen []string
		told := 0
		do := Resizer{
			Pod: func(context.Context) error { told++; return nil },
			Container: func(_ context.Context, id string, to *cri.LinuxContainerResources) error {
				what := "cpu"
				if to.MemoryLimitInBytes != 0 {
					what = "memory"
				}
				seen = append(seen, what+" "+m.limit(t, m.Parent(from), "memory")+" "+m.limit(t, m.Parent(from), "quota"))
				return nil
			},
		}
		if err := m.Resize(ctx, to, partsOf(m.node, from, to, 0), do); err != nil {
			t.Fatal(err)
		}
		m.want(t, m.Parent(from), map[string]string{"memory": "134217728", "quota": "100000", "shares": m.weight("512", "59")})
		m.want(t, m.tree.Class(v1.PodQOSBurstable), map[string]string{"shares": m.weight("512", "59")})
		if has, err := m.Actual(to); err != nil || *has.Memory.Limit != 128<<20 || *has.CPU.Quota != 100000 {
			t.Errorf("%+v, %v", has, err)
		}
		if err := m.Resize(ctx, from, partsOf(m.node, to, from, 0), do); err != nil {
			t.Fatal(err)
		}
		m.want(t, m.Parent(from), map[string]string{"memory": "67108864", "quota": "50000", "shares": m.weight("256", "35")})
		want := []string{"memory 134217728 50000", "cpu 134217728 100000", "memory 134217728 100000", "cpu 67108864 100000"}
		if !slices.Equal(seen, want) || told != 2 {
			t.Errorf("the containers were changed at %q, want %q; told %d times", seen, want, told)
		}
		failed := errors.New("no")
		do.Container = func(context.Context, string, *cri.LinuxContainerResources) error { return failed }
		if err := m.Resize(ctx, to, partsOf(m.node, from, to, 0), do); !errors.Is(err, failed) {
			t.Errorf("%v", err)
		}
		// What was done before the error is found done.
		do.Container = func(context.Context, string, *cri.LinuxContainerResources) error { return nil }
		if err := m.Resize(ctx, to, partsOf(m.node, from, to, 0), do); err != nil {
			t.Error(err)
		}
		m.want(t, m.Parent(from), map[string]string{"memory": "134217728", "quota": "100000", "shares": m.weight("512", "59")})
		do.Pod = func(context.Context) error { return failed }
		if err := m.Resize(ctx, from, partsOf(m.node, to, from, 0), do); !errors.Is(err, failed) {
			t.Errorf("%v", err)
		}
		m.want(t, m.Parent(from), map[string]string{"memory": "134217728"})
	})
}

// Another daemon may keep more, or less, from all pods together.
func TestLimitsOfAllPodsFollow(t *testing.T) {
	eachDriver(t, func(t *testing.T, m *Manager) {
		ctx := ctxOf(t)
		pod := uidPod(t, "a-1", one("{requests: {cpu: 250m}}"))
		if err := m.EnsurePod(ctx, pod); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.RemovePod(ctxOf(t), "a-1"); err != nil {
				t.Error(err)
			}
		})
		m.want(t, m.tree.Node(), map[string]string{"memory": "4294967296"})
		for whole, want := range map[string]string{"3Gi": "3221225472", "5Gi": "5368709120"} {
			other := NewManager(m.host, m.tree.Root, m.node, v1.ResourceList{v1.ResourceCPU: resource.MustParse("1"), v1.ResourceMemory: resource.MustParse(whole)}, m.log)
			other.Adopt(pod)
			if err := other.EnsurePod(ctx, pod); err != nil {
				t.Fatal(err)
			}
			m.want(t, m.tree.Node(), map[string]string{"memory": want, "shares": m.weight("1024", "100")})
		}
	})
}
