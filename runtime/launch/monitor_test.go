package launch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-node/berth/runtime/keeper"
)

// TestMonitorThreadIsCalm: that of an init. The main thread, which becomes the workload, has the slack that
// it was started with.
func TestMonitorThreadIsCalm(t *testing.T) {
	n := newNode(t)
	n.init = libcontainersInit
	w := n.launch()
	c := n.bundle([]string{"pause"}, nil)
	files := c.streams()
	defer closeEach(files)
	result, pidfd := w.do(t, c.job(keeper.JobCreate), files...)
	if result.Error != "" {
		t.Fatal(result.Error)
	}
	c.take(result, pidfd)
	own := slackOf(t, os.Getpid())
	if got := slackOf(t, c.pid); got != own {
		t.Errorf("init's main thread has a timer slack of %s ns, want %s", got, own)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", c.pid))
	if err != nil {
		t.Fatal(err)
	}
	calm := 0
	for _, task := range tasks {
		tid, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			t.Fatal(err)
		}
		if slackOf(t, tid) == "10000000" {
			calm++
		}
	}
	if calm != 1 {
		t.Errorf("%d of init's %d threads have the slack of the monitor, want 1", calm, len(tasks))
	}
	w.end(t)
	c.start()
	if got := slackOf(t, c.pid); got != own {
		t.Errorf("the workload has a timer slack of %s ns, want %s", got, own)
	}
	c.kill()
	if result, _ := n.run(c.job(keeper.JobDestroy)); result.Error != "" {
		t.Error(result.Error)
	}
	c.wantNothingLeft()
}

func slackOf(t *testing.T, tid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}
