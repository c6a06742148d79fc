// Package conffile looks at configuration that others write, in folders shared with other programs, before it is read: there may be
// anything in a file's place. A pipe would hold up its reader for good, a device fill its memory.
package conffile

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// MaxSize bounds such a file, in bytes.
const MaxSize = 4 << 20

// Read reads a file, or what a link leads to.
func Read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := check(path, f.Stat); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, MaxSize))
}

// Check is for files that a library reads. It is nil for one that can be read without waiting, and that is not too large.
func Check(path string) error {
	return check(path, func() (os.FileInfo, error) { return os.Stat(path) })
}

func check(path string, stat func() (os.FileInfo, error)) error {
	st, err := stat()
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return fmt.Errorf("read %s: it is no regular file but %s", path, st.Mode())
	case st.Size() > MaxSize:
		return fmt.Errorf("read %s: it has %d bytes, and may have %d", path, st.Size(), MaxSize)
	}
	return nil
}
