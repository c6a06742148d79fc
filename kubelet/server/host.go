package server

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// nodeUsage is what the whole machine uses.
type nodeUsage struct {
	at, booted time.Time
	cpu        uint64  // nanoseconds of all cores since the boot
	nanoCores  *uint64 // since the reading before; nil without one
	// memory in bytes
	memoryUsed, workingSet, memoryAvailable, swapUsed uint64
	tasks, maxPID                                     int64
	fs                                                stats.FsStats
	interfaces                                        []stats.InterfaceStats
}

// host reads the machine's numbers.
type host struct {
	proc string // "/proc"
	dir  string // on the file system that images and containers are on

	mu   sync.Mutex
	last nodeUsage
}

// ticksPerSecond is USER_HZ, which is 100 on all architectures that Go has for Linux.
const ticksPerSecond = 100

// read takes a reading. What this machine does not tell is zero.
func (h *host) read(now time.Time) nodeUsage {
	u := nodeUsage{at: now}
	h.readCPU(&u)
	h.readMemory(&u)
	h.readTasks(&u)
	u.fs = fsStats(h.dir, now)
	u.interfaces = parseInterfaces(h.file("net/dev"))
	h.mu.Lock()
	defer h.mu.Unlock()
	elapsed := now.Sub(h.last.at)
	switch {
	case !h.last.at.IsZero() && elapsed < rateTime*9/10:
		u.nanoCores = h.last.nanoCores // over so short a time a rate says nothing
		return u
	case !h.last.at.IsZero() && u.cpu >= h.last.cpu:
		rate := uint64(float64(u.cpu-h.last.cpu) / elapsed.Seconds())
		u.nanoCores = &rate
	}
	h.last = u
	return u
}

func (h *host) file(name string) string {
	data, err := os.ReadFile(h.proc + "/" + name)
	if err != nil {
		return ""
	}
	return string(data)
}

// readCPU sums up what the cores did but for waiting (proc_stat(5)).
func (h *host) readCPU(u *nodeUsage) {
	for line := range strings.Lines(h.file("stat")) {
		f := strings.Fields(line)
		switch {
		case len(f) > 8 && f[0] == "cpu":
			for _, i := range []int{1, 2, 3, 6, 7, 8} { // user, nice, system, irq, softirq, steal
				u.cpu += number(f[i]) * (1e9 / ticksPerSecond)
			}
		case len(f) == 2 && f[0] == "btime":
			u.booted = time.Unix(int64(number(f[1])), 0)
		}
	}
}

func (h *host) readMemory(u *nodeUsage) {
	kib := map[string]uint64{}
	for line := range strings.Lines(h.file("meminfo")) {
		if key, rest, ok := strings.Cut(line, ":"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				kib[key] = number(f[0])
			}
		}
	}
	less := func(a, b uint64) uint64 { return max(a, b) - b }
	u.memoryUsed = less(kib["MemTotal"], kib["MemFree"]) << 10
	u.memoryAvailable = kib["MemAvailable"] << 10
	u.workingSet = less(kib["MemTotal"], kib["MemAvailable"]) << 10
	u.swapUsed = less(kib["SwapTotal"], kib["SwapFree"]) << 10
}

// readTasks counts by loadavg: sysinfo(2) counts to 65,535.
func (h *host) readTasks(u *nodeUsage) {
	if f := strings.Fields(h.file("loadavg")); len(f) > 3 {
		_, all, _ := strings.Cut(f[3], "/")
		u.tasks = int64(number(all))
	}
	u.maxPID = int64(number(strings.TrimSpace(h.file("sys/kernel/pid_max"))))
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64) // the kernel writes numbers
	return n
}

func fsStats(dir string, now time.Time) stats.FsStats {
	out := stats.FsStats{Time: metav1.NewTime(now)}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return out
	}
	block := uint64(st.Bsize)
	capacity, available, used := st.Blocks*block, st.Bavail*block, (st.Blocks-st.Bfree)*block
	inodes, free := st.Files, st.Ffree
	inodesUsed := inodes - free
	out.CapacityBytes, out.AvailableBytes, out.UsedBytes = &capacity, &available, &used
	out.Inodes, out.InodesFree, out.InodesUsed = &inodes, &free, &inodesUsed
	return out
}

// parseInterfaces reads /proc/net/dev but for the loopback and what is the other end of a pod's.
func parseInterfaces(text string) []stats.InterfaceStats {
	var out []stats.InterfaceStats
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, counters, ok := strings.Cut(lines.Text(), ":")
		f := strings.Fields(counters)
		name = strings.TrimSpace(name)
		if !ok || len(f) < 16 || name == "lo" || strings.HasPrefix(name, "veth") || strings.HasPrefix(name, "berth") {
			continue
		}
		rx, rxErrors, tx, txErrors := number(f[0]), number(f[2]), number(f[8]), number(f[10])
		out = append(out, stats.InterfaceStats{Name: name, RxBytes: &rx, RxErrors: &rxErrors, TxBytes: &tx, TxErrors: &txErrors})
	}
	return out
}
