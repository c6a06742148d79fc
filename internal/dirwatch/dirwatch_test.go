package dirwatch

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What is missing at the beginning, deleted, moved away, or gone with the folder itself comes back.
func TestWhatGoesComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "watched")
	file := filepath.Join(dir, "file")
	made := make(chan struct{}, 100)
	mend := func() {
		if _, err := os.Stat(file); err == nil {
			return
		}
		_ = os.Mkdir(dir, 0o700)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return // taken away between the two: there comes another event
		}
		made <- struct{}{}
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
		{"remove all", func() error { return os.RemoveAll(dir) }},
		{"remove again", func() error { return os.Remove(file) }},
	} {
		if err := take.do(); err != nil {
			t.Fatal(take.what, err)
		}
		select {
		case <-made:
		case <-time.After(20 * time.Second):
			t.Fatal(take.what, ": it does not come back")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
