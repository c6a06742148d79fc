package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

func TestMain(m *testing.M) {
	Main() // the helper of these tests is the test itself
	os.Exit(m.Run())
}

// resolvers are one that does everything itself and one with a helper.
func resolvers() map[string]*Resolver {
	return map[string]*Resolver{"without a helper": {}, "with a helper": {Program: "/proc/self/exe", Limit: 300 * time.Millisecond}}
}

func TestMode(t *testing.T) {
	top := t.TempDir()
	if err := os.WriteFile(filepath.Join(top, "file"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"link": "file", "dangling": "nowhere", "chain": filepath.Join(top, "link")} {
		if err := os.Symlink(to, filepath.Join(top, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(top, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, r := range resolvers() {
		for path, want := range map[string]fs.FileMode{
			top: fs.ModeDir, top + "/file": 0, top + "/link": 0, top + "/chain": 0, top + "/pipe": fs.ModeNamedPipe,
			"/dev/null": fs.ModeDevice | fs.ModeCharDevice, "/proc": fs.ModeDir,
		} {
			if got, err := r.Mode(context.Background(), path); err != nil || got.Type() != want {
				t.Errorf("%s: %s is %v, %v; want %v", name, path, got, err, want)
			}
		}
		for _, path := range []string{"none", "dangling", "none/below"} {
			if _, err := r.Mode(context.Background(), filepath.Join(top, path)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s: %v", name, path, err)
			}
			if _, err := os.Lstat(filepath.Join(top, "none")); err == nil {
				t.Errorf("%s: what was asked for was made", name)
			}
		}
	}
}

func TestMakeFile(t *testing.T) {
	for name, r := range resolvers() {
		top := t.TempDir()
		path := filepath.Join(top, "new")
		for range 2 {
			if err := r.MakeFile(context.Background(), path); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, st, err)
		}
		if err := r.MakeFile(context.Background(), filepath.Join(top, "none/new")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: in no folder: %v", name, err)
		}
	}
}

// hungMount is a mount that has nobody to answer it, until the test ends.
func hungMount(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	hung := filepath.Join(t.TempDir(), "hung")
	if err := os.Mkdir(hung, 0o755); err != nil {
		t.Fatal(err)
	}
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0) // nobody reads requests from it
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = server.Close() }) // which ends all that wait
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server.Fd())
	if err := unix.Mount("hung", hung, "fuse", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(hung, unix.MNT_DETACH) })
	return hung
}

// The helper does the errands on mounts that may hang; here one that has nobody to answer it.
func TestErrandsToAMountThatHangs(t *testing.T) {
	hung := hungMount(t)
	r := resolvers()["with a helper"]
	_, err := r.Mode(context.Background(), filepath.Join(hung, "file"))
	if !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("mode: %v", err)
	}
	if err := r.MakeFile(context.Background(), filepath.Join(hung, "file")); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("make a file: %v", err)
	}
}

func TestErrand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if _, err := (errand{doMakeFile, path}).run(); err != nil {
		t.Error(err)
	}
	if got, err := (errand{doMode, path}).run(); err != nil || got == "" {
		t.Errorf("mode %q, %v", got, err)
	}
	if got, err := (errand{doMode, path + "x"}).run(); err != nil || got != "" {
		t.Errorf("mode of nothing: %q, %v", got, err)
	}
	if got, err := (errand{doResolve, path}).run(); err != nil || filepath.Base(got) != "file" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := (errand{"x", path}).run(); err == nil {
		t.Error("an errand that there is not")
	}
}
