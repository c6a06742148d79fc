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
	// The score is set in any case: the daemon's own (-999 under systemd) must never be inherited.
	score := int(min(max(asked.GetOomScoreAdj(), -1000), 1000))
	b.spec.Process.OOMScoreAdj = &score

	b.spec.Process.Rlimits = slices.Clone(b.Rlimits)
	if b.Rlimits == nil {
		b.spec.Process.Rlimits = DefaultRlimits()
	}
	b.limits = append(b.limits, clampProcess(b.spec.Process, b.Node)...)
	return nil
}

// Clamp lowers what a plugin raised above what the node can give: rlimits, OOM score, resources. It says what it was.
func Clamp(s *specs.Spec, node Node) (limitations []string) {
	if s.Process != nil {
		limitations = clampProcess(s.Process, node)
	}
	if s.Linux != nil && s.Linux.Resources != nil {
		limitations = append(limitations, ClampResources(s.Linux.Resources, node)...)
	}
	return limitations
}

func clampProcess(p *specs.Process, node Node) []string {
	limitations := clampRlimits(p.Rlimits, node)
	if score, floor := p.OOMScoreAdj, node.OOMScoreFloor; score != nil && floor != nil && *score < *floor {
		limitations = append(limitations, fmt.Sprintf("oom_score_adj is %d, not %d: the node's runtime cannot write a lower one",
			*floor, *score))
		lowest := *floor
		p.OOMScoreAdj = &lowest
	}
	return limitations
}

// LinuxResources turns CRI's resources into the runtime spec's; 0 and "" are "not said". What the node cannot do is left
// out and returned as limitations. It serves UpdateContainerResources too.
func LinuxResources(r *cri.LinuxContainerResources, node Node) (*specs.LinuxResources, []string, error) {
	out := &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}}
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
	out.Memory.Swap = positive(swap)
	for _, h := range r.GetHugepageLimits() {
		// libcontainer makes the size a part of a path. Without the controller no size is known, and nothing is written.
		if len(node.HugePageSizes) > 0 && !slices.Contains(node.HugePageSizes, h.GetPageSize()) {
			return nil, nil, invalid("linux.resources.hugepage_limits.page_size", "%q: this node has %s",
				h.GetPageSize(), strings.Join(node.HugePageSizes, ", "))
		}
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	if len(r.GetUnified()) > 0 {
		if !node.Unified {
			return nil, nil, invalid("linux.resources.unified", "this node has cgroup v1")
		}
		for _, key := range slices.Sorted(maps.Keys(r.GetUnified())) {
			controller, parameter, _ := strings.Cut(key, ".")
			if controller == "" || parameter == "" || strings.ContainsAny(key, "/\x00") {
				return nil, nil, invalid("linux.resources.unified", "%q is not the name of a cgroup file", key)
			}
		}
		out.Unified = maps.Clone(r.GetUnified())
	}
	return out, ClampResources(out, node), nil
}

// ClampResources takes out of r what the node cannot do, and says what it was.
func ClampResources(r *specs.LinuxResources, node Node) (limitations []string) {
	if m := r.Memory; m != nil && m.Swap != nil && !node.Swap {
		if m.Limit == nil || *m.Limit != *m.Swap {
			limitations = append(limitations, "the swap limit is not applied: the kernel does not account swap")
		}
		m.Swap = nil
	}
	var hugePages []specs.LinuxHugepageLimit
	for _, h := range r.HugepageLimits {
		if slices.Contains(node.HugePageSizes, h.Pagesize) {
			hugePages = append(hugePages, h)
		} else if h.Limit > 0 { // the kubelet names a limit of 0 for every size there is
			limitations = append(limitations, fmt.Sprintf("the limit of %s huge pages is not applied: no hugetlb controller, or no such size", h.Pagesize))
		}
	}
	r.HugepageLimits = hugePages
	if !node.Unified && len(r.Unified) > 0 {
		limitations = append(limitations, "settings of cgroup v2 are not applied: this node has v1")
		r.Unified = nil
	}
	return limitations
}

// ResourcesToCRI are the resources of a spec in the words of CRI, for a container's status.
func ResourcesToCRI(s *specs.Spec) *cri.ContainerResources {
	out := &cri.LinuxContainerResources{}
	if s.Process != nil && s.Process.OOMScoreAdj != nil {
		out.OomScoreAdj = int64(*s.Process.OOMScoreAdj)
	}
	if s.Linux == nil || s.Linux.Resources == nil {
		return &cri.ContainerResources{Linux: out}
	}
	r := s.Linux.Resources
	if c := r.CPU; c != nil {
		out.CpuPeriod, out.CpuShares = int64(value(c.Period)), int64(value(c.Shares))
		out.CpuQuota = value(c.Quota)
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	}
	if m := r.Memory; m != nil {
		out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = value(m.Limit), value(m.Swap)
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &cri.HugepageLimit{PageSize: h.Pagesize, Limit: h.Limit})
	}
	out.Unified = maps.Clone(r.Unified)
	return &cri.ContainerResources{Linux: out}
}

func value[T int64 | uint64](p *T) T {
	if p == nil {
		return 0
	}
	return *p
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

func clampRlimits(rlimits []specs.POSIXRlimit, node Node) (limitations []string) {
	for i := range rlimits {
		r := &rlimits[i]
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
