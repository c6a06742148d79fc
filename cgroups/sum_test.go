package cgroups

import (
	"testing"
	"time"
)

func TestSum(t *testing.T) {
	if got := Sum(time.Now(), nil); got != nil {
		t.Errorf("the sum of nothing is %+v", got)
	}
	a := &Stats{
		CPU:    &CPUStats{Usage: 3 * time.Second, User: 2 * time.Second, System: time.Second, Quota: 5},
		Memory: &MemoryStats{Usage: 10, WorkingSet: 7, RSS: 5, Limit: 100, SwapCounted: true, Swap: 1},
		Pids:   &PidsStats{Current: 2, Limit: 10},
	}
	b := &Stats{CPU: &CPUStats{Usage: time.Second}, Memory: &MemoryStats{Usage: 1, WorkingSet: 1, Limit: 100}}
	got := Sum(time.Unix(7, 0), []*Stats{a, b, {}})
	if got.CPU.Usage != 4*time.Second || got.CPU.User != 2*time.Second || got.CPU.Quota != -1 {
		t.Errorf("CPU: %+v", got.CPU)
	}
	if m := got.Memory; m.Usage != 11 || m.WorkingSet != 8 || m.RSS != 5 || m.Swap != 1 || m.Limit != Unlimited || !m.SwapCounted {
		t.Errorf("memory: %+v", m)
	}
	if got.Pids.Current != 2 || got.Pids.Limit != Unlimited {
		t.Errorf("pids: %+v", got.Pids)
	}
	if a.CPU.Usage != 3*time.Second {
		t.Error("a part was changed")
	}
}
