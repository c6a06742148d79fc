package source

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/hostpath"
	"github.com/berth-node/berth/kubelet/manifest"
)

// A Folder has manifests in it: files that end in .yaml, .yml or .json, but for those whose names begin with a dot.
type Folder struct {
	Dir       string        // absolute
	Recursive bool          // also in folders below it, but not behind links to folders
	Rescan    time.Duration // how often to look for what the kernel does not tell; 0 is never
}

// settle is how long a file must be unchanged to be read where nobody said that its writer is done with it.
const settle = time.Second

// unansweredRetry is when a folder is looked at again whose file system has not answered: whether it does now, no event tells. Where
// it is only a part of the folder, and takes a wait each time, the others have to be heard in between.
const (
	unansweredRetry = 5 * time.Second
	partRetry       = time.Minute
)

// told is what is asked of the kernel. IN_CREATE is for links and folders: the content of a new file is told by IN_CLOSE_WRITE,
// and half of it is not worth reading.
const told = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_CREATE | unix.IN_DELETE |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// wanted reports whether a name is a manifest's.
func wanted(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// holds reports whether a path may be that of a manifest of this folder.
func (f Folder) holds(path string) bool {
	rest, inside := strings.CutPrefix(path, strings.TrimSuffix(f.Dir, "/")+"/")
	if f.Dir == "" || !inside || !wanted(filepath.Base(path)) {
		return false
	}
	return f.Recursive || !strings.Contains(rest, "/")
}

// Run follows the folder, and ends what has had its grace, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	w := &watcher{s: s, ctx: ctx, seen: map[string]stamp{}, dirs: map[int32]string{}}
	events := make(chan []byte)
	if s.folder.Dir != "" {
		stop := w.open(ctx, events)
		defer stop()
		w.look(w.scan)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var wait time.Duration
		w.look(func() { wait = w.next(time.Now()) })
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-s.rouse:
		case buf := <-events:
			w.look(func() { w.handle(buf) })
		case <-timer.C:
		}
		if now := time.Now(); !w.rescan.IsZero() && !now.Before(w.rescan) {
			w.look(w.scan)
		}
	}
}

// watcher is the state of Run.
type watcher struct {
	s      *Store
	ctx    context.Context  // of Run
	in     *os.File         // inotify; nil where there is none
	eyes   *hostpath.Reader // of one look
	dirs   map[int32]string
	seen   map[string]stamp // files, as they were when they were read
	device uint64           // of the folder when it was read first; 0 before
	rescan time.Time        // when to look at everything; zero is never
	silent bool             // the log knows that the folder cannot be read
}

// look does something with the folder. Whatever of it may not answer is looked at by another process.
func (w *watcher) look(do func()) {
	w.eyes = w.s.paths.Reader(w.ctx, w.in)
	defer w.eyes.Close()
	do()
}

// again has everything looked at after a while, if that is not to be so anyway.
func (w *watcher) again(after time.Duration) {
	if at := time.Now().Add(after); w.rescan.IsZero() || w.rescan.After(at) {
		w.rescan = at
	}
}

// stamp changes when a file does.
type stamp struct {
	inode       uint64
	size        int64
	mtime, ctim unix.Timespec
}

// fresh reports whether the file was written just now, and may be still. A time that is yet to come was given to it by somebody, or
// the clock was set back: it says nothing.
func (st stamp) fresh(now time.Time) bool {
	age := now.Sub(time.Unix(st.mtime.Unix()))
	return 0 <= age && age < settle
}

// next returns how long there is nothing to do.
func (w *watcher) next(now time.Time) time.Duration {
	const ever = 24 * time.Hour
	for _, path := range w.s.overdue(now) {
		w.confirm(path, now)
	}
	wake := w.s.expire(now)
	if wake.IsZero() || !w.rescan.IsZero() && w.rescan.Before(wake) {
		wake = w.rescan
	}
	if wake.IsZero() {
		return ever
	}
	return max(wake.Sub(now), 0)
}

