package cri

import (
	"time"

	"github.com/berth-node/berth/cgroups"
)

var cpuMetrics = []metric{
	{
		name: "container_cpu_user_seconds_total", help: "Cumulative user cpu time consumed in seconds.", kind: counter,
		values: fromCPU(func(c *cgroups.CPUStats) []value { return one(whole(c.User)) }),
	}, {
		name: "container_cpu_system_seconds_total", help: "Cumulative system cpu time consumed in seconds.", kind: counter,
		values: fromCPU(func(c *cgroups.CPUStats) []value { return one(whole(c.System)) }),
	}, {
		name: "container_cpu_usage_seconds_total", help: "Cumulative cpu time consumed in seconds.", kind: counter,
		extra: []string{"cpu"},
		values: fromCPU(func(c *cgroups.CPUStats) []value {
			return []value{{n: whole(c.Usage), labels: []string{"total"}}}
		}),
	}, {
		name: "container_cpu_cfs_periods_total", help: "Number of elapsed enforcement period intervals.", kind: counter,
		values: fromQuota(func(c *cgroups.CPUStats) uint64 { return c.Periods }),
	}, {
		name: "container_cpu_cfs_throttled_periods_total", help: "Number of throttled period intervals.", kind: counter,
		values: fromQuota(func(c *cgroups.CPUStats) uint64 { return c.ThrottledPeriods }),
	}, {
		name: "container_cpu_cfs_throttled_seconds_total", help: "Total time duration the container has been throttled.", kind: counter,
		values: fromQuota(func(c *cgroups.CPUStats) uint64 { return whole(c.Throttled) }),
	},
}

func fromCPU(read func(*cgroups.CPUStats) []value) func(*sample) []value {
	return func(s *sample) []value {
		if s.stats == nil || s.stats.CPU == nil {
			return nil
		}
		return read(s.stats.CPU)
	}
}

// fromQuota reads what counts only under a quota.
func fromQuota(read func(*cgroups.CPUStats) uint64) func(*sample) []value {
	return fromCPU(func(c *cgroups.CPUStats) []value {
		if c.Quota <= 0 && c.Periods == 0 {
			return nil
		}
		return one(read(c))
	})
}

var pressureMetrics = []metric{
	pressure("cpu", "stalled", "Total time duration no tasks in the container could make progress due to CPU congestion.",
		func(p cgroups.PSIStats) *cgroups.Pressure { return p.CPU }, stalled),
	pressure("cpu", "waiting", "Total time duration tasks in the container have waited due to CPU congestion.",
		func(p cgroups.PSIStats) *cgroups.Pressure { return p.CPU }, waiting),
	pressure("memory", "stalled", "Total time duration no tasks in the container could make progress due to memory congestion.",
		func(p cgroups.PSIStats) *cgroups.Pressure { return p.Memory }, stalled),
	pressure("memory", "waiting", "Total time duration tasks in the container have waited due to memory congestion.",
		func(p cgroups.PSIStats) *cgroups.Pressure { return p.Memory }, waiting),
	pressure("io", "stalled", "Total time duration no tasks in the container could make progress due to IO congestion.",
		func(p cgroups.PSIStats) *cgroups.Pressure { return p.IO }, stalled),
	pressure("io", "waiting", "Total time duration tasks in the container have waited due to IO congestion.",
		func(p cgroups.PSIStats) *cgroups.Pressure { return p.IO }, waiting),
}

func stalled(p *cgroups.Pressure) time.Duration { return p.Full.Total }
func waiting(p *cgroups.Pressure) time.Duration { return p.Some.Total }

func pressure(of, how, help string, kind func(cgroups.PSIStats) *cgroups.Pressure, read func(*cgroups.Pressure) time.Duration) metric {
	return metric{
		name: "container_pressure_" + of + "_" + how + "_seconds_total", help: help, kind: counter,
		values: func(s *sample) []value {
			if s.stats == nil || kind(s.stats.PSI) == nil {
				return nil
			}
			return one(whole(read(kind(s.stats.PSI))))
		},
	}
}
