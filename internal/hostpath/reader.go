package hostpath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/conffile"
	"github.com/berth-node/berth/internal/errdefs"
)

// A Reader looks at folders and files that may be on a mount that does not answer: each path by this process where that cannot be, by
// a helper elsewhere, one for all that a Reader is asked. It is for one look around, by one goroutine, and to be closed. What one
// mount does not answer in time ends the helper: whatever else of the kind is asked then fails at once.
type Reader struct {
	r       *Resolver
	ctx     context.Context // of the look
	watches *os.File
	kinds   map[uint64]bool // of mounts, by their devices: whether they may hang
	helper  *exec.Cmd
	in      *os.File
	out     *os.File
	answers *json.Decoder
	failed  error // of the helper, for good
}

// Reader begins a look around. watches is an inotify descriptor, or nil.
func (r *Resolver) Reader(ctx context.Context, watches *os.File) *Reader {
	return &Reader{r: r, ctx: ctx, watches: watches, kinds: map[uint64]bool{}}
}

// A State is what is known of a file or a folder.
type State struct {
	Device, Inode uint64
	Size          int64
	Regular       bool
	Links         uint64
	Mtime, Ctime  unix.Timespec
}

// An Entry is one in a folder.
type Entry struct {
	Name string
	Dir  bool
}

// A request is what a Reader's helper is asked.
type request struct {
	Do, Path string
	Mask     uint32 `json:",omitempty"`
}

const (
	doStat  = "stat"
	doLstat = "lstat"
	doList  = "list"
	doRead  = "read"
	doWatch = "watch"
	// doServe is the errand of a helper that is asked more than once, at its standard input. It has the watches as descriptor 3.
	doServe = "serve"
	watchFD = 3
)

// A reply is what a helper answers.
type reply struct {
	State   *State  `json:",omitempty"`
	Entries []Entry `json:",omitempty"`
	Text    []byte  `json:",omitempty"`
	Watch   int     `json:",omitempty"`
	Error   string  `json:",omitempty"`
	Errno   int     `json:",omitempty"`
}

// Stat looks at what a path leads to.
func (d *Reader) Stat(path string) (State, error) {
	a, err := d.ask(request{Do: doStat, Path: path})
	return a.state(), err
}

// Lstat looks at what is at a path, be it a link.
func (d *Reader) Lstat(path string) (State, error) {
	a, err := d.ask(request{Do: doLstat, Path: path})
	return a.state(), err
}

// List returns what is in a folder.
func (d *Reader) List(path string) ([]Entry, error) {
	a, err := d.ask(request{Do: doList, Path: path})
	return a.Entries, err
}

// Read reads a configuration file, as package conffile does.
func (d *Reader) Read(path string) ([]byte, error) {
	a, err := d.ask(request{Do: doRead, Path: path})
	return a.Text, err
}

// Watch has the kernel tell of a folder.
func (d *Reader) Watch(path string, mask uint32) (int, error) {
	a, err := d.ask(request{Do: doWatch, Path: path, Mask: mask})
	return a.Watch, err
}

// Waited reports whether it has waited for an answer that did not come.
func (d *Reader) Waited() bool { return d.failed != nil }

// Close ends the look.
func (d *Reader) Close() {
	if d.helper == nil || d.failed != nil {
		return
	}
	_ = d.in.Close() // it ends by that
	_ = d.out.Close()
	helper := d.helper
	d.helper = nil
	go func() { _ = helper.Wait() }()
}

func (a reply) state() State {
	if a.State == nil {
		return State{}
	}
	return *a.State
}

func (d *Reader) ask(q request) (reply, error) {
	if d.r.Program == "" || !d.mayHang(q.Path) {
		watches := -1
		if d.watches != nil {
			watches = int(d.watches.Fd())
		}
		return q.run(watches)
	}
	if d.failed != nil {
		return reply{}, fmt.Errorf("look at %s: %w", q.Path, d.failed)
	}
	if err := d.r.standing(q.Path); err != nil {
		return reply{}, err
	}
	if d.helper == nil {
		if err := d.send(); err != nil {
			return reply{}, fmt.Errorf("look at %s: %w", q.Path, err)
		}
	}
	a, err := d.talk(q)
	if err != nil {
		d.failed = fmt.Errorf("look at %s: %w", q.Path, err)
		d.leave(q.Path)
		return reply{}, d.failed
	}
	return a, a.failure(q)
}

