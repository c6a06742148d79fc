package runtime

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/berth-node/berth/internal/pause"
)

func TestPauseRootIsMadeOnce(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	r := &Runtime{paths: layout{run: t.TempDir()}}
	t.Cleanup(func() {
		if err := r.removePauseRoot(); err != nil {
			t.Error(err)
		}
	})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if root, err := r.pauseRoot(); err != nil || root != r.paths.pauseRoot() {
				t.Errorf("%q, %v", root, err)
			}
		})
	}
	all.Wait()
	program := filepath.Join(r.paths.pauseRoot(), "pause")
	got, err := os.ReadFile(program)
	if err != nil || !bytes.Equal(got, pause.Binary()) {
		t.Errorf("the program has %d bytes, %v", len(got), err)
	}
	before, err := os.Stat(program)
	if err != nil || before.Mode().Perm() != 0o755 {
		t.Fatalf("%v, %v", before, err)
	}
	if _, err := r.pauseRoot(); err != nil {
		t.Error(err)
	}
	if after, err := os.Stat(program); err != nil || !os.SameFile(before, after) {
		t.Errorf("a program that was there was replaced (%v)", err)
	}
	left, err := os.ReadDir(r.paths.pauseRoot())
	if err != nil || len(left) != 4 { // pause, proc, dev, sys
		t.Errorf("in the folder are %v, %v", left, err)
	}
}