// open starts to listen to the kernel. Without it, there is still the rescan.
func (w *watcher) open(ctx context.Context, events chan<- []byte) (stop func()) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		w.s.log.Warn("changes of manifests are noticed late", "rescan", w.s.folder.Rescan, "error", os.NewSyscallError("inotify_init1", err))
		return func() {}
	}
	f := os.NewFile(uintptr(fd), "inotify") // non-blocking: Go's poller waits, and no thread
	w.in = f
	go func() {
		for {
			buf := make([]byte, 16<<10)
			n, err := f.Read(buf)
			if err != nil {
				return // it is closed
			}
			select {
			case events <- buf[:n]:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { _ = f.Close() }
}

// watch has the kernel tell of a folder. To ask again changes nothing.
func (w *watcher) watch(dir string, mask uint32) error {
	if w.in == nil {
		return nil
	}
	wd, err := w.eyes.Watch(dir, mask)
	if err != nil {
		return err
	}
	w.dirs[int32(wd)] = dir
	return nil
}

// unwatch has the kernel tell no more.
func (w *watcher) unwatch(wd int32) {
	if w.in != nil {
		_, _ = unix.InotifyRmWatch(int(w.in.Fd()), uint32(wd))
	}
	delete(w.dirs, wd)
}

// handle acts on what the kernel told: a row of events.
func (w *watcher) handle(buf []byte) {
	for len(buf) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(buf))
		mask := binary.NativeEndian.Uint32(buf[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		name := strings.TrimRight(string(buf[unix.SizeofInotifyEvent:end]), "\x00")
		buf = buf[end:]
		dir, known := w.dirs[wd]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			w.scan()
		case mask&unix.IN_IGNORED != 0:
			delete(w.dirs, wd)
		case !known:
		case !w.inside(dir):
			w.scan() // the folder may have come where it was missed
		case mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT) != 0:
			w.lost(wd, dir)
		case mask&unix.IN_ISDIR != 0 || name == "..data": // the link by which a mounted ConfigMap changes
			w.scan()
		case wanted(name):
			w.told(filepath.Join(dir, name), mask)
		}
	}
}

// inside reports whether a folder is one of ours, and not one that is watched for what is missing in it.
func (w *watcher) inside(dir string) bool {
	return dir == w.s.folder.Dir || strings.HasPrefix(dir, strings.TrimSuffix(w.s.folder.Dir, "/")+"/")
}

// lost is called when a folder is not where it was.
func (w *watcher) lost(wd int32, dir string) {
	w.unwatch(wd) // one that was moved would be told of under its old name
	if dir == w.s.folder.Dir || w.s.folder.Recursive {
		w.scan()
	}
}

// told looks at a file of which the kernel told.
func (w *watcher) told(path string, mask uint32) {
	if mask&unix.IN_CREATE != 0 {
		// Its content comes later, unless it is a further name of a file, or a link to one.
		if st, err := w.eyes.Lstat(path); err == nil && st.Regular && st.Links == 1 {
			return
		}
	}
	st, err := w.stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		delete(w.seen, path)
		w.s.setGone(path, time.Now())
	case err != nil:
		w.broken(path, err)
	default:
		w.read(path, st)
	}
}

// read has a file count, as it is now.
func (w *watcher) read(path string, st stamp) {
	w.seen[path] = st
	text, err := w.eyes.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return // it went meanwhile, and the kernel tells of that
	}
	var objects []manifest.Object
	if err == nil {
		objects, err = manifest.Decode(path, text)
	}
	if err != nil {
		w.broken(path, err)
		return
	}
	w.s.setFile(path, objects, time.Now())
}

// missed has a part of the folder that did not answer looked at again.
func (w *watcher) missed() {
	if w.eyes.Waited() {
		w.again(partRetry)
	} else {
		w.again(unansweredRetry)
	}
}

// broken says that a file cannot be read, or not be understood.
func (w *watcher) broken(path string, err error) {
	if w.ctx.Err() != nil {
		return // it was not looked at to the end
	}
	if errors.Is(err, errdefs.ErrUnavailable) { // there is nothing wrong in it
		delete(w.seen, path)
		w.missed()
	}
	w.s.setBroken(path, err)
}

// scan looks at everything: at the beginning, from time to time, and when the kernel could not tell what is where.
func (w *watcher) scan() {
	now := time.Now()
	w.rescan = time.Time{}
	if w.s.folder.Rescan > 0 {
		w.rescan = now.Add(w.s.folder.Rescan)
	}
	found := scanned{files: map[string]bool{}}
	err := w.scanRoot(&found)
	if w.ctx.Err() != nil {
		return // nor was everything looked at
	}
	if errors.Is(err, errdefs.ErrUnavailable) {
		w.again(unansweredRetry)
	}
	if w.notice(err); err != nil && !w.mayBeGone(err) {
		return // nothing can be said of any file
	}
	for _, path := range w.s.known() {
		if !found.files[path] && !found.hidden(path) {
			delete(w.seen, path)
			w.s.setGone(path, now)
		}
	}
	if err == nil {
		select {
		case <-w.s.ready:
		default:
			close(w.s.ready)
		}
	}
}

