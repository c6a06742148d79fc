//go:build cgo

package monitor

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOnlyTheMonitorIsCalm: where the only processor is that of a goroutine in a system call, it is the monitor thread that hands it
// to another thread, and makes that.
func TestOnlyTheMonitorIsCalm(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	const waiting = 20
	for range waiting {
		go func() {
			_, _ = unix.Read(pipe[0], make([]byte, 1)) // a system call that stays, of which Go's poller knows nothing
		}()
	}
	defer unix.Close(pipe[1]) // which ends them
	var all []string
	for deadline := time.Now().Add(30 * time.Second); len(all) < waiting; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d threads for %d goroutines in system calls", len(all), waiting)
		}
		var err error
		if all, err = filepath.Glob("/proc/self/task/*/comm"); err != nil {
			t.Fatal(err)
		}
	}
	given, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	calm := 0
	for _, task := range all {
		switch got := slackOf(t, filepath.Base(filepath.Dir(task))); got {
		case fmt.Sprint(given):
		case "10000000":
			calm++
		default:
			t.Errorf("a thread has a timer slack of %s ns", got)
		}
	}
	if calm != 1 {
		t.Errorf("%d of %d threads have the slack of the monitor, want 1", calm, len(all))
	}
}

func slackOf(t *testing.T, tid string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/" + tid + "/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}
