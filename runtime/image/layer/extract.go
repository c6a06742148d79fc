package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

const (
	smallFile    = 64 << 10 // files up to this size are written beside the reading of the archive
	pendingFiles = 32       // so many of them at most wait, or are being written; bounds memory and descriptors
	fileWriters  = 2

	paxXattr = "SCHILY.xattr."
)

// An extractor unpacks one archive into the tree of an applier, with the outcome of containerd's archive.Apply, which is
// the reference of its tests. It is made for layers of many small files, on which a pull spends most of its time:
//
//   - A file costs five system calls. Its folder is opened once for all files that follow each other in it, and what a
//     symbolic link in a path leads to is resolved by the kernel, below the tree (RESOLVE_IN_ROOT), when it is.
//   - Files appear in the order of the archive, one after the other; the content of small ones and the attributes of
//     all are written by others meanwhile. Nothing that comes later depends on these, except hard links, which wait.
//
// What is no plain new file goes the long way (entry), step by step.
type extractor struct {
	*applier
	root    int // descriptor of the tree
	in      folder
	dirs    []*tar.Header // whose times are set in the end: files that come into them change them
	writers *writers
	self    [2]int // the owner and group that new files have
}

// A folder is the one that the last file went to. It is good until an entry that is no file might have moved it.
type folder struct {
	name   string // as it is written in the archive
	fd     int    // -1 for none
	setgid bool   // new files have its group, not ours
}

func (f *folder) close() {
	if f.fd >= 0 {
		_ = unix.Close(f.fd) // opened for its path only
	}
	*f = folder{fd: -1}
}

// extract unpacks the archive r.
func (a *applier) extract(ctx context.Context, r io.Reader) error {
	root, err := unix.Open(a.tree, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: a.tree, Err: err}
	}
	defer unix.Close(root)
	x := &extractor{applier: a, root: root, in: folder{fd: -1}, self: [2]int{os.Geteuid(), os.Getegid()}}
	defer func() { x.in.close() }()
	x.writers = startWriters(ctx)
	err = x.entries(x.writers.ctx, tar.NewReader(r))
	if werr := x.writers.end(); werr != nil {
		err = werr // what the loop says then is only that the context has ended
	}
	if err != nil {
		return err
	}
	return x.setTimes()
}

func (x *extractor) entries(ctx context.Context, archive *tar.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		hdr.Name = filepath.Clean(hdr.Name)
		accepted, err := x.filter(hdr)
		if err != nil {
			return err
		}
		if !accepted {
			continue
		}
		dir, base := filepath.Split(hdr.Name)
		if hdr.Typeflag == tar.TypeReg && isFileName(base) {
			err = x.file(hdr, dir, base, archive)
		} else {
			x.in.close()
			err = x.entry(hdr)
		}
		if err != nil {
			return err
		}
	}
}

// isFileName says whether an entry can be a plain file by its name: it is no whiteout, and not the root.
func isFileName(base string) bool {
	return base != "" && base != "." && base != ".." && !strings.HasPrefix(base, whiteoutPrefix)
}

// file unpacks a regular file. What is in its way is removed; parents that are missing are made.
func (x *extractor) file(hdr *tar.Header, dir, base string, content io.Reader) error {
	fd, err := x.create(dir, base)
	if err != nil {
		x.in.close()
		if _, _, err = x.makeRoom(hdr); err == nil {
			fd, err = x.create(dir, base)
		}
	}
	if err != nil {
		return fmt.Errorf("file %s: %w", hdr.Name, err)
	}
	f := newFile{fd: fd, hdr: hdr, chown: x.in.setgid || hdr.Uid != x.self[0] || hdr.Gid != x.self[1]}
	if hdr.Size <= smallFile {
		return x.writers.add(f, content)
	}
	return errors.Join(copyTo(x.writers.ctx, fd, content), f.finish())
}

