package cgroups

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"

	"github.com/berth-node/berth/internal/errdefs"
)

// tree writes files, by their path, below a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The texts are those of Linux 6.12.
var v2Files = map[string]string{
	"p/cpu.stat": "usage_usec 5120\nuser_usec 3000\nsystem_usec 2120\nnice_usec 0\ncore_sched.force_idle_usec 0\n" +
		"nr_periods 7\nnr_throttled 2\nthrottled_usec 4000\nnr_bursts 0\nburst_usec 0\n",
	"p/cpu.max":             "50000 100000\n",
	"p/cpu.weight":          "100\n",
	"p/cpu.pressure":        "some avg10=1.25 avg60=0.50 avg300=0.10 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n",
	"p/memory.current":      "10485760\n",
	"p/memory.peak":         "20971520\n",
	"p/memory.max":          "33554432\n",
	"p/memory.low":          "1048576\n",
	"p/memory.swap.current": "4096\n",
	"p/memory.swap.max":     "max\n",
	"p/memory.events":       "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n",
	"p/memory.stat": "anon 4194304\nfile 3145728\nkernel 2097152\nkernel_stack 65536\npagetables 131072\n" +
		"file_mapped 1048576\ninactive_anon 1\nactive_anon 4194303\ninactive_file 2097152\nactive_file 1048576\n" +
		"pgfault 1000\npgmajfault 10\n",
	"p/pids.current":           "5\n",
	"p/pids.max":               "max\n",
	"p/io.stat":                "8:16 \n8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=512 dios=3 cost.usage=7\n",
	"p/hugetlb.2MB.current":    "2097152\n",
	"p/hugetlb.2MB.max":        "4194304\n",
	"p/hugetlb.2MB.events":     "max 4\n",
	"p/hugetlb.2MB.rsvd.max":   "max\n",
	"p/cgroup.subtree_control": "\n",
}

func TestStatsV2(t *testing.T) {
	h := &Host{Unified: true, HugePageSizes: []string{"1GB", "2MB"}, mounts: map[string]string{"": tree(t, v2Files)}}
	g, err := h.Open("/p")
	if err != nil {
		t.Fatal(err)
	}
	got, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	want := &Stats{
		Time: got.Time,
		CPU: &CPUStats{
			Usage: 5120 * time.Microsecond, User: 3 * time.Millisecond, System: 2120 * time.Microsecond,
			Periods: 7, ThrottledPeriods: 2, Throttled: 4 * time.Millisecond,
			Weight: 100, Shares: 1024, Quota: 50 * time.Millisecond, Period: 100 * time.Millisecond,
		},
		Memory: &MemoryStats{
			Usage: 10 << 20, MaxUsage: 20 << 20, WorkingSet: 8 << 20, RSS: 4 << 20, Cache: 3 << 20, MappedFile: 1 << 20,
			Kernel: 2 << 20, Swap: 4096, ActiveAnon: 4<<20 - 1, InactiveAnon: 1, ActiveFile: 1 << 20, InactiveFile: 2 << 20,
			Faults: 1000, MajorFaults: 10, LocalFaults: 1000, LocalMajorFaults: 10, FailCount: 12, OOMKills: 2,
			Limit: 32 << 20, SwapLimit: Unlimited, Reservation: 1 << 20, SwapCounted: true,
		},
		Pids: &PidsStats{Current: 5, Limit: Unlimited},
		IO: []IOStats{{
			Major: 8, Bytes: map[string]uint64{"Read": 4096, "Write": 8192, "Discard": 512},
			Ops: map[string]uint64{"Read": 1, "Write": 2, "Discard": 3},
		}},
		HugeTLB: []HugeTLBStats{{PageSize: "2MB", Usage: 2 << 20, Limit: 4 << 20, FailCount: 4}},
		PSI: PSIStats{CPU: &Pressure{
			Some: PressureLine{Total: 12345 * time.Microsecond, Avg10: 1.25, Avg60: 0.5, Avg300: 0.1},
			Full: PressureLine{Total: 99 * time.Microsecond},
		}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v %+v %+v\nwant\n%+v %+v %+v", got, got.CPU, got.Memory, want, want.CPU, want.Memory)
	}
	if left, ok := got.Memory.Available(); !ok || left != 24<<20 {
		t.Errorf("available %d, %v; want 24 MiB", left, ok)
	}
	if n, err := g.OOMKills(); n != 2 || err != nil {
		t.Errorf("OOMKills %d, %v; want 2", n, err)
	}
}

// A node without controllers counts CPU time, since the kernel always does, and nothing else.
func TestStatsOfABareGroup(t *testing.T) {
	h := &Host{Unified: true, mounts: map[string]string{"": tree(t, map[string]string{"p/cpu.stat": "usage_usec 1\n"})}}
	g, _ := h.Open("/p")
	got, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if got.CPU == nil || got.Memory != nil || got.Pids != nil || got.IO != nil || got.HugeTLB != nil || got.PSI.CPU != nil {
		t.Errorf("got %+v", got)
	}
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Errorf("OOMKills %d, %v; want 0", n, err)
	}
}

