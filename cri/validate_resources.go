package cri

import (
	"math"
	"os"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kernel's bounds, in microseconds, and those of cpu.shares.
const (
	minCPUPeriod, maxCPUPeriod = 1_000, 1_000_000
	minCPUQuota, maxCPUQuota   = 1_000, 1 << 34
	minCPUShares, maxCPUShares = 2, 1 << 18
)

// checkResources checks limits: 0 and "" stand for none. A value that the kernel refuses on any node is refused here, where
// it has a name.
func checkResources(field string, r *cri.LinuxContainerResources) error {
	return first(
		checkRange(field+".cpu_period", r.GetCpuPeriod(), minCPUPeriod, maxCPUPeriod),
		checkQuota(field+".cpu_quota", r.GetCpuQuota()),
		checkRange(field+".cpu_shares", r.GetCpuShares(), minCPUShares, maxCPUShares),
		checkBytes(field+".memory_limit_in_bytes", r.GetMemoryLimitInBytes()),
		checkBytes(field+".memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes()),
		checkSet(field+".cpuset_cpus", r.GetCpusetCpus()),
		checkSet(field+".cpuset_mems", r.GetCpusetMems()),
	)
}

func checkRange(field string, v, least, most int64) error {
	if v != 0 && (v < least || v > most) {
		return invalid(field, "%d is not in the range %d to %d", v, least, most)
	}
	return nil
}

// checkQuota lets negative quotas pass: they mean none.
func checkQuota(field string, v int64) error {
	if v < 0 {
		return nil
	}
	return checkRange(field, v, minCPUQuota, maxCPUQuota)
}

// checkBytes checks a limit of memory, of which -1 stands for none. The kernel counts in pages: less than one is nothing.
func checkBytes(field string, v int64) error {
	if v == -1 {
		return nil
	}
	return checkRange(field, v, int64(os.Getpagesize()), math.MaxInt64)
}

// checkSet checks a set of CPUs or memory nodes, as "0-3,7". Whether the node has them is the kernel's to say.
func checkSet(field, v string) error {
	if v == "" {
		return nil
	}
	for part := range strings.SplitSeq(v, ",") {
		low, high, ranged := strings.Cut(strings.TrimSpace(part), "-")
		from, err := strconv.ParseUint(low, 10, 16)
		to := from
		if err == nil && ranged {
			to, err = strconv.ParseUint(high, 10, 16)
		}
		if err != nil || to < from {
			return invalid(field, "%q is not a list of numbers and ranges", shorten(v))
		}
	}
	return nil
}
