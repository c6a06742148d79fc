package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// Listen makes the Unix socket that the kubelet connects to, and its folder, for root alone (gid 0) or, with a gid, for
// that group too. A socket that a dead process left is replaced; one that somebody answers on, or a path that is not a
// socket, is ErrAlreadyExists. Closing the listener removes the socket.
func Listen(path string, gid int) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("CRI socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	mode := uint32(0o600)
	if gid != 0 {
		mode = 0o660
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		// bind gives the name the mode of the socket's inode: with it set before, nobody else can connect at any moment.
		// The umask would do the same to every file that other goroutines make meanwhile.
		cerr := raw.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), mode) })
		return errors.Join(cerr, err)
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("CRI socket: %w", err)
	}
	if gid != 0 {
		// The umask may have taken the group's bits.
		if err := Permit(path, gid); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Permit lets root and, with a gid, that group use a socket that Listen has made, and nobody else.
func Permit(path string, gid int) error {
	mode := fs.FileMode(0o600)
	if gid != 0 {
		mode = 0o660
	}
	// First what takes away.
	err := os.Chmod(path, 0o600)
	if err == nil {
		err = os.Chown(path, 0, gid)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		return fmt.Errorf("CRI socket: %w", err)
	}
	return nil
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("CRI socket: %w", err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("CRI socket: %s is there and is not a socket: %w", path, errdefs.ErrAlreadyExists)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = c.Close()
		return fmt.Errorf("CRI socket: another process answers on %s: %w", path, errdefs.ErrAlreadyExists)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
	default:
		// Full, slow or not permitted: somebody may well be there.
		return fmt.Errorf("CRI socket: %s: %w: %w", path, err, errdefs.ErrAlreadyExists)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("CRI socket: %w", err)
	}
	return nil
}
