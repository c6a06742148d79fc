package filter

import (
	"bytes"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/memfile"
)

// descriptor is the first of the ExtraFiles of a libcontainer process.
const descriptor = 3

// Seal puts program into a file that nobody can change any more, nor execute. It is the caller's to close; in init it stays
// open until the workload is executed, so that libcontainer opens nothing of its own in its place.
func Seal(program []byte) (*os.File, error) {
	return memfile.Sealed("seccomp", memfile.Data, bytes.NewReader(program))
}

// Receive makes the program that the launcher handed over, if it did, the filter of this process. Init calls it before all
// else. It panics if there is a program that cannot be read: init must not go on with another filter than it should have.
func Receive() {
	// The seals tell it from all else that may be descriptor 3 of an init: its own pipes and sockets have none.
	if got, err := unix.FcntlInt(descriptor, unix.F_GET_SEALS, 0); err != nil || got&memfile.Seals != memfile.Seals {
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
