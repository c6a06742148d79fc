package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// writeDiff writes a tar with all that is in the upper folder of an overlay, and returns the paths that the overlay hides
// from its lower folders, absolute in the container, each without what is below it.
func writeDiff(ctx context.Context, w io.Writer, upper string, lowers []string) (deleted []string, err error) {
	d := &diff{ctx: ctx, tar: tar.NewWriter(w), upper: upper, lowers: lowers, links: map[inode]string{}, deleted: []string{}}
	if err := d.folder(".", false); err != nil {
		return nil, err
	}
	slices.Sort(d.deleted)
	return slices.Compact(d.deleted), d.tar.Close()
}

type inode struct{ dev, ino uint64 }

// A diff is one on the way. Paths in it are relative to the root of the overlay.
type diff struct {
	ctx     context.Context // of writeDiff
	tar     *tar.Writer
	upper   string
	lowers  []string
	links   map[inode]string // the first name of files that have several
	deleted []string
}

// folder adds what is in a folder of upper. If it is opaque, nothing of the lower folders shows in it or below it.
func (d *diff) folder(path string, opaque bool) error {
	entries, err := os.ReadDir(filepath.Join(d.upper, path))
	if err != nil {
		return err
	}
	if opaque {
		d.hide(path, entries)
	}
	for _, entry := range entries {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		if err := d.entry(filepath.Join(path, entry.Name()), opaque); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // the container removed it meanwhile
			}
			return err
		}
	}
	return nil
}

// hide lists what the lower folders have in path and upper has not.
func (d *diff) hide(path string, upper []fs.DirEntry) {
	for _, lower := range d.lowers {
		entries, err := os.ReadDir(filepath.Join(lower, path))
		if err != nil {
			continue // not in this one, or no folder there
		}
		for _, e := range entries {
			if !slices.ContainsFunc(upper, func(u fs.DirEntry) bool { return u.Name() == e.Name() }) {
				d.deleted = append(d.deleted, filepath.Join("/", path, e.Name()))
			}
		}
	}
}

// entry adds one entry of upper, and what is below it.
func (d *diff) entry(path string, opaque bool) error {
	full := filepath.Join(d.upper, path)
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: full, Err: err}
	}
	if isWhiteout(full, &st) {
		d.deleted = append(d.deleted, filepath.Join("/", path))
		return nil
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFSOCK {
		return nil // tar has no sockets, and one without its process is of no use
	}
	attributes, err := readAttributes(full)
	if err != nil {
		return err
	}
	if err := refuseRedirect(path, attributes); err != nil {
		return err
	}
	header, err := d.header(path, full, &st)
	if err != nil {
		return err
	}
	header.PAXRecords = paxRecords(attributes)
	if header.Typeflag == tar.TypeReg {
		return d.regular(full, header)
	}
	if err := d.tar.WriteHeader(header); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if kind == unix.S_IFDIR {
		return d.folder(path, opaque || attributes.overlay("opaque") == "y")
	}
	return nil
}

// header describes an entry, without its extended attributes.
func (d *diff) header(path, full string, st *unix.Stat_t) (*tar.Header, error) {
	info, err := os.Lstat(full)
	if err != nil {
		return nil, err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(full); err != nil {
			return nil, err
		}
	}
	// FileInfoHeader would ask the node's user database for names, which mean nothing in the container.
	header, err := tar.FileInfoHeader(namelessInfo{info}, target)
	if err != nil {
		return nil, err
	}
	header.Name, header.Format = path, tar.FormatPAX
	header.Uid, header.Gid = int(st.Uid), int(st.Gid)
	if info.IsDir() {
		header.Name += "/"
	}
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFCHR || kind == unix.S_IFBLK {
		header.Devmajor, header.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	}
	if !info.IsDir() && st.Nlink > 1 {
		key := inode{st.Dev, st.Ino}
		if first, ok := d.links[key]; ok {
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
		} else {
			d.links[key] = path
		}
	}
	return header, nil
}

// namelessInfo hides the stat_t from tar.
type namelessInfo struct{ fs.FileInfo }

func (namelessInfo) Sys() any { return nil }

func (d *diff) regular(full string, header *tar.Header) error {
	// A symlink cannot have taken its place: O_NOFOLLOW. Nor a FIFO, which would block: O_NONBLOCK.
	f, err := os.OpenFile(full, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := d.tar.WriteHeader(header); err != nil {
		return fmt.Errorf("%s: %w", header.Name, err)
	}
	if err := copyExactly(d.ctx, d.tar, f, header.Size); err != nil {
		return fmt.Errorf("%s: %w", header.Name, err)
	}
	return nil
}

// isWhiteout tells whether overlayfs marked the entry as deleted: a character device 0:0, or, where it may not make
// those, an empty file with an attribute.
func isWhiteout(path string, st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		if st.Size != 0 {
			return false
		}
		for _, name := range []string{"trusted.overlay.whiteout", "user.overlay.whiteout"} {
			if _, err := unix.Lgetxattr(path, name, nil); err == nil {
				return true
			}
		}
	}
	return false
}

// attributes are the extended attributes of a file.
type attributes map[string]string

// overlay returns one of overlayfs' own attributes.
func (a attributes) overlay(name string) string {
	if v, ok := a["trusted.overlay."+name]; ok {
		return v
	}
	return a["user.overlay."+name]
}

func readAttributes(path string) (attributes, error) {
	size, err := unix.Llistxattr(path, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(path, names); err != nil {
		return nil, &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	found := attributes{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		size, err := unix.Lgetxattr(path, name, nil)
		if err != nil {
			continue // removed meanwhile, or not for us to read
		}
		value := make([]byte, size)
		if size, err = unix.Lgetxattr(path, name, value); err != nil {
			continue
		}
		found[name] = string(value[:size])
	}
	return found, nil
}

// refuseRedirect refuses what overlayfs keeps in a lower folder and only points to: the archive would be without it.
func refuseRedirect(path string, a attributes) error {
	for _, name := range []string{"redirect", "metacopy"} {
		if _, ok := a["trusted.overlay."+name]; ok {
			return fmt.Errorf("%s: overlayfs keeps its content elsewhere (mounted with %s): %w", path, name, errdefs.ErrUnimplemented)
		}
	}
	return nil
}

// paxRecords returns the attributes that belong to the file and not to overlayfs, as tar keeps them.
func paxRecords(a attributes) map[string]string {
	records := map[string]string{}
	for name, value := range a {
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		records["SCHILY.xattr."+name] = value
	}
	return records
}
