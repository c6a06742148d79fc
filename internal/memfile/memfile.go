// Package memfile makes files that live in memory alone and cannot be changed: what one process hands to another.
package memfile

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Seals are those of every file of Sealed.
const Seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// A Kind says what a file is for. A kernel may be set to refuse memory files that do not say so.
type Kind int

// The kinds of files.
const (
	Data Kind = iota
	Program
)

// Sealed returns a file with what src gives, close-on-exec, which nobody can change any more; its name shows in /proc. It is
// the caller's to close.
func Sealed(name string, kind Kind, src io.Reader) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	purpose := map[Kind]int{Data: unix.MFD_NOEXEC_SEAL, Program: unix.MFD_EXEC}[kind]
	fd, err := unix.MemfdCreate(name, flags|purpose)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 no file says what it is for, and every one is executable
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = io.Copy(f, src)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, Seals)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
