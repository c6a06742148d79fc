package network

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// damagedSuffix is added to the name of a file that cannot be used, so that it is in nobody's way and can be looked at.
const damagedSuffix = ".damaged"

// setAside renames a file that cannot be used. Where it cannot be renamed it stays: nothing waits for it.
func setAside(log *slog.Logger, path string, cause error, consequence string) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return // nothing to look at, and what was set aside before stays
	}
	err := os.RemoveAll(path + damagedSuffix)
	if err == nil {
		err = os.Rename(path, path+damagedSuffix)
	}
	log.Error("a damaged record of the network was set aside", "path", path+damagedSuffix, "cause", cause, "consequence", consequence, "err", err)
}

// damagedIn says which files in these folders were set aside.
func damagedIn(dirs ...string) []string {
	var out []string
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*"+damagedSuffix))
		if err != nil {
			continue // the pattern is good
		}
		for _, f := range files {
			out = append(out, fmt.Sprintf("%s: a record of the network that could not be read; see the daemon's log", f))
		}
	}
	return out
}

// removeRecord deletes the record of what is undone. On a file system that is read-only by now the record stays, and
// keeps no sandbox from its end: the next Restore undoes the same once more, where nothing is.
func removeRecord(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EROFS) {
		return err
	}
	return nil
}
