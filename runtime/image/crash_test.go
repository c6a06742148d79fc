package image

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-node/berth/internal/crashtest"
)

const (
	crashDir  = "BERTH_TEST_CRASH_DIR"
	crashRefs = "BERTH_TEST_CRASH_REFS"
)

// TestCrashing is the program that TestEveryPrefixOfAPull records: it pulls two images that share a layer, moves a tag, and
// removes one of them.
func TestCrashing(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("this is a part of TestEveryPrefixOfAPull")
	}
	refs := strings.Split(os.Getenv(crashRefs), ",")
	s := openStore(t, Config{Dir: dir})
	for _, ref := range refs {
		mustPull(t, s, ref)
	}
	if _, err := s.Tag(refs[1], refs[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), refs[1]); err != nil {
		t.Fatal(err)
	}
}

// Whatever step of a pull, a tag and a removal is the last one before the daemon is killed or the power is cut: the next
// start opens the store, what it then has is whole, and the pulls succeed.
func TestEveryPrefixOfAPull(t *testing.T) {
	reg := newRegistry(t)
	shared := layerOf(t, "shared", strings.Repeat("s", 5000), "dir/x", "x")
	first := build(t, recipe{layers: [][]byte{shared, layerOf(t, "top", "first")}})
	second := build(t, recipe{layers: [][]byte{shared, layerOf(t, "top", "second", "dir/y", strings.Repeat("y", 9000))}})
	refs := []string{reg.push(first, "app:1"), reg.push(second, "app:2")}
	want := []map[string]string{
		{"shared": strings.Repeat("s", 5000), "dir/x": "x", "top": "first"},
		{"shared": strings.Repeat("s", 5000), "dir/x": "x", "top": "second", "dir/y": strings.Repeat("y", 9000)},
	}
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	j := crashtest.Record(t, dir, "TestCrashing", crashDir+"="+dir, crashRefs+"="+strings.Join(refs, ","))
	j.Check(t)
	if j.Len() < 50 {
		t.Fatalf("only %d steps", j.Len())
	}
	t.Logf("%d steps", j.Len())

	wantWhole := func(s *Store, img Image, when string) {
		for i, b := range []built{first, second} {
			if img.ID != b.id.String() {
				continue
			}
			for name, text := range want[i] {
				if got := content(t, s, img, name); got != text {
					t.Errorf("%s: %s of %s is %.20q", when, name, refs[i], got)
				}
			}
		}
	}
	cuts := maps.Clone(crashtest.Cuts)
	// The worst: the records are on the disk already, the files of the layers are not.
	cuts["records alone"] = func(path string, data []byte) []byte {
		if strings.HasSuffix(path, ".json") {
			return data
		}
		return nil
	}
	for name, cut := range cuts {
		for n := range j.Len() + 1 {
			when := "after " + j.String(n) + ", " + name
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			j.Restore(t, n, cut)
			if cut != nil { // another boot
				if err := os.Remove(filepath.Join(dir, "layers", "boot")); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			s, err := Open(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if err := s.Collect(t.Context()); err != nil {
				t.Errorf("%s: %v", when, err)
			}
			for _, img := range s.List() {
				wantWhole(s, img, when)
			}
			for _, ref := range refs {
				wantWhole(s, mustPull(t, s, ref), when+", pulled again")
			}
			s.Close()
			if t.Failed() {
				return
			}
		}
	}
}
