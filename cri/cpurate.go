package cri

import (
	"sync"
	"time"
)

const (
	// rateWindow is the least time between two readings that make a rate. Clients that ask more often get the last
	// one: over a few milliseconds a rate says nothing.
	rateWindow = 900 * time.Millisecond
	// rateMax bounds how many containers and pods are remembered; rateAge is when one is forgotten in favour of others.
	rateMax = 4096
	rateAge = 10 * time.Minute
)

// cpuRates turns the CPU time that cgroups count into the cores in use since the reading before.
type cpuRates struct {
	mu   sync.Mutex
	last map[string]reading
}

type reading struct {
	at    time.Time
	usage time.Duration
	// nanoCores is the rate at that time; known is false after the first reading.
	nanoCores uint64
	known     bool
}

func newCPURates() *cpuRates { return &cpuRates{last: map[string]reading{}} }

// add takes a reading of what id has used since it began, and returns its rate in billionths of a core; false while
// there is only one reading.
func (r *cpuRates) add(id string, at time.Time, usage time.Duration) (nanoCores uint64, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, seen := r.last[id]
	if !seen {
		r.makeRoom(at)
	}
	elapsed := at.Sub(last.at)
	switch {
	case seen && elapsed < rateWindow:
		return last.nanoCores, last.known
	case !seen, usage < last.usage: // the counter began anew
		r.last[id] = reading{at: at, usage: usage}
		return 0, false
	}
	now := reading{at: at, usage: usage, known: true}
	now.nanoCores = uint64(float64(usage-last.usage) / float64(elapsed) * float64(time.Second))
	r.last[id] = now
	return now.nanoCores, true
}

// makeRoom keeps the map within its bound: it drops what nobody asked for lately, and if that does not help, anything. A
// dropped one only misses one rate.
func (r *cpuRates) makeRoom(now time.Time) {
	if len(r.last) < rateMax {
		return
	}
	for id, last := range r.last {
		if now.Sub(last.at) > rateAge {
			delete(r.last, id)
		}
	}
	for id := range r.last {
		if len(r.last) < rateMax {
			return
		}
		delete(r.last, id)
	}
}
