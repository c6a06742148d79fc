package handover

import (
	"os"
	"path/filepath"
	"testing"
)

// The folder of those that linger goes with the last of them, or at the next start; one who comes meanwhile does not mind.
func TestLingeringFolder(t *testing.T) {
	run := t.TempDir()
	folder := filepath.Join(run, lingeringDir)
	there := func(want bool, when string) {
		t.Helper()
		if _, err := os.Stat(folder); (err == nil) != want {
			t.Errorf("%s: %v", when, err)
		}
	}
	Tidy(run)
	l, err := Linger(run, "1")
	if err != nil {
		t.Fatal(err)
	}
	Tidy(run)
	there(true, "tidied with one in it")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	there(false, "closed")
	if err := os.Mkdir(folder, 0o700); err != nil { // by one that was killed
		t.Fatal(err)
	}
	Tidy(run)
	there(false, "tidied")

	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			default:
				Tidy(run)
			}
		}
	}()
	for range 30 {
		l, err := Linger(run, "1")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(end)
	<-ended
	there(false, "at the end")
}
