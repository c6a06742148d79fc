//go:build integration

package pods

import (
	"strings"
	"testing"
)

// TestDrainEndsCriticalPodsLast has pods end that others depend on when those have ended, however long that takes.
func TestDrainEndsCriticalPodsLast(t *testing.T) {
	n := start(t, "  shutdownGracePeriodByPodPriority:\n  - {priority: 0, shutdownGracePeriodSeconds: 60}\n  - {priority: 1000, shutdownGracePeriodSeconds: 0}\n"+
		"  - {priority: 2000000000, shutdownGracePeriodSeconds: 0}\n")
	const slow = "trap 'sleep 2; exit 0' TERM; while :; do sleep 1000 & wait; done"
	n.write("network.yaml", podText("network", sleeper)+"  priorityClassName: system-node-critical\n")
	n.write("database.yaml", podText("database", slow)+"  priority: 1000\n")
	n.write("web.yaml", podText("web", slow))
	for _, name := range []string{"network", "database", "web"} {
		n.awaitReady(name)
	}
	said := n.Berth(t, "drain")
	var order []string
	for _, line := range strings.Split(said, "\n") {
		if name, ok := strings.CutPrefix(line, "removed pod default/"); ok {
			order = append(order, name)
		}
	}
	if got := strings.Join(order, " "); got != "web database network" {
		t.Errorf("they ended in the order %s:\n%s", got, said)
	}
	if err := n.Start(); err != nil { // for the end of the test
		t.Fatal(err)
	}
	n.awaitReady("web")
}
