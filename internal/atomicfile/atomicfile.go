// Package atomicfile replaces small files so that a reader, and whoever looks after a crash of this process, sees the
// old content or the new one, whole.
package atomicfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Write replaces path by data. It does not sync: what it wrote survives the death of every process, and after the death
// of the kernel the file is the old one, the new one or, on some file systems, damaged; readers check.
//
// Records are written some twenty times in the life of a pod. An os.File would be a dozen system calls more each time: it is
// offered to the poller, which takes no regular files.
func Write(path string, data []byte, mode fs.FileMode) error {
	temp, fd, err := createTemp(path)
	if err == nil {
		err = fill(fd, data, mode)
		if err == nil {
			// Not os.Rename, which looks at what is there first.
			err = os.NewSyscallError("rename", unix.Rename(temp, path))
		}
		if err != nil {
			_ = os.Remove(temp)
		}
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

// Sweep removes from a folder what writers that were killed in the middle of a Write have left in it: whatever is a file and has
// a name that begins with a dot. Nobody may be writing there. A folder that is not there has nothing of the kind.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && e.Type().IsRegular() {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// createTemp makes an empty file beside path. Its name is what Sweep knows it by.
func createTemp(path string) (temp string, fd int, err error) {
	prefix := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".")
	for {
		temp = prefix + strconv.FormatUint(rand.Uint64(), 36)
		err = again(func() (err error) {
			fd, err = unix.Open(temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
			return err
		})
		if !errors.Is(err, unix.EEXIST) {
			return temp, fd, os.NewSyscallError("open", err)
		}
	}
}

// fill writes data to a new file and closes it.
func fill(fd int, data []byte, mode fs.FileMode) (err error) {
	for len(data) > 0 && err == nil {
		err = again(func() error {
			n, err := unix.Write(fd, data)
			data = data[max(n, 0):]
			return err
		})
	}
	err = os.NewSyscallError("write", err)
	if err == nil && mode != 0o600 {
		err = os.NewSyscallError("fchmod", unix.Fchmod(fd, uint32(mode.Perm())))
	}
	return errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
}

// again repeats a system call that a signal has interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// WriteJSON replaces path by the JSON of v.
func WriteJSON(path string, v any, mode fs.FileMode) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return Write(path, data, mode)
}

// maxSize bounds what Read takes in: the largest of these files is the record of an image, with a manifest of at most
// some megabytes in it.
const maxSize = 64 << 20

// Read reads a file that may be damaged in any way. It neither waits nor takes in without end what a pipe, a device or a
// huge file would give, as os.ReadFile does: such a file is an error.
func Read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: it is no regular file but %s", path, st.Mode())
	}
	if st.Size() > maxSize {
		return nil, fmt.Errorf("read %s: it has %d bytes, more than such a file can have", path, st.Size())
	}
	return io.ReadAll(io.LimitReader(f, maxSize))
}

// ReadJSON reads the JSON of a file into v.
func ReadJSON(path string, v any) error {
	data, err := Read(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
