package metrics

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// scrape serves m on a socket and returns what a path answers.
func scrape(t *testing.T, m *Metrics, profiling bool, path string) (int, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "metrics.sock")
	l, err := Listen("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- m.Serve(ctx, l, profiling) }()
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	resp, err := client.Get("http://berth" + path)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	return resp.StatusCode, string(body)
}

func TestMetrics(t *testing.T) {
	m := New("1.2.3")
	running := m.CallBegun("StopContainer")
	m.CallBegun("RunPodSandbox")("OK", 3*time.Millisecond)
	m.CallBegun("RunPodSandbox")("NotFound", 30*time.Millisecond)
	m.ImagePulled(time.Second, 1000, nil)
	m.ImagePulled(time.Second, 0, errors.New("no"))
	m.ExecStarted(true)
	m.ExecStarted(false)
	m.ContainerStarted(nil)
	m.ContainerStarted(errors.New("no"))
	m.SubscriberJoined()(true)
	m.SubscriberJoined()
	m.NetworkAttached(5*time.Millisecond, nil)
	m.NetworkDetached(5*time.Millisecond, errors.New("no"))
	m.Gauge("berth_sandboxes", "Pods.", func() float64 { return 20 })

	code, text := scrape(t, m, false, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("code %d: %s", code, text)
	}
	for _, want := range []string{
		`berth_build_info{version="1.2.3"} 1`,
		`berth_cri_call_duration_seconds_count{method="RunPodSandbox"} 2`,
		`berth_cri_call_duration_seconds_bucket{method="RunPodSandbox",le="0.005"} 1`,
		`berth_cri_call_failures_total{code="NotFound",method="RunPodSandbox"} 1`,
		`berth_cri_calls_running{method="StopContainer"} 1`,
		`berth_cri_calls_running{method="RunPodSandbox"} 0`,
		`berth_image_pull_duration_seconds_count{result="ok"} 1`,
		`berth_image_pull_duration_seconds_count{result="error"} 1`,
		`berth_image_pulled_bytes_total 1000`,
		`berth_execs_total{by="enter"} 1`,
		`berth_execs_total{by="libcontainer"} 1`,
		`berth_container_starts_total{result="ok"} 1`,
		`berth_container_starts_total{result="error"} 1`,
		`berth_event_subscribers 1`,
		`berth_event_subscribers_cut_off_total 1`,
		`berth_network_operation_duration_seconds_count{operation="attach",result="ok"} 1`,
		`berth_network_operation_duration_seconds_count{operation="detach",result="error"} 1`,
		`berth_sandboxes 20`,
		`go_goroutines `,
		`process_open_fds `,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("no line %q", want)
		}
	}
	running("OK", time.Second)
}

// Whoever is used without a daemon has no Metrics.
func TestNil(*testing.T) {
	var m *Metrics
	m.CallBegun("x")("OK", 0)
	m.ImagePulled(0, 0, nil)
	m.ContainerStarted(nil)
	m.SubscriberJoined()(false)
	m.NetworkAttached(0, nil)
	m.NetworkDetached(0, nil)
	m.Gauge("x", "", nil)
}

func TestProfiling(t *testing.T) {
	for profiling, want := range map[bool]int{false: http.StatusNotFound, true: http.StatusOK} {
		if code, _ := scrape(t, New(""), profiling, "/debug/pprof/cmdline"); code != want {
			t.Errorf("profiling %v: code %d, want %d", profiling, code, want)
		}
	}
}

func TestListen(t *testing.T) {
	for _, bad := range []string{"0.0.0.0:0", ":9100", "192.0.2.1:1", "nonsense"} {
		if l, err := Listen(bad); err == nil {
			_ = l.Close()
			t.Errorf("Listen(%q) opened a port to others", bad)
		}
	}
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}

	path := filepath.Join(t.TempDir(), "m.sock")
	l, err = Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v; want mode 600", st, err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("two listen on one socket")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	l, err = Listen(path)
	if err != nil {
		t.Fatalf("a stale socket is in the way: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
