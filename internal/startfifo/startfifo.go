// Package startfifo is how libcontainer's init waits for its start, such that whoever lets it go may die over it.
//
// Init, when all is ready, opens its exec FIFO for writing, writes a byte, and becomes the workload. libcontainer means it to
// wait in the open, for a reader. But a reader that dies before the byte comes makes the write fail, and init with it. So
// init has the FIFO open for itself, and full (Block; Blocking for one that is handed it): it waits in the write, for room. Who
// lets it go takes everything out (LetGo), at once and for good: then there is room whoever lives, the byte has a reader in init
// itself, and until it goes nobody can tell the FIFO for a full one (Blocked). To open the FIFO, or to have it open, means nothing.
package startfifo

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// variable of init's environment has the number of its descriptor of the FIFO, which can be opened through /proc alone.
const variable = "_LIBCONTAINER_FIFOFD"

// BlockInit is Block for the init that this process is to be, if it is one that will wait. It is called before libcontainer is.
func BlockInit() error {
	if fd := os.Getenv(variable); fd != "" {
		return Block("/proc/self/fd/" + fd)
	}
	return nil
}

// Block makes this process wait when it writes to the FIFO at path, until somebody has called LetGo. The descriptor for
// that lasts until the next program is executed.
func Block(path string) error {
	_, err := fill(path)
	return err
}

// Blocking returns the FIFO at path, open for an init that is to be handed it: who writes to it waits until somebody has called
// LetGo, and has to hold it open until then. It is the caller's to close.
func Blocking(path string) (*os.File, error) {
	fd, err := fill(path)
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, false)) // it is to wait
	}
	if err != nil {
		unix.Close(fd) // or -1
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// fill opens the FIFO at path for reading and writing, and leaves no room in it.
func fill(path string) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fd, fmt.Errorf("open the FIFO that the start waits at: %w", err)
	}
	// One page, so that it is either full or has room: no part of it can be taken out.
	page := make([]byte, os.Getpagesize())
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, len(page)); err != nil {
		return fd, fmt.Errorf("F_SETPIPE_SZ: %w", err)
	}
	if n, err := unix.Write(fd, page); err != nil || n != len(page) {
		return fd, fmt.Errorf("fill the FIFO that the start waits at: %d bytes, %w", n, err)
	}
	return fd, nil
}

// Open opens the FIFO for the two functions below.
func Open(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// LetGo lets init go, if nobody has, and says whether its byte was there. If not, that comes when fd can be read.
func LetGo(fd uintptr) (gone bool) {
	page := make([]byte, os.Getpagesize())
	for {
		n, err := unix.Read(int(fd), page)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || n == 0:
			return gone
		default:
			gone = gone || bytes.ContainsFunc(page[:n], func(r rune) bool { return r != 0 })
		}
	}
}

// Blocked says whether init waits, or will when it gets there. Of one that has died it says no.
func Blocked(fd uintptr) (bool, error) {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	return n >= os.Getpagesize(), os.NewSyscallError("TIOCINQ", err)
}