// create makes an empty file that must not be there yet.
func (x *extractor) create(dir, base string) (int, error) {
	if err := x.enter(dir); err != nil {
		return -1, err
	}
	return unix.Openat(x.in.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
}

// enter opens a folder of the archive: below the tree, wherever links in its path point.
func (x *extractor) enter(dir string) error {
	if x.in.fd >= 0 && x.in.name == dir {
		return nil
	}
	x.in.close()
	fd, err := unix.Openat2(x.root, "./"+dir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	x.in = folder{name: dir, fd: fd, setgid: st.Mode&unix.S_ISGID != 0}
	return nil
}

// makeRoom makes the parents of an entry, turns a whiteout into overlayfs's, and removes what the entry replaces. It
// returns where the entry goes, and whether it is still to be made.
func (x *extractor) makeRoom(hdr *tar.Header) (p string, proceed bool, err error) {
	dir, base := filepath.Split(hdr.Name)
	parent, err := fs.RootPath(x.tree, dir)
	if err != nil {
		return "", false, err
	}
	p = filepath.Join(parent, filepath.Join("/", base))
	if p == x.tree {
		return p, false, nil // the root is what it is
	}
	if err := x.makeParents(parent); err != nil {
		return "", false, err
	}
	if usual, err := x.whiteout(hdr, p); err != nil || !usual {
		return p, false, err
	}
	fi, err := os.Lstat(p)
	switch {
	case errors.Is(err, iofs.ErrNotExist):
		return p, true, nil
	case err != nil:
		return "", false, err
	case fi.IsDir() && hdr.Typeflag == tar.TypeDir:
		return p, true, nil // its attributes change
	}
	return p, true, os.RemoveAll(p)
}

// makeParents makes the folder p and what is missing above it.
func (x *extractor) makeParents(p string) error {
	fi, err := os.Lstat(p)
	switch {
	case err == nil && fi.IsDir():
		return nil
	case err == nil:
		return &os.PathError{Op: "mkdir", Path: p, Err: unix.ENOTDIR}
	case !errors.Is(err, iofs.ErrNotExist):
		return err
	}
	if err := x.makeParents(filepath.Dir(p)); err != nil {
		return err
	}
	if err := os.Mkdir(p, 0o755); err != nil {
		return err
	}
	return os.Chmod(p, 0o755) // whatever the umask is
}

// entry unpacks what is no plain file.
func (x *extractor) entry(hdr *tar.Header) error {
	p, proceed, err := x.makeRoom(hdr)
	if err == nil && proceed {
		if err = x.make(hdr, p); err == nil {
			err = setAttributes(p, hdr)
		}
	}
	if err != nil {
		return fmt.Errorf("entry %s: %w", hdr.Name, err)
	}
	if proceed && hdr.Typeflag == tar.TypeDir {
		x.dirs = append(x.dirs, hdr)
	}
	return nil
}

func (x *extractor) make(hdr *tar.Header, p string) error {
	device := int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	mode := uint32(hdr.Mode & 0o7777)
	switch hdr.Typeflag {
	case tar.TypeDir:
		if err := os.Mkdir(p, 0o700); !errors.Is(err, iofs.ErrExist) {
			return err
		}
		return nil // makeRoom has left a folder only
	case tar.TypeSymlink:
		return os.Symlink(hdr.Linkname, p)
	case tar.TypeLink:
		// The file's attributes, and then this entry's, in the order of the archive.
		if err := x.writers.wait(); err != nil {
			return err
		}
		target, err := x.resolve(path.Clean("/" + hdr.Linkname))
		if err != nil {
			return err
		}
		return os.Link(target, p)
	case tar.TypeChar:
		return unix.Mknod(p, mode|unix.S_IFCHR, device)
	case tar.TypeBlock:
		return unix.Mknod(p, mode|unix.S_IFBLK, device)
	case tar.TypeFifo:
		return unix.Mknod(p, mode|unix.S_IFIFO, 0)
	}
	return fmt.Errorf("entries of type %q are not supported: %w", hdr.Typeflag, errdefs.ErrInvalidArgument)
}

// setTimes sets those of the folders that the archive has entries for.
func (x *extractor) setTimes() error {
	for _, hdr := range x.dirs {
		p, err := fs.RootPath(x.tree, hdr.Name)
		if err != nil {
			return err
		}
		times := timesOf(hdr)
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "utimensat", Path: p, Err: err}
		}
	}
	return nil
}

// setAttributes gives what was made at p its owner, extended attributes, mode and times. The order matters: a change of
// the owner takes away set-ID bits and capabilities.
func setAttributes(p string, hdr *tar.Header) error {
	if err := os.Lchown(p, hdr.Uid, hdr.Gid); err != nil {
		return err
	}
	err := eachXattr(hdr, func(key string, value []byte) error { return unix.Lsetxattr(p, key, value, 0) })
	if err != nil {
		return err
	}
	fi, err := os.Lstat(p)
	if err != nil {
		return err
	}
	if fi.Mode()&os.ModeSymlink == 0 {
		if err := unix.Chmod(p, uint32(hdr.Mode&0o7777)); err != nil {
			return &os.PathError{Op: "chmod", Path: p, Err: err}
		}
	}
	times := timesOf(hdr)
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: p, Err: err}
	}
	return nil
}

// eachXattr calls set for the extended attributes of an entry. Those of overlayfs and of other administration are not an
// archive's to set; a file system, or a kind of file, that has no such attributes goes without.
func eachXattr(hdr *tar.Header, set func(key string, value []byte) error) error {
	for record, value := range hdr.PAXRecords {
		key, ok := strings.CutPrefix(record, paxXattr)
		if !ok || strings.HasPrefix(key, "trusted.") {
			continue
		}
		err := set(key, []byte(value))
		switch {
		case err == nil, errors.Is(err, unix.ENOTSUP):
		case errors.Is(err, unix.EPERM) && strings.HasPrefix(key, "user.") && hdr.Typeflag != tar.TypeReg && hdr.Typeflag != tar.TypeDir:
		default:
			return fmt.Errorf("extended attribute %s: %w", key, err)
		}
	}
	return nil
}

