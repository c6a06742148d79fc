package cgroups

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

func testHost(driver Driver) *Host {
	h := &Host{Unified: true, Driver: driver, mounts: map[string]string{"": "/cg"}}
	if err := h.chooseDriver(true); err != nil {
		panic(err)
	}
	return h
}

func TestContainerPath(t *testing.T) {
	const slices = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"
	for _, tc := range []struct {
		name       string
		driver     Driver
		parent, id string
		want       string // "" is an ErrInvalidArgument
		dir        string // where Open then finds it
		parentDir  string
	}{
		{"kubelet", Cgroupfs, "/kubepods/burstable/pod1", "c", "/kubepods/burstable/pod1/c", "/cg/kubepods/burstable/pod1/c", "/cg/kubepods/burstable/pod1"},
		{"default", Cgroupfs, "", "c", "/berth/c", "/cg/berth/c", "/cg/berth"},
		{"relative is rooted", Cgroupfs, "pods//x/", "c", "/pods/x/c", "/cg/pods/x/c", "/cg/pods/x"},
		{"root", Cgroupfs, "/", "c", "/c", "/cg/c", "/cg"},
		{"dots", Cgroupfs, "/kubepods/../system.slice/x", "c", "", "", ""},
		{"dots in id", Cgroupfs, "/kubepods", "..", "", "", ""},
		{"slash in id", Cgroupfs, "/kubepods", "a/b", "", "", ""},
		{"no id", Cgroupfs, "/kubepods", "", "", "", ""},
		{"colon", Cgroupfs, "/a:b:c", "d", "", "", ""},
		{"slice for cgroupfs", Cgroupfs, slices, "c", "", "", ""},
		{"kubelet", Systemd, slices, "c", "kubepods-burstable-pod1.slice:cri-berth:c", "/cg" + slices + "/cri-berth-c.scope", "/cg" + slices},
		{"default", Systemd, "", "c", "berth.slice:cri-berth:c", "/cg/berth.slice/cri-berth-c.scope", "/cg/berth.slice"},
		{"name alone", Systemd, "a-b.slice", "c", "a-b.slice:cri-berth:c", "/cg/a.slice/a-b.slice/cri-berth-c.scope", "/cg/a.slice/a-b.slice"},
		{"no slice", Systemd, "/kubepods/burstable", "c", "", "", ""},
		{"a slice elsewhere", Systemd, "/system.slice/a-b.slice", "c", "", "", ""},
		{"bad slice", Systemd, "a--b.slice", "c", "", "", ""},
		{"only the suffix", Systemd, "/.slice", "c", "", "", ""},
		{"colon in id", Systemd, "", "a:b", "", "", ""},
	} {
		t.Run(string(tc.driver)+" "+tc.name, func(t *testing.T) {
			h := testHost(tc.driver)
			got, err := h.ContainerPath(tc.parent, tc.id)
			if tc.want == "" {
				if !errors.Is(err, errdefs.ErrInvalidArgument) {
					t.Fatalf("got %q, %v; want an invalid argument", got, err)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Fatalf("got %q, %v; want %q", got, err, tc.want)
			}
			g, err := h.Open(got)
			if err != nil || g.String() != tc.dir {
				t.Fatalf("Open gives %v, %v; want %q", g, err, tc.dir)
			}
			p, err := h.OpenParent(tc.parent)
			if err != nil || p.String() != tc.parentDir {
				t.Fatalf("OpenParent gives %v, %v; want %q", p, err, tc.parentDir)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	h := testHost(Cgroupfs)
	for _, path := range []string{"", "/", "/a/../b", "x.service:cri:c", "a.slice::c", "a.slice:cri:../c", "a:b"} {
		if g, err := h.Open(path); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Open(%q) = %v, %v; want an invalid argument", path, g, err)
		}
	}
}

// What was made with systemd can be removed after the node has changed to cgroupfs.
func TestOpenGoesByThePath(t *testing.T) {
	g, err := testHost(Cgroupfs).Open("a.slice:cri-berth:c")
	if err != nil || g.unit == nil || g.String() != "/cg/a.slice/cri-berth-c.scope" {
		t.Fatalf("got %v, %v", g, err)
	}
}

func TestSubPaths(t *testing.T) {
	v1 := &Host{Driver: Cgroupfs, mounts: map[string]string{"cpu": "/cg/cpu", "pids": "/cg/pids", "freezer": "/cg/freezer", "": "/cg/unified"}}
	for _, tc := range []struct {
		name        string
		host        *Host
		rel, direct map[string]string
	}{
		{"v2", testHost(Cgroupfs), map[string]string{"": "/exec-1"}, map[string]string{"": "/cg/p/exec-1"}},
		{"v1", v1, map[string]string{"pids": "/exec-1", "freezer": "/exec-1"}, map[string]string{"pids": "/cg/pids/p/exec-1", "freezer": "/cg/freezer/p/exec-1"}},
	} {
		g, err := tc.host.Open("/p")
		if err != nil {
			t.Fatal(err)
		}
		if got := g.SubPaths("exec-1"); !maps.Equal(got, tc.rel) {
			t.Errorf("%s: SubPaths %v, want %v", tc.name, got, tc.rel)
		}
		if got := g.Sub("exec-1").Paths(); !maps.Equal(got, tc.direct) {
			t.Errorf("%s: Sub %v, want %v", tc.name, got, tc.direct)
		}
	}
	g, _ := testHost(Cgroupfs).Open("/p")
	if got := g.Sub("../../x").String(); got != "/cg/p/x" {
		t.Errorf("a sub-cgroup escapes to %s", got)
	}
}

func TestRemoveParentIfEmpty(t *testing.T) {
	dir := t.TempDir()
	h := &Host{Unified: true, Driver: Cgroupfs, DefaultParent: "/berth", mounts: map[string]string{"": dir}}
	for _, made := range []string{"berth", "used/by-another", "x"} {
		if err := os.MkdirAll(filepath.Join(dir, made), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, parent := range []string{"", "/used", "/x", "/gone", "/"} {
		if err := h.RemoveParentIfEmpty(t.Context(), parent); err != nil {
			t.Errorf("%q: %v", parent, err)
		}
	}
	for name, want := range map[string]bool{"berth": false, "used/by-another": true, "x": false, "": true} {
		if got := exists(filepath.Join(dir, name)); got != want {
			t.Errorf("%q: is there %v, want %v", name, got, want)
		}
	}
}
