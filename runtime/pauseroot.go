package runtime

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/pause"
)

// pauseRoot returns the root filesystem of all pause processes; it is made once. It is a file system of its own, which who
// empties the run dir leaves alone: a pause process that was let go, and is not yet the program, still has to find it.
func (r *Runtime) pauseRoot() (string, error) {
	r.rooting.Lock()
	defer r.rooting.Unlock()
	root := r.paths.pauseRoot()
	program := filepath.Join(root, "pause")
	if _, err := os.Stat(program); err == nil {
		return root, nil
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	if err := unmount(root); err != nil { // a daemon before was killed over it
		return "", err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("berth-pause", root, "tmpfs", flags, "mode=755,size=64k"); err != nil {
		return "", fmt.Errorf("mount the root of pause processes: %w", err)
	}
	// The mount points are made here: in a user namespace, libcontainer could not.
	for _, dir := range []string{"proc", "dev", "sys"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			return "", err
		}
	}
	tmp := filepath.Join(root, ".pause")
	if err := os.WriteFile(tmp, pause.Binary(), 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, program); err != nil {
		return "", err
	}
	if err := unix.Mount("", root, "", flags|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return "", fmt.Errorf("make the root of pause processes read-only: %w", err)
	}
	return root, nil
}

// removePauseRoot is for when there is no pause process and none can come.
func (r *Runtime) removePauseRoot() error {
	if err := unmount(r.paths.pauseRoot()); err != nil {
		return err
	}
	return os.RemoveAll(r.paths.pauseRoot())
}
