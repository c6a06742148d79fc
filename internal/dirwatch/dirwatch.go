// Package dirwatch tells when something is taken out of a folder, by whomever. The kernel tells of it, so that it costs
// nothing while nobody does.
package dirwatch

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// again is when mend is called once more after a loss: who empties a folder takes his time, and what is in folders below
// goes without a word.
var again = []time.Duration{time.Second, 5 * time.Second}

// gone is what is asked of the kernel.
const gone = unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// Watch calls mend at once, which catches what was lost before, and whenever names have gone from dir, until ctx ends. mend
// puts back what is missing, dir too, and does nothing if nothing is; there is one call of it at a time. What cannot be
// watched is an error.
func Watch(ctx context.Context, dir string, mend func()) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	events := os.NewFile(uintptr(fd), "inotify") // non-blocking: Go's poller waits, and no thread
	defer events.Close()
	defer context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })()
	watched := -1
	// Deleted folders are watched by nobody: the watch is renewed each time, which changes nothing where it is there. Where it is a
	// new one, or the folder has gone again meanwhile, something may have gone unseen.
	look := func() (unseen bool, err error) {
		mend()
		now, err := unix.InotifyAddWatch(fd, dir, gone)
		if errors.Is(err, fs.ErrNotExist) && watched >= 0 {
			return true, nil
		}
		unseen, watched = now != watched, now
		return unseen, os.NewSyscallError("inotify_add_watch", err)
	}
	if now, err := unix.InotifyAddWatch(fd, dir, gone); err == nil {
		watched = now
	} else if !errors.Is(err, fs.ErrNotExist) {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	unseen, err := look()
	if err != nil {
		return err
	}
	buf := make([]byte, 4096) // more than the longest event
	for left := []time.Duration(nil); ; {
		if ctx.Err() != nil {
			return nil
		}
		if unseen {
			left = again
		}
		deadline := time.Time{}
		if len(left) > 0 {
			deadline = time.Now().Add(left[0])
		}
		if err := events.SetReadDeadline(deadline); err != nil {
			return err
		}
		if ctx.Err() != nil { // its deadline may have been set before ours
			return nil
		}
		_, err = events.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if ctx.Err() != nil || len(left) == 0 {
				return nil
			}
			left = left[1:]
		case err != nil:
			return err
		default:
			left = again
		}
		if unseen, err = look(); err != nil {
			return err
		}
	}
}
