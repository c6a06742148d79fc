package server

import (
	"errors"
	"os"
	"testing"
)

// A signal may meet a pidfd that is being closed: its process has just ended, and that is no failure.
func TestControlOfAClosedFile(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	ran := false
	if err := control(f, func(int) error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("open: %v", err)
	}
	f.Close()
	if err := control(f, func(int) error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
