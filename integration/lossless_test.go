//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// lineLength is that of the lines of flood, in bytes.
const lineLength = 100

// flood writes numbered lines without end, about 1 MB a second. awk writes in blocks that end within lines.
var flood = fmt.Sprintf(`awk 'BEGIN { for (i = 1; ; i++) { printf "%%0%dd\n", i; if (i %% 100 == 0) { fflush(); system("sleep 0.004") } } }'`, lineLength-1)

// flooded returns how many bytes each gap between the lines of c lacks. It fails the test for a line that is torn, doubled
// or out of order.
func flooded(t *testing.T, c *harness.Container) (gaps []int, last int) {
	t.Helper()
	for _, text := range harness.Texts(c.Log(t), "stdout") {
		i, err := strconv.Atoi(text)
		if err != nil || len(text) != lineLength-1 || i <= last {
			t.Fatalf("%q comes after line %d", text, last)
		}
		if missing := i - last - 1; missing > 0 {
			gaps = append(gaps, missing*lineLength)
		}
		last = i
	}
	return gaps, last
}

// awaitMore waits until the log of c has grown.
func awaitMore(t *testing.T, c *harness.Container) {
	t.Helper()
	awaitLines(t, c, 10)
}

// awaitLines waits until the log of c has that many lines of flood more.
func awaitLines(t *testing.T, c *harness.Container, lines int64) {
	t.Helper()
	const frame = len("2006-01-02T15:04:05.000000000Z stdout F ")
	size := func() int64 {
		info, err := os.Stat(c.LogPath())
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := size()
	harness.Eventually(t, 30*time.Second, "the log to go on", func() error {
		if size() < before+lines*int64(frame+lineLength) {
			return errors.New("it does not")
		}
		return nil
	})
}

// killKeeper kills the keeper. With the daemon there, it returns when another one serves.
func killKeeper(t *testing.T, n *harness.Node) {
	t.Helper()
	old := keeperPid(t, n)
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !n.Running() {
		return
	}
	harness.Eventually(t, 30*time.Second, "another keeper", func() error {
		_, err := n.Runtime.Status(harness.Ctx(t), &cri.StatusRequest{})
		if err == nil && !runtimeReady(t, n) {
			err = errors.New("the runtime is not ready")
		}
		if _, alive := harness.StartTime(old); err == nil && alive {
			err = errors.New("the killed one is there")
		}
		return err
	})
}

func runtimeReady(t *testing.T, n *harness.Node) bool {
	t.Helper()
	resp, err := n.Runtime.Status(harness.Ctx(t), &cri.StatusRequest{})
	if err != nil {
		return false
	}
	for _, condition := range resp.Status.Conditions {
		if condition.Type == "RuntimeReady" {
			return condition.Status
		}
	}
	return false
}

// A daemon that is killed a hundred times costs no line of a log that is written without a pause. Between a kill and the
// next start more is written than a pipe holds: that no load of the machine can change. The rate, 1 MB a second where there is
// nothing else to do, is told.
func TestLogThroughHundredKilledDaemons(t *testing.T) {
	const kills, lines = 100, 70_000 / lineLength
	n := ownNode(t)
	c := n.RunPod(t, "flood").Sh(t, "app", flood)
	began := time.Now()
	for range kills {
		n.Kill9(t)
		awaitLines(t, c, lines)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		awaitMore(t, c)
	}
	took := time.Since(began)
	if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container: %v", s)
	}
	c.Stop(t, 0)
	gaps, last := flooded(t, c)
	t.Logf("%d lines, %.2f MB a second", last, float64(last*lineLength)/1e6/took.Seconds())
	if len(gaps) > 0 || last < kills*lines {
		t.Errorf("of %d lines, gaps of %v bytes", last, gaps)
	}
}

// A keeper that is killed takes at most 64 KiB of a log with it, and no line is torn or doubled.
func TestLogThroughTwentyKilledKeepers(t *testing.T) {
	n := ownNode(t)
	c := n.RunPod(t, "flood").Sh(t, "app", flood)
	const kills = 20
	for range kills {
		awaitMore(t, c)
		killKeeper(t, n)
		awaitMore(t, c)
	}
	if got := c.Exec(t, "echo", "alive"); got != "alive" {
		t.Errorf("exec: %q", got)
	}
	c.Stop(t, 0)
	wantSmallGaps(t, c, kills)
}

func wantSmallGaps(t *testing.T, c *harness.Container, kills int) {
	t.Helper()
	gaps, last := flooded(t, c)
	t.Logf("%d lines, gaps of %v bytes", last, gaps)
	if len(gaps) > kills {
		t.Errorf("%d gaps after %d kills", len(gaps), kills)
	}
	for _, gap := range gaps {
		if gap > 64<<10 {
			t.Errorf("%d bytes are missing", gap)
		}
	}
}

// With keeper and daemon killed at once, workloads that write go on: no SIGPIPE. How one ended that did so meanwhile is not
// known, and said to be, or is right.
func TestKeeperAndDaemonKilled(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "flood")
	c, other, ends := pod.Sh(t, "app", flood), pod.Sh(t, "other", flood+" >&2"), pod.Sh(t, "ends", "echo up; exec sleep 6543")
	waitForText(t, ends, "stdout", "up")
	ending := initPid(t, ends)
	const kills = 5
	for i := range kills {
		awaitMore(t, c)
		awaitMore(t, other)
		keeper := keeperPid(t, n)
		n.Kill9(t)
		if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := syscall.Kill(ending, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			wantGone(t, "sleep\x006543")
		}
		time.Sleep(200 * time.Millisecond) // the pipes fill up: whoever writes waits
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		awaitMore(t, c)
		awaitMore(t, other)
	}
	// Known it is as long as pid 1 has not reaped it: a zombie says how it ended.
	if s := ends.WaitExit(t); (s.ExitCode != 255 || s.Reason != "Unknown") && (s.ExitCode != 137 || s.Reason != "Error") {
		t.Errorf("the one that ended while nobody was there: %v", s)
	}
	for _, c := range []*harness.Container{c, other} {
		if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("one that writes: %v", s)
		}
	}
	c.Stop(t, 0)
	other.Stop(t, 0)
	wantSmallGaps(t, c, kills)
}

// What ends after the keeper was killed, before or behind the next one, has its exit code where the kernel can tell.
func TestExitsAroundAKilledKeeper(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "exits")
	var all []*harness.Container
	for i := range 8 {
		all = append(all, pod.Sh(t, fmt.Sprintf("c-%d", i), fmt.Sprintf(`trap 'exit %d' TERM; echo up; while :; do sleep 0.01; done`, 40+i)))
	}
	var pids []int
	for _, c := range all {
		waitForText(t, c, "stdout", "up")
		pids = append(pids, initPid(t, c))
	}
	old := keeperPid(t, n)
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	unknown := 0
	for i, c := range all {
		switch s := c.WaitExit(t); {
		case s.ExitCode == int32(40+i) && s.Reason == "Error":
		case s.ExitCode == 255 && s.Reason == "Unknown":
			unknown++
		default:
			t.Errorf("container %d: %v", i, s)
		}
	}
	if unknown > 0 && kernelTellsExits() {
		t.Errorf("%d of %d exit codes are unknown", unknown, len(all))
	}
}

// kernelTellsExits says whether this kernel gives the exit code of a process that is no child (6.15).
func kernelTellsExits() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	return unix.IoctlPidfdInfo(fd, &info) == nil
}
