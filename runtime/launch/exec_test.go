package launch_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/runtime/keeper"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestExecInSubCgroup(t *testing.T) {
	c := newNode(t).bundle([]string{"pause"}, nil).create().start()
	sub := map[string]string{}
	for _, dir := range c.cgroupDirs(c.id) {
		if _, err := os.Stat(dir); err != nil {
			continue // no such hierarchy here
		}
		exec := filepath.Join(dir, "exec-1")
		if err := os.Mkdir(exec, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(exec) })
	}
	if unified() {
		sub[""] = "exec-1"
	} else {
		sub["memory"], sub["pids"], sub["freezer"] = "exec-1", "exec-1", "exec-1"
	}

	e, result := c.exec(func(job *keeper.Job) { job.SubCgroups = sub }, "cat", "/proc/self/cgroup", "fds", "exit", "4")
	if result.Error != "" {
		t.Fatal(result.Error)
	}
	e.stdin.Close()
	if code := e.wait(); code != 4 {
		t.Errorf("exit code %d, want 4", code)
	}
	out := <-e.out
	if !strings.Contains(out, "/exec-1\n") {
		t.Errorf("the process is not in its own cgroup:\n%s", out)
	}
	if !strings.HasSuffix(out, "\n0 1 2 \n") {
		t.Errorf("the process has other descriptors than the three:\n%s", out)
	}
}

func TestExecFailures(t *testing.T) {
	c := newNode(t).bundle([]string{"pause"}, nil).create().start()
	want := func(when string, result keeper.JobResult, failure keeper.Failure) {
		t.Helper()
		if result.Failure != failure || result.Error == "" {
			t.Errorf("exec %s: %+v, want failure %q", when, result, failure)
		}
	}
	command := func(job *keeper.Job) { job.Process = []byte(`{"args":["no-such"],"cwd":"/"}`) }
	_, result := c.exec(command)
	want("of a command that is not there", result, keeper.FailureCommand)

	_, result = c.exec(func(job *keeper.Job) { job.SubCgroups = map[string]string{"": "no-such"} }, "exit", "0")
	want("in a cgroup that is not there", result, keeper.FailureSetup)

	_, result = c.exec(func(job *keeper.Job) { job.ID = "other" }, "exit", "0")
	want("in an unknown container", result, keeper.FailureNotRunning)

	if result, _ := c.run(c.job(keeper.JobDestroy)); result.Failure != keeper.FailureSetup || !strings.Contains(result.Error, "running") {
		t.Errorf("destroy of a running container: %+v", result)
	}
	c.kill()
	_, result = c.exec(nil, "exit", "0")
	want("in a stopped container", result, keeper.FailureNotRunning)
}

func TestDestroyOfNothing(t *testing.T) {
	n := newNode(t)
	if result, _ := n.run(keeper.Job{Kind: keeper.JobDestroy, Root: n.state, ID: "never"}); result.Error != "" {
		t.Errorf("destroy: %s", result.Error)
	}
	torn := filepath.Join(n.state, "torn") // what a launcher leaves that was killed in the middle
	if err := os.MkdirAll(torn, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(torn, "exec.fifo"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if result, _ := n.run(keeper.Job{Kind: keeper.JobDestroy, Root: n.state, ID: "torn"}); result.Error != "" {
		t.Errorf("destroy: %s", result.Error)
	}
	if _, err := os.Lstat(torn); !os.IsNotExist(err) {
		t.Errorf("the torn state is still there: %v", err)
	}
}

func TestDestroyOfCreated(t *testing.T) {
	c := newNode(t).bundle([]string{"pause"}, nil).create()
	if result, _ := c.run(c.job(keeper.JobDestroy)); result.Error != "" {
		t.Errorf("destroy: %s", result.Error)
	}
	if code := c.wait(); code != 128+9 {
		t.Errorf("init ended with %d, want SIGKILL", code)
	}
	c.wantNothingLeft()
}

func TestOOMScoreIsNotInherited(t *testing.T) {
	got := newNode(t).bundle([]string{"cat", "/proc/self/oom_score_adj"}, func(s *specs.Spec) {
		score := 500
		s.Process.OOMScoreAdj = &score
	}).create().output()
	if got != "500\n" {
		t.Errorf("oom_score_adj is %q", got)
	}
}
