package cgroups

import "time"

// Sum adds up the usage of cgroups that have no common parent of their own: CPU, memory and pids, without limits. It is
// nil if there are none.
func Sum(at time.Time, parts []*Stats) *Stats {
	if len(parts) == 0 {
		return nil
	}
	sum := &Stats{Time: at}
	for _, p := range parts {
		if p.CPU != nil {
			sum.addCPU(p.CPU)
		}
		if p.Memory != nil {
			sum.addMemory(p.Memory)
		}
		if p.Pids != nil {
			if sum.Pids == nil {
				sum.Pids = &PidsStats{Limit: Unlimited}
			}
			sum.Pids.Current += p.Pids.Current
		}
	}
	return sum
}

func (s *Stats) addCPU(c *CPUStats) {
	if s.CPU == nil {
		s.CPU = &CPUStats{Quota: -1}
	}
	s.CPU.Usage += c.Usage
	s.CPU.User += c.User
	s.CPU.System += c.System
}

func (s *Stats) addMemory(m *MemoryStats) {
	if s.Memory == nil {
		s.Memory = &MemoryStats{Limit: Unlimited, SwapLimit: Unlimited, Reservation: Unlimited}
	}
	for _, f := range []struct {
		to   *uint64
		from uint64
	}{
		{&s.Memory.Usage, m.Usage}, {&s.Memory.WorkingSet, m.WorkingSet}, {&s.Memory.RSS, m.RSS},
		{&s.Memory.Cache, m.Cache}, {&s.Memory.MappedFile, m.MappedFile}, {&s.Memory.Kernel, m.Kernel}, {&s.Memory.Swap, m.Swap},
		{&s.Memory.Faults, m.Faults}, {&s.Memory.MajorFaults, m.MajorFaults}, {&s.Memory.OOMKills, m.OOMKills},
	} {
		*f.to += f.from
	}
	s.Memory.SwapCounted = s.Memory.SwapCounted || m.SwapCounted
}
