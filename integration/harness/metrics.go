package harness

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Metric reads one series of the daemon's metrics, named as the page writes it, with its labels. A counter that has not counted
// yet is not on the page.
func (n *Node) Metric(t testing.TB, series string) (value float64, ok bool) {
	t.Helper()
	for line := range strings.Lines(n.metrics(t)) {
		if text, ok := strings.CutPrefix(line, series+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatalf("%s: %v", series, err)
			}
			return value, true
		}
	}
	return 0, false
}

// metrics is the page of the daemon's metrics. It is got on a connection of its own, which leaves nothing behind.
func (n *Node) metrics(t testing.TB) string {
	t.Helper()
	client := http.Client{Timeout: Patience(10 * time.Second), Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.RunDir, "metrics.sock"))
		},
	}}
	resp, err := client.Get("http://berth/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}
