//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// Both protocols that clients speak; crictl calls them transports.
var transports = []string{"spdy", "websocket"}

func TestExecStreams(t *testing.T) {
	n := sharedNode(t)
	app := n.RunPod(t, "exec-stream").Idle(t, "app")
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			t.Run("output, error output and exit code", func(t *testing.T) {
				cmd := n.Crictl(harness.Ctx(t), "exec", "--transport", transport, app.ID, "sh", "-c", "echo out; echo err >&2; exit 5")
				var stdout, stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = &stdout, &stderr
				err := cmd.Run()
				if err == nil || stdout.String() != "out\n" || !strings.Contains(stderr.String(), "err\n") || !strings.Contains(stderr.String(), "exit code 5") {
					t.Errorf("%v: stdout %q, stderr %q", err, &stdout, &stderr)
				}
			})
			t.Run("the end of the input is passed on", func(t *testing.T) {
				big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB, more than any buffer on the way
				if got := n.CrictlOutput(t, big, "exec", "-i", "--transport", transport, app.ID, "sh", "-c", "wc -c; echo after"); strings.Join(strings.Fields(got), " ") != "1048576 after" {
					t.Errorf("got %q", got)
				}
			})
			t.Run("much output", func(t *testing.T) {
				if got := n.CrictlOutput(t, "", "exec", "--transport", transport, app.ID, "sh", "-c", "head -c 3000000 /dev/zero"); len(got) != 3000000 {
					t.Errorf("%d bytes", len(got))
				}
			})
			t.Run("terminal with resizing", func(t *testing.T) { terminal(t, n, app, transport) })
		})
	}
}

// terminal runs a shell on a terminal as a person does.
func terminal(t *testing.T, n *harness.Node, app *harness.Container, transport string) {
	pty, slave, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	if err := pty.Resize(console.WinSize{Height: 33, Width: 99}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(slave, os.O_RDWR|syscall.O_NOCTTY, 0) // or the tests, where they lead a session, would end with it
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.Crictl(harness.Ctx(t), "exec", "-i", "-t", "--transport", transport, app.ID, "sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	screen := newScreen(pty)
	screen.enter(t, "tty; stty size\n")
	screen.wait(t, "/dev/pts/")
	screen.wait(t, "33 99")
	if err := pty.Resize(console.WinSize{Height: 44, Width: 111}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGWINCH); err != nil { // the kernel tells only those whose controlling terminal it is
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, "the new size to arrive", func() error {
		screen.enter(t, "stty size\n")
		time.Sleep(100 * time.Millisecond)
		return wantIn(screen.String(), "44 111")
	})
	screen.enter(t, "exit 0\n")
	if err := cmd.Wait(); err != nil {
		t.Errorf("end of the shell: %v\n%s", err, screen)
	}
}

// screen collects what a terminal shows.
type screen struct {
	pty  console.Console
	mu   sync.Mutex
	text strings.Builder
}

func newScreen(pty console.Console) *screen {
	s := &screen{pty: pty}
	go func() {
		buf := make([]byte, 4096)
		for {
			k, err := pty.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:k])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) enter(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.pty, text); err != nil {
		t.Fatal(err)
	}
}

func (s *screen) wait(t *testing.T, text string) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, fmt.Sprintf("%q on the terminal", text), func() error { return wantIn(s.String(), text) })
}

func TestAttachStdinOnce(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "attach")
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			app := pod.Sh(t, "cat-"+transport, "cat; echo end of input", func(c *cri.ContainerConfig) {
				c.Stdin, c.StdinOnce = true, true
			})
			got := n.CrictlOutput(t, "one\ntwo\n", "attach", "-i", "--transport", transport, app.ID)
			if s := app.WaitExit(t); s.ExitCode != 0 {
				t.Errorf("status %v", s)
			}
			if want := []string{"one", "two", "end of input"}; strings.Join(harness.Texts(app.Log(t), "stdout"), "|") != strings.Join(want, "|") {
				t.Errorf("log %q", harness.Texts(app.Log(t), "stdout"))
			}
			if !strings.Contains(got, "two") {
				t.Errorf("the client saw %q", got)
			}
		})
	}
}

// sayTo gives a container a line of input, and waits for what it answers in its log.
func sayTo(t *testing.T, app *harness.Container, text, answer string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(20*time.Second))
	defer cancel()
	cmd := app.Pod.Node.Crictl(ctx, "attach", "-i", app.ID)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, text+"\n"); err != nil {
		t.Fatal(err)
	}
	waitForText(t, app, "stdout", answer)
	cancel() // the client is gone, as when its connection breaks
	_ = cmd.Wait()
}

// Without stdin-once the input stays open for the next client.
func TestAttachTwice(t *testing.T) {
	n := sharedNode(t)
	app := n.RunPod(t, "attach-twice").Sh(t, "app", `while read -r line; do echo "got $line"; [ "$line" = stop ] && exit 0; done`, func(c *cri.ContainerConfig) { c.Stdin = true })
	for _, text := range []string{"first", "stop"} {
		sayTo(t, app, text, "got "+text)
	}
	if s := app.WaitExit(t); s.ExitCode != 0 {
		t.Errorf("status %v", s)
	}
}

func TestPortForward(t *testing.T) {
	n := sharedNode(t)
	for name, listen := range map[string]string{"IPv4 loopback": "127.0.0.1:8080", "IPv6 loopback": "[::1]:8080", "all": ":8080"} {
		pod := n.RunPod(t, "forward")
		waitForListener(t, pod.Run(t, web(listen)), 8080)
		for _, transport := range transports {
			t.Run(name+"/"+transport, func(t *testing.T) {
				address := forward(t, n, transport, pod.ID, 8080)
				for range 3 {
					if err := wantIn(get(t, address), "Hello from pod forward"); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// waitForListener waits until somebody listens in the container's pod: crictl gives up at the first connection refused.
func waitForListener(t *testing.T, c *harness.Container, port int) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "listener", func() error {
		resp, err := c.ExecSync(harness.Ctx(t), harness.Patience(10*time.Second), "grep", "-q", fmt.Sprintf(":%04X ", port), "/proc/net/tcp", "/proc/net/tcp6")
		if err == nil && resp.ExitCode != 0 {
			err = fmt.Errorf("nobody listens on port %d", port)
		}
		return err
	})
}

// A client that has sent all it has still gets the whole answer.
func TestPortForwardHalfClose(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "half")
	app := pod.Sh(t, "app", `echo ready; nc -l -p 8081 -e sh -c "wc -c; echo bye"`)
	waitForText(t, app, "stdout", "ready")
	conn, err := net.Dial("tcp", forward(t, n, "spdy", pod.ID, 8081))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(make([]byte, 100000)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(harness.Patience(20 * time.Second)))
	got, err := io.ReadAll(conn)
	if strings.Join(strings.Fields(string(got)), " ") != "100000 bye" {
		t.Errorf("got %q, %v", got, err)
	}
}

// forward starts crictl port-forward and returns the local address.
func forward(t *testing.T, n *harness.Node, transport, podID string, port int) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := n.Crictl(ctx, "port-forward", "--transport", transport, podID, fmt.Sprintf(":%d", port))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var local int
		if _, err := fmt.Sscanf(lines.Text(), "Forwarding from 127.0.0.1:%d", &local); err == nil {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return fmt.Sprintf("127.0.0.1:%d", local)
		}
	}
	t.Fatal("crictl does not forward")
	return ""
}
