//go:build integration

package integration

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/integration/harness"
)

// The start of a pod whose image is there executes nothing large and waits for no disk: of the daemon and the keeper with
// all their threads, and of what they start until the answer, strace sees the execution of launchers and of the workload
// only, and no sync. Launchers execute themselves (libcontainer's init), which are small.
func TestStartPathExecutesNothingLargeAndSyncsNothing(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: ", err)
	}
	n := ownNode(t)
	n.RunPod(t, "warm").Idle(t, "app") // the first pod sets the bridge up, and pulls the image

	trace := traceProcesses(t, strace, n.Pid(), keeperPid(t, n))
	pod := n.RunPod(t, "traced")
	app := pod.Idle(t, "app")
	if out := app.Exec(t, "echo", "runs"); out != "runs" {
		t.Errorf("exec: %q", out)
	}
	calls := trace()
	seen := false
	for _, call := range calls {
		switch {
		case strings.Contains(call, "sync"):
			t.Errorf("on the path of a pod's start: %s", call)
		case strings.Contains(call, "execve"):
			if !allowedProgram.MatchString(call) {
				t.Errorf("executed on the path of a pod's start: %s", call)
			}
			seen = true
		}
	}
	if !seen {
		t.Errorf("the trace shows not even the launchers: %q", calls)
	}
}

// allowedProgram: launchers by their sealed memfd or as libcontainer's init, the 5 KB that start an exec, and the workload's own commands.
var allowedProgram = regexp.MustCompile(`execve(at)?\(.*("berth-launch"|"berth-init"|"berth-enter"|\["(/bin/)?(sh|sleep|echo)")`)

// keeperPid finds the keeper by the lock that names it.
func keeperPid(t *testing.T, n *harness.Node) int {
	t.Helper()
	out, err := exec.Command("pgrep", "-f", "berth-keeper --run-dir "+n.RunDir+" ").Output()
	if err != nil {
		t.Fatal("no keeper: ", err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(out))[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// traceProcesses begins to trace; the function that it returns ends it and gives the system calls.
func traceProcesses(t *testing.T, strace string, pids ...int) func() []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trace")
	args := []string{"-f", "-o", file, "-s", "128", "-e", "signal=none", "-e", "trace=execve,execveat,fsync,fdatasync,syncfs,sync,sync_file_range"}
	for _, pid := range pids {
		args = append(args, "-p", fmt.Sprint(pid))
	}
	cmd := exec.Command(strace, args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for attached := 0; attached < len(pids); {
		if !lines.Scan() {
			t.Fatal("strace ended: ", cmd.Wait())
		}
		if strings.Contains(lines.Text(), "attached") {
			attached++
		}
	}
	go func() {
		for lines.Scan() { // it must not wait for us to read
		}
	}()
	return func() []string {
		_ = cmd.Process.Signal(unix.SIGINT)
		_ = cmd.Wait() // it ends as if by the signal
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var calls []string
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, "(") && !strings.Contains(line, "+++") {
				calls = append(calls, strings.TrimSpace(line))
			}
		}
		return calls
	}
}
