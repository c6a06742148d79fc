package server

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// usage is what a pod of this kubelet uses.
type usage struct {
	pod *v1.Pod
	*cri.PodSandboxStats
}

// usages reads what the pods use whose sandboxes run, sorted as pods are.
func (s *Server) usages(ctx context.Context) ([]usage, error) {
	pods, _ := s.cfg.Kubelet.Pods().List()
	byUID := map[string]*v1.Pod{}
	for _, p := range pods {
		byUID[string(p.UID)] = p
	}
	all, err := s.cfg.Stats(ctx)
	if err != nil {
		return nil, err
	}
	var out []usage
	for _, st := range all {
		if pod := byUID[st.GetAttributes().GetMetadata().GetUid()]; pod != nil {
			out = append(out, usage{pod, st})
		}
	}
	slices.SortFunc(out, func(a, b usage) int {
		return cmp.Or(cmp.Compare(a.pod.Namespace, b.pod.Namespace), cmp.Compare(a.pod.Name, b.pod.Name))
	})
	return out, nil
}

func isRated(all []usage) bool {
	for _, u := range all {
		for _, c := range u.GetLinux().GetContainers() {
			if c.GetCpu().GetUsageCoreNanoSeconds() != nil && c.GetCpu().GetUsageNanoCores() == nil {
				return false
			}
		}
	}
	return true
}

// rateTime is after how long a second reading makes a rate.
const rateTime = time.Second

// rated is usages with rates of CPU time. Nobody reads while nobody asks, so that a first answer takes two readings.
func (s *Server) rated(ctx context.Context) ([]usage, error) {
	all, err := s.usages(ctx)
	if err != nil || isRated(all) {
		return all, err
	}
	if err := s.pause(ctx); err != nil {
		return nil, err
	}
	return s.usages(ctx)
}

// ratedNode is the same for the node.
func (s *Server) ratedNode(ctx context.Context) (nodeUsage, error) {
	node := s.host.read(s.cfg.Now())
	if node.nanoCores != nil {
		return node, nil
	}
	if err := s.pause(ctx); err != nil {
		return nodeUsage{}, err
	}
	return s.host.read(s.cfg.Now()), nil
}

