//go:build integration

package pods

import (
	"testing"
)

// TestEventsOutliveAKill has a daemon that is killed tell the next one what happened, up to the last thing, and has that count on.
func TestEventsOutliveAKill(t *testing.T) {
	n := start(t)
	n.write("p.yaml", podText("p", sleeper))
	n.awaitReady("p")
	n.berth().ok(t, "restart", "p")
	events := n.berth().lines(t, "events", "-w", "--for", "pod/p")
	events(`Killing`)
	events(`Started`) // which is the last
	before := n.berth().ok(t, "get", "events", "-o", "custom-columns=NAME:.metadata.name,COUNT:.count,WHAT:.message", "--sort-by=.metadata.name", "--no-headers")
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	after := n.berth().ok(t, "get", "events", "-o", "custom-columns=NAME:.metadata.name,COUNT:.count,WHAT:.message", "--sort-by=.metadata.name", "--no-headers")
	if after != before {
		t.Errorf("before the kill:\n%s\nafter it:\n%s", before, after)
	}
	n.berth().ok(t, "restart", "p")
	n.berth().lines(t, "events", "-w", "--for", "pod/p")(`Normal +Killing +Pod/p +Stopping container main`)
}
