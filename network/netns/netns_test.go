package netns

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/nsfile"
)

// testDir returns a directory for pins that is left as it was found.
func testDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := filepath.Join(t.TempDir(), "netns")
	t.Cleanup(func() {
		if err := nsfile.RemoveDir(dir); err != nil {
			t.Error(err)
		}
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(mounts, []byte(dir)) {
			t.Errorf("mounts are left in %s:\n%s", dir, mounts)
		}
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	})
	return dir
}

// inode identifies the namespace at path.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestLife(t *testing.T) {
	path := filepath.Join(testDir(t), "a")
	if err := New(path); err != nil {
		t.Fatal(err)
	}
	if !IsNS(path) || inode(t, path) == inode(t, "/proc/self/ns/net") {
		t.Error("New has not made a namespace")
	}
	if err := New(path); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("New again: %v, want ErrAlreadyExists", err)
	}
	var links []net.Interface
	err := Do(path, func() (err error) {
		links, err = net.Interfaces()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("the namespace has the links %v, want lo, up", links)
	}
	for range 2 {
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if IsNS(path) {
		t.Error("Remove has left the pin")
	}
	if err := Do(path, func() error { return nil }); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Do where nothing is: %v, want ErrNotFound", err)
	}
}

func TestDoPassesTheError(t *testing.T) {
	path := filepath.Join(testDir(t), "a")
	if err := New(path); err != nil {
		t.Fatal(err)
	}
	defer Remove(path)
	want := errors.New("no")
	if err := Do(path, func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestNoThreadKeepsANamespace(t *testing.T) {
	dir := testDir(t)
	home := inode(t, "/proc/self/ns/net")
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			path := filepath.Join(dir, fmt.Sprint(i))
			err := errors.Join(New(path), Do(path, func() error { return nil }), Remove(path))
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// The main thread would show, since the runtime cannot end it.
	if now := inode(t, "/proc/self/ns/net"); now != home {
		t.Error("the main thread has moved to another namespace")
	}
}

func TestPinsAreSeenElsewhere(t *testing.T) {
	dir := testDir(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := New(a); err != nil {
		t.Fatal(err)
	}
	defer Remove(a)
	// Another mount namespace, which follows this one as those of system services do.
	other := exec.Command("unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo; read x; grep -c "+dir+"/ /proc/self/mounts")
	stdin, err1 := other.StdinPipe()
	stdout, err2 := other.StdoutPipe()
	if err := errors.Join(err1, err2, other.Start()); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(New(b), Remove(a)); err != nil {
		t.Fatal(err)
	}
	defer Remove(b)
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	_, _ = out.ReadFrom(stdout)
	_ = other.Wait()
	if got := strings.TrimSpace(out.String()); got != "1" {
		t.Errorf("another mount namespace sees %s pins, want 1: the one made later and not the one removed", got)
	}
}
