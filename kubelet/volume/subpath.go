package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/kubelet/podspec"
)

// subPathsDir is the folder of a pod with what is mounted of parts of volumes, by upstream's name.
const subPathsDir = "volume-subpaths"

// SubPath returns where a path below a volume is on the host, for the container's mount of this number. A folder that is
// not there is made, with the mode of the volume's own.
//
// A container can change the path at any moment, also to a link that leads out of the volume. So the path is opened once,
// without leaving the volume, and what was opened is mounted at a place of ours: that is what the container gets. The errors
// say no more than upstream's, since they are told to whoever may read the pod's status; the log has the reason.
func (m *Manager) SubPath(pod *v1.Pod, volumes map[string]podspec.Volume, c *v1.Container, number int, sub string) (string, error) {
	name := c.VolumeMounts[number].Name
	volume := volumes[name].Path
	part, err := openPart(volume, sub)
	if err != nil {
		m.Log.Error("open subPath", "pod", pod.Namespace+"/"+pod.Name, "container", c.Name, "volume", name, "err", err)
		if errors.Is(err, errNotMade) {
			return "", fmt.Errorf("failed to create subPath directory for volumeMount %q of container %q", name, c.Name)
		}
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q", name, c.Name)
	}
	defer part.Close()
	place := filepath.Join(m.podDir(pod.UID), subPathsDir, name, c.Name, strconv.Itoa(number))
	if err := pin(part, place); err != nil {
		m.Log.Error("mount subPath", "pod", pod.Namespace+"/"+pod.Name, "container", c.Name, "volume", name, "err", err)
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q", name, c.Name)
	}
	return place, nil
}

var errNotMade = errors.New("the folder cannot be made")

const inVolume = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// openPart opens a path below a volume, whatever is there: links are followed as long as they stay in the volume.
func openPart(volume, sub string) (*os.File, error) {
	fd, err := unix.Open(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: volume, Err: err}
	}
	top := os.NewFile(uintptr(fd), volume)
	defer top.Close()
	for range 10 { // it may come and go
		part, err := openat2(fd, sub, unix.O_PATH, inVolume)
		if err == nil {
			return os.NewFile(uintptr(part), filepath.Join(volume, sub)), nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return nil, &os.PathError{Op: "open", Path: filepath.Join(volume, sub), Err: err}
		}
		if err := makeFolders(top, sub); err != nil {
			return nil, fmt.Errorf("%w: %w", errNotMade, err)
		}
	}
	return nil, &os.PathError{Op: "open", Path: filepath.Join(volume, sub), Err: unix.ENOENT}
}

// makeFolders makes what is missing of a path below a volume, each folder in the one before it that is held open.
func makeFolders(top *os.File, sub string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(top.Fd()), &st); err != nil {
		return err
	}
	parts := strings.Split(filepath.Clean(sub), "/")
	parent, there, err := deepest(int(top.Fd()), parts)
	if err != nil {
		return err
	}
	for _, name := range parts[there:] {
		made, err := makeFolder(parent, name, st.Mode&^unix.S_IFMT)
		unix.Close(parent)
		if err != nil {
			return err
		}
		parent = made
	}
	unix.Close(parent)
	return nil
}

// deepest opens as much of a path as is there, and says how many parts of it that is.
func deepest(top int, parts []string) (fd, there int, err error) {
	for there = len(parts) - 1; ; there-- {
		fd, err = openat2(top, "./"+strings.Join(parts[:there], "/"), unix.O_PATH|unix.O_DIRECTORY, inVolume)
		if !errors.Is(err, unix.ENOENT) || there == 0 {
			return fd, there, err
		}
	}
}

func makeFolder(parent int, name string, mode uint32) (int, error) {
	if err := unix.Mkdirat(parent, name, mode&0o777); err != nil {
		return -1, &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	fd, err := openat2(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	if err := unix.Fchmod(fd, mode); err != nil { // whatever the umask is
		unix.Close(fd)
		return -1, &os.PathError{Op: "chmod", Path: name, Err: err}
	}
	return fd, nil
}

// pin mounts an open file or folder at a place of ours, unless that is mounted there.
func pin(part *os.File, place string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(part.Fd()), &st); err != nil {
		return err
	}
	there, err := mounted(place)
	if err != nil {
		return err
	}
	if there {
		var old unix.Stat_t
		if err := unix.Lstat(place, &old); err == nil && old.Dev == st.Dev && old.Ino == st.Ino {
			return nil
		}
	}
	if err := unpin(place); err != nil {
		return err
	}
	if err := makePlace(place, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	tree, err := unix.OpenTree(int(part.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// makePlace makes a mount point: a folder for a folder, a file for everything else.
func makePlace(place string, folder bool) error {
	if err := os.MkdirAll(filepath.Dir(place), 0o750); err != nil {
		return err
	}
	if folder {
		return os.Mkdir(place, 0o750)
	}
	f, err := os.OpenFile(place, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}

// unpin takes away all that is mounted at a place, and the place.
func unpin(place string) error {
	if err := detach(place); err != nil {
		return err
	}
	if err := os.Remove(place); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// detach unmounts all that is mounted at a path, one over the other. What still uses it keeps it.
func detach(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // nothing more is mounted; there is no such path
			return nil
		case err != nil:
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}
