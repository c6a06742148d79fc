//go:build integration

package integration

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
	"github.com/berth-node/berth/integration/registry"
)

// world is what the tests share: the registries, and one node with the built-in network for all tests that neither
// restart it nor count what is on it.
var world struct {
	registry *registry.Registry
	hostsDir string
	private  string // the registry that tests may lock, a host and port

	once sync.Once
	node *harness.Node
	err  error
}

// privateHost is what the registry knows of world.private: hosts are told apart without their ports.
const privateHost = "localhost"

// No test runs on the main thread, which is what /proc/self shows: a test may leave its thread in a pod's network for good, and
// the main thread would not end with it.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if path := os.Getenv("BERTH_TEST_DIAL"); path != "" {
		// Started by dialAs as another user.
		if _, err := net.Dial("unix", path); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	harness.Main(m, func(hostsDir string) (func() error, error) {
		stop, err := serveImages(hostsDir)
		return func() error {
			defer stop()
			if world.node == nil {
				return nil
			}
			return world.node.Close()
		}, err
	})
}

// serveImages serves the test images in plain HTTP, under the names of their registries. The same registry is on localhost
// in TLS, with an authority of its own, for the tests that log in: credentials go to the registry of the image's name and
// to no other address, so there the two have to be the same.
func serveImages(hostsDir string) (stop func(), err error) {
	r, plain, err := harness.ServeImages(hostsDir)
	if err != nil {
		return nil, err
	}
	tls, err := registry.ListenTLS(r, "127.0.0.1:0", privateHost)
	if err != nil {
		return nil, err
	}
	world.registry, world.hostsDir, world.private = r, hostsDir, fmt.Sprintf("localhost:%d", tls.Port())
	if err := tls.WriteHosts(hostsDir, world.private); err != nil {
		return nil, err
	}
	if err := r.Tag(images.Private, privateHost+"/app:1"); err != nil {
		return nil, err
	}
	return func() { plain.Close(); tls.Close() }, nil
}

// sharedNode returns the node of all tests that can share one.
func sharedNode(t *testing.T) *harness.Node {
	t.Helper()
	world.once.Do(func() { world.node, world.err = harness.Launch(harness.Options{HostsDir: world.hostsDir}) })
	if world.err != nil {
		t.Fatal(world.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			world.node.DumpLog(t)
		}
	})
	return world.node
}

// ownNode starts a node for this test alone.
func ownNode(t *testing.T, change ...func(*harness.Options)) *harness.Node {
	t.Helper()
	options := harness.Options{HostsDir: world.hostsDir}
	for _, f := range change {
		f(&options)
	}
	return harness.StartNode(t, options)
}
