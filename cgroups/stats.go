package cgroups

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// Stats is what the kernel counts for a cgroup and all below it, and the limits in force. A part is nil, or empty, if this
// node does not count it. v1 and v2 fill the same fields; the few that only one of them has are zero on the other.
type Stats struct {
	// Time is when the reading began.
	Time    time.Time
	CPU     *CPUStats
	Memory  *MemoryStats
	Pids    *PidsStats
	IO      []IOStats // one per device, in the kernel's order
	HugeTLB []HugeTLBStats
	// PSI is also there on a hybrid v1 node whose containers are in the v2 tree too.
	PSI PSIStats
}

// CPUStats: the times only grow.
type CPUStats struct {
	Usage, User, System time.Duration
	// Periods, ThrottledPeriods and Throttled count since a quota was set.
	Periods, ThrottledPeriods uint64
	Throttled                 time.Duration
	// Shares is v1's relative weight (1024 is usual). On v2 it is computed back from Weight, which is coarser: two shares
	// of one weight come back as one of them.
	Shares uint64
	// Weight is v2's relative weight (100 is usual), 0 on v1.
	Weight uint64
	// Quota is the CPU time allowed in each Period; negative is no limit.
	Quota, Period time.Duration
}

// MemoryStats is in bytes, but for the counts of events.
type MemoryStats struct {
	// Usage is all that is charged, page cache included; MaxUsage its peak, 0 if not known (v2 before Linux 5.19).
	Usage, MaxUsage uint64
	// WorkingSet is Usage less the file pages that were not touched lately: what cannot be freed at once.
	WorkingSet uint64
	RSS        uint64 // anonymous memory
	Cache      uint64 // page cache, tmpfs included
	MappedFile uint64
	Kernel     uint64
	Swap       uint64

	ActiveAnon, InactiveAnon, ActiveFile, InactiveFile uint64

	// Faults and MajorFaults are counted with all cgroups below; LocalFaults and LocalMajorFaults in this one alone. On
	// v2 they are the same: the kernel keeps only the former.
	Faults, MajorFaults, LocalFaults, LocalMajorFaults uint64
	// FailCount is how often usage ran against the limit; OOMKills how many processes that has killed.
	FailCount, OOMKills uint64

	// Limit, SwapLimit and Reservation are [Unlimited] if not set. SwapLimit is of swap alone, on v1 too.
	// Reservation is v1's soft limit, which by default is Unlimited, or v2's memory.low, by default 0.
	Limit, SwapLimit, Reservation uint64
	// SwapCounted says that Swap and SwapLimit are known.
	SwapCounted bool
}

// Available returns how much more may be used, 0 if nothing; false if there is no limit.
func (m *MemoryStats) Available() (uint64, bool) {
	if m.Limit == Unlimited {
		return 0, false
	}
	if m.WorkingSet > m.Limit {
		return 0, true
	}
	return m.Limit - m.WorkingSet, true
}

// PidsStats counts threads as the kernel's controller does.
type PidsStats struct {
	Current uint64
	Limit   uint64 // Unlimited if not set
}

// IOStats is the traffic with one block device, by operation: "Read", "Write", "Discard", on v1 also "Sync", "Async",
// "Total".
type IOStats struct {
	Major, Minor uint64
	Bytes, Ops   map[string]uint64
}

// HugeTLBStats is in bytes.
type HugeTLBStats struct {
	PageSize               string // "2MB"
	Usage, MaxUsage, Limit uint64 // MaxUsage is 0 on v2
	FailCount              uint64
}

// PSIStats has the pressure of each kind; nil if it is not counted.
type PSIStats struct{ CPU, Memory, IO *Pressure }

// Pressure is how long work stood still for want of something: Some is when a part of it did, Full when all of it did.
type Pressure struct{ Some, Full PressureLine }

// PressureLine has the total time, and its share of the last 10, 60 and 300 seconds in percent.
type PressureLine struct {
	Total                time.Duration
	Avg10, Avg60, Avg300 float64
}

// Stats reads the statistics of the cgroup, those of a pod as well as those of a container. The error is an ErrNotFound if
// it is not there. One that goes away under the reading gives what was read so far.
func (g *Group) Stats() (*Stats, error) {
	if !g.Exists() {
		return nil, fmt.Errorf("statistics of cgroup %s: %w", g, errdefs.ErrNotFound)
	}
	s := &Stats{Time: time.Now()}
	read := g.statsV1
	if g.host.Unified {
		read = g.statsV2
	}
	if err := read(s); err != nil {
		return nil, fmt.Errorf("statistics of cgroup: %w", err)
	}
	r := reader{dir: g.paths[""]}
	s.PSI = PSIStats{CPU: r.pressure("cpu.pressure"), Memory: r.pressure("memory.pressure"), IO: r.pressure("io.pressure")}
	if r.err != nil {
		return nil, fmt.Errorf("statistics of cgroup: %w", r.err)
	}
	return s, nil
}

// pressure reads lines of the form "some avg10=0.00 avg60=0.00 avg300=0.00 total=0".
func (r *reader) pressure(file string) *Pressure {
	text, ok := r.text(file)
	if !ok {
		return nil
	}
	p := &Pressure{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		target := &p.Some
		if fields[0] == "full" {
			target = &p.Full
		}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			r.fail(file, target.parse(key, value))
		}
	}
	return p
}

func (l *PressureLine) parse(key, value string) (err error) {
	var us uint64
	switch key {
	case "total":
		us, err = strconv.ParseUint(value, 10, 64)
		l.Total = microseconds(us)
	case "avg10":
		l.Avg10, err = strconv.ParseFloat(value, 64)
	case "avg60":
		l.Avg60, err = strconv.ParseFloat(value, 64)
	case "avg300":
		l.Avg300, err = strconv.ParseFloat(value, 64)
	}
	return err
}

func microseconds(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }

// less returns a-b, or 0 where counters that were not read at one moment would make it negative.
func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// pids reads the pids controller's files, which both hierarchies name alike.
func (r *reader) pids() *PidsStats {
	current, ok := r.number("pids.current")
	if !ok {
		return nil
	}
	s := &PidsStats{Current: current, Limit: Unlimited}
	s.Limit, _ = r.number("pids.max")
	return s
}
