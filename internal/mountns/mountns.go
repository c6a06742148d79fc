// Package mountns makes mount namespaces with next to nothing in them, and carries single mounts from one to another.
//
// Whoever makes a mount namespace gets a copy of all mounts that it sees itself, and pays for each of them, again when it
// leaves the old root behind, and again when it reads /proc/self/mountinfo. A node with 500 pods has thousands.
package mountns

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/nsfile"
)

// whole are the trees of which a lean namespace has all mounts, also those that come later.
var whole = []string{"/proc", "/sys", "/dev"}

// NewLean returns a namespace with the root of the host, /proc, /sys, /dev, and the mounts on the way to the folders needed;
// and the host's, which is that of the caller. Folders that are not there are left out. Nothing that happens in the lean
// namespace is seen outside. At the folder scratch it has a tmpfs of its own, which copies of it share.
func NewLean(scratch string, needed ...string) (lean, host *os.File, err error) {
	err = nsfile.OnThread(func() error {
		if host, err = current(); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := thin(append(needed, scratch)); err != nil {
			return err
		}
		if err := unix.Mount("scratch", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=711"); err != nil {
			return fmt.Errorf("mount %s: %w", scratch, err)
		}
		lean, err = current()
		return err
	})
	if err != nil {
		if host != nil {
			host.Close()
		}
		return nil, nil, fmt.Errorf("make a lean mount namespace: %w", err)
	}
	return lean, host, nil
}

// current returns the mount namespace of the calling thread.
func current() (*os.File, error) { return os.Open("/proc/thread-self/ns/mnt") }

// thin puts a new root in the place of all mounts of the calling thread's namespace, which must be a copy.
func thin(needed []string) error {
	// What is mounted here from now on is seen by nobody else.
	if err := unix.Mount("", "/", "none", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make / a slave: %w", err)
	}
	trees := map[string]bool{} // by path; with all mounts below it?
	for _, path := range whole {
		trees[path] = true
	}
	for _, path := range needed {
		if err := addWay(trees, path); err != nil {
			return err
		}
	}
	clones := map[string]*os.File{}
	defer func() {
		for _, f := range clones {
			f.Close()
		}
	}()
	for path, recursive := range trees {
		f, err := clone(path, recursive)
		if err != nil {
			return err
		}
		clones[path] = f
	}
	root, err := clone("/", false)
	if err != nil {
		return err
	}
	defer root.Close()
	// Anywhere: it becomes the root at once.
	if err := move(root, unix.AT_FDCWD, "/proc"); err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(clones)) { // one may lie in another
		if err := move(clones[path], int(root.Fd()), strings.TrimPrefix(path, "/")); err != nil {
			return err
		}
	}
	return becomeRoot(root)
}

// addWay adds the mounts that lie on the way to a folder.
func addWay(trees map[string]bool, path string) error {
	real, err := filepath.EvalSymlinks(path)
	if os.IsNotExist(err) {
		return nil
	}
	for ; err == nil && real != "/"; real = filepath.Dir(real) {
		if slices.ContainsFunc(whole, func(tree string) bool { return real == tree || strings.HasPrefix(real, tree+"/") }) {
			return nil
		}
		var root bool
		if root, err = nsfile.IsMount(real); root {
			trees[real] = false
		}
	}
	return err
}

// clone is Clone of what nobody is to mount anything on, unless it comes with all that is below it.
func clone(path string, recursive bool) (*os.File, error) {
	f, err := Clone(path, recursive)
	if err != nil || recursive {
		return f, err
	}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return f, nil
}

// becomeRoot makes root, which is mounted somewhere, the root of the calling thread's namespace, and drops the old one with
// all that is mounted there.
func becomeRoot(root *os.File) error {
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root lies on the new one
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return os.NewSyscallError("chdir", unix.Chdir("/"))
}

// Enter moves the calling thread, which must be locked to its goroutine, into a mount namespace, to its root. The thread has
// a working folder of its own from then on.
func Enter(ns *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	return os.NewSyscallError("setns", unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS))
}

// Clone returns a copy of what is mounted at path, or of the folder or file that is there, mounted nowhere. What is mounted
// below it comes with a recursive copy. As with a bind mount, it shares in propagation as the original does.
func Clone(path string, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return nil, &fs.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Attach mounts a copy that Clone has made, here or in another namespace, at a path.
func Attach(tree *os.File, path string) error { return move(tree, unix.AT_FDCWD, path) }

func move(tree *os.File, dir int, path string) error {
	if err := unix.MoveMount(int(tree.Fd()), "", dir, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "move_mount", Path: path, Err: err}
	}
	return nil
}
