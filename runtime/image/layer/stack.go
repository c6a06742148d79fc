package layer

import (
	"errors"
	iofs "io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/continuity/fs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// trees returns the trees of a chain, topmost first.
func (s *Store) trees(chain []digest.Digest) []string {
	trees := make([]string, len(chain))
	for i, c := range chain {
		trees[len(chain)-1-i] = s.treeDir(c)
	}
	return trees
}

// adopt gives the directories that the archive only implied the attributes that they have in the layers below (trees,
// topmost first). Unpacked by themselves they got owner root and mode 0755, which would hide the right ones.
func (a *applier) adopt(below []string) error {
	if len(below) == 0 {
		return nil
	}
	for name := range a.implied {
		// The name may lead through symbolic links of this layer, and so imply other directories than it says.
		p, err := fs.RootPath(a.tree, name)
		if err != nil {
			return err
		}
		for rel := strings.TrimPrefix(p, a.tree); rel != "" && rel != "/" && !a.explicit[rel]; rel = path.Dir(rel) {
			if err := adoptOne(filepath.Join(a.tree, rel), below, rel); err != nil {
				return err
			}
		}
	}
	return nil
}

// adoptOne gives the directory p the attributes of rel in the layers below.
func adoptOne(p string, below []string, rel string) error {
	if fi, err := os.Lstat(p); err != nil || !fi.IsDir() {
		return err
	}
	src, fi, err := lookup(below, rel)
	switch {
	case errors.Is(err, iofs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode()&os.ModeSymlink != 0:
		return errNeedsBelow
	case !fi.IsDir():
		return nil // replaced by a directory
	}
	return copyAttributes(p, src, fi)
}

// lookup finds what a reader of the stacked trees, topmost first, sees as rel. Of a path that leads through a symbolic
// link it returns the link.
func lookup(trees []string, rel string) (string, os.FileInfo, error) {
	parts := strings.Split(strings.Trim(rel, "/"), "/")
	for _, tree := range trees {
		p, fi, hides, err := lookupIn(tree, parts)
		if fi != nil || err != nil {
			return p, fi, err
		}
		if hides {
			break
		}
	}
	return "", nil, &os.PathError{Op: "lookup", Path: rel, Err: iofs.ErrNotExist}
}

// lookupIn looks into one tree. It returns no FileInfo if it is not there; hides then says whether this tree hides
// what the ones below may have.
func lookupIn(tree string, parts []string) (p string, fi os.FileInfo, hides bool, err error) {
	p = tree
	for i, part := range parts {
		p = filepath.Join(p, part)
		fi, err = os.Lstat(p)
		if errors.Is(err, iofs.ErrNotExist) {
			return p, nil, hides, nil
		}
		if err != nil {
			return p, nil, false, err
		}
		if isWhiteout(fi) {
			return p, nil, true, nil
		}
		if fi.Mode()&os.ModeSymlink != 0 || i == len(parts)-1 {
			return p, fi, false, nil
		}
		if !fi.IsDir() {
			return p, nil, true, nil
		}
		hides = hides || isOpaque(p)
	}
	return p, nil, hides, nil
}

func isWhiteout(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && fi.Mode()&os.ModeCharDevice != 0 && st.Rdev == 0
}

func isOpaque(dir string) bool {
	var b [1]byte
	n, err := unix.Lgetxattr(dir, xattrOpaque, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// copyAttributes gives the directory dst the owner, mode, extended attributes and times of src.
func copyAttributes(dst, src string, fi os.FileInfo) error {
	st := fi.Sys().(*syscall.Stat_t)
	if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := os.Chmod(dst, fi.Mode()); err != nil { // after chown, which clears set-ID bits
		return err
	}
	if err := copyXattrs(dst, src); err != nil {
		return err
	}
	times := []unix.Timespec{
		{Sec: st.Atim.Sec, Nsec: st.Atim.Nsec},
		{Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec},
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, times, unix.AT_SYMLINK_NOFOLLOW)
}

// copyXattrs copies extended attributes but those of overlayfs, which say something of src's own layer.
func copyXattrs(dst, src string) error {
	names := make([]byte, 64<<10) // the most that the kernel gives
	n, err := unix.Llistxattr(src, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "listxattr", Path: src, Err: err}
	}
	value := make([]byte, 64<<10)
	for _, name := range strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.") {
			continue
		}
		v, err := unix.Lgetxattr(src, name, value)
		if err != nil {
			return &os.PathError{Op: "getxattr " + name, Path: src, Err: err}
		}
		if err := unix.Lsetxattr(dst, name, value[:v], 0); err != nil {
			return &os.PathError{Op: "setxattr " + name, Path: dst, Err: err}
		}
	}
	return nil
}
