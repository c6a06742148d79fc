//go:build integration

package integration

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/berth-node/berth/integration/harness"
)

// webSocket connects to a session's URL as a client that may then do as it likes.
func webSocket(t *testing.T, url string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(url, "http://", "ws://", 1), "http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v5.channel.k8s.io"}
	ws, err := config.DialContext(harness.Ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	return ws
}

func execURL(t *testing.T, c *harness.Container, r *cri.ExecRequest) string {
	t.Helper()
	r.ContainerId = c.ID
	resp, err := c.Pod.Node.Runtime.Exec(harness.Ctx(t), r)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

func attachURL(t *testing.T, c *harness.Container, r *cri.AttachRequest) string {
	t.Helper()
	r.ContainerId = c.ID
	resp, err := c.Pod.Node.Runtime.Attach(harness.Ctx(t), r)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

// spdyForward opens a port-forward session to a pod.
func spdyForward(t *testing.T, pod *harness.Pod) httpstream.Connection {
	t.Helper()
	resp, err := pod.Node.Runtime.PortForward(harness.Ctx(t), &cri.PortForwardRequest{PodSandboxId: pod.ID})
	if err != nil {
		t.Fatal(err)
	}
	tripper, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(harness.Ctx(t), http.MethodPost, resp.Url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, portforward.PortForwardV1Name)
	answer, err := tripper.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	conn, err := tripper.NewConnection(answer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// forwardOne opens the two streams that stand for one connection to a port. What comes back on them has to be read, if the
// session's other streams are to go on: the library has no queue.
func forwardOne(conn httpstream.Connection, port, id int) (both [2]httpstream.Stream, err error) {
	for i, kind := range []string{portforward.StreamTypeError, portforward.StreamTypeData} {
		h := http.Header{}
		h.Set(portforward.StreamType, kind)
		h.Set(portforward.PortHeader, fmt.Sprint(port))
		h.Set(portforward.PortForwardRequestIDHeader, fmt.Sprint(id))
		if both[i], err = conn.CreateStream(h); err != nil {
			return both, err
		}
	}
	return both, nil
}

// wantAsBefore fails if goroutines or descriptors of the daemon are left, a few aside.
func wantAsBefore(t *testing.T, n *harness.Node, c *harness.Container, before usage) {
	t.Helper()
	harness.Eventually(t, 40*time.Second, "the daemon to be as before", func() error {
		now := usageOf(t, n, c, n.Pid())
		if now.goroutines > before.goroutines+12 || now.descriptors > before.descriptors+12 {
			return fmt.Errorf("before %+v, now %+v", before, now)
		}
		return nil
	})
}

// Clients that never read cost the daemon and the keeper bounded memory and hold up nobody else: not other clients, not the
// container's log, not the removal of the container. When they go, so does what they have started.
func TestClientsThatNeverRead(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "never-read")
	app := pod.Idle(t, "app")
	const zeroes = "while :; do head -c 300000 /dev/zero; sleep 0.05; done"
	flood, gone := pod.Sh(t, "flood", zeroes), pod.Sh(t, "gone", zeroes)
	server := pod.Sh(t, "server", "echo ready; nc -ll -p 8082 -e cat /dev/zero")
	waitForListener(t, server, 8082)
	if got := n.CrictlOutput(t, "", "exec", app.ID, "echo", "well"); got != "well\n" {
		t.Fatalf("got %q", got)
	}
	before, keeper := usageOf(t, n, app, n.Pid()), keeperPid(t, n)
	keeperBefore := residentOf(t, keeper)
	zeros := []string{"cat", "/dev/zero"}
	var clients []io.Closer
	for range 10 {
		clients = append(clients,
			webSocket(t, execURL(t, app, &cri.ExecRequest{Cmd: zeros, Stdout: true})),
			webSocket(t, execURL(t, app, &cri.ExecRequest{Cmd: zeros, Stdout: true, Stdin: true, Tty: true})),
			webSocket(t, execURL(t, gone, &cri.ExecRequest{Cmd: zeros, Stdout: true})),
			webSocket(t, attachURL(t, gone, &cri.AttachRequest{Stdout: true, Stderr: true})),
			webSocket(t, attachURL(t, flood, &cri.AttachRequest{Stdout: true, Stderr: true})))
		conn := spdyForward(t, pod)
		if _, err := forwardOne(conn, 8082, 0); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, conn)
	}
	logged := sizeOf(t, flood.LogPath())
	harness.Eventually(t, 60*time.Second, "the flooded log to go on", func() error {
		// The attached clients are cut off at 8 MiB.
		if now := sizeOf(t, flood.LogPath()); now < logged+20<<20 {
			return fmt.Errorf("%d bytes, were %d", now, logged)
		}
		return nil
	})
	for range 5 {
		if got := n.CrictlOutput(t, "", "exec", app.ID, "echo", "well"); got != "well\n" {
			t.Errorf("another client's session: %q", got)
		}
		if got := app.Exec(t, "echo", "well"); got != "well" {
			t.Errorf("got %q", got)
		}
	}
	if now := memoryOf(t, n); now > int64(before.rss)<<10+memoryFor(100<<20) {
		t.Errorf("the daemon has %d MiB, and had %d", now>>20, before.rss>>10)
	}
	if now := residentOf(t, keeper); now > keeperBefore+memoryFor(200<<20) {
		t.Errorf("the keeper has %d MiB, and had %d", now>>20, keeperBefore>>20)
	}
	gone.Stop(t, 0)
	if _, err := n.Runtime.RemoveContainer(harness.Ctx(t), &cri.RemoveContainerRequest{ContainerId: gone.ID}); err != nil {
		t.Error(err)
	}
	for _, c := range clients {
		c.Close()
	}
	harness.Eventually(t, 40*time.Second, "end of the execs", func() error {
		if got := app.Exec(t, "sh", "-c", "ps -o comm | grep -cx cat || true"); got != "0" {
			return fmt.Errorf("%s are there", got)
		}
		return nil
	})
	wantAsBefore(t, n, app, before)
}

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// CVE-2022-23471, CVE-2025-64329: sessions whose command does not start, whose container does not read, or whose client
// leaves at once, leave no goroutine and no descriptor.
func TestCVESessionsLeaveNothing(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "cve-sessions")
	app := pod.Idle(t, "app", func(c *cri.ContainerConfig) { c.Stdin = true })
	terminal := pod.Idle(t, "terminal", func(c *cri.ContainerConfig) { c.Stdin, c.Tty = true, true })
	size := append([]byte{4}, `{"Width":80,"Height":24}`...)
	round := func(times int) {
		t.Helper()
		for range times {
			for _, url := range []string{
				execURL(t, app, &cri.ExecRequest{Cmd: []string{"/no/such/command"}, Stdin: true, Stdout: true, Tty: true}),
				execURL(t, app, &cri.ExecRequest{Cmd: []string{"sleep", "1000"}, Stdin: true, Stdout: true}),
				attachURL(t, app, &cri.AttachRequest{Stdin: true, Stdout: true, Stderr: true}),
				attachURL(t, terminal, &cri.AttachRequest{Stdin: true, Stdout: true, Tty: true}),
			} {
				ws := webSocket(t, url)
				_ = websocket.Message.Send(ws, size)
				for range 3 { // the containers' pipes are full after some rounds; more would keep the word that the client has gone back
					_ = websocket.Message.Send(ws, make([]byte, 8<<10))
				}
				ws.Close()
			}
		}
	}
	round(2)
	before := usageOf(t, n, app, n.Pid())
	round(15)
	wantAsBefore(t, n, app, before)
	if got := app.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
}

// listenDeaf listens on a port in the container's network and accepts nobody: but for one or two, connections to it stay
// without an answer. It ends with the test.
func listenDeaf(t *testing.T, c *harness.Container, port int) {
	t.Helper()
	pids, err := os.ReadFile(filepath.Join(hostCgroup(t, c), "cgroup.procs"))
	if err != nil || len(strings.Fields(string(pids))) == 0 {
		t.Fatalf("processes %q, %v", pids, err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in another network and ends with the goroutine
		done <- func() error {
			ns, err := os.Open("/proc/" + strings.Fields(string(pids))[0] + "/ns/net")
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			t.Cleanup(func() { unix.Close(fd) })
			return errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0))
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A client may open a thousand connections in one session, to a port that does not answer. That costs no thread each, others
// are served, and all of it ends with the client.
func TestThousandStreams(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "thousand")
	app := pod.Run(t, web(":8080"))
	waitForListener(t, app, 8080)
	listenDeaf(t, app, 8083)
	other := forward(t, n, "spdy", pod.ID, 8080)
	if err := wantIn(get(t, other), "Hello"); err != nil {
		t.Error(err)
	}
	before := usageOf(t, n, app, n.Pid())
	conn := spdyForward(t, pod)
	var all sync.WaitGroup
	var most atomic.Int64 // threads; the daemon gives up on a connection after ten seconds, which may be before the last is made
	for worker := range 10 {
		all.Go(func() {
			for i := range 100 {
				both, err := forwardOne(conn, 8083, worker*100+i)
				if err != nil {
					t.Errorf("stream: %v", err)
					return
				}
				for _, stream := range both {
					go func() { _, _ = io.Copy(io.Discard, stream) }() // until the session ends
				}
				tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", n.Pid()))
				if now := int64(len(tasks)); now > most.Load() {
					most.Store(now)
				}
			}
		})
	}
	all.Wait()
	if err := wantIn(get(t, other), "Hello"); err != nil {
		t.Error(err)
	}
	now := usageOf(t, n, app, n.Pid())
	if now.threads > before.threads+40 || most.Load() > int64(before.threads+150) { // a moment in the pod's network takes a thread
		t.Errorf("%d threads, at most %d, were %d", now.threads, most.Load(), before.threads)
	}
	t.Logf("before %+v, with a thousand connections %+v, at most %d threads", before, now, most.Load())
	conn.Close()
	wantAsBefore(t, n, app, before)
}
