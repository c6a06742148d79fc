// Package hostpath looks up paths of the host that others name, on mounts that may not answer: a network file system whose
// server is away, a FUSE program that hangs.
//
// Whoever touches such a path stands in the kernel until it answers, and no signal ends that. A daemon with a thread there
// cannot be ended either: its files stay locked. So what the kernel has in memory is looked up at once, what is on a disk or
// in memory by this process, and everything else by a helper process, which is left behind when it does not come back.
package hostpath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxSteps = 1024 // parts of a path
	maxLinks = 40   // symbolic links that lead to each other
	// resolveCached is RESOLVE_CACHED of Linux 5.12, which package unix does not have.
	resolveCached = 0x20
)

// errRemote says that a path is on a file system that may hang.
var errRemote = errors.New("on a file system that may hang")

// opener opens a path for nothing but its name, if the kernel can do so without asking any file system; else EAGAIN. That is
// also the answer when something is mounted anywhere meanwhile: on a full node, most of the time.
type opener func(path string, flags uint64) (int, error)

func openCached(path string, flags uint64) (int, error) {
	return unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: resolveCached})
}

// lookUp follows the symbolic links of an absolute path without touching a file system that may hang: there it returns
// errRemote. Folders that are not there are made, but for what a link leads to.
func lookUp(path string, open opener) (string, error) { return follow(path, open, true, maxLinks) }

func follow(path string, open opener, missing bool, links int) (string, error) {
	path = filepath.Clean(path)
	for range maxSteps {
		real, err := cached(path, open)
		if err == nil {
			return real, nil
		}
		if !unknown(err) {
			return "", &fs.PathError{Op: "look up", Path: path, Err: err}
		}
		link, rest, err := step(path, open, missing)
		if err != nil {
			return "", err
		}
		if link == "" {
			continue // the kernel knows more of it now
		}
		if links == 0 {
			return "", &fs.PathError{Op: "look up", Path: path, Err: unix.ELOOP}
		}
		if real, err = follow(link, open, false, links-1); err != nil {
			return "", err
		}
		path = filepath.Join(real, rest)
	}
	return "", &fs.PathError{Op: "look up", Path: path, Err: unix.ELOOP}
}

// unknown says that the kernel has to ask a file system, or was disturbed, or that something is not there.
func unknown(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOENT) }

// cached is the real path if the kernel can tell without asking any file system.
func cached(path string, open opener) (string, error) {
	fd, err := open(path, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// step has the kernel read, or make, one more part of a path: the first that it does not know. It is looked up in the
// folder above it, which is in memory and on a file system that does not hang. If the part is a symbolic link, step returns
// where it leads and what comes behind it.
func step(path string, open opener, missing bool) (link, rest string, err error) {
	for parent := path; ; {
		name := filepath.Base(parent)
		parent = filepath.Dir(parent)
		dir, err := open(parent, unix.O_DIRECTORY)
		if parent == "/" && errors.Is(err, unix.EAGAIN) { // it is in memory for certain
			dir, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		if err == nil {
			defer unix.Close(dir)
			link, err = stepIn(dir, filepath.Join(parent, name), missing)
			return link, rest, err
		}
		if parent == "/" || !unknown(err) {
			return "", "", &fs.PathError{Op: "look up", Path: parent, Err: err}
		}
		rest = filepath.Join(name, rest)
	}
}

func stepIn(dir int, path string, missing bool) (link string, err error) {
	if remote, err := mayHang(dir); err != nil {
		return "", err
	} else if remote {
		return "", errRemote
	}
	name := filepath.Base(path)
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(dir, name, how)
	switch {
	case errors.Is(err, unix.EXDEV):
		return "", nil // a mount point, which is in memory for as long as it is one: the kernel was disturbed
	case errors.Is(err, unix.ENOENT) && missing:
		err = unix.Mkdirat(dir, name, 0o755)
		if err == nil || errors.Is(err, unix.EEXIST) {
			return "", nil
		}
	}
	if err != nil {
		return "", &fs.PathError{Op: "look up", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // no link
		return "", nil
	}
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: path, Err: err}
	}
	if filepath.IsAbs(string(buf[:n])) {
		return string(buf[:n]), nil
	}
	above, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir)) // its real name, from which .. is meant
	return filepath.Join(above, string(buf[:n])), err
}

// calm are the file systems without a disk that ask no other program and no other machine.
var calm = map[string]bool{
	"tmpfs": true, "ramfs": true, "devtmpfs": true, "overlay": true, "btrfs": true, "zfs": true, "bcachefs": true, "proc": true,
	"sysfs": true, "cgroup": true, "cgroup2": true, "bpf": true, "debugfs": true, "tracefs": true, "securityfs": true,
	"hugetlbfs": true, "mqueue": true, "devpts": true, "configfs": true, "pstore": true, "efivarfs": true, "nsfs": true,
}

// mayHang says whether the file system of an open folder asks another program or another machine. Neither the file system
// is asked that, nor statfs, which asks it.
func mayHang(fd int) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return false, os.NewSyscallError("statx", err)
	}
	if st.Dev_major != 0 {
		return false, nil // a disk
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	device := fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
	for line := range strings.Lines(string(table)) {
		left, right, _ := strings.Cut(line, " - ")
		if f := strings.Fields(left); len(f) > 2 && f[2] == device {
			kind, _, _ := strings.Cut(right, " ")
			return !calm[kind], nil
		}
	}
	return true, nil // on a mount that is no more
}

// modeOf is the type and mode of what a path leads to, without touching a file system that may hang.
func modeOf(path string, open opener) (fs.FileMode, error) {
	real, err := follow(path, open, false, maxLinks)
	if err != nil {
		return 0, err
	}
	fd, err := open(real, 0)
	if unknown(err) { // forgotten meanwhile; a helper finds out
		return 0, errRemote
	}
	if err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if remote, err := mayHang(fd); err != nil || remote {
		return 0, errors.Join(err, errRemote)
	}
	st, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return 0, err
	}
	return st.Mode(), nil
}

// onRemote says whether a path is on a file system that may hang; true also where that cannot be told without touching it.
func onRemote(path string) (bool, error) {
	fd, err := openCached(path, unix.O_DIRECTORY)
	if unknown(err) {
		return true, nil
	}
	if tooOld(err) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "look up", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return mayHang(fd)
}
