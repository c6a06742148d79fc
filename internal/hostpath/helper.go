package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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
	asked map[string]*question // by path, until the helper has come back
}

// A question is a helper on its way.
type question struct {
	since time.Time
	done  chan struct{} // closed when real and err are set
	real  string
	err   error
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
		return r.ask(ctx, path)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // Linux before 5.12
		return plain(path)
	}
	return real, err
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
func (r *Resolver) ask(ctx context.Context, path string) (string, error) {
	limit := r.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	q, err := r.begin(path, limit)
	if err != nil {
		return "", err
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-q.done:
		return q.real, q.err
	case <-ctx.Done():
		return "", fmt.Errorf("look up %s: %w", path, ctx.Err())
	case <-timer.C:
		return "", fmt.Errorf("look up %s: no answer within %s: %w", path, limit, errdefs.ErrUnavailable)
	}
}

// begin sends a helper to a path, unless one is there, or stands too long already at it or at a folder above.
func (r *Resolver) begin(path string, limit time.Duration) (*question, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, q := range r.asked {
		above := other == path || strings.HasPrefix(path, other+"/")
		if above && time.Since(q.since) > limit {
			return nil, fmt.Errorf("%s has not answered for %s: %w", other, time.Since(q.since).Round(time.Second), errdefs.ErrUnavailable)
		}
	}
	if q := r.asked[path]; q != nil {
		return q, nil
	}
	q := &question{since: time.Now(), done: make(chan struct{})}
	var out, complaint strings.Builder
	cmd := exec.Command(r.Program)
	cmd.Args = []string{helperName, path}
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("look up %s: %w", path, err)
	}
	if r.asked == nil {
		r.asked = map[string]*question{}
	}
	r.asked[path] = q
	kill := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() }) // it goes when the kernel lets it
	go func() {
		err := cmd.Wait()
		kill.Stop()
		if err != nil {
			err = fmt.Errorf("look up %s: %w: %s", path, err, strings.TrimSpace(complaint.String()))
		}
		r.mu.Lock()
		delete(r.asked, path)
		r.mu.Unlock()
		q.real, q.err = out.String(), err
		close(q.done)
	}()
	return q, nil
}

// Main is the helper, if this process was started as such: it looks a path up, prints it, and exits. Otherwise it returns
// at once.
func Main() {
	if len(os.Args) != 2 || os.Args[0] != helperName {
		return
	}
	real, err := plain(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(real)
	os.Exit(0)
}
