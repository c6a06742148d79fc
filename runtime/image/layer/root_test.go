package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// requestsOf returns the requests that unpack archives one after the other, and the index of the last.
func requestsOf(archives [][]byte) ([]UnpackRequest, int) {
	var diffs []digest.Digest
	for _, a := range archives {
		diffs = append(diffs, digest.FromBytes(a))
	}
	chain := identity.ChainIDs(append([]digest.Digest(nil), diffs...))
	var reqs []UnpackRequest
	for i, a := range archives {
		r := UnpackRequest{ChainID: chain[i], DiffID: diffs[i], Open: opener(a)}
		if i > 0 {
			r.Below = func(context.Context) ([]digest.Digest, error) { return chain[:i], nil }
		}
		reqs = append(reqs, r)
	}
	return reqs, len(reqs) - 1
}

// mountTestRoot mounts a root, in a directory of the test where req names none, and returns where.
func mountTestRoot(t *testing.T, s *Store, req RootRequest) string {
	t.Helper()
	dir := t.TempDir()
	req.Upper, req.Work, req.Target = filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "root")
	t.Cleanup(func() {
		if err := Unmount(req.Target); err != nil {
			t.Error(err)
		}
	})
	if err := s.MountRoot(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	return req.Target
}

// oldKernel makes the store use mount(2).
func oldKernel(s *Store) { s.kernel.probe.Do(func() {}) }

func TestMountRoot(t *testing.T) {
	needRoot(t)
	for _, kernel := range []string{"new", "old"} {
		for _, n := range []int{0, 1, 3, 120} {
			t.Run(fmt.Sprintf("%s kernel, %d layers", kernel, n), func(t *testing.T) {
				s := openStore(t)
				if kernel == "old" {
					oldKernel(s)
				}
				var archives [][]byte
				for i := range n {
					archives = append(archives, archiveOf(t, []entry{{name: fmt.Sprintf("f%d", i), body: "x"}, {name: "top", body: fmt.Sprint(i)}}))
				}
				root := mountTestRoot(t, s, RootRequest{Chain: unpackAll(t, s, archives...), Volatile: true})
				for i := range n {
					if _, err := os.Stat(filepath.Join(root, fmt.Sprintf("f%d", i))); err != nil {
						t.Error(err)
					}
				}
				if b, _ := os.ReadFile(filepath.Join(root, "top")); n > 0 && string(b) != fmt.Sprint(n-1) {
					t.Errorf("the topmost layer is %q", b)
				}
				if err := os.WriteFile(filepath.Join(root, "new"), nil, 0o600); err != nil {
					t.Error(err)
				}
				if opts := mountOptions(t, root); !strings.Contains(opts, "volatile") {
					t.Errorf("mount options are %s", opts)
				}
			})
		}
	}
}

// mountOptions returns the line of a mount point in mountinfo.
func mountOptions(t *testing.T, target string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[4] == target {
			return line
		}
	}
	t.Fatalf("no mount at %s", target)
	return ""
}

func TestMountRootAgain(t *testing.T) {
	needRoot(t)
	s := openStore(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 50), strings.Repeat("path", 50))
	req := RootRequest{
		Chain: unpackAll(t, s, archiveOf(t, []entry{{name: "f", body: "x"}})),
		Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Target: filepath.Join(dir, "root"), Volatile: true,
	}
	for range 2 { // the second time it is mounted already
		if err := s.MountRoot(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(req.Target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(req.Target, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is not mounted
		if err := Unmount(req.Target); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.MountRoot(t.Context(), req); err != nil {
		t.Fatalf("after an unmount: %v", err)
	}
	fi, err := os.Stat(req.Target)
	if err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the root lost its mode: %v %v", fi.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(req.Target, "mine")); err != nil {
		t.Error(err)
	}
	if err := Unmount(req.Target); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(filepath.Join(dir, "nowhere")); err != nil {
		t.Errorf("unmount of nothing: %v", err)
	}
	req.Chain = []digest.Digest{digest.FromString("missing")}
	if err := s.MountRoot(t.Context(), req); err == nil {
		t.Error("a root of a missing layer was mounted")
	}
}

func TestMountRootMapped(t *testing.T) {
	needRoot(t)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	ns, err := newUserNS(IDMap{UID: maps, GID: maps})
	if err != nil {
		t.Skipf("no user namespaces here: %v", err)
	}
	defer ns.Close()
	cases := map[string]struct {
		m        IDMap
		attached bool
		old      bool
	}{
		"new user namespace":   {m: IDMap{UID: maps, GID: maps}},
		"given user namespace": {m: IDMap{UID: maps, GID: maps, UserNS: procPath(int(ns.Fd()))}},
		"attached clone":       {m: IDMap{UID: maps, GID: maps}, attached: true},
		"attached clone, old":  {m: IDMap{UID: maps, GID: maps}, attached: true, old: true},
	}
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			s.kernel.noDetachedLower.Store(tt.attached)
			if tt.old {
				oldKernel(s)
			}
			chain := unpackAll(t, s,
				archiveOf(t, []entry{{name: "d/"}, {name: "d/f", uid: 5, body: "x"}}), archiveOf(t, []entry{{name: "d/g", body: "y"}}))
			root := mountTestRoot(t, s, RootRequest{Chain: chain, IDMap: tt.m, Volatile: true})
			for p, want := range map[string]uint32{"": 100000, "d": 100000, "d/f": 100005, "d/g": 100000} {
				var st syscall.Stat_t
				if err := syscall.Stat(filepath.Join(root, p), &st); err != nil {
					t.Fatal(err)
				}
				if st.Uid != want || st.Gid != want {
					t.Errorf("owner of /%s is %d:%d, want %d", p, st.Uid, st.Gid, want)
				}
			}
			wantEmptyIngest(t, s)
		})
	}
}

func TestMountImage(t *testing.T) {
	needRoot(t)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	layers := [][]byte{archiveOf(t, []entry{{name: "a", body: "a"}}), archiveOf(t, []entry{{name: "b", body: "b"}})}
	for n := range 3 {
		for _, m := range []IDMap{{}, {UID: maps, GID: maps}} {
			t.Run(fmt.Sprintf("%d layers, mapped %v", n, !m.isZero()), func(t *testing.T) {
				s := openStore(t)
				target := filepath.Join(t.TempDir(), "volume")
				defer func() {
					if err := Unmount(target); err != nil {
						t.Error(err)
					}
				}()
				req := ImageRequest{Chain: unpackAll(t, s, layers[:n]...), Target: target, IDMap: m}
				for range 2 {
					if err := s.MountImage(t.Context(), req); err != nil {
						t.Fatal(err)
					}
				}
				for i := range n {
					fi, err := os.Stat(filepath.Join(target, string(rune('a'+i))))
					if err != nil {
						t.Fatal(err)
					}
					if got, want := fi.Sys().(*syscall.Stat_t).Uid, uint32(hostID(m.UID)); got != want {
						t.Errorf("owner is %d, want %d", got, want)
					}
				}
				if err := os.WriteFile(filepath.Join(target, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
					t.Errorf("written to: %v", err)
				}
			})
		}
	}
}
