package cgroups

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// Tolerated returns r without the limits that a kubelet asks for on every node, whether the node has them or not: huge
// pages without the controller hugetlb, and swap without swap accounting. r itself is not changed. All other limits that
// the node cannot set fail when they are set.
func (h *Host) Tolerated(r *specs.LinuxResources) *specs.LinuxResources {
	if r == nil {
		return nil
	}
	out := *r
	if !h.Has("hugetlb") {
		out.HugepageLimits = nil
	}
	if r.Memory != nil && !h.Swap {
		memory := *r.Memory
		memory.Swap = nil
		out.Memory = &memory
	}
	if _, ok := r.Unified["memory.swap.max"]; ok && !h.Swap {
		out.Unified = make(map[string]string, len(r.Unified))
		for k, v := range r.Unified {
			if k != "memory.swap.max" {
				out.Unified[k] = v
			}
		}
	}
	return &out
}

// Set changes the limits that r names, and no other; device rules are left alone. Limits that [Host.Tolerated] leaves out
// are passed over. The values are libcontainer's: memory in bytes with -1 for no limit, Swap is memory and swap together,
// CPU times in microseconds. On cgroup v2 shares become a weight.
//
// The error is an ErrNotFound if the cgroup is not there and an ErrInvalidArgument if r makes no sense. What was written
// before a failure stays. With the systemd driver the unit's properties change with the files; if ctx ends while systemd
// has not answered, Set returns, and the change may still come.
func (g *Group) Set(ctx context.Context, r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	res, err := g.resources(g.host.Tolerated(r))
	if err != nil {
		return fmt.Errorf("limits of cgroup %s: %w", g, err)
	}
	m, err := g.manager()
	if err != nil {
		return fmt.Errorf("limits of cgroup %s: %w", g, err)
	}
	if g.unit == nil {
		return g.apply(m, res)
	}
	return await(ctx, func() error { return g.apply(m, res) })
}

func (g *Group) apply(m cgroups.Manager, res *cgroups.Resources) error {
	g.set.Lock()
	defer g.set.Unlock()
	if !g.Exists() {
		return fmt.Errorf("limits of cgroup %s: %w", g, errdefs.ErrNotFound)
	}
	if err := g.complete(res); err != nil {
		return fmt.Errorf("limits of cgroup %s: %w", g, err)
	}
	if err := m.Set(res); err != nil {
		return fmt.Errorf("limits of cgroup %s: %w", g, refused(err))
	}
	return nil
}

