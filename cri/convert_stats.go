package cri

import (
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/runtime"
)

func toContainerStats(st runtime.ContainerStats, rates *cpuRates) *cri.ContainerStats {
	c := st.Container
	to := &cri.ContainerStats{
		Attributes: &cri.ContainerAttributes{
			Id:          c.ID,
			Metadata:    c.Config.GetMetadata(),
			Labels:      c.Config.GetLabels(),
			Annotations: c.Config.GetAnnotations(),
		},
		Cpu:    toCPU(c.ID, st.Stats, rates),
		Memory: toMemory(st.Stats),
		Swap:   toSwap(st.Stats),
		Io:     toIO(st.Stats),
	}
	at := st.Rootfs.At
	if at.IsZero() {
		at = st.At
	}
	to.WritableLayer = toFilesystemUsage(at, st.Rootfs.Mountpoint, st.Rootfs.Bytes, st.Rootfs.Inodes)
	return to
}

func toSandboxStats(st runtime.SandboxStats, rates *cpuRates) *cri.PodSandboxStats {
	sb := st.Sandbox
	linux := &cri.LinuxPodSandboxStats{
		Cpu:     toCPU(sb.ID, st.Stats, rates),
		Memory:  toMemory(st.Stats),
		Io:      toIO(st.Stats),
		Network: toNetwork(st),
		Process: &cri.ProcessUsage{Timestamp: st.At.UnixNano(), ProcessCount: number(st.Processes)},
	}
	for _, c := range st.Containers {
		linux.Containers = append(linux.Containers, toContainerStats(c, rates))
	}
	return &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{
			Id:          sb.ID,
			Metadata:    sb.Config.GetMetadata(),
			Labels:      sb.Config.GetLabels(),
			Annotations: sb.Config.GetAnnotations(),
		},
		Linux: linux,
	}
}

func number(n uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: n} }

// toCPU has the time of the reading even without a cgroup: a client that finds no time takes the whole for broken.
func toCPU(id string, st runtime.Stats, rates *cpuRates) *cri.CpuUsage {
	to := &cri.CpuUsage{Timestamp: st.At.UnixNano()}
	if st.Cgroup == nil {
		return to
	}
	to.Psi = toPSI(st.Cgroup.PSI.CPU)
	if cpu := st.Cgroup.CPU; cpu != nil {
		to.UsageCoreNanoSeconds = number(uint64(cpu.Usage.Nanoseconds()))
		if rate, ok := rates.add(id, st.At, cpu.Usage); ok {
			to.UsageNanoCores = number(rate)
		}
	}
	return to
}

func toMemory(st runtime.Stats) *cri.MemoryUsage {
	to := &cri.MemoryUsage{Timestamp: st.At.UnixNano()}
	if st.Cgroup == nil {
		return to
	}
	to.Psi = toPSI(st.Cgroup.PSI.Memory)
	m := st.Cgroup.Memory
	if m == nil {
		return to
	}
	to.UsageBytes = number(m.Usage)
	to.WorkingSetBytes = number(m.WorkingSet)
	to.RssBytes = number(m.RSS)
	to.PageFaults = number(m.Faults)
	to.MajorPageFaults = number(m.MajorFaults)
	if free, limited := m.Available(); limited {
		to.AvailableBytes = number(free)
	}
	return to
}

// toSwap is nil on nodes that do not count swap.
func toSwap(st runtime.Stats) *cri.SwapUsage {
	if st.Cgroup == nil || st.Cgroup.Memory == nil || !st.Cgroup.Memory.SwapCounted {
		return nil
	}
	m := st.Cgroup.Memory
	to := &cri.SwapUsage{Timestamp: st.At.UnixNano(), SwapUsageBytes: number(m.Swap)}
	if m.SwapLimit != cgroups.Unlimited {
		to.SwapAvailableBytes = number(m.SwapLimit - min(m.Swap, m.SwapLimit))
	}
	return to
}

// toIO is nil on nodes that do not count pressure: there is nothing else in it.
func toIO(st runtime.Stats) *cri.IoUsage {
	if st.Cgroup == nil || st.Cgroup.PSI.IO == nil {
		return nil
	}
	return &cri.IoUsage{Timestamp: st.At.UnixNano(), Psi: toPSI(st.Cgroup.PSI.IO)}
}

func toPSI(p *cgroups.Pressure) *cri.PsiStats {
	if p == nil {
		return nil
	}
	return &cri.PsiStats{Full: toPSIData(p.Full), Some: toPSIData(p.Some)}
}

func toPSIData(l cgroups.PressureLine) *cri.PsiData {
	return &cri.PsiData{Total: uint64(l.Total / time.Nanosecond), Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
}

// toNetwork is nil with host networking: the interfaces are the node's then.
func toNetwork(st runtime.SandboxStats) *cri.NetworkUsage {
	if len(st.Interfaces) == 0 {
		return nil
	}
	to := &cri.NetworkUsage{Timestamp: st.At.UnixNano(), DefaultInterface: toInterface(st.Interfaces[0])}
	for _, i := range st.Interfaces[1:] {
		to.Interfaces = append(to.Interfaces, toInterface(i))
	}
	return to
}

func toInterface(i runtime.InterfaceStats) *cri.NetworkInterfaceUsage {
	return &cri.NetworkInterfaceUsage{
		Name:     i.Name,
		RxBytes:  number(i.RxBytes),
		RxErrors: number(i.RxErrors),
		TxBytes:  number(i.TxBytes),
		TxErrors: number(i.TxErrors),
	}
}
