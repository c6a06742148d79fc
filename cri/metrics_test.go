package cri

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/runtime"
)

// wanted are the metrics that critest looks for: those of a kubelet that takes them from cAdvisor.
var wanted = strings.Fields(`
	container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
	container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total
	container_cpu_user_seconds_total container_file_descriptors container_fs_inodes_free container_fs_inodes_total
	container_fs_limit_bytes container_fs_reads_bytes_total container_fs_reads_total container_fs_usage_bytes
	container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes container_hugetlb_usage_bytes
	container_last_seen container_memory_cache container_memory_failcnt container_memory_failures_total
	container_memory_kernel_usage container_memory_mapped_file container_memory_max_usage_bytes container_memory_rss
	container_memory_swap container_memory_usage_bytes container_memory_working_set_bytes
	container_network_receive_bytes_total container_network_receive_errors_total
	container_network_receive_packets_dropped_total container_network_receive_packets_total
	container_network_transmit_bytes_total container_network_transmit_errors_total
	container_network_transmit_packets_dropped_total container_network_transmit_packets_total container_oom_events_total
	container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total
	container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total
	container_pressure_memory_stalled_seconds_total container_pressure_memory_waiting_seconds_total container_processes
	container_sockets container_spec_cpu_period container_spec_cpu_quota container_spec_cpu_shares
	container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes
	container_start_time_seconds container_threads container_threads_max container_ulimits_soft`)

