//go:build integration

// Package pods has the tests of a node that runs pods by itself, from manifests: as a black box, on real containers.
package pods

import (
	"testing"

	"github.com/berth-node/berth/integration/harness"
)

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
