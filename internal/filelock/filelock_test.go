package filelock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOneOwnerAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	// A second open file is a second owner, also in the same process.
	_, err = Acquire(path)
	if err == nil || !strings.HasSuffix(err.Error(), fmt.Sprint("is locked by process ", os.Getpid())) {
		t.Errorf("second owner: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	release, err = Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
}

func TestNoFolder(t *testing.T) {
	if _, err := Acquire(filepath.Join(t.TempDir(), "none", "lock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Acquire: %v", err)
	}
}