// timesOf returns the times of access and of modification. What the kernel cannot have is the epoch.
func timesOf(hdr *tar.Header) [2]unix.Timespec {
	accessed := hdr.AccessTime
	if accessed.Before(hdr.ModTime) {
		accessed = hdr.ModTime
	}
	return [2]unix.Timespec{timespec(accessed), timespec(hdr.ModTime)}
}

var latest = time.Unix(0, 1<<63-1)

func timespec(t time.Time) unix.Timespec {
	if t.Before(time.Unix(0, 0)) || t.After(latest) {
		return unix.Timespec{}
	}
	return unix.NsecToTimespec(t.UnixNano())
}

// A newFile is an empty file that is to get its content and attributes. It is closed by finish.
type newFile struct {
	fd    int
	hdr   *tar.Header
	chown bool // it has another owner than new files have
}

// finish sets the attributes and closes the file.
func (f newFile) finish() error {
	err := f.setAttributes()
	if err = errors.Join(err, unix.Close(f.fd)); err != nil {
		return fmt.Errorf("file %s: %w", f.hdr.Name, err)
	}
	return nil
}

func (f newFile) setAttributes() error {
	if f.chown {
		if err := unix.Fchown(f.fd, f.hdr.Uid, f.hdr.Gid); err != nil {
			return os.NewSyscallError("fchown", err)
		}
	}
	err := eachXattr(f.hdr, func(key string, value []byte) error { return unix.Fsetxattr(f.fd, key, value, 0) })
	if err != nil {
		return err
	}
	if err := unix.Fchmod(f.fd, uint32(f.hdr.Mode&0o7777)); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	// Without a path the call means the descriptor. Package unix has no function for that.
	times := timesOf(f.hdr)
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(f.fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0); errno != 0 {
		return os.NewSyscallError("utimensat", errno)
	}
	return nil
}

// copyTo writes a file of any size.
func copyTo(ctx context.Context, fd int, content io.Reader) error {
	buffer := make([]byte, smallFile)
	for {
		// Here too: the hole of a sparse file is read from nowhere, and so without end by the archive's.
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := content.Read(buffer)
		if werr := writeAll(fd, buffer[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("write", err)
		}
		data = data[n:]
	}
	return nil
}

// writers write small files beside the reading of the archive.
type writers struct {
	ctx    context.Context // ends with the first error, which is its cause
	cancel context.CancelCauseFunc
	busy   sync.WaitGroup
	jobs   chan writeJob
	free   chan []byte // buffers; who has all of them has waited for all jobs
}

type writeJob struct {
	file newFile
	data []byte
}

// startWriters starts them. They go on until end is called.
func startWriters(ctx context.Context) *writers {
	w := &writers{jobs: make(chan writeJob, pendingFiles), free: make(chan []byte, pendingFiles)}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	for range pendingFiles {
		w.free <- nil // made when it is needed: most layers have few files
	}
	for range fileWriters {
		w.busy.Go(w.work)
	}
	return w
}

func (w *writers) work() {
	for job := range w.jobs {
		if w.ctx.Err() != nil {
			_ = unix.Close(job.file.fd) // all of the tree will be deleted
		} else if err := errors.Join(writeAll(job.file.fd, job.data), job.file.finish()); err != nil {
			w.cancel(err)
		}
		w.free <- job.data
	}
}

// add has a file written whose content is next in the archive. It waits while too many are being written.
func (w *writers) add(f newFile, content io.Reader) error {
	buffer := <-w.free
	size := int(f.hdr.Size)
	if cap(buffer) < size {
		buffer = make([]byte, max(size, 4<<10))
	}
	buffer = buffer[:size]
	if _, err := io.ReadFull(content, buffer); err != nil {
		w.free <- buffer
		return errors.Join(fmt.Errorf("file %s: %w", f.hdr.Name, err), unix.Close(f.fd))
	}
	w.jobs <- writeJob{f, buffer}
	return nil
}

// wait returns when all files that were added are written.
func (w *writers) wait() error {
	var taken [pendingFiles][]byte
	for i := range taken {
		taken[i] = <-w.free
	}
	for _, buffer := range taken {
		w.free <- buffer
	}
	return context.Cause(w.ctx)
}

// end waits for all files, and returns the first error.
func (w *writers) end() error {
	close(w.jobs)
	w.busy.Wait()
	defer w.cancel(nil)
	return context.Cause(w.ctx)
}
