package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// resources sets the limits of the cgroup, the OOM score and the rlimits.
func (b *builder) resources() error {
	asked := b.Container.GetLinux().GetResources()
	res, limits, err := LinuxResources(asked, b.Node)
	if err != nil {
		return err
	}
	b.limits = append(b.limits, limits...)
	b.spec.Linux.Resources = res
	b.spec.Linux.CgroupsPath = b.CgroupsPath
	b.oomScore(asked.GetOomScoreAdj())

	b.spec.Process.Rlimits = slices.Clone(b.Rlimits)
	if b.Rlimits == nil {
		b.spec.Process.Rlimits = DefaultRlimits()
	}
	b.limits = append(b.limits, ClampRlimits(b.spec, b.Node)...)
	return nil
}

// oomScore sets the score in any case: the daemon's own (-999 under systemd) must never be inherited.
func (b *builder) oomScore(want int64) {
	score, limit := clampOOMScore(want, b.Node)
	b.spec.Process.OOMScoreAdj = &score
	if limit != "" {
		b.limited("%s", limit)
	}
}

func clampOOMScore(want int64, node Node) (score int, limitation string) {
	score = int(min(max(want, -1000), 1000))
	if node.OOMScoreFloor != nil && score < *node.OOMScoreFloor {
		limitation = fmt.Sprintf("oom_score_adj is %d, not %d: the node's runtime cannot write a lower one",
			*node.OOMScoreFloor, score)
		score = *node.OOMScoreFloor
	}
	return score, limitation
}

// LinuxResources turns CRI's resources into the runtime spec's; 0 and "" are "not said". What the node cannot do is left
// out and returned as limitations. It serves UpdateContainerResources too.
func LinuxResources(r *cri.LinuxContainerResources, node Node) (*specs.LinuxResources, []string, error) {
	out := &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}}
	var limits []string
	if r.GetCpuPeriod() < 0 || r.GetCpuShares() < 0 {
		return nil, nil, invalid("linux.resources", "cpu_period and cpu_shares cannot be negative")
	}
	out.CPU.Period = positive(uint64(r.GetCpuPeriod()))
	out.CPU.Shares = positive(uint64(r.GetCpuShares()))
	out.CPU.Quota = positive(r.GetCpuQuota())
	out.CPU.Cpus, out.CPU.Mems = r.GetCpusetCpus(), r.GetCpusetMems()

	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	out.Memory.Limit = positive(limit)
	if swap == 0 {
		// Memory and swap together: a container without a swap limit of its own does not swap.
		swap = limit
	} else if limit > 0 && swap > 0 && swap < limit {
		return nil, nil, invalid("linux.resources.memory_swap_limit_in_bytes",
			"%d is below the memory limit %d, which it includes", swap, limit)
	}
	if node.Swap {
		out.Memory.Swap = positive(swap)
	} else if s := r.GetMemorySwapLimitInBytes(); s != 0 && s != limit {
		limits = append(limits, "the swap limit is not applied: the kernel does not account swap")
	}
	for _, h := range r.GetHugepageLimits() {
		if node.Hugetlb {
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
		} else if h.GetLimit() > 0 {
			limits = append(limits, fmt.Sprintf("the limit of %s huge pages is not applied: no hugetlb controller", h.GetPageSize()))
		}
	}
	if len(r.GetUnified()) > 0 {
		if !node.Unified {
			return nil, nil, invalid("linux.resources.unified", "this node has cgroup v1")
		}
		for _, key := range slices.Sorted(maps.Keys(r.GetUnified())) {
			if key == "" || strings.ContainsAny(key, "/\x00") || !strings.Contains(key, ".") {
				return nil, nil, invalid("linux.resources.unified", "%q is not the name of a cgroup file", key)
			}
		}
		out.Unified = maps.Clone(r.GetUnified())
	}
	return out, limits, nil
}

func positive[T int64 | uint64](v T) *T {
	if v == 0 {
		return nil
	}
	return &v
}

// DefaultRlimits are those of systemd's services. They are always written, since a container would inherit the daemon's:
// an open file limit of a million makes programs slow that walk through all descriptors.
func DefaultRlimits() []specs.POSIXRlimit {
	return []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288}}
}

// ClampRlimits lowers the rlimits of a spec to what the node can give, and says which.
func ClampRlimits(s *specs.Spec, node Node) (limitations []string) {
	for i := range s.Process.Rlimits {
		r := &s.Process.Rlimits[i]
		ceiling, known := node.RlimitCeilings[r.Type]
		if !known || r.Hard <= ceiling {
			continue
		}
		limitations = append(limitations, fmt.Sprintf("%s is at most %d, not %d: the node's runtime cannot raise it",
			r.Type, ceiling, r.Hard))
		r.Hard, r.Soft = ceiling, min(r.Soft, ceiling)
	}
	return limitations
}
