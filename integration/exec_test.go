//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-node/berth/integration/harness"
)

func TestExecSync(t *testing.T) {
	c := sharedNode(t).RunPod(t, "exec").Idle(t, "app")

	t.Run("exit code is an answer", func(t *testing.T) {
		resp, err := c.ExecSync(harness.Ctx(t), 0, "sh", "-c", "echo out; echo err >&2; exit 3")
		if err != nil || resp.ExitCode != 3 || string(resp.Stdout) != "out\n" || string(resp.Stderr) != "err\n" {
			t.Errorf("got %v, %v", resp, err)
		}
	})
	t.Run("missing command is an error", func(t *testing.T) {
		if _, err := c.ExecSync(harness.Ctx(t), 0, "/no/such/program"); err == nil {
			t.Error("no error")
		}
	})
	t.Run("output is cut at 16 MiB", func(t *testing.T) {
		resp, err := c.ExecSync(harness.Ctx(t), 0, "sh", "-c", "head -c 20000000 /dev/zero; echo end >&2")
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Stdout) != 16<<20 || string(resp.Stderr) != "end\n" || resp.ExitCode != 0 {
			t.Errorf("%d bytes of output, error output %q, exit code %d", len(resp.Stdout), resp.Stderr, resp.ExitCode)
		}
	})
	t.Run("a background child does not hold the answer", func(t *testing.T) {
		begun := time.Now()
		resp, err := c.ExecSync(harness.Ctx(t), harness.Patience(20*time.Second), "sh", "-c", "sleep 1234 & echo done")
		if err != nil || !bytes.Contains(resp.GetStdout(), []byte("done")) {
			t.Errorf("got %v, %v", resp, err)
		}
		if took := time.Since(begun); took > harness.Patience(15*time.Second) {
			t.Errorf("the answer took %s", took)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		errs := make(chan error, 20)
		for i := range cap(errs) {
			go func() {
				resp, err := c.ExecSync(harness.Ctx(t), 0, "echo", fmt.Sprint(i))
				if err == nil && strings.TrimSpace(string(resp.Stdout)) != fmt.Sprint(i) {
					err = fmt.Errorf("exec %d answered %q", i, resp.Stdout)
				}
				errs <- err
			}()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

// At the deadline the command is dead with all its children, those in sessions of their own too.
func TestExecSyncTimeoutKillsTheTree(t *testing.T) {
	c := sharedNode(t).RunPod(t, "exec-timeout").Idle(t, "app")
	_, err := c.ExecSync(harness.Ctx(t), harness.Patience(time.Second), "sh", "-c", "setsid sh -c 'sleep 4321; :' & sleep 4322 & sleep 4323")
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("want DeadlineExceeded, got %v", err)
	}
	if left := c.Exec(t, "sh", "-c", "ps | grep 'sleep 432' | grep -v grep || true"); left != "" {
		t.Errorf("right after the answer there is still:\n%s", left)
	}
	if got := c.Exec(t, "echo", "alive"); got != "alive" {
		t.Errorf("the container itself: %q", got)
	}
}
