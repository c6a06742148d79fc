// Package netns makes, enters and drops network namespaces that are kept at a path (by convention /run/netns/NAME, where
// `ip netns` and agents such as Multus look), and from then on known by that path alone; see package nsfile.
//
// A namespace that its path was the last to hold dies with all its links; the other ends of its veth pairs go with them, in
// the background.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/nsfile"
)

// New makes a network namespace, brings its loopback up and keeps it at path. The folder of path is made when missing,
// and made a shared mount as `ip netns` does. A path that exists already is an error (ErrAlreadyExists).
func New(path string) error {
	release, err := nsfile.ShareDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer release()
	return nsfile.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := LoopbackUp(); err != nil {
			return fmt.Errorf("bring up lo: %w", err)
		}
		return nsfile.Bind("/proc/thread-self/ns/net", path)
	})
}

// Remove lets go of the namespace at path. It returns nil where nothing is, so it can be repeated.
func Remove(path string) error { return nsfile.Unbind(path) }

// Do runs fn in the namespace at path, on a thread of its own, and returns fn's error. fn must not start goroutines that
// rely on the namespace: they run on other threads. Sockets opened by fn stay in the namespace and may be used anywhere.
// Where no network namespace is, the error is ErrNotFound.
func Do(path string, fn func() error) error {
	return nsfile.OnThread(func() error {
		err := nsfile.Enter(path, unix.CLONE_NEWNET)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("network namespace %s: %w", path, errdefs.ErrNotFound)
		}
		if err != nil {
			return err
		}
		return fn()
	})
}

// IsNS reports whether path names a namespace (bound there or a /proc link), not merely a file left by one.
func IsNS(path string) bool { return nsfile.Is(path) }

// LoopbackUp brings up lo in the namespace of the calling thread. The kernel then gives it 127.0.0.1 and ::1.
func LoopbackUp() error {
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
