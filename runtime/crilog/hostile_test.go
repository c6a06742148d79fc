package crilog

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A log's place that somebody else has taken is not written to: not through a link, neither at the start nor after a
// rotation, and not into a FIFO.
func TestLogIsAFileOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	secret, path := filepath.Join(dir, "secret"), filepath.Join(dir, "log")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(path, path+".1"), os.Symlink(secret, path)); err != nil {
		t.Fatal(err)
	}
	if err := w.Reopen(); !errors.Is(err, unix.ELOOP) {
		t.Errorf("reopened through a link: %v", err)
	}
	w.Write(Stdout, time.Now(), []byte("line\n"))
	if err := w.Close(time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := Open(path, 0); !errors.Is(err, unix.ELOOP) {
		t.Errorf("opened through a link: %v", err)
	}
	if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, 0); err == nil {
		t.Error("a FIFO was taken for a log")
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
	if st, err := os.Stat(path + ".1"); err != nil || st.Size() == 0 {
		t.Errorf("what was written after the failed rotation is lost: %v", err)
	}
}
