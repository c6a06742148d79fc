//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// lingering are the daemons that have given the node away and serve sessions still.
func lingering(t *testing.T, n *harness.Node) []string {
	t.Helper()
	var s struct {
		Lingering []struct {
			Pid, Sessions int
		}
	}
	out := n.Berth(t, "check", "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var found []string
	for _, l := range s.Lingering {
		found = append(found, fmt.Sprintf("process %d, sessions %d", l.Pid, l.Sessions))
	}
	return found
}

func wantNoneLingering(t *testing.T, n *harness.Node) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "the end of daemons that linger", func() error {
		if found := lingering(t, n); len(found) > 0 {
			return fmt.Errorf("%q", found)
		}
		if left, _ := filepath.Glob(filepath.Join(n.RunDir, "lingering", "*")); len(left) > 0 {
			return fmt.Errorf("left: %q", left)
		}
		return nil
	})
}

// A talk is a session with a program that repeats what it is told.
type talk struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err *bytes.Buffer
}

func converse(t *testing.T, n *harness.Node, args ...string) *talk {
	t.Helper()
	s := &talk{cmd: n.Crictl(harness.Ctx(t), args...), err: &bytes.Buffer{}}
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out, s.cmd.Stderr = bufio.NewReader(out), s.err
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// say sends a line and wants it back.
func (s *talk) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.in, text+"\n"); err != nil {
		t.Errorf("say %q: %v", text, err)
		return
	}
	if got, err := s.out.ReadString('\n'); err != nil || got != "got "+text+"\n" {
		t.Errorf("said %q, heard %q, %v, %s", text, got, err, s.err)
	}
}

// parrot repeats lines and ends at "bye" with exit code 5.
const parrot = `while read -r line; do echo "got $line"; [ "$line" = bye ] && exit 5; done; exit 6`

// Sessions go on in the daemon where they began, and it ends with the last of them.
func TestUpgradeKeepsSessions(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "sessions")
	app := pod.Idle(t, "app")
	attached := pod.Sh(t, "attached", parrot, func(c *cri.ContainerConfig) { c.Stdin = true })
	waitForListener(t, pod.Run(t, web(":8080")), 8080)
	process := mainProcess(t, app)

	talks := map[string]*talk{"attach": converse(t, n, "attach", "-i", attached.ID)}
	for _, transport := range transports {
		talks["exec by "+transport] = converse(t, n, "exec", "-i", "--transport", transport, app.ID, "sh", "-c", parrot)
	}
	for name, s := range talks {
		s.say(t, "before, "+name)
	}
	syncing := make(chan *cri.ExecSyncResponse, 1)
	go func() {
		resp, err := app.ExecSync(context.Background(), 0, "sh", "-c", "echo begun; while [ ! -e /tmp/enough ]; do sleep 0.1; done; echo over; exit 9")
		if err != nil {
			t.Errorf("ExecSync: %v", err)
		}
		syncing <- resp
	}()
	// What a command leaves behind on purpose is not a session; it stays as well.
	app.Exec(t, "sh", "-c", "sleep 12345 >/dev/null 2>&1 &")
	first := n.DaemonPid(t)
	t.Run("upgrades", func(t *testing.T) { // at its end, the forwarding ends
		var forwarded []string
		for _, transport := range transports {
			forwarded = append(forwarded, forward(t, n, transport, pod.ID, 8080))
		}
		for i := range 3 {
			n.Berth(t, "upgrade")
			if pid := n.DaemonPid(t); pid == first {
				t.Fatalf("process %d still has the node", pid)
			}
			for name, s := range talks {
				s.say(t, fmt.Sprintf("after %d, %s", i, name))
			}
			for _, address := range forwarded {
				if err := wantIn(get(t, address), "Hello from pod sessions"); err != nil {
					t.Error(err)
				}
			}
		}
	})
	if found := lingering(t, n); len(found) != 1 || !strings.Contains(found[0], fmt.Sprintf("process %d,", first)) {
		t.Errorf("lingering: %q", found)
	}
	if ps := app.Exec(t, "ps"); !strings.Contains(ps, "sleep 12345") {
		t.Errorf("what an exec left behind is gone:\n%s", ps)
	}

	app.Exec(t, "touch", "/tmp/enough")
	if resp := <-syncing; resp != nil && (resp.ExitCode != 9 || string(resp.Stdout) != "begun\nover\n") {
		t.Errorf("ExecSync: exit code %d, output %q", resp.ExitCode, resp.Stdout)
	}
	for name, s := range talks {
		s.say(t, "bye")
		err := s.cmd.Wait()
		if strings.HasPrefix(name, "exec") && (err == nil || !strings.Contains(s.err.String(), "exit code 5")) {
			t.Errorf("%s: %v, %s", name, err, s.err)
		}
	}
	if s := attached.WaitExit(t); s.ExitCode != 5 {
		t.Errorf("exit code %d of the container that was attached to", s.ExitCode)
	}
	wantNoneLingering(t, n)
	if got := mainProcess(t, app); got != process {
		t.Errorf("the container was %s and is %s", process, got)
	}
}

// A URL that was given out before is good after.
func TestUpgradeWithUnusedURL(t *testing.T) {
	n := ownNode(t)
	app := n.RunPod(t, "url").Idle(t, "app")
	resp, err := n.Runtime.Exec(harness.Ctx(t), &cri.ExecRequest{ContainerId: app.ID, Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	n.Berth(t, "upgrade")
	for _, want := range []int{http.StatusBadRequest, http.StatusNotFound} { // known, but no upgrade is asked for; and then used
		got, err := http.Get(resp.Url)
		if err != nil {
			t.Fatal(err)
		}
		got.Body.Close()
		if got.StatusCode != want {
			t.Errorf("%s, want %d", got.Status, want)
		}
	}
}

// The executions of a daemon that lingers end with it, however it ends.
func TestLingeringDaemonIsKilled(t *testing.T) {
	n := ownNode(t)
	app := n.RunPod(t, "orphaned").Idle(t, "app")
	n.Berth(t, "upgrade") // the one that will linger is not the first process, whose end is the node's to those who watch
	s := converse(t, n, "exec", "-i", app.ID, "sh", "-c", "sleep 54321 & "+parrot)
	s.say(t, "before")
	old := n.DaemonPid(t)
	n.Berth(t, "upgrade")
	s.say(t, "after")
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait()
	harness.Eventually(t, 20*time.Second, "the end of what it executed", func() error {
		if ps := app.Exec(t, "ps"); strings.Contains(ps, "54321") {
			return errors.New(ps)
		}
		return nil
	})
	wantNoneLingering(t, n)
}