// mayBeGone reports whether the folder was there and is not any more, and its files with it. Before it was read for the first
// time, as when a disk is mounted late, and where it cannot be read, its files count on.
func (w *watcher) mayBeGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) && w.device != 0
}

// notice keeps what is wrong with the folder, and logs it once.
func (w *watcher) notice(err error) {
	w.s.mu.Lock()
	w.s.unread = err
	w.s.mu.Unlock()
	switch {
	case err != nil && !w.silent:
		w.s.log.Warn("the folder of manifests cannot be read", "folder", w.s.folder.Dir, "error", err)
	case err == nil && w.silent:
		w.s.log.Info("the folder of manifests can be read again", "folder", w.s.folder.Dir)
	}
	w.silent = err != nil
}

// scanned is what a scan found.
type scanned struct {
	files map[string]bool
	blind []string // folders that could not be read
}

// hidden reports whether a file may be where the scan could not look.
func (f *scanned) hidden(path string) bool {
	for _, dir := range f.blind {
		if strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}

func (w *watcher) scanRoot(found *scanned) error {
	root := w.s.folder.Dir
	err := w.watch(root, told)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, w.watchAbove(root))
	}
	if err != nil && !errors.Is(err, unix.ENOSPC) { // that is no more watches for this user: there is the rescan
		return err
	}
	st, err := w.eyes.Stat(root)
	if err != nil {
		return err
	}
	if err := w.scanDir(root, found); err != nil {
		return err
	}
	if w.device != 0 && st.Device != w.device && len(found.files) == 0 {
		// Unmounted. Whoever has manifests on a disk of their own would lose all pods with it.
		return fmt.Errorf("%s is on another file system than before, and empty", root)
	}
	w.device = st.Device
	for wd, dir := range w.dirs {
		if !w.inside(dir) { // it was watched for this folder to come
			w.unwatch(wd)
		}
	}
	return nil
}

// watchAbove waits for a folder that is not there, by watching the nearest one above it.
func (w *watcher) watchAbove(dir string) error {
	for {
		dir = filepath.Dir(dir)
		err := w.watch(dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return err
		}
	}
}

// scanDir reads what is new in a folder, and watches the folders below it.
func (w *watcher) scanDir(dir string, found *scanned) error {
	entries, err := w.eyes.List(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name)
		switch {
		case e.Dir:
			if w.s.folder.Recursive && !strings.HasPrefix(e.Name, ".") {
				w.scanBelow(path, found)
			}
		case wanted(e.Name):
			found.files[path] = true
			w.lookAt(path)
		}
	}
	return nil
}

func (w *watcher) scanBelow(dir string, found *scanned) {
	err := w.watch(dir, told)
	if err == nil || errors.Is(err, unix.ENOSPC) {
		err = w.scanDir(dir, found)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if errors.Is(err, errdefs.ErrUnavailable) {
			w.missed()
		}
		found.blind = append(found.blind, dir)
		w.s.log.Warn("a folder of manifests cannot be read", "folder", dir, "error", err)
	}
}

// lookAt reads a file if it is not as it was.
func (w *watcher) lookAt(path string) {
	st, err := w.stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// A link that leads nowhere, or a file that goes.
		delete(w.seen, path)
		w.s.setGone(path, time.Now())
	case err != nil:
		w.broken(path, err)
	case w.seen[path] == st:
	case w.s.declares(path) && st.fresh(time.Now()):
		// Somebody may be writing it. If so, the kernel tells when he is done, but for those files that it cannot watch.
		w.again(settle)
	default:
		w.read(path, st)
	}
}

// confirm looks at a file whose objects are about to end. What the kernel told of it may wait to be heard: this program may have been
// kept from running for longer than a grace, and an editor was not.
func (w *watcher) confirm(path string, now time.Time) {
	st, err := w.stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && w.seen[path] == st:
	case err != nil:
		w.broken(path, err)
	case st.fresh(now):
		w.s.wait(path, now) // it is being written
	default:
		w.read(path, st)
	}
}

// stat looks at a file, or at what a link leads to.
func (w *watcher) stat(path string) (stamp, error) {
	st, err := w.eyes.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{st.Inode, st.Size, st.Mtime, st.Ctime}, nil
}
