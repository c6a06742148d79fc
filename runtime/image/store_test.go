package image

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berth-node/berth/internal/errdefs"
)

func TestGet(t *testing.T) {
	reg := newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	reg.push(b, "library/busybox:latest")
	dir := t.TempDir()
	writeHosts(t, dir, "docker.io", "server = \""+reg.URL+"\"\n")
	s := openStore(t, Config{HostsDirs: []string{dir}})
	mustPull(t, s, "busybox")
	id, target := b.id.Encoded(), b.manifest.Digest.String()
	for _, ref := range []string{
		"busybox", "busybox:latest", "library/busybox", "docker.io/busybox", "docker.io/library/busybox:latest",
		"index.docker.io/library/busybox", "busybox@" + target, "busybox:latest@" + target, "docker.io/library/busybox:other@" + target,
		id, "sha256:" + id, id[:6], id[:13], "sha256:" + id[:12],
	} {
		if img, err := s.Get(ref); err != nil || img.ID != b.id.String() {
			t.Errorf("%s is %q, %v", ref, img.ID, err)
		}
	}
	for _, ref := range []string{
		"busybox:1", "other", "quay.io/library/busybox", id[:5], digest.FromString("x").String(), digest.FromString("x").Encoded(),
		"busybox@" + digest.FromString("x").String(), "sha256:" + strings.Repeat("0", 12),
	} {
		if _, err := s.Get(ref); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := s.Get("UPPER"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a bad reference: %v", err)
	}
}

// A name that is there goes before an ID that begins so, and two IDs that begin so are an error.
func TestGetAmbiguous(t *testing.T) {
	s := openStore(t, Config{})
	for _, id := range []string{"abcdef1" + strings.Repeat("0", 57), "abcdef2" + strings.Repeat("0", 57)} {
		d := digest.Digest("sha256:" + id)
		s.mu.Lock()
		s.images[d] = &entry{record: record{ID: d}, image: Image{ID: d.String()}}
		s.mu.Unlock()
	}
	if _, err := s.Get("abcdef"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("ambiguous: %v", err)
	}
	if img, err := s.Get("abcdef1"); err != nil || !strings.HasPrefix(img.ID, "sha256:abcdef1") {
		t.Errorf("unique: %v %v", img.ID, err)
	}
	s.names["docker.io/library/abcdef1:latest"] = digest.Digest("sha256:abcdef2" + strings.Repeat("0", 57))
	if img, err := s.Get("abcdef1"); err != nil || !strings.HasPrefix(img.ID, "sha256:abcdef2") {
		t.Errorf("a name: %v %v", img.ID, err)
	}
}

func TestRemove(t *testing.T) {
	reg := newRegistry(t)
	base := layerOf(t, "base", "1")
	a := reg.push(build(t, recipe{layers: [][]byte{base, layerOf(t, "a", "1")}}), "a:1")
	b := reg.push(build(t, recipe{layers: [][]byte{base, layerOf(t, "b", "1")}}), "b:1")
	s := openStore(t, Config{})
	mustPull(t, s, a)
	img := mustPull(t, s, b)
	if _, err := s.Tag(a, "other/name:2"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if err := s.Remove(t.Context(), "other/name:2"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if all := s.List(); len(all) != 1 || all[0].ID != img.ID {
		t.Errorf("images are %v", all)
	}
	if got := content(t, s, img, "base"); got != "1" {
		t.Errorf("a shared layer is gone: %q", got)
	}
	if err := s.Remove(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), img.ID); err != nil {
		t.Errorf("again: %v", err)
	}
	wantNothing(t, s)
}

func TestRemoveInUse(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}}), "a:1")
	s := openStore(t, Config{})
	img := mustPull(t, s, ref)
	for range 2 { // twice is once
		if err := s.Acquire(img.ID, "container"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	check := func(s *Store, when string) {
		t.Helper()
		if all := s.List(); len(all) != 0 {
			t.Errorf("%s: the image is listed", when)
		}
		for _, r := range []string{ref, img.ID} {
			if _, err := s.Get(r); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("%s: %s is found: %v", when, r, err)
			}
		}
		if got := content(t, s, img, "a"); got != "1" {
			t.Errorf("%s: the layer in use is gone", when)
		}
	}
	check(s, "removed")
	s.Close()

	r := openStore(t, Config{Dir: s.cfg.Dir})
	check(r, "after a restart")
	if err := r.Acquire(img.ID, "container"); err != nil {
		t.Fatalf("after a restart: %v", err)
	}
	if err := r.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(r, "after Collect")
	r.Release("container")
	r.Release("nobody")
	r.Close()
	wantNothing(t, r)
	if err := r.Acquire(img.ID, "container"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("acquired what is gone: %v", err)
	}
}

