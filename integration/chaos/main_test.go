//go:build integration

package chaos

import (
	"testing"

	"github.com/berth-node/berth/integration/harness"
)

// hostsDir is the certs.d folder that sends the names of the test images to a registry on loopback.
var hostsDir string

func TestMain(m *testing.M) {
	harness.Main(m, func(dir string) (func() error, error) {
		hostsDir = dir
		_, server, err := harness.ServeImages(dir)
		if err != nil {
			return nil, err
		}
		return func() error { server.Close(); return nil }, nil
	})
}
