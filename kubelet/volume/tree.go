package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// openDir opens a folder of ours, which is no link.
func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openAt opens what has this name in a folder, if it is a folder on the same mount: neither a link, nor mounted over.
func openAt(dir *os.File, name string) (*os.File, error) {
	fd, err := openat2(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS)
	path := filepath.Join(dir.Name(), name)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openat2 asks again when the kernel says that something moved meanwhile.
func openat2(dir int, path string, flags, resolve uint64) (fd int, err error) {
	for range 100 {
		fd, err = unix.Openat2(dir, path, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// An entry is a file in an open folder, as it was when it was looked at.
type entry struct {
	dir  *os.File
	name string
	stat unix.Stat_t
}

func (e entry) path() string { return filepath.Join(e.dir.Name(), e.name) }

func (e entry) failed(what string, err error) error {
	return &os.PathError{Op: what, Path: e.path(), Err: err}
}

// chmod sets the mode of just this file: one that was put in its place meanwhile would be it, but what a link leads to not.
func (e entry) chmod(mode uint32) error {
	fd, err := openat2(int(e.dir.Fd()), e.name, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return e.failed("open", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return err
	}
	if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode); err != nil {
		return e.failed("chmod", err)
	}
	return nil
}

// walk calls visit for everything below a folder, what is in a folder before the folder itself. It follows no link and
// enters no mount, and does not mind that things go meanwhile. Errors do not end it.
func walk(dir *os.File, visit func(entry) error) error {
	var failed error
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			failed = firstOf(failed, walkEntry(entry{dir: dir, name: name}, visit))
		}
		if errors.Is(err, io.EOF) {
			return failed
		}
		if err != nil {
			return firstOf(failed, err)
		}
	}
}

func walkEntry(e entry, visit func(entry) error) error {
	err := unix.Fstatat(int(e.dir.Fd()), e.name, &e.stat, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return e.failed("stat", err)
	}
	var failed error
	if e.stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		sub, err := openAt(e.dir, e.name)
		switch {
		case err == nil:
			failed = walk(sub, visit)
			sub.Close()
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOENT): // something is mounted there; it is gone
			return nil
		default:
			return err
		}
	}
	if err := visit(e); !errors.Is(err, unix.ENOENT) {
		failed = firstOf(failed, err)
	}
	return failed
}

// firstOf keeps one error of a tree that may have millions of them.
func firstOf(first, next error) error {
	if first != nil {
		return first
	}
	return next
}

// mounted says whether something is mounted at a path.
func mounted(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("%s: the kernel does not tell whether it is a mount point", path)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