// An image that was removed while in use, and pulled again, is whole at once.
func TestPullRemovedInUse(t *testing.T) {
	reg := newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	ref := reg.push(b, "a:1")
	s := openStore(t, Config{})
	img := mustPull(t, s, ref)
	if err := s.Acquire(img.ID, "container"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	again := mustPull(t, s, ref)
	if !reflect.DeepEqual(again, img) {
		t.Errorf("image is %+v, was %+v", again, img)
	}
	if n := reg.requests("GET blobs/" + b.layers[0].Digest.String()); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
	s.Release("container")
	s.Close()
	if got := content(t, s, img, "a"); got != "1" {
		t.Error("the layer is gone")
	}
}

// Removed images whose containers are gone too are deleted once all containers on record have been heard.
func TestCollectAfterRestart(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}}), "a:1")
	s := openStore(t, Config{})
	img := mustPull(t, s, ref)
	if err := s.Acquire(img.ID, "container"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	s.Close()
	r := openStore(t, Config{Dir: s.cfg.Dir})
	if err := r.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, r)
}

// A daemon that dies between two layers of an image that it removes leaves the others to the next one.
func TestCollectAfterHalfARemoval(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", "1"), layerOf(t, "b", "2"), layerOf(t, "c", "3")}}), "a:1")
	s := openStore(t, Config{})
	img := mustPull(t, s, ref)
	if err := s.Acquire(img.ID, "container"); err != nil { // so that the record stays, removed
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if err := s.Layers().Remove(img.ChainIDs[0]); err != nil {
		t.Fatal(err)
	}
	s.Close()
	r := openStore(t, Config{Dir: s.cfg.Dir})
	if err := r.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, r)
}

func TestDamagedRecords(t *testing.T) {
	reg := newRegistry(t)
	s := openStore(t, Config{})
	var images []Image
	for _, n := range []string{"empty", "forged", "layerless", "good"} {
		images = append(images, mustPull(t, s, reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "n", n)}}), n+":1")))
	}
	s.Close()
	record := func(i int) string { return s.recordPath(digest.Digest(images[i].ID)) }
	if err := os.WriteFile(record(0), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var forged map[string]any
	b, err := os.ReadFile(record(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &forged); err != nil {
		t.Fatal(err)
	}
	forged["config"] = []byte("{}")
	if err := os.WriteFile(record(1), encode(t, forged), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Layers().Remove(images[2].ChainIDs[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.cfg.Dir, "images", ".x.json.123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}

	r := openStore(t, Config{Dir: s.cfg.Dir})
	if all := r.List(); len(all) != 1 || all[0].ID != images[3].ID {
		t.Errorf("images are %v", all)
	}
	aside, err := filepath.Glob(filepath.Join(s.cfg.Dir, "images", "*"+damagedSuffix))
	if err != nil || len(aside) != 3 {
		t.Errorf("set aside: %v %v", aside, err)
	}
	for i := range images {
		mustPull(t, r, images[i].RepoTags[0])
	}
	if got, want := len(r.List()), 4; got != want {
		t.Errorf("%d images, want %d", got, want)
	}
}

// After a restart of the machine only layers of recorded images are trusted: the others may not have reached the disk.
func TestReboot(t *testing.T) {
	reg := newRegistry(t)
	s := openStore(t, Config{})
	kept := mustPull(t, s, reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}}), "a:1"))
	lost := mustPull(t, s, reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "b", "1")}}), "b:1"))
	s.Close()
	if err := os.Remove(s.recordPath(digest.Digest(lost.ID))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.cfg.Dir, "layers", "boot"), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := openStore(t, Config{Dir: s.cfg.Dir})
	if all := r.Layers().List(); len(all) != 1 || all[0].ChainID != kept.ChainIDs[0] {
		t.Errorf("layers are %v", all)
	}
}

