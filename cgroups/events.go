package cgroups

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// recheck is how long a wait trusts the kernel's notifications. The kernel holds them back for up to 10 ms, and one that
// is held back when the cgroup is removed never comes.
const recheck = time.Second

// actLimit bounds what is asked for with a context that has no deadline.
const actLimit = 30 * time.Second

// bounded gives a context a deadline if it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, actLimit)
}

// awaitEvent waits until a line of the v2 file cgroup.events reads "key 1" (or 0), or the cgroup is gone, and then returns
// true; false after [recheck]. The runtime's poller waits, so it takes neither a thread nor an inotify instance.
func awaitEvent(ctx context.Context, dir, key string, want bool) (bool, error) {
	f, err := os.OpenFile(filepath.Join(dir, "cgroup.events"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if gone(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	if err := f.SetReadDeadline(time.Now().Add(recheck)); err != nil {
		return false, fmt.Errorf("%s cannot be waited for: %w", f.Name(), err)
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()

	line := []byte(key + " 0\n")
	if want {
		line = []byte(key + " 1\n")
	}
	buf := make([]byte, 256)
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		var n int
		n, readErr = unix.Pread(int(fd), buf, 0)
		return readErr != nil || bytes.Contains(buf[:n], line)
	})
	switch {
	case err == nil && gone(readErr):
		return true, nil
	case err == nil:
		return readErr == nil, readErr
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, ctx.Err()
	}
	return false, err
}

// pause waits for d, or until ctx ends, whose error it then returns. It is for v1, where nothing tells.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// backoff is a delay that doubles up to 50 ms with each use.
type backoff time.Duration

func (b *backoff) next() time.Duration {
	*b = min(max(2**b, backoff(time.Millisecond)), backoff(50*time.Millisecond))
	return time.Duration(*b)
}

// writeFile writes an existing file of a cgroup.
func writeFile(dir, file, data string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(data)
	return err
}
