package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// shared remembers which mount each directory was when it was last found to be shared, so that the start of a pod costs
// one statx here. A directory unmounted or mounted over in the meantime has another mount ID.
var shared struct {
	sync.Mutex
	mountID map[string]uint64
}

// shareDirOf makes the directory of path a shared mount.
//
// That must happen before the first pin and not after it: to make a directory a mount it is bound on itself, and that
// copies every mount below. Whoever unmounts a pin then removes the copy, and the original, now covered, holds the
// namespace for ever. Since any `ip netns add` does the same to /run/netns, doing it first is the only safe order.
func shareDirOf(path string) error {
	dir := filepath.Dir(path)
	shared.Lock()
	defer shared.Unlock()
	if id, root, err := mountOf(dir); err == nil && root && shared.mountID[dir] == id {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	id, err := shareDir(dir)
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	if shared.mountID == nil {
		shared.mountID = make(map[string]uint64)
	}
	shared.mountID[dir] = id
	return nil
}

// shareDir makes dir a mount if it is none, and shared. It returns the mount's ID.
func shareDir(dir string) (uint64, error) {
	_, root, err := mountOf(dir)
	if err != nil {
		return 0, err
	}
	if !root {
		if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return 0, err
		}
	}
	if err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return 0, err
	}
	id, _, err := mountOf(dir)
	return id, err
}

// RemoveDir undoes what New and Pin did to the directory dir: the mount of dir on itself, and dir when it is empty then.
// A directory that still holds files, or that does not exist, is left alone without an error.
func RemoveDir(dir string) error {
	shared.Lock()
	defer shared.Unlock()
	unlock, err := lockDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		return err
	}
	delete(shared.mountID, dir)
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

// lockDir keeps other processes, `ip netns` included, from changing the mount of dir at the same time.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// mountOf returns the ID of the mount that dir is on, and whether dir is the root of that mount.
func mountOf(dir string) (id uint64, root bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st); err != nil {
		return 0, false, err
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return 0, false, fmt.Errorf("statx %s does not tell mounts (kernel before 5.8): %w", dir, errors.ErrUnsupported)
	}
	return st.Mnt_id, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
