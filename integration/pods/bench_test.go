//go:build integration

package pods

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkFileToReady measures how long it takes from a file to a pod that is running and ready, by an exec probe, with its image
// there; and from the file's end to the end of the pod's container.
func BenchmarkFileToReady(b *testing.B) {
	n := start(b)
	n.write("first.yaml", podText("first", sleeper)) // pulls the image
	n.awaitReady("first")
	var ready []time.Duration
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("p%d", i)
		began := time.Now()
		n.write(name+".yaml", podText(name, sleeper, "    readinessProbe: {exec: {command: ['true']}}\n"))
		for p := n.pod(name); p == nil || !isReady(p); p = n.pod(name) {
			time.Sleep(time.Millisecond / 2)
			if time.Since(began) > time.Minute {
				b.Fatal("it is not ready after a minute")
			}
		}
		ready = append(ready, time.Since(began))
		n.remove(name + ".yaml")
		n.awaitGone(name)
	}
	slices.Sort(ready)
	b.ReportMetric(float64(ready[len(ready)/2].Microseconds())/1000, "ms/ready(median)")
	b.ReportMetric(float64(ready[0].Microseconds())/1000, "ms/ready(best)")
}
