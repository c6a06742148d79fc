package cri

import (
	"time"

	"github.com/berth-node/berth/cgroups"
)

// seenMetrics tell when; they need no cgroup.
var seenMetrics = []metric{
	{
		name: "container_last_seen", help: "Last time a container was seen by the exporter", kind: gauge,
		values: func(s *sample) []value { return one(uint64(s.at.Unix())) },
	}, {
		name: "container_start_time_seconds", help: "Start time of the container since unix epoch in seconds.", kind: gauge,
		values: func(s *sample) []value { return one(uint64(max(0, s.started.Unix()))) },
	},
}

// specMetrics tell the limits as they are in force, not as they were asked for: both may differ after a resize.
var specMetrics = []metric{
	{
		name: "container_spec_cpu_period", help: "CPU period of the container.", kind: gauge,
		values: fromCPU(func(c *cgroups.CPUStats) []value { return one(uint64(c.Period / time.Microsecond)) }),
	}, {
		name: "container_spec_cpu_quota", help: "CPU quota of the container.", kind: gauge,
		values: fromCPU(func(c *cgroups.CPUStats) []value {
			if c.Quota <= 0 { // no limit
				return nil
			}
			return one(uint64(c.Quota / time.Microsecond))
		}),
	}, {
		name: "container_spec_cpu_shares", help: "CPU share of the container.", kind: gauge,
		values: fromCPU(func(c *cgroups.CPUStats) []value { return one(c.Shares) }),
	},
	memory("container_spec_memory_limit_bytes", "Memory limit for the container.", gauge,
		func(m *cgroups.MemoryStats) uint64 { return limit(m.Limit) }),
	memory("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", gauge,
		func(m *cgroups.MemoryStats) uint64 { return limit(m.SwapLimit) }),
	memory("container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.", gauge,
		func(m *cgroups.MemoryStats) uint64 { return limit(m.Reservation) }),
}
