// Package atomicfile replaces small files so that a reader, and whoever looks after a crash of this process, sees the
// old content or the new one, whole.
package atomicfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces path by data. It does not sync: what it wrote survives the death of every process, and after the death
// of the kernel the file is the old one, the new one or, on some file systems, damaged; readers check.
func Write(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

// WriteJSON replaces path by the JSON of v.
func WriteJSON(path string, v any, mode fs.FileMode) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return Write(path, data, mode)
}
