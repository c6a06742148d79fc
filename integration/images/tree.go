package images

import (
	"archive/tar"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// A Tree is the content of one layer. Paths are relative to the root, without a leading slash. Missing parent folders are
// added as they are needed, root's with mode 0755.
type Tree struct {
	entries map[string]entry
}

type entry struct {
	header tar.Header
	data   []byte
}

// NewTree returns an empty tree.
func NewTree() *Tree { return &Tree{entries: map[string]entry{}} }

// Dir adds a folder.
func (t *Tree) Dir(name string, mode int64) *Tree {
	return t.put(name, tar.Header{Typeflag: tar.TypeDir, Mode: mode}, nil)
}

// File adds a regular file owned by root. mode may hold the set-user-ID bit, 04000.
func (t *Tree) File(name string, mode int64, data []byte) *Tree {
	return t.put(name, tar.Header{Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data))}, data)
}

// Text adds a regular file with mode 0644.
func (t *Tree) Text(name, text string) *Tree { return t.File(name, 0o644, []byte(text)) }

// Symlink adds a symbolic link.
func (t *Tree) Symlink(name, target string) *Tree {
	return t.put(name, tar.Header{Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, nil)
}

// Link adds a hard link to a file of the same tree.
func (t *Tree) Link(name, target string) *Tree {
	return t.put(name, tar.Header{Typeflag: tar.TypeLink, Linkname: target, Mode: 0o755}, nil)
}

// Owner changes who owns an entry that is there already.
func (t *Tree) Owner(name string, uid, gid int) *Tree {
	e := t.entries[name]
	e.header.Uid, e.header.Gid = uid, gid
	t.entries[name] = e
	return t
}

func (t *Tree) put(name string, h tar.Header, data []byte) *Tree {
	h.Name = strings.TrimPrefix(path.Clean(name), "/")
	for dir := path.Dir(h.Name); dir != "."; dir = path.Dir(dir) {
		if _, ok := t.entries[dir]; !ok {
			t.entries[dir] = entry{header: tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}}
		}
	}
	t.entries[h.Name] = entry{header: h, data: data}
	return t
}

// write writes the tree as a tar archive: sorted, with one time for all, hard links behind everything they can name.
func (t *Tree) write(w io.Writer) error {
	names := make([]string, 0, len(t.entries))
	for name := range t.entries {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := rank(t.entries[a]) - rank(t.entries[b]); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	tw := tar.NewWriter(w)
	for _, name := range names {
		e := t.entries[name]
		e.header.ModTime = time.Unix(0, 0)
		e.header.Format = tar.FormatPAX
		if e.header.Typeflag == tar.TypeDir {
			e.header.Name += "/"
		}
		if err := tw.WriteHeader(&e.header); err != nil {
			return err
		}
		if _, err := tw.Write(e.data); err != nil {
			return err
		}
	}
	return tw.Close()
}

func rank(e entry) int {
	if e.header.Typeflag == tar.TypeLink {
		return 1
	}
	return 0
}
