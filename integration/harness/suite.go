package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/leaks"
	"github.com/berth-node/berth/integration/registry"
)

// ends is how long what the tests have ended may take to be gone.
const ends = 20 * time.Second

// Main runs the tests of a package and ends the program as they ended. What they share is set up by begin, which may write the
// certs.d folder that it is given, and taken down by end. None of it may be left on the machine afterwards.
func Main(m *testing.M, begin func(hostsDir string) (end func() error, err error)) {
	code, err := runBetween(m, begin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		code = 1
	}
	os.Exit(code)
}

// runBetween runs the tests between two looks at the machine.
func runBetween(m *testing.M, begin func(hostsDir string) (end func() error, err error)) (int, error) {
	before, err := leaks.Take()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "berth-registry-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	end, err := begin(filepath.Join(dir, "certs.d"))
	if err != nil {
		return 1, err
	}
	code := m.Run()
	err = errors.Join(end(), os.RemoveAll(dir))
	return code, errors.Join(err, leaks.Wait(before, Patience(ends)))
}

// LeavesNothing runs a subtest of which nothing may be left on the machine.
func LeavesNothing(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	before, err := leaks.Take()
	if err != nil {
		t.Fatal(err)
	}
	t.Run(name, test)
	if err := leaks.Wait(before, Patience(ends)); err != nil {
		t.Error(err)
	}
}

// ServeImages serves the test images to nodes with this HostsDir.
func ServeImages(hostsDir string) (*registry.Registry, *registry.Server, error) {
	r, err := registry.Open(Layout())
	if err != nil {
		return nil, nil, fmt.Errorf("%w (make images)", err)
	}
	s, err := registry.Listen(r, "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	if err := s.WriteHosts(hostsDir, r.Hosts()...); err != nil {
		s.Close()
		return nil, nil, err
	}
	return r, s, nil
}

// StartNodeWithImages starts a node, for the test alone, to which the test images are served.
func StartNodeWithImages(t *testing.T) *Node {
	t.Helper()
	hosts := t.TempDir()
	_, s, err := ServeImages(hosts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return StartNode(t, Options{HostsDir: hosts})
}
