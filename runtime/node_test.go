package runtime

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/runtime/sandboxns"
)

// A daemon that was killed in the middle of a probe leaves a pinned namespace, which the next one removes.
func TestProbesThatWereCutOff(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces are pinned by root")
	}
	run := t.TempDir()
	dir := filepath.Join(run, probePrefix+"1")
	other := filepath.Join(run, "containers")
	for _, d := range []string{dir, other} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 65536, Size: 65536}}
	paths, err := sandboxns.Create(t.Context(), sandboxns.Request{Dir: dir, User: &sandboxns.IDMappings{UIDs: maps, GIDs: maps}})
	if err != nil {
		t.Skipf("no user namespaces: %v", err)
	}
	if sandboxns.Inode(paths.User) == 0 {
		t.Fatal("nothing is pinned")
	}
	for range 2 { // the second time there is nothing to do
		if err := removeProbes(t.Context(), run); err != nil {
			t.Fatal(err)
		}
	}
	if left := names(run); len(left) != 1 || left[0] != "containers" {
		t.Errorf("left: %q", left)
	}
}
