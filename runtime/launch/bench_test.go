package launch_test

import (
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/runtime/keeper"
)

// BenchmarkCreate measures a create as the keeper sees it: from the job to the answer, with a launcher that waits.
func BenchmarkCreate(b *testing.B) {
	for name, adjust := range map[string]func(*specs.Spec){
		"seccomp=none": nil,
		"seccomp=default": func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{} // the profile depends on them
			s.Linux.Seccomp = seccomp.DefaultProfile(s)
		},
	} {
		b.Run(name, func(b *testing.B) {
			n := newNode(b)
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				c := n.bundle([]string{"pause"}, adjust)
				w, files := n.launch(), c.streams()
				time.Sleep(20 * time.Millisecond) // the launcher gets ready, as it does in life
				b.StartTimer()
				begin := time.Now()
				result, pidfd := w.do(b, c.job(keeper.JobCreate), files...)
				took = append(took, time.Since(begin))
				b.StopTimer()
				w.end(b)
				closeEach(files)
				if result.Error != "" {
					b.Fatal(result.Error)
				}
				c.take(result, pidfd)
				c.kill()
				if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
					b.Fatal(result.Error)
				}
				b.StartTimer()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/median")
		})
	}
}
