// Package rotate keeps the logs of containers that run from growing without end, as upstream's kubelet does
// (pkg/kubelet/logs): a log that has reached its size is renamed, and what was renamed before is compressed, and in the end
// removed.
package rotate

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Log is that of a container that runs.
type Log struct{ ID, Path string }

// Config is what a Rotator needs. All fields are required.
type Config struct {
	// MaxSize is the size in bytes from which on a log is rotated.
	MaxSize int64
	// MaxFiles is how many files there are of one container's log at most, at least 2: the one that is written, and old ones.
	MaxFiles int
	// Interval is how often the logs are looked at: nobody tells when one has grown.
	Interval time.Duration
	Logs     func() []Log
	// Reopen has what a container says from now on go to a new file at its path.
	Reopen func(ctx context.Context, id string) error
	Now    func() time.Time
	Log    *slog.Logger
}

// Suffixes of old files: the time of the rotation in upstream's form, with compressed if it has been done, and unfinished while it is.
const (
	stamp      = "20060102-150405"
	compressed = ".gz"
	unfinished = ".tmp"
)

// A Rotator rotates the logs of one node.
type Rotator struct{ cfg Config }

// New returns one that has looked at nothing yet.
func New(cfg Config) *Rotator { return &Rotator{cfg} }

// Run looks at the logs until ctx ends.
func (r *Rotator) Run(ctx context.Context) {
	tick := time.NewTicker(r.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.Step(ctx)
		}
	}
}

// Step looks at each log once. What fails with one keeps it from no other, and is tried again.
func (r *Rotator) Step(ctx context.Context) {
	for _, l := range r.cfg.Logs() {
		if ctx.Err() != nil {
			return
		}
		if err := r.look(ctx, l); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("the log of a container could not be rotated", "container", l.ID, "path", l.Path, "err", err)
		}
	}
}

func (r *Rotator) look(ctx context.Context, l Log) error {
	info, err := os.Stat(l.Path)
	if errors.Is(err, fs.ErrNotExist) {
		// Somebody has taken it away, or a daemon ended after it had renamed it.
		return r.cfg.Reopen(ctx, l.ID)
	}
	if err != nil || info.Size() < r.cfg.MaxSize {
		return err
	}
	return errors.Join(r.shorten(l.Path), r.rename(ctx, l))
}

// shorten makes room for one more old file, and compresses those that there are: they have all been read by those who follow the log.
func (r *Rotator) shorten(path string) error {
	old, err := tidy(path)
	if err != nil {
		return err
	}
	// One more is about to come, and the one that is written counts as well.
	excess := max(0, len(old)-(r.cfg.MaxFiles-2))
	for _, file := range old[:excess] {
		err = errors.Join(err, remove(file))
	}
	for _, file := range old[excess:] {
		if !strings.HasSuffix(file, compressed) {
			err = errors.Join(err, compress(file))
		}
	}
	return err
}

// tidy returns the old files of a log, the oldest first, without what a compression left that was cut short: that is removed.
func tidy(path string) (old []string, err error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+".") {
			all = append(all, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	for _, file := range all {
		if strings.HasSuffix(file, unfinished) || slices.Contains(all, file+compressed) {
			err = errors.Join(err, remove(file))
			continue
		}
		old = append(old, file)
	}
	return old, err // which are sorted, and so are times
}

// compress puts a compressed file in the place of one.
func compress(file string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	partial := file + unfinished
	if err := squeeze(in, partial, info.Mode().Perm()); err != nil {
		return errors.Join(fmt.Errorf("compress %s: %w", file, err), remove(partial))
	}
	if err := os.Rename(partial, file+compressed); err != nil {
		return err
	}
	return remove(file)
}

func squeeze(in io.Reader, to string, mode fs.FileMode) error {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	w := gzip.NewWriter(out)
	_, err = io.Copy(w, in)
	return errors.Join(err, w.Close(), out.Close())
}

// rename has the container begin a new file.
func (r *Rotator) rename(ctx context.Context, l Log) error {
	old := l.Path + "." + r.cfg.Now().Format(stamp)
	for _, taken := range []string{old, old + compressed} {
		if _, err := os.Lstat(taken); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("%s is there already", taken), err)
		}
	}
	if err := os.Rename(l.Path, old); err != nil {
		return err
	}
	if err := r.cfg.Reopen(ctx, l.ID); err != nil {
		return errors.Join(err, back(old, l.Path)) // it is written on
	}
	return nil
}

// back gives a log its name again, if the container has not begun a new one after all.
func back(old, path string) error {
	if err := os.Link(old, path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return os.Remove(old)
}

func remove(file string) error {
	if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
