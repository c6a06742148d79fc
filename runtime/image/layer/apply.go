package layer

import (
	"archive/tar"
	"errors"
	iofs "io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// errNeedsBelow says that a layer means something else with the layers below than without. The cases: a hard link to a
// file of a layer below (it must be copied here), a path that leads through a symbolic link of a layer below, and a
// root directory that is opaque, which overlayfs does not know.
var errNeedsBelow = errors.New("the layer depends on those below it")

const (
	blockSize = 4096

	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // of AUFS; only the opaque marker has a meaning in images
	whiteoutOpaque = ".wh..wh..opq"

	xattrOpaque = "trusted.overlay.opaque"
)

// An applier goes along while an archive is unpacked into an empty tree. It turns whiteouts into those of overlayfs,
// notices what depends on the layers below, and remembers the directories that must take their attributes from there.
type applier struct {
	tree string
	base bool // nothing lies below
	in   *ingest

	explicit map[string]bool // directories that the archive has an entry for, or that begin anew: path from the root
	implied  map[string]bool // directories that it has none for
	gone     map[string]bool // names that a whiteout hides and nothing has replaced: path on disk
}

func newApplier(in *ingest) *applier {
	return &applier{
		tree: in.tree(), base: in.req.Below == nil, in: in,
		explicit: map[string]bool{"/": true}, implied: map[string]bool{}, gone: map[string]bool{},
	}
}

// filter sees each entry before it is unpacked.
func (a *applier) filter(hdr *tar.Header) (bool, error) {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return false, nil
	}
	if err := a.in.admit(hdr); err != nil {
		return false, err
	}
	name := path.Clean("/" + hdr.Name)
	dir, base := path.Split(name)
	if base != whiteoutOpaque && strings.Contains(name, "/"+whiteoutMeta) {
		return false, nil
	}
	if hdr.Typeflag == tar.TypeDir {
		a.explicit[name] = true
	}
	for d := path.Clean(dir); !a.explicit[d] && !a.implied[d]; d = path.Dir(d) {
		a.implied[d] = true
	}
	if err := a.revive(name, hdr.Typeflag == tar.TypeDir); err != nil {
		return false, err
	}
	if hdr.Typeflag == tar.TypeLink && !a.base {
		if err := a.needTarget(hdr.Linkname); err != nil {
			return false, err
		}
	}
	if !strings.HasPrefix(base, whiteoutPrefix) {
		a.in.count(weight(hdr))
	}
	return true, nil
}

// needTarget looks whether the target of a hard link is in this layer.
func (a *applier) needTarget(linkname string) error {
	p, err := a.resolve(path.Clean("/" + linkname))
	if err != nil {
		return err
	}
	fi, err := os.Lstat(p)
	if errors.Is(err, iofs.ErrNotExist) || err == nil && isWhiteout(fi) {
		return errNeedsBelow
	}
	return err
}

// resolve returns where name is on disk, following the symbolic links of this layer but the last.
func (a *applier) resolve(name string) (string, error) {
	dir, base := path.Split(name)
	p, err := fs.RootPath(a.tree, dir)
	return filepath.Join(p, base), err
}

// revive makes directories of those whiteouts that name leads through. What was removed and then made again as a
// directory begins empty: it must be opaque, or the content below would be back.
func (a *applier) revive(name string, isDir bool) error {
	if len(a.gone) == 0 {
		return nil
	}
	for i := 1; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		if i == len(name) && !isDir {
			break // a file simply replaces the whiteout
		}
		prefix := name[:i]
		p, err := a.resolve(prefix)
		if err != nil {
			return err
		}
		if !a.gone[p] {
			continue
		}
		if err := errors.Join(os.Remove(p), os.Mkdir(p, 0o755), os.Chmod(p, 0o755), setOpaque(p)); err != nil {
			return err
		}
		delete(a.gone, p)
		a.explicit[prefix] = true
	}
	return nil
}

// whiteout turns the whiteout that would be unpacked to p into one of overlayfs. It says whether p is a usual file.
func (a *applier) whiteout(_ *tar.Header, p string) (bool, error) {
	dir, base := filepath.Split(p)
	dir = filepath.Clean(dir)
	if base == whiteoutOpaque {
		if dir == a.tree {
			if a.base {
				return false, nil
			}
			return false, errNeedsBelow
		}
		return false, setOpaque(dir)
	}
	hidden, ok := strings.CutPrefix(base, whiteoutPrefix)
	if !ok {
		return true, nil
	}
	p = filepath.Join(dir, hidden)
	fi, err := os.Lstat(p)
	switch {
	case errors.Is(err, iofs.ErrNotExist):
		a.gone[p] = true
		a.in.count(0, 1)
		return false, unix.Mknod(p, unix.S_IFCHR, 0)
	case err != nil:
		return false, err
	case fi.IsDir():
		// A whiteout hides what lies below, never what its own layer brings.
		return false, setOpaque(p)
	}
	return false, nil
}

func setOpaque(dir string) error {
	if err := unix.Setxattr(dir, xattrOpaque, []byte{'y'}, 0); err != nil {
		return &os.PathError{Op: "setxattr " + xattrOpaque, Path: dir, Err: err}
	}
	return nil
}

// weight returns about what an entry takes on disk.
func weight(hdr *tar.Header) (bytes, inodes uint64) {
	switch hdr.Typeflag {
	case tar.TypeLink, tar.TypeXGlobalHeader:
		return 0, 0
	case tar.TypeDir:
		return blockSize, 1
	case tar.TypeReg:
		return (uint64(hdr.Size) + blockSize - 1) / blockSize * blockSize, 1
	}
	return 0, 1
}
