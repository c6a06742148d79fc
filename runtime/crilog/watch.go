package crilog

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watcher tells that something happened to the files of a folder.
type watcher struct{ file *os.File }

func watch(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "inotify_add_watch", Path: dir, Err: err}
	}
	return &watcher{os.NewFile(uintptr(fd), "inotify")}, nil
}

// wait returns when something happened since the last wait, at once if that was before the call, or when ended is
// closed, or with the error of ctx. What happened does not matter: the reader looks for itself.
func (w *watcher) wait(ctx context.Context, ended <-chan struct{}) error {
	w.file.SetReadDeadline(time.Time{})
	over := make(chan struct{})
	waker := make(chan struct{})
	go func() {
		defer close(waker)
		select {
		case <-ctx.Done():
			w.file.SetReadDeadline(time.Unix(1, 0))
		case <-ended:
			w.file.SetReadDeadline(time.Unix(1, 0))
		case <-over:
		}
	}()
	_, err := w.file.Read(make([]byte, 4096))
	close(over)
	<-waker
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

func (w *watcher) close() { w.file.Close() }
