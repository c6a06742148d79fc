package nsfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
}

func ino(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestBoundNamespaceOutlivesItsThread(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "uts")
	err := OnThread(func() error {
		return errors.Join(
			unix.Unshare(unix.CLONE_NEWUTS),
			unix.Sethostname([]byte("elsewhere")),
			Bind("/proc/thread-self/ns/uts", path),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer Unbind(path)
	if !Is(path) || ino(t, path) == ino(t, "/proc/self/ns/uts") {
		t.Errorf("%s is no namespace of its own", path)
	}
	if err := Bind("/proc/self/ns/uts", path); !errors.Is(err, errdefs.ErrAlreadyExists) || !Is(path) {
		t.Errorf("second Bind: %v", err)
	}
	name := func() string {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			t.Error(err)
		}
		return unix.ByteSliceToString(u.Nodename[:])
	}
	here := name()
	err = OnThread(func() error {
		if err := Enter(path, unix.CLONE_NEWUTS); err != nil {
			return err
		}
		if got := name(); got != "elsewhere" {
			t.Errorf("the name inside is %q", got)
		}
		return nil
	})
	if err != nil || name() != here {
		t.Errorf("Enter: %v; the name outside is %q, was %q", err, name(), here)
	}
	if err := OnThread(func() error { return Enter(path, unix.CLONE_NEWNET) }); err == nil {
		t.Error("a UTS namespace was entered as a network namespace")
	}
	for range 2 {
		if err := Unbind(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file is left: %v", err)
	}
}

func TestBindOfNothingLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := Bind("/proc/none", filepath.Join(dir, "net")); err == nil {
		t.Error("Bind of nothing worked")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestIs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{"/proc/self/ns/net": true, file: false, "/none": false} {
		if Is(path) != want {
			t.Errorf("Is(%s) is %v", path, !want)
		}
	}
}

// The main thread must never be lent: it cannot end, so it would keep the namespace.
func TestOnThreadIsNeverTheMainThread(t *testing.T) {
	procs := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(procs)
	for range 200 {
		err := OnThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("this is the main thread")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	want := errors.New("from inside")
	if err := OnThread(func() error { return want }); err != want {
		t.Errorf("OnThread returned %v", err)
	}
}

func TestShareDir(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "netns")
	defer unix.Unmount(dir, unix.MNT_DETACH)
	for range 2 {
		release, err := ShareDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, " "+dir+" ") {
			found = append(found, line)
		}
	}
	if len(found) != 1 || !strings.Contains(found[0], " shared:") {
		t.Errorf("mounts at the folder: %q, want one that is shared", found)
	}
}

// One node may drain while another starts a pod: what is bound in the folder stays, and the folder with it.
func TestFolderIsNotTakenFromUnderABind(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "netns")
	defer unix.Unmount(dir, unix.MNT_DETACH)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			path := filepath.Join(dir, fmt.Sprint(i))
			for range 50 {
				release, err := ShareDir(dir)
				if err != nil {
					t.Error(err)
					return
				}
				err = Bind("/proc/self/ns/net", path)
				release()
				if err != nil || !Is(path) {
					t.Errorf("bound in a folder that goes: %v", err)
				}
				if err := errors.Join(Unbind(path), RemoveDir(dir)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if _, err := os.Lstat(dir); err == nil {
		t.Error("the folder is left")
	}
}

// systemd makes all mounts shared. A namespace bound in a shared folder is one mount nevertheless.
func TestBindInASharedMountIsOne(t *testing.T) {
	needRoot(t)
	above := t.TempDir()
	for _, flags := range []uintptr{unix.MS_BIND, unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount(above, above, "none", flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	defer unix.Unmount(above, unix.MNT_DETACH)
	dir := filepath.Join(above, "ns")
	release, err := ShareDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	release()
	defer func() {
		if err := RemoveDir(dir); err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(dir, "net")
	if err := Bind("/proc/self/ns/net", path); err != nil {
		t.Fatal(err)
	}
	defer Unbind(path)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(mounts), " "+path+" "); n != 1 {
		t.Errorf("there are %d mounts at %s, want 1:\n%s", n, path, mounts)
	}
}
