package runtime

import (
	"encoding/json"
	"testing"
	"time"
)

// What is left of a stop's grace is the same whatever became of the time of day while the daemon was away.
func TestStopSurvivesAClockStep(t *testing.T) {
	begun := clocks{time.Now(), 1000 * time.Second}
	f := containerFacts{StopBy: begun.wall.Add(30 * time.Second), StopUptime: begun.uptime + 30*time.Second}
	data, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var read containerFacts // by the next daemon: the time of day is all that it says
	if err := json.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	for _, step := range []time.Duration{0, time.Hour, -time.Hour, -20 * 365 * 24 * time.Hour} {
		later := clocks{begun.wall.Add(10*time.Second + step).Round(0), begun.uptime + 10*time.Second}
		if left := read.stopLeft(later); left != 20*time.Second {
			t.Errorf("after a step of %s %s are left, want 20s", step, left)
		}
	}
	old := containerFacts{StopBy: begun.wall.Add(30 * time.Second).Round(0)} // of a version without the other clock
	if left := old.stopLeft(clocks{begun.wall.Add(10 * time.Second).Round(0), 0}); left != 20*time.Second {
		t.Errorf("%s are left of an old record", left)
	}
}
