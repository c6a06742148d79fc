//go:build integration

package chaos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/leaks"
	"github.com/berth-node/berth/integration/registry"
)

// hostsDir is the certs.d folder that sends the names of the test images to a registry on loopback.
var hostsDir string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	before, err := leaks.Take()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "berth-registry-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	images, err := registry.Open(harness.Layout())
	if err != nil {
		return 1, fmt.Errorf("%w (make images)", err)
	}
	server, err := registry.Listen(images, "127.0.0.1:0")
	if err != nil {
		return 1, err
	}
	defer server.Close()
	hostsDir = filepath.Join(dir, "certs.d")
	if err := server.WriteHosts(hostsDir, images.Hosts()...); err != nil {
		return 1, err
	}
	code := m.Run()
	err = os.RemoveAll(dir)
	return code, errors.Join(err, leaks.Wait(before, harness.Patience(15*time.Second)))
}
