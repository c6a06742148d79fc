package nri

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// hangUp ends the connections that plugins have made to the socket at path. The library leaves them open when it stops, and knows
// no other way: as long as this process lives for something else, plugins would wait for a word of it and not connect to the next.
func hangUp(path string) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		hangUpAt(fd, path)
	}
	return nil
}

// hangUpAt does so for one descriptor, if it is of such a connection. What the descriptor is of may change any moment; a copy stays
// what it is.
func hangUpAt(fd int, path string) {
	if !isBoundTo(fd, path) {
		return // nor is it copied: the end of a copy is a close, and may wait for the file's own file system
	}
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return // closed meanwhile
	}
	defer unix.Close(copied)
	if isBoundTo(copied, path) {
		_ = unix.Shutdown(copied, unix.SHUT_RDWR) // the plugin may have gone
	}
}

func isBoundTo(fd int, path string) bool {
	local, err := unix.Getsockname(fd)
	at, isUnix := local.(*unix.SockaddrUnix)
	return err == nil && isUnix && at.Name == path
}
