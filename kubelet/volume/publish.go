package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The names in a volume of content, as upstream's and so as programs know them: a program follows changes by watching
// ..data. What begins with two dots is ours, everything else in the volume's folder is a link through it:
//
//	..2026_11_21_12_00_00.123456789/dir/file   the content
//	..data → ..2026_11_21_12_00_00.123456789   replaced at one stroke
//	dir → ..data/dir
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
	dataFormat  = "..2006_01_02_15_04_05."
)

// publish makes files the content of dir: who opens files there finds all of the old ones or all of the new ones. own is
// called before the new ones can be seen, to give everything to whom it belongs.
func publish(dir string, files content, own func() error) error {
	for path := range files {
		if err := validPath(path); err != nil {
			return err
		}
	}
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if current == "" || !has(filepath.Join(dir, current), files) {
		if current, err = writeNew(dir, files, own); err != nil {
			return err
		}
	}
	// Also where nothing has changed: an earlier call may have been cut off after the change.
	return errors.Join(link(dir, files), clear(dir, current, files))
}

// writeNew writes files into a new folder and makes ..data lead there.
func writeNew(dir string, files content, own func() error) (name string, err error) {
	made, err := os.MkdirTemp(dir, time.Now().UTC().Format(dataFormat))
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(made)
		}
	}()
	if err := os.Chmod(made, 0o755); err != nil {
		return "", err
	}
	for path, f := range files {
		if err := writeFile(filepath.Join(made, path), f); err != nil {
			return "", err
		}
	}
	if err := own(); err != nil {
		return "", err
	}
	name = filepath.Base(made)
	temporary := filepath.Join(dir, newDataLink)
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.Symlink(name, temporary); err != nil {
		return "", err
	}
	return name, os.Rename(temporary, filepath.Join(dir, dataLink))
}

func writeFile(path string, f file) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, f.data, f.mode); err != nil {
		return err
	}
	return os.Chmod(path, f.mode) // whatever the umask is
}

// has says that the folder has these files, with this content, and no others.
func has(dir string, files content) bool {
	same := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		data, err := os.ReadFile(path)
		f, known := files[name]
		if err != nil || !known || !bytes.Equal(data, f.data) {
			return errors.Join(err, fs.ErrInvalid)
		}
		same++
		return nil
	})
	return err == nil && same == len(files)
}

// link makes the links that are missing.
func link(dir string, files content) error {
	for path := range files {
		name, _, _ := strings.Cut(path, "/")
		err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// clear removes what earlier contents have left: links that lead nowhere, and folders that ..data leads to no more.
func clear(dir, current string, files content) error {
	wanted := map[string]bool{dataLink: true, current: true}
	for path := range files {
		name, _, _ := strings.Cut(path, "/")
		wanted[name] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		ours := strings.HasPrefix(e.Name(), "..") || e.Type() == fs.ModeSymlink // else a mount point, see makeNested
		if ours && !wanted[e.Name()] {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

const (
	nameMax = 255
	pathMax = 4096
)

// validPath refuses what would lead out of the volume, or into what is ours of it. Keys have no slash, paths of items are
// validated; both may come from objects that nobody has checked.
func validPath(path string) error {
	switch {
	case path == "" || path == ".":
		return fmt.Errorf("invalid path: must not be empty: %q", path)
	case filepath.IsAbs(path):
		return fmt.Errorf("invalid path: must be relative path: %s", path)
	case len(path) > pathMax:
		return fmt.Errorf("invalid path: must be less than or equal to %d characters", pathMax)
	case strings.HasPrefix(path, ".."):
		return fmt.Errorf("invalid path: must not start with '..': %s", path)
	}
	for part := range strings.SplitSeq(path, "/") {
		switch {
		case part == "..":
			return fmt.Errorf("invalid path: must not contain '..': %s", path)
		case len(part) > nameMax:
			return fmt.Errorf("invalid path: filenames must be less than or equal to %d characters", nameMax)
		}
	}
	return nil
}
