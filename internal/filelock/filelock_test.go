package filelock

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOneOwnerAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	lock, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := Holder(path); err != nil || pid != os.Getpid() {
		t.Errorf("holder %d, %v", pid, err)
	}
	// A second open file is a second owner, also in the same process.
	_, err = Acquire(path)
	if !errors.Is(err, ErrLocked) || !strings.HasSuffix(err.Error(), fmt.Sprint("is locked by process ", os.Getpid())) {
		t.Errorf("second owner: %v", err)
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	if pid, err := Holder(path); err != nil || pid != 0 {
		t.Errorf("holder %d, %v, of a lock that nobody has", pid, err)
	}
	lock, err = Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
}

// A lock that is handed over is never free in between.
func TestAdopt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(first.File().Fd(), unix.F_DUPFD_CLOEXEC, 0) // as it comes through a socket
	if err != nil {
		t.Fatal(err)
	}
	second, err := Adopt(os.NewFile(uintptr(fd), "lock"), path)
	if err != nil {
		t.Fatal(err)
	}
	freed := make(chan error, 1)
	go func() { freed <- Wait(path) }()
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(path); err == nil {
		t.Error("the end of the first ended the second")
	}
	select {
	case <-freed:
		t.Error("Wait did not wait for the second")
	default:
	}
	if err := second.Release(); err != nil {
		t.Fatal(err)
	}
	if err := <-freed; err != nil {
		t.Error(err)
	}

	third, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Release()
	other, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(other, path); err == nil {
		t.Error("a file that holds no lock was adopted")
	}
	stranger, err := os.Create(filepath.Join(t.TempDir(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(stranger, path); err == nil {
		t.Error("another file was adopted")
	}
}

// A holder that was killed while it started a program: the child has the lock until its execve.
func TestTheHoldersChildGoesOnItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := held.f.WriteAt([]byte(fmt.Sprintln(dead.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(3 * glanceLimit)
		held.Release()
	}()
	lock, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	lock.Release()
}

func TestNoFolder(t *testing.T) {
	if _, err := Acquire(filepath.Join(t.TempDir(), "none", "lock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Acquire: %v", err)
	}
}
