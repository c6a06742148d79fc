//go:build integration

package pods

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"

	"github.com/berth-node/berth/integration/harness"
)

// talk starts a tool that is talked to. It is killed if the test takes too long.
func (u tool) talk(t *testing.T, args ...string) (cmd *exec.Cmd, stdin io.WriteCloser, stdout *bufio.Reader) {
	t.Helper()
	cmd = u.command(harness.Ctx(t), args...)
	cmd.Stderr = &bytes.Buffer{}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, stdin, bufio.NewReader(out)
}

// attachTo talks to the container that reads, and leaves it.
func attachTo(t *testing.T, u tool) {
	t.Helper()
	cmd, stdin, stdout := u.talk(t, "attach", "-i", "web", "-c", "shell")
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if _, err := io.WriteString(stdin, "from "+u.name+"\n"); err != nil {
		t.Fatal(err)
	}
	line, err := stdout.ReadString('\n')
	if err != nil || line != "got from "+u.name+"\n" {
		t.Errorf("attach: %q, %v", line, err)
	}
}

// TestSessionsOutliveAnUpgrade has somebody in a container while the daemon is replaced; a watch begins again by itself where the
// command says when to end.
func TestSessionsOutliveAnUpgrade(t *testing.T) {
	n := start(t)
	n.write("web.yaml", podText("web", sleeper))
	n.awaitReady("web")
	cmd, stdin, stdout := n.berth().talk(t, "exec", "-i", "web", "--", "cat")
	echo := func(text string) {
		t.Helper()
		if _, err := io.WriteString(stdin, text+"\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := stdout.ReadString('\n'); err != nil || line != text+"\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	echo("before")
	before := tokenOf(t, n)
	waiting := make(chan string, 1)
	go func() {
		out, errOut, code := n.berth().run(t, "", "wait", "pod/web", "--for=delete", "--timeout=100s")
		waiting <- fmt.Sprint(out, errOut, code)
	}()
	n.Berth(t, "upgrade")
	echo("after")
	if tokenOf(t, n) != before {
		t.Error("the next daemon has another token")
	}
	wants(t, "kubectl", n.kubectl().ok(t, "get", "pods"), `web +1/1 +Running +0`)
	wants(t, "events of the daemon before", n.berth().ok(t, "events"), `Normal +Started +Pod/web`)
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	n.remove("web.yaml")
	if got := <-waiting; got != "pod/web condition met\n0" {
		t.Errorf("wait over an upgrade: %s", got)
	}
}

// TestInterrupted has a user end what would go on.
func TestInterrupted(t *testing.T) {
	n := start(t)
	n.write("web.yaml", podText("web", sleeper))
	n.awaitReady("web")
	cmd, _, stdout := n.berth().talk(t, "exec", "web", "--", "sh", "-c", "echo here; sleep 1000")
	if line, err := stdout.ReadString('\n'); line != "here\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 || fmt.Sprint(cmd.Stderr) != "berth: interrupted\n" {
		t.Errorf("%v: %s", err, cmd.Stderr)
	}
}

// TestTerminal has a user's terminal be the one in the container, with its size, also when that changes.
func TestTerminal(t *testing.T) {
	n := start(t)
	n.write("web.yaml", podText("web", sleeper))
	n.awaitReady("web")
	for _, u := range []tool{n.berth(), n.kubectl()} {
		pty, name, err := console.NewPty()
		if err != nil {
			t.Fatal(err)
		}
		defer pty.Close()
		if err := pty.Resize(console.WinSize{Width: 77, Height: 33}); err != nil {
			t.Fatal(err)
		}
		tty, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(30*time.Second))
		defer cancel()
		cmd := u.command(ctx, "exec", "-it", "web", "--", "sh", "-c",
			"until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; stty size; "+ // a slow client's size comes late
				"while [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; stty size; read line; echo bye $line; exit 4")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		tty.Close()
		in := bufio.NewReader(pty)
		await := func(want string) {
			t.Helper()
			for said := ""; ; {
				line, err := in.ReadString('\n')
				if said += line; strings.Contains(line, want) {
					return
				}
				if err != nil {
					t.Fatalf("%s: no %q but %q, %v", u.name, want, said, err)
				}
			}
		}
		await("33 77")
		if err := pty.Resize(console.WinSize{Width: 99, Height: 44}); err != nil {
			t.Fatal(err)
		}
		await("44 99")
		if _, err := io.WriteString(pty, "friend\n"); err != nil {
			t.Fatal(err)
		}
		await("bye friend")
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 4 {
			t.Errorf("%s: %v", u.name, err)
		}
	}
}
