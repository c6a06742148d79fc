package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLogFile bounds the keeper's own log, in bytes; the one before is kept beside it.
const maxLogFile = 1 << 20

// LogFile is the keeper's own log: bounded, because a keeper lives as long as its node and its folder is memory. It is
// stderr too, so that a Go panic is not lost.
type LogFile struct {
	path string

	mu   sync.Mutex
	size int64
	file *os.File
}

// OpenLogFile opens the log at path and makes it this process' stdout and stderr.
func OpenLogFile(path string) (*LogFile, error) {
	l := &LogFile{path: path}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

func (l *LogFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	for _, fd := range []int{1, 2} {
		if err == nil {
			err = unix.Dup3(int(f.Fd()), fd, 0)
		}
	}
	if err != nil {
		f.Close()
		return err
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write adds one record.
func (l *LogFile) Write(record []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := os.Lstat(l.path); errors.Is(err, fs.ErrNotExist) {
		_ = l.open() // somebody has emptied the run dir
	}
	if l.size+int64(len(record)) > maxLogFile {
		// If that fails the old file goes on: too long a log is better than none.
		if err := os.Rename(l.path, l.path+".1"); err == nil {
			_ = l.open()
		}
	}
	n, err := l.file.Write(record)
	l.size += int64(n)
	return n, err
}
