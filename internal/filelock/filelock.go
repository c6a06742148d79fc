// Package filelock lets one process at a time own a folder.
package filelock

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/procfs"
)

// A Lock is held until Release, or until this process ends, however it ends; and as long as another process has its File,
// which is the same lock.
type Lock struct{ f *os.File }

// ErrLocked is what Acquire fails with if somebody else has the lock.
var ErrLocked = errors.New("locked")

type lockedError struct{ path, holder string }

func (e *lockedError) Error() string        { return fmt.Sprintf("%s is locked by %s", e.path, e.holder) }
func (e *lockedError) Is(target error) bool { return target == ErrLocked }

// Acquire locks the file, which it makes if need be and leaves behind. It does not wait for another process that holds the
// lock: that is an error that names it.
func Acquire(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) {
		f, err = os.Open(path) // enough for a lock
	}
	if err != nil {
		return nil, err
	}
	if err := lockSoon(f); err != nil {
		holder := readHolder(f)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &lockedError{path, holder}
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	l := &Lock{f}
	_ = l.Sign() // a disk that is full or read-only is locked all the same
	return l, nil
}

const (
	lookAgain = 5 * time.Millisecond
	// glanceLimit is how long somebody may hold the lock who only looks, see Holder and Wait.
	glanceLimit = 100 * time.Millisecond
	// childLimit is how long the child of a holder that was killed may take to its execve. Until then it has all of its
	// parent's descriptors, also those that are closed on exec; a machine with much to do does not let it run for long.
	childLimit = 10 * time.Second
)

// lockSoon locks f, unless a process that lives has it.
func lockSoon(f *os.File) error {
	for began := time.Now(); ; time.Sleep(lookAgain) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if took := time.Since(began); took > childLimit || took > glanceLimit && signerLives(f) {
			return err
		}
	}
}

// signerLives says whether the process that has signed the lock is there; it is true if that cannot be told.
func signerLives(f *os.File) bool {
	pid, err := signer(f)
	if err != nil {
		return true
	}
	st, err := procfs.ReadStat(pid)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	return err != nil || st.State != 'Z' && st.State != 'X'
}

// Adopt takes over the lock of path that another process holds and has handed over as a file, which is the Lock's from now
// on, also after an error.
func Adopt(f *os.File, path string) (*Lock, error) {
	l := &Lock{f}
	want, err := os.Stat(path)
	if err != nil {
		return nil, errors.Join(err, l.Release())
	}
	got, err := f.Stat()
	if err == nil && !os.SameFile(got, want) {
		err = fmt.Errorf("lock %s: what was handed over is another file", path)
	}
	if err == nil {
		// Of an open file that holds the lock this is true at once, whoever opened it.
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), l.Release())
	}
	_ = l.Sign() // as in Acquire
	return l, nil
}

// Sign writes who holds the lock. That is for people, and for who wants to send a signal; the kernel knows better.
func (l *Lock) Sign() error {
	err := l.f.Truncate(0)
	if err == nil {
		_, err = l.f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return err
}

// IsAt says whether path still names the locked file: with another one there, or none, somebody else could lock it too.
func (l *Lock) IsAt(path string) bool {
	named, err := os.Lstat(path)
	if err != nil {
		return false
	}
	held, err := l.f.Stat()
	return err == nil && os.SameFile(held, named)
}

// File is the lock itself, to be handed to another process; it stays the Lock's.
func (l *Lock) File() *os.File { return l.f }

// Release gives up the lock, or this process's part of it.
func (l *Lock) Release() error { return l.f.Close() }

// Holder returns the process that holds the lock of path; 0 if nobody does.
func Holder(path string) (pid int, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return 0, nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, fmt.Errorf("lock %s: %w", path, err)
	}
	return signer(f)
}

// signer reads who signed last.
func signer(f *os.File) (pid int, err error) {
	data := make([]byte, 32)
	n, err := f.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data[:n])))
}

// Wait returns when nobody holds the lock of path any more.
func Wait(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH)
		if err != unix.EINTR {
			return err
		}
	}
}

func readHolder(f *os.File) string {
	if pid, err := signer(f); err == nil {
		return fmt.Sprint("process ", pid)
	}
	return "another process"
}