func (s *Server) pause(ctx context.Context) error {
	select {
	case <-time.After(s.between):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// handleSummary answers what the kubelet's /stats/summary does.
func (s *Server) handleSummary(w http.ResponseWriter, r *http.Request) {
	node, err := s.ratedNode(r.Context())
	var all []usage
	if err == nil {
		all, err = s.rated(r.Context())
	}
	if err != nil {
		fail(w, err)
		return
	}
	out := stats.Summary{Node: s.nodeStats(node), Pods: []stats.PodStats{}}
	if isTrue(r, "only_cpu_and_memory") {
		out.Node.Fs, out.Node.Network, out.Node.Rlimit, out.Node.Runtime = nil, nil, nil, nil
		for _, u := range all {
			out.Pods = append(out.Pods, onlyCPUAndMemory(podStats(u)))
		}
		send(w, http.StatusOK, out)
		return
	}
	volumes := s.measure(all)
	for _, u := range all {
		p := podStats(u)
		s.addStorage(&p, u.pod, volumes[u.pod.UID], node.fs)
		out.Pods = append(out.Pods, p)
	}
	send(w, http.StatusOK, out)
}

func onlyCPUAndMemory(p stats.PodStats) stats.PodStats {
	p.Network, p.ProcessStats, p.IO = nil, nil, nil
	for i := range p.Containers {
		p.Containers[i].Rootfs, p.Containers[i].IO = nil, nil
	}
	return p
}

func podStats(u usage) stats.PodStats {
	linux := u.GetLinux()
	p := stats.PodStats{
		PodRef:     stats.PodReference{Name: u.pod.Name, Namespace: u.pod.Namespace, UID: string(u.pod.UID)},
		Containers: []stats.ContainerStats{},
		CPU:        cpuStats(linux.GetCpu()), Memory: memoryStats(linux.GetMemory()), IO: ioStats(linux.GetIo()),
		Network:      networkStats(linux.GetNetwork()),
		ProcessStats: &stats.ProcessStats{ProcessCount: value(linux.GetProcess().GetProcessCount())},
	}
	if u.pod.Status.StartTime != nil {
		p.StartTime = *u.pod.Status.StartTime
	}
	for _, c := range linux.GetContainers() {
		p.Containers = append(p.Containers, containerStats(u.pod, c))
	}
	p.Swap = swapOf(p.Containers)
	return p
}

// swapOf adds up: the CRI has no number for a pod.
func swapOf(containers []stats.ContainerStats) *stats.SwapStats {
	var sum *stats.SwapStats
	for _, c := range containers {
		if c.Swap == nil {
			continue
		}
		if sum == nil {
			sum = &stats.SwapStats{SwapAvailableBytes: new(uint64), SwapUsageBytes: new(uint64)}
		}
		sum.Time = c.Swap.Time
		if v := c.Swap.SwapAvailableBytes; v != nil {
			*sum.SwapAvailableBytes += *v
		}
		if v := c.Swap.SwapUsageBytes; v != nil {
			*sum.SwapUsageBytes += *v
		}
	}
	return sum
}

func containerStats(pod *v1.Pod, c *cri.ContainerStats) stats.ContainerStats {
	layer := c.GetWritableLayer()
	to := stats.ContainerStats{
		Name: c.GetAttributes().GetMetadata().GetName(),
		CPU:  cpuStats(c.GetCpu()), Memory: memoryStats(c.GetMemory()), IO: ioStats(c.GetIo()),
		Rootfs: &stats.FsStats{
			Time: moment(layer.GetTimestamp()), UsedBytes: value(layer.GetUsedBytes()), InodesUsed: value(layer.GetInodesUsed()),
		},
	}
	if swap := c.GetSwap(); swap != nil {
		to.Swap = &stats.SwapStats{
			Time: moment(swap.GetTimestamp()), SwapAvailableBytes: value(swap.GetSwapAvailableBytes()), SwapUsageBytes: value(swap.GetSwapUsageBytes()),
		}
	}
	to.StartTime = startOf(pod, to.Name)
	return to
}

func startOf(pod *v1.Pod, container string) metav1.Time {
	for _, all := range [][]v1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range all {
			if all[i].Name == container && all[i].State.Running != nil {
				return all[i].State.Running.StartedAt
			}
		}
	}
	return metav1.Time{}
}

func cpuStats(c *cri.CpuUsage) *stats.CPUStats {
	if c == nil {
		return nil
	}
	return &stats.CPUStats{
		Time: moment(c.GetTimestamp()), UsageNanoCores: value(c.GetUsageNanoCores()), UsageCoreNanoSeconds: value(c.GetUsageCoreNanoSeconds()),
		PSI: psiStats(c.GetPsi()),
	}
}

func memoryStats(m *cri.MemoryUsage) *stats.MemoryStats {
	if m == nil {
		return nil
	}
	return &stats.MemoryStats{
		Time: moment(m.GetTimestamp()), AvailableBytes: value(m.GetAvailableBytes()), UsageBytes: value(m.GetUsageBytes()),
		WorkingSetBytes: value(m.GetWorkingSetBytes()), RSSBytes: value(m.GetRssBytes()), PageFaults: value(m.GetPageFaults()),
		MajorPageFaults: value(m.GetMajorPageFaults()), PSI: psiStats(m.GetPsi()),
	}
}

func ioStats(io *cri.IoUsage) *stats.IOStats {
	if io.GetPsi() == nil {
		return nil
	}
	return &stats.IOStats{Time: moment(io.GetTimestamp()), PSI: psiStats(io.GetPsi())}
}

func psiStats(p *cri.PsiStats) *stats.PSIStats {
	if p == nil {
		return nil
	}
	data := func(d *cri.PsiData) stats.PSIData {
		return stats.PSIData{Total: d.GetTotal(), Avg10: d.GetAvg10(), Avg60: d.GetAvg60(), Avg300: d.GetAvg300()}
	}
	return &stats.PSIStats{Full: data(p.GetFull()), Some: data(p.GetSome())}
}

func networkStats(n *cri.NetworkUsage) *stats.NetworkStats {
	if n.GetDefaultInterface() == nil {
		return nil
	}
	link := func(i *cri.NetworkInterfaceUsage) stats.InterfaceStats {
		return stats.InterfaceStats{
			Name: i.GetName(), RxBytes: value(i.GetRxBytes()), RxErrors: value(i.GetRxErrors()),
			TxBytes: value(i.GetTxBytes()), TxErrors: value(i.GetTxErrors()),
		}
	}
	out := &stats.NetworkStats{Time: moment(n.GetTimestamp()), InterfaceStats: link(n.GetDefaultInterface())}
	for _, i := range append([]*cri.NetworkInterfaceUsage{n.GetDefaultInterface()}, n.GetInterfaces()...) {
		out.Interfaces = append(out.Interfaces, link(i))
	}
	return out
}

func value(v *cri.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

func moment(nanoseconds int64) metav1.Time { return metav1.NewTime(time.Unix(0, nanoseconds)) }

// nodeStats are the node in the words of the summary.
func (s *Server) nodeStats(u nodeUsage) stats.NodeStats {
	at := metav1.NewTime(u.at)
	n := stats.NodeStats{
		NodeName: s.cfg.NodeName, StartTime: metav1.NewTime(u.booted),
		CPU:    &stats.CPUStats{Time: at, UsageNanoCores: u.nanoCores, UsageCoreNanoSeconds: &u.cpu},
		Memory: &stats.MemoryStats{Time: at, AvailableBytes: &u.memoryAvailable, UsageBytes: &u.memoryUsed, WorkingSetBytes: &u.workingSet},
		Rlimit: &stats.RlimitStats{Time: at, MaxPID: &u.maxPID, NumOfRunningProcesses: &u.tasks},
		Fs:     &u.fs,
	}
	n.Runtime = &stats.RuntimeStats{ImageFs: &u.fs, ContainerFs: &u.fs}
	if len(u.interfaces) > 0 {
		n.Network = &stats.NetworkStats{Time: at, InterfaceStats: u.interfaces[0], Interfaces: u.interfaces}
	}
	return n
}
