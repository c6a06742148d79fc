// Package nsfile keeps kernel namespaces alive as files, and runs code on threads that may change theirs.
//
// A namespace lives as long as a process, an open file or a mount holds it. Of the three only the mount outlives the
// program that made the namespace; it is the namespace's file of /proc, bound to a file of its own.
package nsfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// Bind keeps at path the namespace that source names, such as /proc/PID/ns/net or, for the calling thread,
// /proc/thread-self/ns/net. The folder of path must exist. A path that exists is ErrAlreadyExists and stays as it is.
func Bind(source, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("namespace file %s: %w", path, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(source, path, "none", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("bind %s to %s: %w", source, path, err), os.Remove(path))
	}
	return nil
}

// Unbind undoes Bind, and does nothing where nothing is.
func Unbind(path string) error {
	for {
		// Detached, so that no process that has the file open keeps the name. Repeated, because a bind can lie on
		// another one where a folder above was bound on itself in between.
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil
		case !errors.Is(err, unix.EINVAL): // EINVAL: no mount, or none any more
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
}

// Is tells whether path is a namespace (a bound one, or a link of /proc), and not only the file that one was bound to.
func Is(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Enter moves the calling thread, which must be one of OnThread's, into the namespace at path. Kind is its CLONE_NEW
// flag; another kind of namespace at path is an error. User and mount namespaces are not for threads.
func Enter(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}

// OnThread runs fn on a thread that ends with it, so that fn may change the namespaces and credentials of its thread.
// It returns fn's error. Goroutines that fn starts run on other threads.
func OnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end. It would hold the namespaces for ever and be what /proc/PID shows. While it
			// is locked here, the work gets another thread.
			done <- OnThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn()
	}()
	return <-done
}
