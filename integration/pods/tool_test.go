//go:build integration

package pods

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
)

// A tool is a program by which a user sees the node: berth, or kubectl with the kubeconfig that berth writes.
type tool struct {
	name string
	path string
	args []string
	env  []string
}

func (n *node) berth() tool {
	return tool{name: "berth", path: filepath.Join(harness.Root(), "bin", "berth"), args: []string{"--run-dir", n.RunDir}}
}

func (n *node) kubectl() tool {
	return tool{name: "kubectl", path: harness.Tool("kubectl"), env: []string{"KUBECONFIG=" + filepath.Join(n.RunDir, "kubeconfig"), "HOME=" + n.t.TempDir(), "KUBECACHEDIR=" + n.t.TempDir()}}
}

// command is a run of the tool. What belongs to a program in a container stands behind "--", and the tool's own before it.
func (u tool) command(ctx context.Context, args ...string) *exec.Cmd {
	own, other := args, []string(nil)
	for i, a := range args {
		if a == "--" {
			own, other = args[:i], args[i:]
		}
	}
	cmd := exec.CommandContext(ctx, u.path, append(append(append([]string{}, own...), u.args...), other...)...)
	cmd.Env = append(os.Environ(), u.env...)
	return cmd
}

// run runs the tool and returns what it printed, and how it ended.
func (u tool) run(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(time.Minute))
	defer cancel()
	cmd := u.command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// ok runs the tool, which must succeed.
func (u tool) ok(t *testing.T, args ...string) string {
	t.Helper()
	out, errOut, code := u.run(t, "", args...)
	if code != 0 {
		t.Fatalf("%s %s: %d\n%s%s", u.name, strings.Join(args, " "), code, out, errOut)
	}
	return out
}

// lines follows what a tool prints, until the test ends.
func (u tool) lines(t *testing.T, args ...string) (next func(want string) string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := u.command(ctx, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan string, 1000)
	go func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			read <- in.Text()
		}
		close(read)
	}()
	t.Cleanup(func() {
		cancel()
		for range read {
		}
		_ = cmd.Wait()
	})
	return func(want string) string {
		t.Helper()
		limit := time.After(harness.Patience(30 * time.Second))
		var seen []string
		for {
			select {
			case line, ok := <-read:
				if !ok {
					t.Fatalf("%s %s ended before it said %q:\n%s", u.name, strings.Join(args, " "), want, strings.Join(seen, "\n"))
				}
				seen = append(seen, line)
				if regexp.MustCompile(want).MatchString(line) {
					return line
				}
			case <-limit:
				t.Fatalf("%s %s does not say %q but:\n%s", u.name, strings.Join(args, " "), want, strings.Join(seen, "\n"))
			}
		}
	}
}

func wants(t *testing.T, what, got string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(got) {
			t.Errorf("%s: no %q in:\n%s", what, p, got)
		}
	}
}