func TestDescriptors(t *testing.T) {
	var names []string
	for _, d := range metricDescriptors() {
		names = append(names, d.GetName())
		if d.GetHelp() == "" || len(d.GetLabelKeys()) < len(baseLabels) {
			t.Errorf("%v has no help or not all labels", d)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, wanted) {
		for _, w := range wanted {
			if !slices.Contains(names, w) {
				t.Errorf("%s is missing", w)
			}
		}
		t.Errorf("%d metrics, want %d; got %v", len(names), len(wanted), names)
	}
}

// fullStats is a cgroup of a node that counts everything.
func fullStats() *cgroups.Stats {
	return &cgroups.Stats{
		CPU: &cgroups.CPUStats{
			Usage: 7 * time.Second, User: 4 * time.Second, System: 3 * time.Second, Periods: 10, ThrottledPeriods: 2,
			Throttled: 1500 * time.Millisecond, Shares: 1024, Quota: 20 * time.Millisecond, Period: 100 * time.Millisecond,
		},
		Memory: &cgroups.MemoryStats{
			Usage: 1, MaxUsage: 2, WorkingSet: 3, RSS: 4, Cache: 5, MappedFile: 6, Kernel: 7, Swap: 8,
			Faults: 9, MajorFaults: 10, LocalFaults: 11, LocalMajorFaults: 12, FailCount: 13, OOMKills: 14,
			Limit: 64 << 20, SwapLimit: cgroups.Unlimited, Reservation: cgroups.Unlimited,
		},
		Pids: &cgroups.PidsStats{Current: 15, Limit: cgroups.Unlimited},
		IO: []cgroups.IOStats{{
			Major: 4095, Minor: 77, Bytes: map[string]uint64{"Read": 16, "Write": 17}, Ops: map[string]uint64{"Read": 18, "Write": 19},
		}},
		HugeTLB: []cgroups.HugeTLBStats{{PageSize: "2MB", Usage: 20, MaxUsage: 21}},
		PSI: cgroups.PSIStats{
			CPU:    &cgroups.Pressure{Some: cgroups.PressureLine{Total: 22 * time.Second}, Full: cgroups.PressureLine{Total: 23 * time.Second}},
			Memory: &cgroups.Pressure{Some: cgroups.PressureLine{Total: 24 * time.Second}, Full: cgroups.PressureLine{Total: 25 * time.Second}},
			IO:     &cgroups.Pressure{Some: cgroups.PressureLine{Total: 26 * time.Second}, Full: cgroups.PressureLine{Total: 27 * time.Second}},
		},
	}
}

// flat writes metrics as "name{extra labels}" → value.
func flat(t *testing.T, got []*cri.Metric, base []string) map[string]uint64 {
	t.Helper()
	keys := map[string]int{}
	for _, d := range metricDescriptors() {
		keys[d.GetName()] = len(d.GetLabelKeys())
	}
	out := map[string]uint64{}
	for _, m := range got {
		if len(m.GetLabelValues()) != keys[m.GetName()] {
			t.Errorf("%s has %d labels, its descriptor %d", m.GetName(), len(m.GetLabelValues()), keys[m.GetName()])
		}
		if !slices.Equal(m.GetLabelValues()[:len(base)], base) {
			t.Errorf("%s has the labels %q, want %q first", m.GetName(), m.GetLabelValues(), base)
		}
		name := m.GetName()
		if extra := m.GetLabelValues()[len(base):]; len(extra) > 0 {
			name += "{" + strings.Join(extra, ",") + "}"
		}
		if _, twice := out[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		out[name] = m.GetValue().GetValue()
	}
	return out
}

func TestPodMetrics(t *testing.T) {
	dir := t.TempDir()
	st := runtime.SandboxStats{
		Sandbox: testSandbox(),
		Stats:   runtime.Stats{At: at(100), Cgroup: fullStats()},
		Interfaces: []runtime.InterfaceStats{{
			Name: "eth0", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxPackets: 6, TxErrors: 7, TxDropped: 8,
		}, {Name: "net1"}},
		Containers: []runtime.ContainerStats{{
			Container: testContainer(),
			Stats:     runtime.Stats{At: at(100), Cgroup: fullStats(), Rootfs: runtime.FsUsage{Mountpoint: dir, Bytes: 30}},
		}},
	}
	m := newMeter(nil)
	got := m.pod(st)
	pod := flat(t, got.GetMetrics(), []string{"", "/kubepods/podu", "", "sb", "ns", "web"})
	container := flat(t, got.GetContainerMetrics()[0].GetMetrics(), []string{"app", "/kubepods/podu/c1", "busybox:1", "c1", "ns", "web"})
	for name, want := range map[string]uint64{
		"container_last_seen":                                    uint64(at(100).Unix()),
		"container_start_time_seconds":                           uint64(at(1).Unix()),
		"container_network_receive_bytes_total{eth0}":            1,
		"container_network_receive_packets_total{eth0}":          2,
		"container_network_receive_errors_total{eth0}":           3,
		"container_network_receive_packets_dropped_total{eth0}":  4,
		"container_network_transmit_bytes_total{eth0}":           5,
		"container_network_transmit_packets_total{eth0}":         6,
		"container_network_transmit_errors_total{eth0}":          7,
		"container_network_transmit_packets_dropped_total{eth0}": 8,
		"container_network_transmit_bytes_total{net1}":           0,
		"container_cpu_usage_seconds_total{total}":               7,
	} {
		if v, ok := pod[name]; !ok || v != want {
			t.Errorf("of the pod: %s = %d (%v), want %d", name, v, ok, want)
		}
	}
	for name, want := range map[string]uint64{
		"container_start_time_seconds":                              uint64(at(2).Unix()),
		"container_cpu_user_seconds_total":                          4,
		"container_cpu_system_seconds_total":                        3,
		"container_cpu_cfs_periods_total":                           10,
		"container_cpu_cfs_throttled_periods_total":                 2,
		"container_cpu_cfs_throttled_seconds_total":                 1,
		"container_spec_cpu_period":                                 100_000,
		"container_spec_cpu_quota":                                  20_000,
		"container_spec_cpu_shares":                                 1024,
		"container_memory_usage_bytes":                              1,
		"container_memory_max_usage_bytes":                          2,
		"container_memory_working_set_bytes":                        3,
		"container_memory_rss":                                      4,
		"container_memory_cache":                                    5,
		"container_memory_mapped_file":                              6,
		"container_memory_kernel_usage":                             7,
		"container_memory_swap":                                     8,
		"container_memory_failures_total{pgfault,hierarchy}":        9,
		"container_memory_failures_total{pgmajfault,hierarchy}":     10,
		"container_memory_failures_total{pgfault,container}":        11,
		"container_memory_failures_total{pgmajfault,container}":     12,
		"container_memory_failcnt":                                  13,
		"container_oom_events_total":                                14,
		"container_spec_memory_limit_bytes":                         64 << 20,
		"container_spec_memory_swap_limit_bytes":                    0,
		"container_spec_memory_reservation_limit_bytes":             0,
		"container_threads":                                         15,
		"container_threads_max":                                     0,
		"container_fs_reads_bytes_total{4095:77}":                   16,
		"container_fs_writes_bytes_total{4095:77}":                  17,
		"container_fs_reads_total{4095:77}":                         18,
		"container_fs_writes_total{4095:77}":                        19,
		"container_blkio_device_usage_total{4095:77,4095,77,Read}":  16,
		"container_blkio_device_usage_total{4095:77,4095,77,Write}": 17,
		"container_hugetlb_usage_bytes{2MB}":                        20,
		"container_hugetlb_max_usage_bytes{2MB}":                    21,
		"container_pressure_cpu_waiting_seconds_total":              22,
		"container_pressure_cpu_stalled_seconds_total":              23,
		"container_pressure_memory_waiting_seconds_total":           24,
		"container_pressure_memory_stalled_seconds_total":           25,
		"container_pressure_io_waiting_seconds_total":               26,
		"container_pressure_io_stalled_seconds_total":               27,
		"container_fs_usage_bytes{" + m.disks.source(dir) + "}":     30,
	} {
		if v, ok := container[name]; !ok || v != want {
			t.Errorf("of the container: %s = %d (%v), want %d", name, v, ok, want)
		}
	}
}

// A pod and its container together have a value for every descriptor, as critest wants it.
func TestEveryDescriptorHasAValue(t *testing.T) {
	files := uint64(1024)
	full := &sample{
		at: at(1), started: at(0), stats: fullStats(), interfaces: []runtime.InterfaceStats{{Name: "eth0"}},
		processes: &processes{maxFiles: &files}, disk: &disk{device: "/dev/vda"}, device: newDisks().device,
	}
	have := map[string]bool{}
	for _, m := range measure(full, make([]string, len(baseLabels))) {
		have[m.GetName()] = true
	}
	for _, d := range metricDescriptors() {
		if !have[d.GetName()] {
			t.Errorf("%s has no value", d.GetName())
		}
	}

	// A node that counts nothing has the times alone.
	for _, s := range []*sample{{at: at(1)}, {at: at(1), stats: &cgroups.Stats{}}} {
		if got := measure(s, nil); len(got) != len(seenMetrics) {
			t.Errorf("of nothing: %v", got)
		}
	}
	// No quota, no throttling.
	for _, m := range measure(&sample{stats: &cgroups.Stats{CPU: &cgroups.CPUStats{Quota: -1}}}, nil) {
		if strings.Contains(m.GetName(), "_cfs_") || strings.Contains(m.GetName(), "_quota") {
			t.Errorf("without a quota: %v", m)
		}
	}
}

func TestCgroupID(t *testing.T) {
	for _, tc := range []struct{ parent, path, want string }{
		{"/kubepods/podu", "/kubepods/podu/c1", "/kubepods/podu/c1"},
		{
			"/kubepods.slice/kubepods-podu.slice", "kubepods-podu.slice:cri-berth:c1",
			"/kubepods.slice/kubepods-podu.slice/cri-berth-c1.scope",
		},
		{"", "berth.slice:cri-berth:c1", "/berth.slice/cri-berth-c1.scope"},
	} {
		if got := cgroupID(tc.parent, tc.path); got != tc.want {
			t.Errorf("cgroupID(%q, %q) = %q, want %q", tc.parent, tc.path, got, tc.want)
		}
	}
}

func TestSoftMaxFiles(t *testing.T) {
	const text = "Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max cpu time              unlimited            unlimited            seconds   \n" +
		"Max open files            1024                 1048576              files     \n"
	if got := softMaxFiles([]byte(text)); got == nil || *got != 1024 {
		t.Errorf("got %v, want 1024", got)
	}
	if got := softMaxFiles([]byte(strings.Replace(text, "1024 ", "unlimited ", 1))); got != nil {
		t.Errorf("unlimited is %d", *got)
	}
	if got := softMaxFiles(nil); got != nil {
		t.Errorf("nothing is %d", *got)
	}
}

func TestOpenFiles(t *testing.T) {
	dir := t.TempDir()
	for name, to := range map[string]string{"0": "/dev/null", "1": "socket:[17]", "2": "pipe:[18]"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if files, sockets := openFiles(dir); files != 3 || sockets != 1 {
		t.Errorf("%d files and %d sockets, want 3 and 1", files, sockets)
	}
	if files, _ := openFiles(filepath.Join(dir, "gone")); files != 0 {
		t.Errorf("a process that is gone has %d files", files)
	}
}
