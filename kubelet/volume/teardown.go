package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// Teardown takes all volumes of a pod away: what is mounted is unmounted, the innermost first, and what the pod has written
// is removed, but for its claims. Nothing outside of the pod's folder is touched, whatever the pod has put there: no link is
// followed and no mount entered. A second call goes on where the first one failed.
func (m *Manager) Teardown(uid types.UID) error {
	var failed []error
	remove := func(part string) {
		if err := removeTree(filepath.Join(m.podDir(uid), part)); err != nil {
			failed = append(failed, fmt.Errorf("volumes of pod %s: %w", uid, err))
		}
	}
	remove(subPathsDir) // mounts of what is in the volumes
	m.unmountNFS(uid)
	remove("volumes")
	return errors.Join(append(failed, m.forget(uid))...)
}

// removeTree removes a folder with all that is in it. Mounts in it are detached, never entered.
func removeTree(path string) error {
	parent, err := openDir(filepath.Dir(path))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	e := entry{dir: parent, name: filepath.Base(path)}
	return e.remove()
}

// maxStacked is how many mounts one over the other, and things that come meanwhile, are put up with.
const maxStacked = 1000

// remove removes the entry and all below it.
func (e entry) remove() error {
	for range maxStacked {
		err := unix.Unlinkat(int(e.dir.Fd()), e.name, 0)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EISDIR):
			err = e.removeDir()
			if err == nil || !errors.Is(err, unix.EBUSY) {
				return err
			}
		case !errors.Is(err, unix.EBUSY):
			return e.failed("unlink", err)
		}
		if err := e.detach(); err != nil && !errors.Is(err, unix.EINVAL) { // it was unmounted meanwhile
			return err
		}
	}
	return e.failed("remove", unix.EBUSY)
}

// removeDir removes a folder; the error is EBUSY if something is mounted over it.
func (e entry) removeDir() error {
	sub, err := openAt(e.dir, e.name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EXDEV):
		return e.failed("remove", unix.EBUSY)
	case err != nil:
		return err
	}
	err = walkTop(sub)
	sub.Close()
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(int(e.dir.Fd()), e.name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return e.failed("rmdir", err)
	}
	return nil
}

// walkTop removes all that is in a folder. It reads the folder anew until nothing is left, since some file systems lose
// their place when entries go.
func walkTop(dir *os.File) error {
	for {
		names, err := dir.Readdirnames(1000)
		var failed error
		for _, name := range names {
			failed = firstOf(failed, entry{dir: dir, name: name}.remove())
		}
		if failed != nil {
			return failed
		}
		if len(names) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if _, err := dir.Seek(0, 0); err != nil {
			return err
		}
	}
}

// detach unmounts what is mounted at the entry itself.
func (e entry) detach() error {
	path := "/proc/self/fd/" + strconv.Itoa(int(e.dir.Fd())) + "/" + e.name
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return e.failed("unmount", err)
	}
	return nil
}
