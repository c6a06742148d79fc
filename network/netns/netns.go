// Package netns makes, pins, enters and drops network namespaces.
//
// A namespace lives as long as a process, an open file or a mount holds it. Only the mount outlives the daemon, so each
// sandbox's namespace is bound to a path (by convention /run/netns/NAME, where `ip netns` and agents such as Multus look)
// and from then on known by that path alone.
//
// New and Pin make a pin, Do runs code inside, Remove drops the pin. A namespace that a pin was the last to hold dies with
// all its links; the other ends of its veth pairs go with them, in the background.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// New makes a network namespace, brings its loopback up and binds it to path. The directory of path is made when missing,
// and made a shared mount as `ip netns` does, so that pins made and dropped later are seen in other mount namespaces.
// A path that exists already is an error (ErrAlreadyExists).
func New(path string) error {
	return pin(path, func() (string, error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return "", fmt.Errorf("unshare: %w", err)
		}
		// Not /proc/self: that is the namespace of the main thread.
		return fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), nil
	})
}

// Pin binds the existing network namespace that nsFile names (such as /proc/PID/ns/net or /proc/self/fd/N) to path, and
// brings its loopback up. Directory and errors are as for New. It is for namespaces that a helper process made, such as
// those owned by a user namespace, which a threaded program cannot make itself.
func Pin(nsFile, path string) error {
	return pin(path, func() (string, error) { return nsFile, enter(nsFile) })
}

// pin binds to path the namespace that join puts the calling thread in and whose file join returns.
func pin(path string, join func() (string, error)) error {
	if err := makePinFile(path); err != nil {
		return err
	}
	err := onThread(func() error {
		nsFile, err := join()
		if err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up lo: %w", err)
		}
		if err := unix.Mount(nsFile, path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", nsFile, err)
		}
		return nil
	})
	if err != nil {
		// Nothing is mounted: the mount was the last step.
		_ = os.Remove(path)
		return fmt.Errorf("pin network namespace %s: %w", path, err)
	}
	return nil
}

// makePinFile makes the empty file that a namespace is bound to, and its directory.
func makePinFile(path string) error {
	err := tryPinFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = tryPinFile(path) // another node's RemoveDir took the directory away in between
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("network namespace %s: %w", path, errdefs.ErrAlreadyExists)
	}
	return err
}

func tryPinFile(path string) error {
	if err := shareDirOf(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}

// Remove drops the pin at path: the mount and the file. It returns nil where nothing is, so it can be repeated.
func Remove(path string) error {
	for {
		// Detached, because a process that has the namespace's file open must not be able to keep the pin. Repeated,
		// because a pin can lie on a pin where the directory was bound on itself after the first one was made.
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil
		case !errors.Is(err, unix.EINVAL): // EINVAL: no mount (any more)
			return fmt.Errorf("unmount network namespace %s: %w", path, err)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove network namespace: %w", err)
		}
		return nil
	}
}

// Do runs fn in the namespace at path, on a thread of its own, and returns fn's error. fn must not start goroutines that
// rely on the namespace: they run on other threads. Sockets opened by fn stay in the namespace and may be used anywhere.
func Do(path string, fn func() error) error {
	return onThread(func() error {
		if err := enter(path); err != nil {
			return err
		}
		return fn()
	})
}

// IsNS reports whether path names a namespace (bound there or a /proc link), not merely a file left by one.
func IsNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// enter moves the calling thread, which must be locked, into the namespace at path.
func enter(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("network namespace %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%s is no network namespace: %w", path, errdefs.ErrNotFound)
		}
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// onThread runs fn on a thread that ends with it, so that fn may change the thread's namespaces.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with this goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread is the one that the runtime cannot end. It would stand in the namespace for ever, and
			// hold it. Keep it busy here while another goroutine, which so gets another thread, does the work.
			done <- onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn()
	}()
	return <-done
}

// loopbackUp brings up lo in the namespace of the calling thread. The kernel then gives it 127.0.0.1 and ::1.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
