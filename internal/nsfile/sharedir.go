package nsfile

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ShareDir makes dir, if it is not there, and makes it a shared mount, as `ip netns` does with /run/netns: files bound
// in it are then seen in mount namespaces that were copied before.
//
// It is for folders that others bind namespaces in too, and must come before the first Bind there. To become a mount a
// folder is bound on itself, with all mounts in it; an unmount takes only the upper copy of those, and the lower one
// holds its namespace unseen for ever.
func ShareDir(dir string) error {
	if is, err := isMount(dir); err == nil && is {
		return share(dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Other nodes and `ip netns` do the same at the same time, under the same lock.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	is, err := isMount(dir)
	if err == nil && !is {
		err = unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("make %s a mount: %w", dir, err)
	}
	return share(dir)
}

// share makes the mount at dir shared. Not those below it: what is bound there from now on is shared because dir is, and
// going through hundreds of namespaces for each new one is not wanted.
func share(dir string) error {
	if err := unix.Mount("", dir, "none", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	return nil
}

// isMount tells whether dir is the root of a mount.
func isMount(dir string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, err
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("statx of %s does not tell mounts (kernel before 5.8): %w", dir, errors.ErrUnsupported)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
