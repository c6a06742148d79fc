package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

func testLeases(t *testing.T, dir, ipv4 string) *leases {
	t.Helper()
	r := ranges{netip.MustParsePrefix(ipv4), netip.MustParsePrefix("fd00::/48")}
	l, err := openLeases(dir, r.subnets("br"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// lease4 leases an address and returns it.
func lease4(t *testing.T, l *leases, sandboxID string) string {
	t.Helper()
	ls, err := l.acquire(sandboxID, false)
	if err != nil {
		t.Fatal(err)
	}
	return l.addrs(ls)[0].String()
}

func TestLeasesNextFit(t *testing.T) {
	dir := t.TempDir()
	l := testLeases(t, dir, "10.0.0.0/28")
	for i := range 3 {
		if got, want := lease4(t, l, fmt.Sprint("a", i)), fmt.Sprintf("10.0.0.%d", i+2); got != want {
			t.Errorf("lease %d is %s, want %s", i, got, want)
		}
	}
	if err := l.release("a0"); err != nil {
		t.Fatal(err)
	}
	if got := lease4(t, l, "b"); got != "10.0.0.5" {
		t.Errorf("got %s, want the next address, not the one just given back", got)
	}
	// A restart goes on at the same place.
	l = testLeases(t, dir, "10.0.0.0/28")
	if got := lease4(t, l, "c"); got != "10.0.0.6" {
		t.Errorf("after a restart: got %s, want 10.0.0.6", got)
	}
	for i := range 8 {
		lease4(t, l, fmt.Sprint("d", i))
	}
	if got := lease4(t, l, "e"); got != "10.0.0.2" {
		t.Errorf("at the end: got %s, want to begin again at the free 10.0.0.2", got)
	}
	if _, err := l.acquire("f", false); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("no address left: %v, want ErrResourceExhausted", err)
	}
}

// An address that was given back is not among the next ones, whenever the node is restarted.
func TestLeasesRestAcrossRestarts(t *testing.T) {
	dir := t.TempDir()
	var given []string
	for i := range 50 {
		l := testLeases(t, dir, "10.0.0.0/20")
		for j := range 1 + i%7 {
			got := lease4(t, l, "a")
			if slices.Contains(given[max(0, len(given)-30):], got) {
				t.Fatalf("restart %d, lease %d: %s again after %v", i, j, got, given)
			}
			given = append(given, got)
			if err := l.release("a"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestLeasesSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	l := testLeases(t, dir, "10.0.0.0/20")
	if _, err := l.acquire("a", true); err != nil {
		t.Fatal(err)
	}
	if _, err := l.acquire("a", true); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a second lease: %v, want ErrAlreadyExists", err)
	}
	for name, content := range map[string]string{
		"10.0.0.9": "",                  // a crash between making and writing
		"10.0.0.3": `{"sandbox":"a"}`,   // the same sandbox twice
		"10.0.0.0": `{"sandbox":"net"}`, // not a pod's address
		"10.0.0.1": `{"sandbox":"gw"}`,
		"10.9.0.5": `{"sandbox":"other range"}`,
		"junk":     "junk",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l = testLeases(t, dir, "10.0.0.0/20")
	ls, ok := l.of("a")
	if !ok || !ls.Shaped || l.addrs(ls)[0].String() != "10.0.0.2" || l.addrs(ls)[1].String() != "fd00::2" {
		t.Errorf("got %+v, %v", ls, ok)
	}
	if all := l.all(); len(all) != 1 {
		t.Errorf("%d leases, want 1: %v", len(all), all)
	}
	for range 2 {
		if err := l.release("a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.unused(); err != nil || holdsLeases(dir) {
		t.Errorf("after the last release: %v, files left %v", err, holdsLeases(dir))
	}
}

func TestLeasesFillTheNextBridge(t *testing.T) {
	l := testLeases(t, t.TempDir(), "10.0.0.0/21")
	for i := range maxPods {
		lease4(t, l, fmt.Sprint(i))
	}
	if got := lease4(t, l, "one more"); got != "10.0.4.2" {
		t.Errorf("got %s, want the first address of the second bridge", got)
	}
}

func TestLeasesAdopt(t *testing.T) {
	l := testLeases(t, t.TempDir(), "10.0.0.0/20")
	if err := l.adopt("a", netip.MustParseAddr("10.0.4.7")); err != nil {
		t.Fatal(err)
	}
	if err := l.adopt("b", netip.MustParseAddr("10.0.4.7")); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("an address adopted twice: %v, want ErrAlreadyExists", err)
	}
	if err := l.adopt("c", netip.MustParseAddr("10.9.0.1")); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("an address of another network: %v, want ErrNotFound", err)
	}
}
