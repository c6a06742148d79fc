package nsfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ShareDir makes dir, if it is not there, and makes it a shared mount, as `ip netns` does with /run/netns: files bound
// in it are then seen in mount namespaces that were copied before. Until release is called nobody takes dir away.
//
// It is for folders that others bind namespaces in too, and must come before the first Bind there. To become a mount a
// folder is bound on itself, with all mounts in it; an unmount takes only the upper copy of those, and the lower one
// holds its namespace unseen for ever.
func ShareDir(dir string) (release func(), err error) {
	lock, err := lockShared(dir)
	if err != nil {
		return nil, fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	// Not the mounts below it: what is bound there from now on is shared because dir is, and going through hundreds of
	// namespaces for each new one is not wanted.
	if err := unix.Mount("", dir, "none", unix.MS_SHARED, ""); err != nil {
		lock.Close()
		return nil, fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	return func() { lock.Close() }, nil
}

// lockShared makes dir a mount and returns it open, with a lock that others may have too.
func lockShared(dir string) (*os.File, error) {
	for {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		lock, err := lockDir(dir, unix.LOCK_SH)
		if errors.Is(err, fs.ErrNotExist) {
			continue // RemoveDir was faster
		}
		if err != nil {
			return nil, err
		}
		is, err := IsMount(dir)
		if is {
			return lock, nil
		}
		lock.Close()
		if err == nil {
			err = makeMount(dir)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// makeMount binds dir on itself if it is not a mount.
func makeMount(dir string) error {
	lock, err := lockDir(dir, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	if is, err := IsMount(dir); err != nil || is {
		return err
	}
	return bindOnItself(dir)
}

// bindOnItself makes dir a mount with a peer group of its own. One that mount(2) binds is a peer of the mount around it,
// which systemd makes shared: all that is bound in dir would be mounted twice, there and below, covered.
func bindOnItself(dir string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return &fs.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	for _, propagation := range []uint64{unix.MS_PRIVATE, unix.MS_SHARED} { // out of the group, and into a new one
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: propagation}); err != nil {
			return &fs.PathError{Op: "mount_setattr", Path: dir, Err: err}
		}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "move_mount", Path: dir, Err: err}
	}
	return nil
}

// RemoveDir undoes ShareDir: the mount of dir on itself, and dir when it is empty then. A folder that still holds files,
// or that does not exist, is left alone without an error.
func RemoveDir(dir string) error {
	lock, err := lockDir(dir, unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		return err
	}
	if itself, err := boundOnItself(dir); err != nil || !itself {
		return err // somebody mounted a file system there
	}
	// Detached, since the lock itself is an open file in this mount. EINVAL: nobody made dir a mount.
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

// lockDir locks dir, as other nodes and `ip netns` do. A folder that was removed while the lock was waited for is
// fs.ErrNotExist. Closing the file unlocks.
func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(f.Fd()), how)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	var locked, there unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &locked)
	if err == nil {
		err = unix.Stat(dir, &there)
	}
	if err == nil && (locked.Ino != there.Ino || locked.Dev != there.Dev) {
		err = unix.ENOENT
	}
	if err != nil {
		return nil, errors.Join(&fs.PathError{Op: "lock", Path: dir, Err: err}, f.Close())
	}
	return f, nil
}

// boundOnItself says whether dir is, if it is a mount, one of the file system that it lies in.
func boundOnItself(dir string) (bool, error) {
	var inside, above unix.Stat_t
	if err := unix.Stat(dir, &inside); err != nil {
		return false, err
	}
	if err := unix.Stat(filepath.Dir(dir), &above); err != nil {
		return false, err
	}
	return inside.Dev == above.Dev, nil
}

// IsMount tells whether path, which is no symbolic link, is the root of a mount.
func IsMount(dir string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, err
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("statx of %s does not tell mounts (kernel before 5.8): %w", dir, errors.ErrUnsupported)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