// An image is there before it is synced. Until then its record says so, and is not trusted after a reboot.
func TestUnsynced(t *testing.T) {
	reg := newRegistry(t)
	s := openStore(t, Config{})
	s.syncing.Lock()
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	mustPull(t, s, reg.push(b, "a:1"))
	early, err := os.ReadFile(s.recordPath(b.id))
	if err != nil {
		t.Fatal(err)
	}
	s.syncing.Unlock()
	s.Close()
	if s.images[b.id].record.Unsynced {
		t.Error("closed without a sync")
	}
	for _, boot := range []string{"", "another"} {
		if err := os.WriteFile(s.recordPath(b.id), early, 0o600); err != nil {
			t.Fatal(err)
		}
		if boot != "" {
			if err := os.WriteFile(filepath.Join(s.cfg.Dir, "layers", "boot"), []byte(boot), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := openStore(t, Config{Dir: s.cfg.Dir})
		r.Close()
		if boot != "" {
			wantNothing(t, r)
		} else if e := r.images[b.id]; e == nil || e.record.Unsynced {
			t.Errorf("after a restart of the daemon: %+v", e)
		}
	}
}

// A daemon that was killed while it moved a tag left it in two records.
func TestTagInTwoRecords(t *testing.T) {
	reg := newRegistry(t)
	s := openStore(t, Config{})
	first := build(t, recipe{layers: [][]byte{layerOf(t, "v", "1")}})
	second := build(t, recipe{layers: [][]byte{layerOf(t, "v", "2")}})
	ref := reg.push(first, "a:1")
	mustPull(t, s, ref)
	before, err := os.ReadFile(s.recordPath(first.id))
	if err != nil {
		t.Fatal(err)
	}
	reg.push(second, "a:1")
	mustPull(t, s, ref)
	s.Close()
	if err := os.WriteFile(s.recordPath(first.id), before, 0o600); err != nil {
		t.Fatal(err)
	}
	r := openStore(t, Config{Dir: s.cfg.Dir})
	if img, err := r.Get(ref); err != nil || img.ID != second.id.String() {
		t.Errorf("the tag is %s, %v", img.ID, err)
	}
	if old, err := r.Get(first.id.String()); err != nil || len(old.RepoTags) != 0 {
		t.Errorf("the old image is %+v, %v", old, err)
	}
}

func TestPinned(t *testing.T) {
	reg := newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	ref := reg.push(b, "pause:latest")
	other := reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", "2")}}), "other:1")
	for _, pin := range []string{strings.TrimSuffix(ref, ":latest"), b.id.String(), b.id.Encoded()} {
		s := openStore(t, Config{Pinned: []string{pin}})
		if img := mustPull(t, s, ref); !img.Pinned {
			t.Errorf("not pinned by %s", pin)
		}
		if img := mustPull(t, s, other); img.Pinned {
			t.Errorf("another image is pinned by %s", pin)
		}
	}
	if _, err := Open(Config{Dir: t.TempDir(), Pinned: []string{"BAD"}}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a bad reference: %v", err)
	}
}

func TestTag(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}}), "a:1")
	s := openStore(t, Config{})
	mustPull(t, s, ref)
	img, err := s.Tag(ref, "mine")
	if err != nil || !reflect.DeepEqual(img.RepoTags, []string{ref, "docker.io/library/mine:latest"}) {
		t.Errorf("tags are %v, %v", img.RepoTags, err)
	}
	if _, err := s.Tag("missing", "mine"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	if _, err := s.Tag(ref, "mine@"+digest.FromString("x").String()); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a digest: %v", err)
	}
}
