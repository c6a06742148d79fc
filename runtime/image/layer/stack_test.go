package layer

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
)

// Layers that were unpacked by themselves and stacked must look as if each had been unpacked on top of the other.
func TestStacking(t *testing.T) {
	needRoot(t)
	base := []entry{
		{name: "etc/", mode: 0o750, uid: 7, xattr: "keep"},
		{name: "etc/deep/", mode: 0o1777, uid: 8},
		{name: "etc/deep/file", body: "base"},
		{name: "usr/lib/", mode: 0o711, uid: 9},
		{name: "usr/lib/so", body: "so"},
		{name: "lib", symlink: "usr/lib"},
		{name: "file", body: "file", mode: 0o4755, uid: 5},
		{name: "gone/", uid: 3}, {name: "gone/old", body: "old"}, {name: "gone/sub/older", body: "older"},
	}
	tests := []struct {
		name   string
		layers [][]entry
		again  bool // the layer must be read a second time
	}{
		{"implied directories", [][]entry{{{name: "etc/deep/new", body: "new"}, {name: "fresh/dir/f", body: "f"}}}, false},
		{"implied over two layers", [][]entry{{{name: "etc/deep/", mode: 0o700, uid: 77}}, {{name: "etc/deep/x", body: "x"}}}, false},
		{"whiteouts", [][]entry{{{name: "etc/deep/.wh.file"}, {name: ".wh.gone"}}}, false},
		{"whiteout, then a file", [][]entry{{{name: ".wh.gone"}}, {{name: "gone", body: "a file now"}}}, false},
		{"whiteout, then a directory above", [][]entry{{{name: ".wh.gone"}}, {{name: "gone/new", body: "new"}}}, false},
		{"whiteout and directory at once", [][]entry{{{name: ".wh.gone"}, {name: "gone/", uid: 4}, {name: "gone/new", body: "new"}}}, false},
		{"whiteout and implied directory at once", [][]entry{{{name: ".wh.gone"}, {name: "gone/sub/new", body: "new"}}}, false},
		{"opaque", [][]entry{{{name: "gone/.wh..wh..opq"}, {name: "gone/new", body: "new"}}}, false},
		{"opaque, late", [][]entry{{{name: "gone/"}, {name: "gone/new", body: "new"}, {name: "gone/.wh..wh..opq"}}}, false},
		{"implied below opaque", [][]entry{{{name: "gone/"}, {name: "gone/.wh..wh..opq"}}, {{name: "gone/sub/f", body: "f"}}}, false},
		{"opaque root", [][]entry{{{name: ".wh..wh..opq"}, {name: "only", body: "only"}}}, true},
		{"directory over a link", [][]entry{{{name: "lib/"}, {name: "lib/x", body: "x"}}}, false},
		{"file over a directory", [][]entry{{{name: "gone", body: "file"}}}, false},
		{"through a link below", [][]entry{{{name: "lib/x", body: "x"}}}, true},
		{"whiteout through a link below", [][]entry{{{name: "lib/.wh.so"}}}, true},
		{"hard link in the layer", [][]entry{{{name: "a", body: "a"}, {name: "b", link: "a"}}}, false},
		{"hard link below", [][]entry{{{name: "file2", link: "file", mode: 0o4755, uid: 5}}}, true},
		{"hard link two below", [][]entry{{{name: "x", body: "x"}}, {{name: "etc/file2", link: "etc/deep/file"}}}, true},
		{"link to a replaced file", [][]entry{{{name: "file", body: "mine"}, {name: "file2", link: "file"}}}, false},
		{"link inside the layer", [][]entry{{{name: "l", symlink: "etc/deep"}, {name: "l/through", body: "t"}}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			archives := [][]byte{archiveOf(t, base)}
			for _, l := range tt.layers {
				archives = append(archives, archiveOf(t, l))
			}
			plain := t.TempDir()
			for _, a := range archives {
				if _, err := archive.Apply(t.Context(), plain, bytes.NewReader(a)); err != nil {
					t.Fatal(err)
				}
			}
			s := openStore(t)
			chain := unpackAll(t, s, archives...)
			root := mountTestRoot(t, s, RootRequest{Chain: chain})
			if got, want := describe(t, root), describe(t, plain); got != want {
				t.Errorf("stacked:\n%s\nwant:\n%s", got, want)
			}
			for i, c := range chain {
				var buf bytes.Buffer
				if err := s.WriteTar(t.Context(), c, &buf); err != nil || !bytes.Equal(buf.Bytes(), archives[i]) {
					t.Errorf("layer %d comes out different: %v", i, err)
				}
			}
			info, err := s.Get(chain[len(chain)-1])
			if err != nil || (info.Below != nil) != tt.again {
				t.Errorf("unpacked on top of %v (%v), want that to be %v", info.Below, err, tt.again)
			}
			wantEmptyIngest(t, s)
		})
	}
}

func TestHardLinkToNowhere(t *testing.T) {
	needRoot(t)
	for _, archives := range [][][]byte{
		{archiveOf(t, []entry{{name: "b", link: "missing"}})},
		{archiveOf(t, []entry{{name: "x", body: "x"}}), archiveOf(t, []entry{{name: "b", link: "missing"}})},
	} {
		s := openStore(t)
		req, last := requestsOf(archives)
		for i, r := range req {
			_, err := s.Unpack(t.Context(), r)
			if (i == last) == (err == nil) {
				t.Errorf("layer %d: %v", i, err)
			}
		}
		wantEmptyIngest(t, s)
	}
}

func TestPathsStayInside(t *testing.T) {
	needRoot(t)
	s := openStore(t)
	outside := t.TempDir()
	unpackAll(t, s, archiveOf(t, []entry{
		{name: "out", symlink: outside},
		{name: "out/evil", body: "evil"},
		{name: "../../../up", body: "up"},
		{name: "up2", symlink: strings.Repeat("../", 20) + outside},
		{name: "up2/evil2", body: "evil"},
	}))
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 0 {
		t.Errorf("written outside: %v %v", left, err)
	}
}
