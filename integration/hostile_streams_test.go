//go:build integration

package integration

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/berth-node/berth/integration/harness"
)

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

// forwardOne opens the two streams that stand for one connection to a port.
func forwardOne(conn httpstream.Connection, port, id int) (data httpstream.Stream, err error) {
	for _, kind := range []string{portforward.StreamTypeError, portforward.StreamTypeData} {
		h := http.Header{}
		h.Set(portforward.StreamType, kind)
		h.Set(portforward.PortHeader, fmt.Sprint(port))
		h.Set(portforward.PortForwardRequestIDHeader, fmt.Sprint(id))
		if data, err = conn.CreateStream(h); err != nil {
			return nil, err
		}
	}
	return data, nil
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
	for worker := range 10 {
		all.Go(func() {
			for i := range 100 {
				if _, err := forwardOne(conn, 8083, worker*100+i); err != nil {
					t.Errorf("stream: %v", err)
					return
				}
			}
		})
	}
	all.Wait()
	if err := wantIn(get(t, other), "Hello"); err != nil {
		t.Error(err)
	}
	now := usageOf(t, n, app, n.Pid())
	if now.threads > before.threads+40 {
		t.Errorf("%d threads, were %d", now.threads, before.threads)
	}
	t.Logf("before %+v, with a thousand connections %+v", before, now)
	conn.Close()
	wantAsBefore(t, n, app, before)
}
