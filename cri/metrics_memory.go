package cri

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
)

var memoryMetrics = []metric{
	memory("container_memory_cache", "Number of bytes of page cache memory.", gauge,
		func(m *cgroups.MemoryStats) uint64 { return m.Cache }),
	memory("container_memory_rss", "Size of RSS in bytes.", gauge,
		func(m *cgroups.MemoryStats) uint64 { return m.RSS }),
	memory("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", gauge,
		func(m *cgroups.MemoryStats) uint64 { return m.Kernel }),
	memory("container_memory_mapped_file", "Size of memory mapped files in bytes.", gauge,
		func(m *cgroups.MemoryStats) uint64 { return m.MappedFile }),
	memory("container_memory_swap", "Container swap usage in bytes.", gauge,
		func(m *cgroups.MemoryStats) uint64 { return m.Swap }),
	memory("container_memory_failcnt", "Number of memory usage hits limits", counter,
		func(m *cgroups.MemoryStats) uint64 { return m.FailCount }),
	memory("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed", gauge,
		func(m *cgroups.MemoryStats) uint64 { return m.Usage }),
	memory("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", gauge,
		func(m *cgroups.MemoryStats) uint64 { return m.MaxUsage }),
	memory("container_memory_working_set_bytes", "Current working set in bytes.", gauge,
		func(m *cgroups.MemoryStats) uint64 { return m.WorkingSet }),
	{
		name: "container_memory_failures_total", help: "Cumulative count of memory allocation failures.", kind: counter,
		extra: []string{"failure_type", "scope"},
		values: fromMemory(func(m *cgroups.MemoryStats) []value {
			return []value{
				{n: m.LocalFaults, labels: []string{"pgfault", "container"}},
				{n: m.LocalMajorFaults, labels: []string{"pgmajfault", "container"}},
				{n: m.Faults, labels: []string{"pgfault", "hierarchy"}},
				{n: m.MajorFaults, labels: []string{"pgmajfault", "hierarchy"}},
			}
		}),
	},
}

var oomMetrics = []metric{
	memory("container_oom_events_total", "Count of out of memory events observed for the container", counter,
		func(m *cgroups.MemoryStats) uint64 { return m.OOMKills }),
}

var hugetlbMetrics = []metric{
	hugetlb("container_hugetlb_usage_bytes", "Current hugepage usage in bytes",
		func(h cgroups.HugeTLBStats) uint64 { return h.Usage }),
	hugetlb("container_hugetlb_max_usage_bytes", "Maximum hugepage usage recorded in bytes",
		func(h cgroups.HugeTLBStats) uint64 { return h.MaxUsage }),
}

func fromMemory(read func(*cgroups.MemoryStats) []value) func(*sample) []value {
	return func(s *sample) []value {
		if s.stats == nil || s.stats.Memory == nil {
			return nil
		}
		return read(s.stats.Memory)
	}
}

func memory(name, help string, kind cri.MetricType, read func(*cgroups.MemoryStats) uint64) metric {
	return metric{
		name: name, help: help, kind: kind,
		values: fromMemory(func(m *cgroups.MemoryStats) []value { return one(read(m)) }),
	}
}

func hugetlb(name, help string, read func(cgroups.HugeTLBStats) uint64) metric {
	return metric{
		name: name, help: help, kind: gauge, extra: []string{"pagesize"},
		values: func(s *sample) []value {
			if s.stats == nil {
				return nil
			}
			var out []value
			for _, h := range s.stats.HugeTLB {
				out = append(out, value{n: read(h), labels: []string{h.PageSize}})
			}
			return out
		},
	}
}
