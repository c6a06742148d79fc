package cgroups

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Unlimited is the value of a limit that is not set.
const Unlimited uint64 = math.MaxUint64

// pageCounterMax is how v1 writes "no limit": the largest number of whole 4 KiB pages in an int64 of bytes. Larger pages
// give a smaller number, so anything near it counts.
const pageCounterMax = math.MaxInt64 - 1<<20

// reader reads the files of one directory. A missing file is no error, it answers false. The first other error stays in
// err, and whatever is read after it may be anything.
type reader struct {
	dir string // "" has no files
	err error
}

func (r *reader) fail(file string, err error) {
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("read %s: %w", filepath.Join(r.dir, file), err)
	}
}

// text returns a file without the white space around.
func (r *reader) text(file string) (string, bool) {
	if r.dir == "" {
		return "", false
	}
	b, err := os.ReadFile(filepath.Join(r.dir, file))
	if err != nil {
		if !gone(err) && !errors.Is(err, unix.EOPNOTSUPP) { // the latter by pressure files while PSI is switched off
			r.fail(file, err)
		}
		return "", false
	}
	return strings.TrimSpace(string(b)), true
}

// number returns a file of one number; "max", "-1" and v1's largest number are [Unlimited].
func (r *reader) number(file string) (uint64, bool) {
	text, ok := r.text(file)
	if !ok {
		return 0, false
	}
	if text == "max" || text == "-1" {
		return Unlimited, true
	}
	n, err := strconv.ParseUint(text, 10, 64)
	r.fail(file, err)
	if n >= pageCounterMax {
		n = Unlimited
	}
	return n, err == nil
}

// table returns a file of lines "key number". Values that are no number are left out: new kernels add lines.
func (r *reader) table(file string) (map[string]uint64, bool) {
	text, ok := r.text(file)
	if !ok {
		return nil, false
	}
	out := make(map[string]uint64, 64)
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			out[key] = n
		}
	}
	return out, true
}

// gone says that a file or its cgroup is not there: an open one of a removed cgroup gives ENODEV.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
