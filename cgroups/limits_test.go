package cgroups

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/internal/errdefs"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		child(mode)
	}
	os.Exit(m.Run())
}

func p[T any](v T) *T { return &v }

// fakeLimits lets the library write to files that are no cgroups, for one test.
func fakeLimits(t *testing.T) {
	cgroups.TestMode = true
	t.Cleanup(func() { cgroups.TestMode = false })
}

func TestSetV2(t *testing.T) {
	const mi = 1 << 20
	for _, tc := range []struct {
		name string
		r    specs.LinuxResources
		want map[string]string // the files that change
		err  error
	}{
		{name: "nothing"},
		{"quota keeps the period", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p[int64](20000)}}, map[string]string{"cpu.max": "20000 50000"}, nil},
		{"period keeps the quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Period: p[uint64](10000)}}, map[string]string{"cpu.max": "30000 10000"}, nil},
		{"no quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p[int64](-1)}}, map[string]string{"cpu.max": "max 50000"}, nil},
		{"shares", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p[uint64](1024)}}, map[string]string{"cpu.weight": "100"}, nil},
		{"cpuset", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-1", Mems: "0"}}, map[string]string{"cpuset.cpus": "0-1", "cpuset.mems": "0"}, nil},
		{"memory leaves swap alone", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p[int64](64 * mi)}}, map[string]string{"memory.max": "67108864"}, nil},
		{"no swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p[int64](64 * mi), Swap: p[int64](64 * mi)}}, map[string]string{"memory.max": "67108864", "memory.swap.max": "0"}, nil},
		{"swap alone is counted from the limit in force", specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: p[int64](48 * mi)}}, map[string]string{"memory.max": "33554432", "memory.swap.max": "16777216"}, nil},
		{"pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p[int64](10)}}, map[string]string{"pids.max": "10"}, nil},
		{"huge pages", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 2 * mi}}}, map[string]string{"hugetlb.2MB.max": "2097152", "hugetlb.2MB.rsvd.max": "2097152"}, nil},
		{"unknown huge pages", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB"}}}, nil, errdefs.ErrInvalidArgument},
		{"unified", specs.LinuxResources{Unified: map[string]string{"memory.high": "1000"}}, map[string]string{"memory.high": "1000"}, nil},
		{"unified with a folder", specs.LinuxResources{Unified: map[string]string{"..": "1000"}}, nil, errdefs.ErrInvalidArgument},
		{"unified without a parameter", specs.LinuxResources{Unified: map[string]string{"memory.": "1000"}}, nil, errdefs.ErrInvalidArgument},
		{"unified with a path", specs.LinuxResources{Unified: map[string]string{"../memory.high": "1000"}}, nil, errdefs.ErrInvalidArgument},
		{"devices", specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fakeLimits(t)
			before := map[string]string{
				"cgroup.controllers": "cpu cpuset memory pids hugetlb", "cpu.max": "30000 50000\n", "cpu.weight": "79\n",
				"cpuset.cpus": "\n", "cpuset.mems": "\n", "memory.max": "33554432\n", "memory.swap.max": "max\n",
				"memory.high": "max\n", "memory.low": "0\n", "pids.max": "max\n", "hugetlb.2MB.max": "max\n", "hugetlb.2MB.rsvd.max": "max\n",
			}
			files := map[string]string{}
			for name, text := range before {
				files["p/"+name] = text
			}
			dir := tree(t, files)
			h := &Host{Unified: true, Swap: true, HugePageSizes: []string{"2MB"}, Controllers: []string{"hugetlb"}, mounts: map[string]string{"": dir}}
			g, _ := h.Open("/p")
			if err := g.Set(t.Context(), &tc.r); !errors.Is(err, tc.err) {
				t.Fatalf("got %v, want %v", err, tc.err)
			}
			for name, old := range before {
				want, changes := tc.want[name]
				if !changes {
					want = old
				}
				b, _ := os.ReadFile(filepath.Join(dir, "p", name))
				if got := string(b); strings.TrimSpace(got) != strings.TrimSpace(want) {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestSetV1KeepsSwapAllowance(t *testing.T) {
	fakeLimits(t)
	dir := tree(t, map[string]string{
		"p/memory.limit_in_bytes":       "1000000\n",
		"p/memory.memsw.limit_in_bytes": "1500000\n",
	})
	g, _ := (&Host{Swap: true, mounts: map[string]string{"memory": dir}}).Open("/p")
	// 2,000,000 is above memory and swap together, which the kernel refuses: that limit has to go up first.
	if err := g.Set(t.Context(), &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p[int64](2000000)}}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"memory.limit_in_bytes": "2000000", "memory.memsw.limit_in_bytes": "2500000"} {
		if b, _ := os.ReadFile(filepath.Join(dir, "p", name)); string(b) != want {
			t.Errorf("%s is %q, want %s", name, b, want)
		}
	}
	err := g.Set(t.Context(), &specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}})
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("unified settings on v1: %v", err)
	}
}

func TestSetNotFound(t *testing.T) {
	g, _ := testHost(Cgroupfs).Open("/not/there")
	err := g.Set(t.Context(), &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p[int64](10)}})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v, want not found", err)
	}
}

func TestTolerated(t *testing.T) {
	r := &specs.LinuxResources{
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}},
		Memory:         &specs.LinuxMemory{Limit: p[int64](1), Swap: p[int64](1)},
		Unified:        map[string]string{"memory.swap.max": "0", "memory.high": "1"},
	}
	got := (&Host{}).Tolerated(r)
	if got.HugepageLimits != nil || got.Memory.Swap != nil || *got.Memory.Limit != 1 || len(got.Unified) != 1 {
		t.Errorf("got %+v", got)
	}
	if r.HugepageLimits == nil || r.Memory.Swap == nil || len(r.Unified) != 2 {
		t.Errorf("the request was changed to %+v", r)
	}
	got = (&Host{Swap: true, Controllers: []string{"hugetlb"}}).Tolerated(r)
	if got.HugepageLimits == nil || got.Memory.Swap == nil || len(got.Unified) != 2 {
		t.Errorf("got %+v", got)
	}
}