// mayHang says whether what a path leads to is on a file system that may hang. Where there is nothing, this process finds out so.
func (d *Reader) mayHang(path string) bool {
	real, err := follow(path, openCached, false, maxLinks)
	if err != nil {
		return errors.Is(err, errRemote)
	}
	fd, err := openCached(real, 0)
	if err != nil {
		return unknown(err) // forgotten meanwhile
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return true
	}
	device := unix.Mkdev(st.Dev_major, st.Dev_minor)
	may, known := d.kinds[device]
	if !known {
		may, err = mayHang(fd)
		may = may || err != nil
		d.kinds[device] = may
	}
	return may
}

// limit is how long a file system may take to answer.
func (r *Resolver) limit() time.Duration {
	if r.Limit == 0 {
		return DefaultLimit
	}
	return r.Limit
}

// send starts the helper.
func (d *Reader) send() error {
	stdin, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		return errors.Join(err, in.Close())
	}
	defer stdout.Close()
	cmd := exec.Command(d.r.Program)
	cmd.Args = []string{helperName, doServe, "/"}
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdin, cmd.Stdout = stdin, stdout
	if d.watches != nil {
		cmd.ExtraFiles = []*os.File{d.watches}
	}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, in.Close(), out.Close())
	}
	d.helper, d.in, d.out, d.answers = cmd, in, out, json.NewDecoder(out)
	return nil
}

// talk asks the helper.
func (d *Reader) talk(q request) (a reply, err error) {
	limit := d.r.limit()
	if err := d.out.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return a, err
	}
	stop := context.AfterFunc(d.ctx, func() { _ = d.out.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(d.in).Encode(q); err != nil {
		return a, fmt.Errorf("the helper has gone: %w", err)
	}
	err = d.answers.Decode(&a)
	switch {
	case d.ctx.Err() != nil:
		return a, d.ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return a, fmt.Errorf("no answer within %s: %w", limit, errdefs.ErrUnavailable)
	case err != nil:
		return a, fmt.Errorf("the helper has gone: %w", err)
	}
	return a, nil
}

// leave ends a helper that has not answered. It goes when the kernel lets it, and until then nobody else is sent to the path.
func (d *Reader) leave(path string) {
	_ = d.in.Close()
	_ = d.out.Close()
	helper, r, q := d.helper, d.r, &question{since: time.Now().Add(-d.r.limit()), done: make(chan struct{})}
	e := errand{doServe, path}
	r.mu.Lock()
	if r.asked == nil {
		r.asked = map[errand]*question{}
	}
	r.asked[e] = q
	r.mu.Unlock()
	_ = helper.Process.Kill()
	go func() {
		_ = helper.Wait()
		r.mu.Lock()
		delete(r.asked, e)
		r.mu.Unlock()
		close(q.done)
	}()
}

// standing says that a helper stands too long already at a path or at a folder above it.
func (r *Resolver) standing(path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stands(path, r.limit())
}

// serve is what a Reader's helper does until it is not asked any more.
func serve(in io.Reader, out io.Writer) error {
	requests, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q request
		if err := requests.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a, err := q.run(watchFD)
		if err != nil {
			a.Error = err.Error()
			var errno unix.Errno
			if errors.As(err, &errno) {
				a.Errno = int(errno)
			}
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

// failure is the error of an answer, as this process would have had it.
func (a reply) failure(q request) error {
	switch {
	case a.Errno != 0:
		return &fs.PathError{Op: q.Do, Path: q.Path, Err: unix.Errno(a.Errno)}
	case a.Error != "":
		return errors.New(a.Error)
	}
	return nil
}

// run does what is asked, in whatever process this is.
func (q request) run(watches int) (a reply, err error) {
	switch q.Do {
	case doStat, doLstat:
		stat := unix.Stat
		if q.Do == doLstat {
			stat = unix.Lstat
		}
		var st unix.Stat_t
		if err := stat(q.Path, &st); err != nil {
			return a, &fs.PathError{Op: "stat", Path: q.Path, Err: err}
		}
		a.State = &State{
			Device: st.Dev, Inode: st.Ino, Size: st.Size, Regular: st.Mode&unix.S_IFMT == unix.S_IFREG, Links: uint64(st.Nlink), Mtime: st.Mtim, Ctime: st.Ctim,
		}
	case doList:
		entries, err := os.ReadDir(q.Path)
		for _, e := range entries {
			a.Entries = append(a.Entries, Entry{e.Name(), e.IsDir()})
		}
		return a, err
	case doRead:
		a.Text, err = conffile.Read(q.Path)
	case doWatch:
		if a.Watch, err = unix.InotifyAddWatch(watches, q.Path, q.Mask); err != nil {
			err = &fs.PathError{Op: "watch", Path: q.Path, Err: err}
		}
	default:
		err = fmt.Errorf("no such request: %q", q.Do)
	}
	return a, err
}
