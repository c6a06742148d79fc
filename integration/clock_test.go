//go:build integration

package integration

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// The clock is set, forth and back by an hour, while containers are stopped and the daemon is started anew. It is the clock
// of the whole machine, so only where BERTH_TEST_CLOCK says that nobody else has it, as in the virtual machine of test-v2.
func TestClockStep(t *testing.T) {
	if os.Getenv("BERTH_TEST_CLOCK") == "" {
		t.Skip("BERTH_TEST_CLOCK is not set: this would set the machine's clock")
	}
	n := ownNode(t)
	pod := n.RunPod(t, "clock")
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		deaf := pod.Sh(t, "deaf"+by.String(), `trap "" TERM; echo deaf; while :; do sleep 1; done`)
		waitForText(t, deaf, "stdout", "deaf")
		stopped := make(chan error, 1)
		began := uptimeNow(t)
		go func() {
			_, err := n.Runtime.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: deaf.ID, Timeout: 12})
			stopped <- err
		}()
		harness.Eventually(t, 10*time.Second, "the stop to be on record", func() error {
			return wantIn(facts(t, n, deaf), `"stopBy"`)
		})
		stepClock(t, by)
		n.Kill9(t)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		<-stopped // the connection was lost with the daemon
		if got := deaf.Status(t).State; got != cri.ContainerState_CONTAINER_RUNNING && uptimeNow(t)-began < 12*time.Second {
			t.Errorf("%s: it was killed before its grace was over", by)
		}
		if s := deaf.WaitExit(t); s.ExitCode != 137 {
			t.Errorf("%s: %v", by, s)
		}
		if took := uptimeNow(t) - began; took < 12*time.Second {
			t.Errorf("%s: a grace of 12s took %s", by, took)
		}
		after := pod.Idle(t, "after"+by.String())
		if got := after.Exec(t, "echo", "alive"); got != "alive" {
			t.Errorf("%s: %q", by, got)
		}
	}
}

// facts is what the node has on record of what happened to a container.
func facts(t *testing.T, n *harness.Node, c *harness.Container) string {
	t.Helper()
	data, err := os.ReadFile(n.RootDir + "/containers/" + c.ID + "/facts.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func uptimeNow(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

func stepClock(t *testing.T, by time.Duration) {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts); err != nil {
		t.Fatal(err)
	}
	ts = unix.NsecToTimespec(ts.Nano() + int64(by))
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		t.Fatal(err)
	}
}