// refused adds the class to an error of the kernel's, which knows values that it never takes, and those that it does not
// take as the cgroup is now: a limit below what is in use.
func refused(err error) error {
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// await runs f and returns its error, or ctx's if that ends first. f then goes on by itself: the library's calls to
// systemd take no context (most give up after 30 seconds).
func await(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// complete fills in what the library would otherwise take as "back to the default": on v2 quota and period are one file,
// and swap cannot be set without memory; systemd computes a percentage from quota and period; and v1 refuses a memory
// limit above the limit of memory and swap together.
func (g *Group) complete(res *cgroups.Resources) error {
	r := reader{dir: g.paths[g.hierarchy("cpu")]}
	if (res.CpuQuota == 0) != (res.CpuPeriod == 0) {
		quota, period, ok := r.cpuMax(g.host.Unified)
		if ok && res.CpuQuota == 0 {
			res.CpuQuota = quota
		}
		if ok && res.CpuPeriod == 0 {
			res.CpuPeriod = period
		}
	}
	if r.err != nil {
		return r.err
	}
	r = reader{dir: g.paths[g.hierarchy("memory")]}
	if g.host.Unified {
		if res.MemorySwap > 0 && res.Memory == 0 {
			if limit, ok := r.number("memory.max"); ok {
				res.Memory = signed(limit)
			}
		}
		return r.err
	}
	if res.Memory > 0 && res.MemorySwap == 0 {
		memory, ok1 := r.number("memory.limit_in_bytes")
		both, ok2 := r.number("memory.memsw.limit_in_bytes")
		if ok1 && ok2 && both != Unlimited && uint64(res.Memory) > both {
			res.MemorySwap = res.Memory + int64(both-memory) // the swap that was allowed stays allowed
		}
	}
	return r.err
}

// hierarchy returns the key of paths under which a controller's files are.
func (g *Group) hierarchy(controller string) string {
	if g.host.Unified {
		return ""
	}
	return controller
}

func signed(limit uint64) int64 {
	if limit == Unlimited {
		return -1
	}
	return int64(limit)
}

// resources says in the library's terms what r says in the OCI's.
func (g *Group) resources(r *specs.LinuxResources) (*cgroups.Resources, error) {
	res := &cgroups.Resources{SkipDevices: true, SkipFreezeOnSet: true}
	if err := setUnified(res, r.Unified, g.host); err != nil {
		return nil, err
	}
	if m := r.Memory; m != nil {
		res.Memory = value(m.Limit)
		res.MemoryReservation = value(m.Reservation)
		res.MemorySwap = value(m.Swap)
		res.MemorySwappiness = m.Swappiness
		res.OomKillDisable = value(m.DisableOOMKiller)
		res.MemoryCheckBeforeUpdate = value(m.CheckBeforeUpdate)
	}
	if c := r.CPU; c != nil {
		res.CpuShares = value(c.Shares)
		res.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(res.CpuShares)
		res.CpuQuota, res.CpuPeriod, res.CpuBurst = value(c.Quota), value(c.Period), c.Burst
		res.CpuRtRuntime, res.CpuRtPeriod = value(c.RealtimeRuntime), value(c.RealtimePeriod)
		res.CpusetCpus, res.CpusetMems, res.CPUIdle = c.Cpus, c.Mems, c.Idle
	}
	if r.Pids != nil {
		res.PidsLimit = r.Pids.Limit
	}
	for _, l := range r.HugepageLimits {
		// An unknown size would only show as a missing file.
		if !slices.Contains(g.host.HugePageSizes, l.Pagesize) {
			return nil, fmt.Errorf("no huge pages of size %q here (there are %s): %w",
				l.Pagesize, strings.Join(g.host.HugePageSizes, ", "), errdefs.ErrInvalidArgument)
		}
		res.HugetlbLimit = append(res.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: l.Pagesize, Limit: l.Limit})
	}
	for name, l := range r.Rdma {
		if res.Rdma == nil {
			res.Rdma = map[string]cgroups.LinuxRdma{}
		}
		res.Rdma[name] = cgroups.LinuxRdma{HcaHandles: l.HcaHandles, HcaObjects: l.HcaObjects}
	}
	setBlockIO(res, r.BlockIO)
	return res, nil
}

func setUnified(res *cgroups.Resources, unified map[string]string, h *Host) error {
	if len(unified) == 0 {
		return nil
	}
	if !h.Unified {
		return fmt.Errorf("unified settings need cgroup v2: %w", errdefs.ErrInvalidArgument)
	}
	for key := range unified {
		controller, parameter, _ := strings.Cut(key, ".")
		if controller == "" || parameter == "" || strings.Contains(key, "/") {
			return fmt.Errorf("unified setting %q is not of the form controller.parameter: %w", key, errdefs.ErrInvalidArgument)
		}
	}
	res.Unified = unified
	return nil
}

func setBlockIO(res *cgroups.Resources, b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	res.BlkioWeight, res.BlkioLeafWeight = value(b.Weight), value(b.LeafWeight)
	for _, d := range b.WeightDevice {
		res.BlkioWeightDevice = append(res.BlkioWeightDevice,
			cgroups.NewWeightDevice(d.Major, d.Minor, value(d.Weight), value(d.LeafWeight)))
	}
	throttle := func(devices []specs.LinuxThrottleDevice) (out []*cgroups.ThrottleDevice) {
		for _, d := range devices {
			out = append(out, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
		}
		return out
	}
	res.BlkioThrottleReadBpsDevice = throttle(b.ThrottleReadBpsDevice)
	res.BlkioThrottleWriteBpsDevice = throttle(b.ThrottleWriteBpsDevice)
	res.BlkioThrottleReadIOPSDevice = throttle(b.ThrottleReadIOPSDevice)
	res.BlkioThrottleWriteIOPSDevice = throttle(b.ThrottleWriteIOPSDevice)
}

// value returns what p points to, or zero, the library's "leave it as it is".
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// cpuMax returns the CPU quota (-1 for none) and period in force, in microseconds.
func (r *reader) cpuMax(unified bool) (quota int64, period uint64, ok bool) {
	if !unified {
		q, ok1 := r.text("cpu.cfs_quota_us")
		p, ok2 := r.number("cpu.cfs_period_us")
		if !ok1 || !ok2 {
			return 0, 0, false
		}
		quota, err := strconv.ParseInt(q, 10, 64)
		r.fail("cpu.cfs_quota_us", err)
		return quota, p, err == nil
	}
	text, ok := r.text("cpu.max")
	if !ok {
		return 0, 0, false
	}
	q, p, _ := strings.Cut(text, " ")
	quota = -1
	var err1, err2 error
	if q != "max" {
		quota, err1 = strconv.ParseInt(q, 10, 64)
	}
	period, err2 = strconv.ParseUint(p, 10, 64)
	r.fail("cpu.max", errors.Join(err1, err2))
	return quota, period, r.err == nil
}
