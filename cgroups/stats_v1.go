package cgroups

import (
	"strconv"
	"strings"
	"time"
)

// userHZ is the unit of cpuacct.stat, fixed by the kernel's ABI.
const userHZ = 100

func (g *Group) statsV1(s *Stats) error {
	at := func(controller string) *reader { return &reader{dir: g.paths[controller]} }
	cpu, acct, memory, pids, blkio, huge := at("cpu"), at("cpuacct"), at("memory"), at("pids"), at("blkio"), at("hugetlb")
	s.CPU = cpuV1(acct, cpu)
	s.Memory = memory.memoryV1()
	s.Pids = pids.pids()
	s.IO = blkio.ioV1()
	for _, size := range g.host.HugePageSizes {
		prefix := "hugetlb." + size
		usage, ok := huge.number(prefix + ".usage_in_bytes")
		if !ok {
			continue
		}
		h := HugeTLBStats{PageSize: size, Usage: usage}
		h.MaxUsage, _ = huge.number(prefix + ".max_usage_in_bytes")
		h.Limit, _ = huge.number(prefix + ".limit_in_bytes")
		h.FailCount, _ = huge.number(prefix + ".failcnt")
		s.HugeTLB = append(s.HugeTLB, h)
	}
	for _, r := range []*reader{cpu, acct, memory, pids, blkio, huge} {
		if r.err != nil {
			return r.err
		}
	}
	return nil
}

func cpuV1(acct, cpu *reader) *CPUStats {
	usage, ok := acct.number("cpuacct.usage")
	if !ok {
		return nil
	}
	c := &CPUStats{Usage: time.Duration(usage), Quota: -1}
	user, ok1 := acct.number("cpuacct.usage_user")
	system, ok2 := acct.number("cpuacct.usage_sys")
	if ok1 && ok2 {
		c.User, c.System = time.Duration(user), time.Duration(system)
	} else if stat, ok := acct.table("cpuacct.stat"); ok {
		c.User = time.Duration(stat["user"]) * time.Second / userHZ
		c.System = time.Duration(stat["system"]) * time.Second / userHZ
	}
	if stat, ok := cpu.table("cpu.stat"); ok {
		c.Periods, c.ThrottledPeriods = stat["nr_periods"], stat["nr_throttled"]
		c.Throttled = time.Duration(stat["throttled_time"])
	}
	c.Shares, _ = cpu.number("cpu.shares")
	if quota, period, ok := cpu.cpuMax(false); ok {
		c.Period = microseconds(period)
		if quota >= 0 {
			c.Quota = microseconds(uint64(quota))
		}
	}
	return c
}

func (r *reader) memoryV1() *MemoryStats {
	stat, ok := r.table("memory.stat")
	if !ok {
		return nil
	}
	usage, ok := r.number("memory.usage_in_bytes")
	if !ok {
		return nil
	}
	m := &MemoryStats{
		Usage:            usage,
		WorkingSet:       less(usage, stat["total_inactive_file"]),
		RSS:              stat["total_rss"],
		Cache:            stat["total_cache"],
		MappedFile:       stat["total_mapped_file"],
		ActiveAnon:       stat["total_active_anon"],
		InactiveAnon:     stat["total_inactive_anon"],
		ActiveFile:       stat["total_active_file"],
		InactiveFile:     stat["total_inactive_file"],
		Faults:           stat["total_pgfault"],
		MajorFaults:      stat["total_pgmajfault"],
		LocalFaults:      stat["pgfault"],
		LocalMajorFaults: stat["pgmajfault"],
		Limit:            Unlimited,
		SwapLimit:        Unlimited,
	}
	m.MaxUsage, _ = r.number("memory.max_usage_in_bytes")
	m.Kernel, _ = r.number("memory.kmem.usage_in_bytes")
	m.FailCount, _ = r.number("memory.failcnt")
	m.Reservation, _ = r.number("memory.soft_limit_in_bytes")
	if limit, ok := r.number("memory.limit_in_bytes"); ok {
		m.Limit = limit
	}
	if both, ok := r.number("memory.memsw.limit_in_bytes"); ok {
		m.Swap, m.SwapCounted = stat["total_swap"], true
		if both != Unlimited {
			m.SwapLimit = less(both, m.Limit)
		}
	}
	if control, ok := r.table("memory.oom_control"); ok {
		m.OOMKills = control["oom_kill"]
	}
	return m
}

// ioV1 reads lines of the form "8:0 Read 4096". The files with "_recursive" count the cgroups below too; the others are
// for kernels before 4.13.
func (r *reader) ioV1() []IOStats {
	var out []IOStats
	index := map[string]int{}
	for _, f := range []struct {
		name string
		into func(IOStats) map[string]uint64
	}{
		{"blkio.throttle.io_service_bytes", func(d IOStats) map[string]uint64 { return d.Bytes }},
		{"blkio.throttle.io_serviced", func(d IOStats) map[string]uint64 { return d.Ops }},
	} {
		file := f.name + "_recursive"
		text, ok := r.text(file)
		if !ok {
			file = f.name
			text, _ = r.text(file)
		}
		for line := range strings.Lines(text) {
			fields := strings.Fields(line)
			if len(fields) != 3 {
				continue // "Total 0"
			}
			i, known := index[fields[0]]
			if !known {
				d, err := newIOStats(fields[0])
				if err != nil {
					continue
				}
				i = len(out)
				index[fields[0]] = i
				out = append(out, d)
			}
			n, err := strconv.ParseUint(fields[2], 10, 64)
			r.fail(file, err)
			f.into(out[i])[fields[1]] = n
		}
	}
	return out
}
