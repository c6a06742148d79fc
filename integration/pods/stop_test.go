//go:build integration

package pods

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/harness"
)

// apply declares a pod that no file has.
func (n *node) apply(text string) {
	n.t.Helper()
	file := filepath.Join(n.t.TempDir(), "pod.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	n.berth().ok(n.t.(*testing.T), "apply", "-f", file)
}

// Trap 17: a second delete with less grace ends a wait that is on, for a hook as for a container that does not mind the signal; one
// with more grace changes nothing.
func TestGraceOnlyShrinks(t *testing.T) {
	const stubborn = "trap '' TERM; while :; do sleep 1; done"
	for name, hook := range map[string]string{
		"container": "",
		"hook":      "    lifecycle: {preStop: {exec: {command: [sleep, '3000']}}}\n",
	} {
		t.Run(name, func(t *testing.T) {
			n := start(t)
			grace := func() int64 {
				if p := n.pod("p"); p != nil && p.DeletionGracePeriodSeconds != nil {
					return *p.DeletionGracePeriodSeconds
				}
				return -1
			}
			n.apply(strings.Replace(podText("p", stubborn, hook), "terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: 3000", 1))
			n.awaitReady("p")
			n.berth().ok(t, "delete", "pod", "p", "--wait=false")
			n.await("p", "ending", func(p *v1.Pod) bool { return p.DeletionTimestamp != nil })
			if got := grace(); got != 3000 {
				t.Errorf("its grace is %d", got)
			}
			n.berth().ok(t, "delete", "pod", "p", "--grace-period=9000", "--wait=false")
			if got := grace(); got != 3000 {
				t.Errorf("its grace has become %d", got)
			}
			n.berth().ok(t, "delete", "pod", "p", "--grace-period=2000", "--wait=false")
			n.await("p", "ending sooner", func(*v1.Pod) bool { return grace() < 3000 })
			before := grace()
			n.berth().ok(t, "delete", "pod", "p", "--grace-period=9000", "--wait=false")
			n.berth().ok(t, "delete", "pod", "p", "--wait=false")
			if got := grace(); got != before {
				t.Errorf("its grace went from %d to %d", before, got)
			}
			n.berth().ok(t, "delete", "pod", "p", "--grace-period=1", "--wait=false")
			n.awaitGone("p")
		})
	}
}

// Trap 16: what is being stopped is not probed to see whether it lives.
func TestNoLivenessProbeOfWhatStops(t *testing.T) {
	n, d := start(t), newDiary(t)
	lines := func(file string) string { return fmt.Sprintf("wc -l < /diary/probes > /diary/%s", file) }
	n.apply(strings.Replace(podText("p", sleeper, diaryMount,
		"    livenessProbe: {periodSeconds: 1, timeoutSeconds: 20, exec: {command: [sh, -c, 'echo probe >> /diary/probes']}}\n",
		fmt.Sprintf("    lifecycle: {preStop: {exec: {command: [sh, -c, %q]}}}\n", lines("before")+"; sleep 8; "+lines("after"))),
		"terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: 300", 1) + d.volume())
	n.awaitReady("p")
	harness.Eventually(t, 40*time.Second, "it is probed", func() error {
		if data, err := os.ReadFile(filepath.Join(d.dir, "probes")); strings.Count(string(data), "\n") < 2 {
			return fmt.Errorf("%q, %v", data, err)
		}
		return nil
	})
	n.berth().ok(t, "delete", "pod", "p", "--wait=false")
	n.awaitGone("p")
	var counts []int
	for _, file := range []string{"before", "after"} {
		data, err := os.ReadFile(filepath.Join(d.dir, file))
		if err != nil {
			t.Fatal(err)
		}
		var count int
		if _, err := fmt.Sscan(string(data), &count); err != nil {
			t.Fatal(err)
		}
		counts = append(counts, count)
	}
	// One may have been on its way.
	if counts[1]-counts[0] > 1 {
		t.Errorf("%d probes while it stopped", counts[1]-counts[0])
	}
}

// Trap 19: of a probe that takes too long nothing is left, nor of what it started.
func TestNothingIsLeftOfProbesThatTakeTooLong(t *testing.T) {
	n := start(t)
	n.write("p.yaml", podText("p", sleeper, "    readinessProbe: {periodSeconds: 1, timeoutSeconds: 1, exec: {command: [sh, -c, 'sleep 7777 & sleep 8888']}}\n"))
	n.await("p", "running", func(p *v1.Pod) bool { return status(p, "main").State.Running != nil })
	harness.Eventually(t, 60*time.Second, "probes have taken too long", func() error {
		var list v1.EventList
		if err := json.Unmarshal([]byte(n.berth().ok(t, "get", "events", "-o", "json")), &list); err != nil {
			return err
		}
		var count int32
		for _, e := range list.Items {
			if e.Reason == "Unhealthy" && strings.Contains(e.Message, "timed out") {
				count += e.Count
			}
		}
		if count < 3 {
			return fmt.Errorf("%d", count)
		}
		return nil
	})
	// What runs now is of one probe, or of none.
	for range 3 {
		if got := n.sh("p", "main", "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f 2>/dev/null; echo; done | grep -c '^sleep [78]' || true"); got > "2" || len(got) != 1 {
			t.Errorf("%s processes of probes run", got)
		}
	}
	if got := n.sh("p", "main", "for f in /proc/[0-9]*/stat; do cut -d ' ' -f 3 $f 2>/dev/null; done | grep -c Z || true"); got > "3" || len(got) != 1 {
		t.Errorf("%s dead processes are there", got)
	}
}
