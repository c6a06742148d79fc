package dirwatch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is missing at the beginning, deleted, moved away, or gone with the folder itself comes back.
func TestWhatGoesComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "watched")
	file := filepath.Join(dir, "file")
	mend := func() {
		if _, err := os.Stat(file); err == nil {
			return
		}
		_ = os.Mkdir(dir, 0o700)
		_ = os.WriteFile(file, nil, 0o600) // if it was taken away between the two, there comes another event
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- Watch(ctx, dir, mend) }()
	for _, take := range []struct {
		what string
		do   func() error
	}{
		{"nothing", func() error { return nil }},
		{"remove", func() error { return os.Remove(file) }},
		{"rename", func() error { return os.Rename(file, dir+".away") }},
		{"remove all", func() error {
			err := os.RemoveAll(dir)
			for errors.Is(err, unix.ENOTEMPTY) { // something of it is back already
				err = os.RemoveAll(dir)
			}
			return err
		}},
		{"remove again", func() error { return os.Remove(file) }},
	} {
		if err := take.do(); err != nil {
			t.Fatal(take.what, err)
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(file); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatal(take.what, ": it does not come back")
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What is taken away before the folder is watched for the first time comes back too.
func TestGoneBeforeTheWatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "watched")
	file := filepath.Join(dir, "file")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended, times := make(chan error), 0
	back := make(chan struct{})
	mend := func() {
		if _, err := os.Stat(file); err == nil {
			return
		}
		_ = os.Mkdir(dir, 0o700)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Error(err)
		}
		if times++; times == 1 {
			if err := os.Remove(file); err != nil { // by somebody else, at once
				t.Error(err)
			}
			return
		}
		close(back)
	}
	go func() { ended <- Watch(ctx, dir, mend) }()
	select {
	case <-back:
	case <-time.After(20 * time.Second):
		t.Error("it does not come back")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
