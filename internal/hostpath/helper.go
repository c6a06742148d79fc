package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// helperName is the name by which this program knows that it is the helper.
const helperName = "berth-lookup"

// DefaultLimit is how long a file system may take to answer.
const DefaultLimit = 10 * time.Second

// A Resolver looks paths up. The zero value has no helper: it looks up everything itself, as tests do.
type Resolver struct {
	// Program is the program that calls Main first of all, usually /proc/self/exe. Empty: none.
	Program string
	// Limit is how long a file system may take to answer. 0 is DefaultLimit.
	Limit time.Duration

	mu    sync.Mutex
	asked map[errand]*question // until the helper has come back
}

// An errand is what a helper is to do with a path.
type errand struct{ do, path string }

const (
	doResolve  = "resolve"
	doMode     = "mode"
	doMakeFile = "make-file"
)

// A question is a helper on its way.
type question struct {
	since  time.Time
	done   chan struct{} // closed when answer and err are set
	answer string
	err    error
}

// Resolve follows the symbolic links of an absolute path; a folder that is not there is made. Where a file system does not
// answer in time the error is an ErrUnavailable with the path. As long as a helper stands in the kernel there, it fails at
// once: they do not pile up.
func (r *Resolver) Resolve(ctx context.Context, path string) (string, error) {
	if r.Program == "" {
		return plain(path)
	}
	real, err := lookUp(path, openCached)
	switch {
	case errors.Is(err, errRemote):
		return r.ask(ctx, errand{doResolve, path})
	case tooOld(err):
		return plain(path)
	}
	return real, err
}

// tooOld says that the kernel is older than Linux 5.12.
func tooOld(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) }

// Mode returns the type and mode of what an absolute path leads to, making nothing. If there is nothing the error is an
// fs.ErrNotExist; else as Resolve's.
func (r *Resolver) Mode(ctx context.Context, path string) (fs.FileMode, error) {
	if r.Program == "" {
		return plainMode(path)
	}
	mode, err := modeOf(path, openCached)
	switch {
	case errors.Is(err, errRemote):
		answer, err := r.ask(ctx, errand{doMode, path})
		if err != nil {
			return 0, err
		}
		if answer == "" {
			return 0, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
		}
		number, err := strconv.ParseUint(answer, 10, 32)
		return fs.FileMode(number), err
	case tooOld(err):
		return plainMode(path)
	}
	return mode, err
}

// MakeFile makes an empty file in a folder that is there. One that is there already is no error.
func (r *Resolver) MakeFile(ctx context.Context, path string) error {
	if r.Program == "" {
		return plainFile(path)
	}
	_, err := follow(filepath.Dir(path), openCached, false, maxLinks)
	switch {
	case errors.Is(err, errRemote):
		_, err = r.ask(ctx, errand{doMakeFile, path})
		return err
	case err != nil && !tooOld(err):
		return err
	}
	// The folder may be where something that hangs is mounted.
	if remote, err := onRemote(filepath.Dir(path)); err != nil {
		return err
	} else if remote {
		_, err = r.ask(ctx, errand{doMakeFile, path})
		return err
	}
	return plainFile(path)
}

func plainMode(path string) (fs.FileMode, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return st.Mode(), nil
}

func plainFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// plain looks a path up whatever it is on.
func plain(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", err
		}
		return filepath.EvalSymlinks(path)
	}
	return real, err
}

// ask has a helper look a path up, or waits for the one that is there.
func (r *Resolver) ask(ctx context.Context, e errand) (string, error) {
	limit := r.limit()
	q, err := r.begin(e, limit)
	if err != nil {
		return "", err
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-q.done:
		return q.answer, q.err
	case <-ctx.Done():
		return "", fmt.Errorf("look up %s: %w", e.path, ctx.Err())
	case <-timer.C:
		return "", fmt.Errorf("look up %s: no answer within %s: %w", e.path, limit, errdefs.ErrUnavailable)
	}
}

// begin sends a helper to a path, unless one is there, or stands too long already at it or at a folder above.
func (r *Resolver) begin(e errand, limit time.Duration) (*question, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.stands(e.path, limit); err != nil {
		return nil, err
	}
	if q := r.asked[e]; q != nil {
		return q, nil
	}
	q := &question{since: time.Now(), done: make(chan struct{})}
	var out, complaint strings.Builder
	cmd := exec.Command(r.Program)
	cmd.Args = []string{helperName, e.do, e.path}
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("look up %s: %w", e.path, err)
	}
	if r.asked == nil {
		r.asked = map[errand]*question{}
	}
	r.asked[e] = q
	kill := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() }) // it goes when the kernel lets it
	go func() {
		err := cmd.Wait()
		kill.Stop()
		if err != nil {
			err = fmt.Errorf("look up %s: %w: %s", e.path, err, strings.TrimSpace(complaint.String()))
		}
		r.mu.Lock()
		delete(r.asked, e)
		r.mu.Unlock()
		q.answer, q.err = out.String(), err
		close(q.done)
	}()
	return q, nil
}

// stands says that a helper stands at a path, or at a folder above it, for longer than limit; r.mu is held.
func (r *Resolver) stands(path string, limit time.Duration) error {
	for other, q := range r.asked {
		above := other.path == path || strings.HasPrefix(path, other.path+"/")
		if above && time.Since(q.since) > limit {
			return fmt.Errorf("%s has not answered for %s: %w", other.path, time.Since(q.since).Round(time.Second), errdefs.ErrUnavailable)
		}
	}
	return nil
}

// Main is the helper, if this process was started as such: it does its errand, prints the answer, and exits. Otherwise it
// returns at once.
func Main() {
	if len(os.Args) != 3 || os.Args[0] != helperName {
		return
	}
	if os.Args[1] == doServe {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	answer, err := errand{os.Args[1], os.Args[2]}.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(answer)
	os.Exit(0)
}

func (e errand) run() (string, error) {
	switch e.do {
	case doResolve:
		return plain(e.path)
	case doMode:
		mode, err := plainMode(e.path)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return strconv.FormatUint(uint64(mode), 10), err
	case doMakeFile:
		return "", plainFile(e.path)
	}
	return "", fmt.Errorf("no such errand: %q", e.do)
}
