package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The links lead where filepath.EvalSymlinks leads, whatever of the path the kernel happens to have in memory, and however
// often it is disturbed.
func TestLookUp(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"a/b/c", "d"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "a/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"abs": filepath.Join(top, "a/b"), "a/up": "../d", "chain": "abs/c", "loop": "loop", "dangling": "nowhere", "d/file": "../a/file",
	} {
		if err := os.Symlink(target, filepath.Join(top, link)); err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	forgetful := func(path string, flags uint64) (int, error) {
		if random.IntN(3) > 0 {
			return -1, unix.EAGAIN
		}
		return openCached(path, flags)
	}
	for path, want := range map[string]string{
		"a/b/c": "a/b/c", "abs": "a/b", "abs/c": "a/b/c", "a/up": "d", "chain": "a/b/c", "a/file": "a/file", "d/file": "a/file",
		"a/up/../d": "a/d", "new/folder": "new/folder", "abs/new": "a/b/new", "loop": "", "dangling": "", "dangling/below": "", "a/file/below": "",
	} {
		for range 20 {
			got, err := lookUp(filepath.Join(top, path), forgetful)
			if want == "" && err == nil {
				t.Errorf("%s is %s", path, got)
			} else if want != "" && (err != nil || got != filepath.Join(top, want)) {
				t.Errorf("%s is %s, %v; want %s", path, got, err, want)
			}
		}
	}
	if _, err := os.Lstat(filepath.Join(top, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("what a dangling link leads to was made")
	}
}

// A mount that hangs is not touched when the kernel was disturbed at it: it is asked once more.
func TestLookUpOfADisturbedMount(t *testing.T) {
	hung := hungMount(t)
	calls := 0
	disturbed := func(path string, flags uint64) (int, error) {
		if calls++; path == hung && calls == 1 {
			return -1, unix.EAGAIN
		}
		return openCached(path, flags)
	}
	done := make(chan error, 1)
	go func() {
		real, err := lookUp(hung, disturbed)
		if err == nil && filepath.Base(real) != "hung" {
			err = fmt.Errorf("it is %s", real)
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the mount was touched")
	}
}

func TestResolveWithoutAHelper(t *testing.T) {
	var r Resolver
	path := filepath.Join(t.TempDir(), "new")
	got, err := r.Resolve(context.Background(), path)
	if err != nil || filepath.Base(got) != "new" {
		t.Errorf("got %s, %v", got, err)
	}
}
