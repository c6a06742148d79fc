package images

import (
	"archive/tar"
	"bytes"
	"io"
	"testing"
)

func TestTreeIsWrittenInOneOrder(t *testing.T) {
	build := func(names ...string) []byte {
		tree := NewTree()
		for _, n := range names {
			tree.Text(n, n)
		}
		tree.Link("a/link", "z")
		var out bytes.Buffer
		if err := tree.write(&out); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	if !bytes.Equal(build("z", "b/c", "a/x"), build("a/x", "z", "b/c")) {
		t.Error("the order of the calls changes the archive")
	}
}

func TestTreeHasParentsBeforeChildrenAndLinksLast(t *testing.T) {
	tree := NewTree().File("bin/su", 0o4755, []byte("x")).Link("a", "bin/su").Owner("bin/su", 1, 2)
	var out bytes.Buffer
	if err := tree.write(&out); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Name == "bin/su" && (h.Mode != 0o4755 || h.Uid != 1 || h.Gid != 2) {
			t.Errorf("bin/su has mode %o, owner %d:%d", h.Mode, h.Uid, h.Gid)
		}
	}
	want := []string{"bin/", "bin/su", "a"}
	if len(names) != len(want) {
		t.Fatalf("got %v, want %v", names, want)
	}
	for i := range want {
		if names[i] != want[i] {
			t.Fatalf("got %v, want %v", names, want)
		}
	}
}

func TestSameImagesSameDigests(t *testing.T) {
	digests := func() []string {
		l, err := createLayout(t.TempDir() + "/layout")
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range []Form{{}, {Zstd: true}, {Docker: true, Index: true}} {
			if err := l.add(Image{Names: []string{"h/r:t"}, Layers: []*Tree{NewTree().Text("f", "data")}, Form: form}); err != nil {
				t.Fatal(err)
			}
		}
		var out []string
		for _, m := range l.index.Manifests {
			out = append(out, m.Digest.String())
		}
		return out
	}
	first, second := digests(), digests()
	for i := range first {
		if first[i] != second[i] {
			t.Errorf("form %d: %s, then %s", i, first[i], second[i])
		}
	}
	if first[0] == first[1] || first[0] == first[2] {
		t.Errorf("forms do not differ: %v", first)
	}
}
