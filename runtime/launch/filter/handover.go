package filter

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// descriptor is the first of the ExtraFiles of a libcontainer process.
const descriptor = 3

// seals are what tells a program that was handed over from all else that may be descriptor 3 of an init: its own pipes and
// sockets have none.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// Seal puts program into a file that nobody can change any more, nor execute. It is the caller's to close; in init it stays
// open until the workload is executed, so that libcontainer opens nothing of its own in its place.
func Seal(program []byte) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("seccomp", flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("seccomp", flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "seccomp")
	_, err = file.Write(program)
	if err == nil {
		_, err = unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Receive makes the program that the launcher handed over, if it did, the filter of this process. Init calls it before all
// else. It panics if there is a program that cannot be read: init must not go on with another filter than it should have.
func Receive() {
	if got, err := unix.FcntlInt(descriptor, unix.F_GET_SEALS, 0); err != nil || got&seals != seals {
		return
	}
	// libcontainer takes it for a descriptor that the workload is to get.
	unix.CloseOnExec(descriptor)
	var st unix.Stat_t
	err := unix.Fstat(descriptor, &st)
	if err != nil {
		panic(os.NewSyscallError("fstat", err))
	}
	program, err := unix.Mmap(descriptor, 0, int(st.Size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		panic(os.NewSyscallError("mmap", err))
	}
	give(program)
}

// readWhole returns the content of a file from its beginning.
func readWhole(file *os.File) ([]byte, error) {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(file)
}
