package conffile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	large, err := os.Create(at("large"))
	if err == nil {
		err = errors.Join(large.Truncate(MaxSize+1), large.Close())
	}
	err = errors.Join(err, os.Mkdir(at("folder"), 0o755), unix.Mkfifo(at("pipe"), 0o600), os.Symlink("/dev/zero", at("device")),
		os.Symlink("loop", at("loop")), os.WriteFile(at("good"), []byte("text"), 0o600), os.Symlink("good", at("link")))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"large", "folder", "pipe", "device", "loop", "none"} {
		data, err := Read(at(name))
		if err == nil {
			t.Errorf("%s: %d bytes", name, len(data))
		}
		if check := Check(at(name)); check == nil || errors.Is(check, fs.ErrNotExist) != (name == "none") {
			t.Errorf("%s: %v", name, check)
		}
	}
	for _, name := range []string{"good", "link"} {
		if data, err := Read(at(name)); err != nil || string(data) != "text" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		if err := Check(at(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
