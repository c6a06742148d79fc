package cgroups

import (
	"math"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
)

func (g *Group) statsV2(s *Stats) error {
	r := &reader{dir: g.paths[""]}
	s.CPU = r.cpuV2()
	s.Memory = r.memoryV2()
	s.Pids = r.pids()
	s.IO = r.ioV2()
	for _, size := range g.host.HugePageSizes {
		prefix := "hugetlb." + size
		usage, ok := r.number(prefix + ".current")
		if !ok {
			continue
		}
		limit, _ := r.number(prefix + ".max")
		events, _ := r.table(prefix + ".events")
		s.HugeTLB = append(s.HugeTLB, HugeTLBStats{PageSize: size, Usage: usage, Limit: limit, FailCount: events["max"]})
	}
	return r.err
}

func (r *reader) cpuV2() *CPUStats {
	stat, ok := r.table("cpu.stat") // there without the controller too
	if !ok {
		return nil
	}
	c := &CPUStats{
		Usage:            microseconds(stat["usage_usec"]),
		User:             microseconds(stat["user_usec"]),
		System:           microseconds(stat["system_usec"]),
		Periods:          stat["nr_periods"],
		ThrottledPeriods: stat["nr_throttled"],
		Throttled:        microseconds(stat["throttled_usec"]),
		Quota:            -1,
	}
	if weight, ok := r.number("cpu.weight"); ok {
		c.Weight, c.Shares = weight, sharesOf(weight)
	}
	if quota, period, ok := r.cpuMax(true); ok {
		c.Period = microseconds(period)
		if quota >= 0 {
			c.Quota = microseconds(uint64(quota))
		}
	}
	return c
}

// sharesOf returns the CPU shares that become this weight. It asks the library's curve instead of inverting it, so that it
// stays right when the curve changes again; of several shares of one weight it takes the round one (1024, 2048…) or the
// least.
func sharesOf(weight uint64) uint64 {
	low, high := uint64(2), uint64(262144)
	for low < high {
		if mid := (low + high) / 2; cgroups.ConvertCPUSharesToCgroupV2Value(mid) < weight {
			low = mid + 1
		} else {
			high = mid
		}
	}
	round := uint64(1) << uint(math.Ceil(math.Log2(float64(low))))
	if cgroups.ConvertCPUSharesToCgroupV2Value(round) == weight {
		return round
	}
	return low
}

func (r *reader) memoryV2() *MemoryStats {
	stat, ok := r.table("memory.stat")
	if !ok {
		return nil
	}
	usage, ok := r.number("memory.current")
	if !ok {
		return nil // the root, or no controller
	}
	m := &MemoryStats{
		Usage:            usage,
		WorkingSet:       less(usage, stat["inactive_file"]),
		RSS:              stat["anon"],
		Cache:            stat["file"],
		MappedFile:       stat["file_mapped"],
		Kernel:           stat["kernel"],
		ActiveAnon:       stat["active_anon"],
		InactiveAnon:     stat["inactive_anon"],
		ActiveFile:       stat["active_file"],
		InactiveFile:     stat["inactive_file"],
		Faults:           stat["pgfault"],
		MajorFaults:      stat["pgmajfault"],
		LocalFaults:      stat["pgfault"],
		LocalMajorFaults: stat["pgmajfault"],
		Limit:            Unlimited,
		SwapLimit:        Unlimited,
	}
	if _, ok := stat["kernel"]; !ok { // Linux before 5.18
		m.Kernel = stat["slab"] + stat["kernel_stack"] + stat["pagetables"] + stat["percpu"] + stat["sock"]
	}
	m.MaxUsage, _ = r.number("memory.peak")
	if limit, ok := r.number("memory.max"); ok {
		m.Limit = limit
	}
	m.Reservation, _ = r.number("memory.low")
	if m.Swap, m.SwapCounted = r.number("memory.swap.current"); m.SwapCounted {
		m.SwapLimit, _ = r.number("memory.swap.max")
	}
	if events, ok := r.table("memory.events"); ok {
		m.FailCount, m.OOMKills = events["max"], events["oom_kill"]
	}
	return m
}

// ioV2 reads lines of the form "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6". A device without traffic may have a
// line without figures.
func (r *reader) ioV2() []IOStats {
	const file = "io.stat"
	text, ok := r.text(file)
	if !ok {
		return nil
	}
	var out []IOStats
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		d, err := newIOStats(fields[0])
		if err != nil {
			continue // "(unknown)": a device that went away
		}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			target, op := d.Bytes, ""
			switch key {
			case "rbytes", "wbytes", "dbytes":
			case "rios", "wios", "dios":
				target = d.Ops
			default:
				continue // figures of iocost and iolatency
			}
			op = map[byte]string{'r': "Read", 'w': "Write", 'd': "Discard"}[key[0]]
			n, err := strconv.ParseUint(value, 10, 64)
			r.fail(file, err)
			target[op] = n
		}
		out = append(out, d)
	}
	return out
}

// newIOStats makes empty statistics of the device "major:minor".
func newIOStats(device string) (IOStats, error) {
	major, minor, _ := strings.Cut(device, ":")
	d := IOStats{Bytes: map[string]uint64{}, Ops: map[string]uint64{}}
	var err error
	if d.Major, err = strconv.ParseUint(major, 10, 32); err != nil {
		return d, err
	}
	d.Minor, err = strconv.ParseUint(minor, 10, 32)
	return d, err
}
