package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWriteReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "facts.json")
	for _, content := range []string{"a longer first content", "short"} {
		if err := Write(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("read %q, %v; want %q", got, err, content)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode: %v, %v", st.Mode(), err)
	}
	wantOnly(t, filepath.Dir(path), "facts.json")
}

func TestAFailureLeavesTheOldFileAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "target")
	if err := os.Mkdir(path, 0o755); err != nil { // a folder cannot be replaced by a file
		t.Fatal(err)
	}
	if err := Write(path, []byte("x"), 0o600); err == nil {
		t.Error("Write replaced a folder")
	}
	if err := WriteJSON(path, func() {}, 0o600); err == nil {
		t.Error("WriteJSON encoded a function")
	}
	wantOnly(t, dir, "target")
}

// What a writer leaves that is killed after each of its steps goes, and nothing else does.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "facts.json")
	if err := Write(path, []byte("whole"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, written := range []string{"", "ha"} {
		_, fd, err := createTemp(path)
		if err == nil {
			err = fill(fd, []byte(written), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	wantOnly(t, dir, "facts.json")
	if err := Sweep(filepath.Join(dir, "none")); err != nil {
		t.Errorf("of a folder that is not there: %v", err)
	}
}

// wantOnly checks that no temporary file is left.
func wantOnly(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != name {
		t.Errorf("%s holds %v, %v; want only %s", dir, entries, err, name)
	}
}

// What stands where a file should be must neither hold up who reads it nor fill his memory.
func TestReadRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	huge, err := os.Create(at("huge"))
	if err == nil {
		err = errors.Join(huge.Truncate(maxSize+1), huge.Close())
	}
	if err := errors.Join(err, os.Mkdir(at("folder"), 0o755), unix.Mkfifo(at("pipe"), 0o600), os.Symlink("huge", at("link"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"huge", "folder", "pipe", "link"} {
		if data, err := Read(at(name)); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %d bytes, %v", name, len(data), err)
		}
	}
	if _, err := Read(at("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := os.WriteFile(at("good"), []byte(`{"a":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var v struct{ A int }
	if err := ReadJSON(at("good"), &v); err != nil || v.A != 1 {
		t.Errorf("good: %+v, %v", v, err)
	}
	if err := os.WriteFile(at("torn"), []byte(`{"a":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadJSON(at("torn"), &v); err == nil {
		t.Error("half a file was read")
	}
}