func TestStatsErrors(t *testing.T) {
	h := &Host{Unified: true, mounts: map[string]string{"": tree(t, map[string]string{"p/pids.current": "many\n"})}}
	g, _ := h.Open("/p")
	if s, err := g.Stats(); err == nil {
		t.Errorf("got %+v from a file without sense", s)
	}
	g, _ = h.Open("/gone")
	if s, err := g.Stats(); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %+v, %v; want not found", s, err)
	}
	if n, err := g.OOMKills(); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %d, %v; want not found", n, err)
	}
}

func TestStatsV1(t *testing.T) {
	const none = "9223372036854771712\n"
	dir := tree(t, map[string]string{
		"cpuacct/p/cpuacct.usage":         "5000000\n",
		"cpuacct/p/cpuacct.stat":          "user 30\nsystem 20\n",
		"cpu/p/cpu.stat":                  "nr_periods 7\nnr_throttled 2\nthrottled_time 4000000\n",
		"cpu/p/cpu.shares":                "512\n",
		"cpu/p/cpu.cfs_quota_us":          "-1\n",
		"cpu/p/cpu.cfs_period_us":         "100000\n",
		"memory/p/memory.usage_in_bytes":  "10485760\n",
		"memory/p/memory.limit_in_bytes":  "33554432\n",
		"memory/p/memory.failcnt":         "3\n",
		"memory/p/memory.oom_control":     "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
		"memory/p/sub/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",

		"memory/p/memory.memsw.limit_in_bytes": "50331648\n",
		"memory/p/memory.soft_limit_in_bytes":  none,
		"memory/p/memory.kmem.usage_in_bytes":  "8192\n",
		"memory/p/memory.stat": "cache 1\nrss 2\npgfault 5\npgmajfault 1\nhierarchical_memory_limit 33554432\n" +
			"total_cache 3145728\ntotal_rss 4194304\ntotal_mapped_file 1048576\ntotal_swap 4096\ntotal_pgfault 50\n" +
			"total_pgmajfault 10\ntotal_inactive_file 2097152\ntotal_active_file 1048576\n",
		"pids/p/pids.current": "5\n",
		"pids/p/pids.max":     "100\n",

		"blkio/p/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288\n",
		"blkio/p/blkio.throttle.io_serviced":                "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
		"unified/p/io.pressure":                             "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
	})
	mounts := map[string]string{"": dir + "/unified"}
	for _, c := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
		mounts[c] = filepath.Join(dir, c)
	}
	g, _ := (&Host{mounts: mounts}).Open("/p")
	got, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	want := &Stats{
		Time: got.Time,
		CPU: &CPUStats{
			Usage: 5 * time.Millisecond, User: 300 * time.Millisecond, System: 200 * time.Millisecond,
			Periods: 7, ThrottledPeriods: 2, Throttled: 4 * time.Millisecond,
			Shares: 512, Quota: -1, Period: 100 * time.Millisecond,
		},
		Memory: &MemoryStats{
			Usage: 10 << 20, WorkingSet: 8 << 20, RSS: 4 << 20, Cache: 3 << 20, MappedFile: 1 << 20, Kernel: 8192,
			Swap: 4096, ActiveFile: 1 << 20, InactiveFile: 2 << 20, Faults: 50, MajorFaults: 10, LocalFaults: 5,
			LocalMajorFaults: 1, FailCount: 3, OOMKills: 1, Limit: 32 << 20, SwapLimit: 16 << 20,
			Reservation: Unlimited, SwapCounted: true,
		},
		Pids: &PidsStats{Current: 5, Limit: 100},
		IO: []IOStats{{
			Major: 8, Bytes: map[string]uint64{"Read": 4096, "Write": 8192, "Total": 12288},
			Ops: map[string]uint64{"Read": 1, "Write": 2, "Total": 3},
		}},
		PSI: PSIStats{IO: &Pressure{Some: PressureLine{Total: 7 * time.Microsecond}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v %+v %+v\nwant\n%+v %+v %+v", got, got.CPU, got.Memory, want, want.CPU, want.Memory)
	}
	if n, err := g.OOMKills(); n != 3 || err != nil {
		t.Errorf("OOMKills %d, %v; want 3, of both levels", n, err)
	}
}

// What the kubelet sets must come back as it was set: it compares.
func TestSharesOf(t *testing.T) {
	for _, shares := range []uint64{2, 102, 256, 512, 1024, 2048, 4096, 262144} {
		weight := cgroups.ConvertCPUSharesToCgroupV2Value(shares)
		back := sharesOf(weight)
		if cgroups.ConvertCPUSharesToCgroupV2Value(back) != weight {
			t.Errorf("%d shares have weight %d, which is said to be %d shares, which is another weight", shares, weight, back)
		}
		if shares&(shares-1) == 0 && back != shares {
			t.Errorf("%d shares come back as %d", shares, back)
		}
	}
}
