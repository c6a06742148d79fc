package mountns

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/nsfile"
)

// table returns the mount table of the calling thread.
func table(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

// mountTmpfs mounts one that is shared, as systemd has all mounts, at a new folder.
func mountTmpfs(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("test", path, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			t.Error(err)
		}
	})
	if err := unix.Mount("", path, "none", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return path
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
}

// inside runs f on a thread in a namespace.
func inside(t *testing.T, ns *os.File, f func()) {
	t.Helper()
	err := nsfile.OnThread(func() error {
		if err := Enter(ns); err != nil {
			return err
		}
		f()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func newLean(t *testing.T, needed ...string) (lean, host *os.File) {
	t.Helper()
	scratch := t.TempDir()
	lean, host, err := NewLean(scratch, needed...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lean.Close(); host.Close() })
	for range 2 { // in copies of the namespace, one after the other
		inside(t, lean, func() {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				t.Error(err)
			}
			if err := os.WriteFile(filepath.Join(scratch, "file"), nil, 0o600); err != nil {
				t.Error(err)
			}
		})
	}
	inside(t, lean, func() {
		if _, err := os.Stat(filepath.Join(scratch, "file")); err != nil {
			t.Errorf("the scratch folder is not shared by copies: %v", err)
		}
	})
	if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
		t.Errorf("the scratch folder is the host's: %v, %v", left, err)
	}
	return lean, host
}

func TestLeanHasWhatIsNeededAndNoMore(t *testing.T) {
	needRoot(t)
	dir := mountTmpfs(t, t.TempDir())
	needed := filepath.Join(mountTmpfs(t, filepath.Join(dir, "run")), "berth")
	if err := os.Mkdir(needed, 0o755); err != nil {
		t.Fatal(err)
	}
	other := mountTmpfs(t, filepath.Join(needed, "root"))
	lean, host := newLean(t, needed, filepath.Join(dir, "none"))
	inside(t, lean, func() {
		mounts := table(t)
		for _, path := range []string{"/", "/proc", "/sys", "/dev", dir, filepath.Dir(needed)} {
			if !strings.Contains(mounts, " "+path+" ") {
				t.Errorf("%s is not mounted", path)
			}
		}
		if strings.Contains(mounts, " "+other+" ") || strings.Count(mounts, " / / ") > 1 {
			t.Errorf("more than what is needed:\n%s", mounts)
		}
		if err := os.WriteFile(filepath.Join(needed, "file"), nil, 0o600); err != nil {
			t.Error(err)
		}
		if err := unix.Mount("test", other, "tmpfs", 0, ""); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(filepath.Join(needed, "file")); err != nil {
		t.Errorf("the folder is another one: %v", err)
	}
	if n := strings.Count(table(t), " "+other+" "); n != 1 {
		t.Errorf("what was mounted inside is seen outside: %d mounts at %s", n, other)
	}
	mountTmpfs(t, filepath.Join(needed, "later"))
	inside(t, lean, func() {
		if strings.Contains(table(t), "later") {
			t.Error("what was mounted outside later is seen inside")
		}
	})
	inside(t, host, func() {
		if !strings.Contains(table(t), " "+other+" ") {
			t.Error("the host's namespace is not the host's")
		}
	})
}

// A copy that was carried into another namespace shares in what is mounted later, as a bind mount does. That the namespace ends
// is no unmount.
func TestCloneKeepsPropagation(t *testing.T) {
	needRoot(t)
	source := mountTmpfs(t, filepath.Join(t.TempDir(), "source"))
	mountTmpfs(t, filepath.Join(source, "below"))
	later := filepath.Join(source, "later")
	if err := os.Mkdir(later, 0o755); err != nil {
		t.Fatal(err)
	}
	place := t.TempDir()
	lean, _ := newLean(t, place)
	for _, recursive := range []bool{true, false} {
		tree, err := Clone(source, recursive)
		if err != nil {
			t.Fatal(err)
		}
		inside(t, lean, func() {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				t.Error(err)
			}
			if err := Attach(tree, place); err != nil {
				t.Error(err)
			}
			if got := strings.Contains(table(t), " "+place+"/below "); got != recursive {
				t.Errorf("recursive %v: the mount below came along: %v", recursive, got)
			}
			mounted := make(chan error)
			go func() { mounted <- unix.Mount("test", later, "tmpfs", 0, "") }() // on a thread outside
			if err := <-mounted; err != nil {
				t.Error(err)
			}
			if !strings.Contains(table(t), " "+place+"/later ") {
				t.Errorf("recursive %v: what was mounted on the host later does not come", recursive)
			}
		})
		tree.Close()
		if err := unix.Unmount(later, unix.MNT_DETACH); err != nil {
			t.Errorf("recursive %v: what was mounted on the host is gone: %v", recursive, err)
		}
	}
}
