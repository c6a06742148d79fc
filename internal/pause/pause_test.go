package pause

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start runs script, which is to end in `exec "$0"`, the pause program.
func start(t *testing.T, script string) (cmd *exec.Cmd, stdin *os.File, stdout *bufio.Reader) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(path, Binary(), 0o755); err != nil {
		t.Fatal(err)
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("sh", "-c", script, path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inR, outW, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		inW.Close()
		outR.Close()
	})
	return cmd, inW, bufio.NewReader(outR)
}

// running waits until the process of the shell is the pause program and waits: a signal before that would kill it.
func running(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	waitFor(t, "the pause program to wait", func() bool {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
		return err == nil && strings.HasPrefix(string(status), "Name:\tpause\n") && strings.Contains(string(status), "\nState:\tS")
	})
}

func waitFor(t *testing.T, what string, ready func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ready() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestEndsOnSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd, _, _ := start(t, `exec "$0"`)
			running(t, cmd)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("it ended with %v, want status 0", err)
			}
		})
	}
}

func TestReaps(t *testing.T) {
	// The child reads from descriptor 3: a shell gives its background children /dev/null as stdin.
	cmd, stdin, stdout := start(t, `exec 3<&0; (read line <&3) & echo $!; exec "$0"`)
	line, err := stdout.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	running(t, cmd)
	child := "/proc/" + strings.TrimSpace(line)
	if _, err := os.Stat(child); err != nil {
		t.Fatalf("the child is not there to begin with: %v", err)
	}
	stdin.Close()
	waitFor(t, "the child to be reaped", func() bool {
		_, err := os.Stat(child)
		return os.IsNotExist(err)
	})
}
