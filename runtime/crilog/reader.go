package crilog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Options say which part of a log is read.
type Options struct {
	// Tail begins this many lines before the end; a line counts once, however many records it has. Negative: all.
	Tail int64
	// Since leaves out records before this time; zero: none.
	Since time.Time
	// LimitBytes ends the reading after this much content; 0: no limit. The last record is cut to fit.
	LimitBytes int64
	// Follow goes on at the end of the log, also in the new file after a rotation, until the context ends or Ended is
	// closed and all was read.
	Follow bool
	// Ended is closed when the container has exited. Nil: never.
	Ended <-chan struct{}
}

// errLimit ends a reading that has reached LimitBytes.
var errLimit = errors.New("limit reached")

// Read calls emit for each record of the log at path that opts ask for, in order, until the end of the log (with Follow:
// see there), the end of ctx, or an error of emit, which is returned. The Content of a full line has no newline. Lines
// that are not records are skipped.
func Read(ctx context.Context, path string, opts Options, emit func(Entry) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	r := &reader{path: path, file: f, opts: opts, emit: emit, left: opts.LimitBytes}
	defer func() { r.file.Close() }()
	if opts.Tail >= 0 {
		start, err := tailStart(f, opts.Tail)
		if err == nil {
			_, err = f.Seek(start, io.SeekStart)
		}
		if err != nil {
			return fmt.Errorf("read log %s: %w", path, err)
		}
	}
	r.buf = bufio.NewReaderSize(f, 64<<10)
	if opts.Follow {
		err = r.follow(ctx)
	} else {
		err = r.drain(ctx)
	}
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

// reader is one reading of a log, over all the files that it is rotated through.
type reader struct {
	path string
	file *os.File
	buf  *bufio.Reader
	opts Options
	emit func(Entry) error
	left int64  // of LimitBytes
	head []byte // the beginning of a line whose end is not written yet
}

// drain emits what is in the file now.
func (r *reader) drain(ctx context.Context) error {
	for ctx.Err() == nil {
		line, err := r.buf.ReadSlice('\n')
		switch {
		case err == nil:
			if len(r.head) > 0 {
				line = append(r.head, line...)
				r.head = nil
			}
			if err := r.line(bytes.TrimSuffix(line, []byte{'\n'})); err != nil {
				return err
			}
		case errors.Is(err, bufio.ErrBufferFull):
			r.head = append(r.head, line...)
		case errors.Is(err, io.EOF):
			r.head = append(r.head, line...)
			return nil
		default:
			return fmt.Errorf("read log %s: %w", r.path, err)
		}
	}
	return ctx.Err()
}

func (r *reader) line(line []byte) error {
	e, err := parse(line)
	if err != nil || e.Time.Before(r.opts.Since) {
		return nil
	}
	if r.opts.LimitBytes > 0 {
		if int64(len(e.Content)) > r.left {
			e.Content = e.Content[:r.left]
		}
		// The newline of a full line counts as content: it is what the reader's reader gets.
		r.left -= int64(len(e.Content))
		if !e.Partial {
			r.left--
		}
	}
	if err := r.emit(e); err != nil {
		return err
	}
	if r.opts.LimitBytes > 0 && r.left <= 0 {
		return errLimit
	}
	return nil
}

// follow drains the file again and again, whenever the kernel says that something happened in its folder.
func (r *reader) follow(ctx context.Context) error {
	// Watch before the first look, so that nothing falls between the two.
	w, err := watch(filepath.Dir(r.path))
	if err != nil {
		return fmt.Errorf("follow log %s: %w", r.path, err)
	}
	defer w.close()
	for {
		ended := r.ended()
		if err := r.drain(ctx); err != nil {
			return err
		}
		switched, err := r.rotate()
		if err != nil {
			return err
		}
		if switched {
			continue
		}
		if ended { // seen before the drain, so there is no more to come
			return nil
		}
		if err := w.wait(ctx, r.opts.Ended); err != nil {
			return err
		}
	}
}

func (r *reader) ended() bool {
	select {
	case <-r.opts.Ended: // a nil channel is never ready
		return true
	default:
		return false
	}
}

// rotate switches to the file that is at the path by now, if it is another one and the old one is drained. The writer
// makes the new file before it leaves the old one, so the old one is looked at once more.
func (r *reader) rotate() (switched bool, err error) {
	now, err := os.Stat(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // renamed, and not opened again yet
	}
	if err != nil {
		return false, fmt.Errorf("follow log %s: %w", r.path, err)
	}
	have, err := r.file.Stat()
	if err != nil {
		return false, fmt.Errorf("follow log %s: %w", r.path, err)
	}
	if os.SameFile(now, have) {
		return false, nil
	}
	f, err := os.Open(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("follow log %s: %w", r.path, err)
	}
	if err := r.drain(context.Background()); err != nil {
		f.Close()
		return false, err
	}
	r.file.Close()
	r.file, r.head = f, nil
	r.buf.Reset(f)
	return true, nil
}
