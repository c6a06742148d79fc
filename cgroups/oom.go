package cgroups

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// OOMKills returns how many processes of the cgroup and of those below it the kernel has killed for lack of memory since
// the cgroup was made; 0 without a memory controller. The error is an ErrNotFound if the cgroup is not there.
//
// On v2 that is memory.events, not memory.events.local: a container that runs systemd keeps its first process in a cgroup
// of its own making, and its end counts there. A pod's figure thus has those of its containers in it.
func (g *Group) OOMKills() (uint64, error) {
	if !g.Exists() {
		return 0, fmt.Errorf("killed processes of cgroup %s: %w", g, errdefs.ErrNotFound)
	}
	if g.host.Unified {
		r := reader{dir: g.paths[""]}
		n, _ := r.oomKills()
		return n, r.err
	}
	dir := g.paths["memory"]
	if dir == "" {
		return 0, nil
	}
	var sum uint64 // v1 counts each cgroup alone
	err := walk(dir, func(path string) error {
		r := reader{dir: path}
		control, _ := r.table("memory.oom_control")
		sum += control["oom_kill"]
		return r.err
	}, nil)
	if gone(err) {
		err = nil
	}
	return sum, err
}

// oomKills reads v2's count; false if the cgroup or the memory controller is not there.
func (r *reader) oomKills() (uint64, bool) {
	events, ok := r.table("memory.events")
	return events["oom_kill"], ok
}

// OOMWatcher remembers which containers lost a process for lack of memory.
//
// It is there for the systemd driver, which removes a scope as soon as its last process ends, often before the exit is
// dealt with and the count can be read. So the count is read whenever the kernel says that it has changed, by one inotify
// instance for all containers. Where even that was too late, the pod's own count tells: it has risen by more than its
// containers explain. With cgroupfs the cgroup is still there when it is asked for, and the watcher adds nothing; on v1
// it has nothing to watch and only reads. All methods are safe for concurrent use.
type OOMWatcher struct {
	host    *Host
	log     *slog.Logger
	inotify *os.File // nil on v1
	done    chan struct{}

	mu         sync.Mutex
	containers map[string]*oomRecord
	byWatch    map[int]*oomRecord
	parents    map[string]*oomParent
}

// oomRecord is what is known of one container.
type oomRecord struct {
	group  *Group
	watch  int // inotify's number, -1 for none
	kills  uint64
	parent *oomParent
}

// oomParent is the cgroup that watched containers have in common: their pod's.
type oomParent struct {
	dir       string
	users     int
	explained uint64 // what it had when first seen, and what its containers had since
}

// NewOOMWatcher makes a watcher, which the caller closes.
func NewOOMWatcher(h *Host, log *slog.Logger) (*OOMWatcher, error) {
	w := &OOMWatcher{
		host: h, log: log, done: make(chan struct{}),
		containers: map[string]*oomRecord{}, byWatch: map[int]*oomRecord{}, parents: map[string]*oomParent{},
	}
	if !h.Unified {
		close(w.done)
		return w, nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch for lack of memory: inotify: %w", err)
	}
	w.inotify = os.NewFile(uintptr(fd), "inotify")
	go w.run()
	return w, nil
}

// Add begins to watch a container, whose cgroup must be there (else ErrNotFound). An ID that is known is replaced.
func (w *OOMWatcher) Add(id string, g *Group) error {
	if !g.Exists() {
		return fmt.Errorf("watch cgroup %s: %w", g, errdefs.ErrNotFound)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(id)
	rec := &oomRecord{group: g, watch: -1}
	if w.inotify == nil || !w.host.Has("memory") {
		w.containers[id] = rec
		return nil
	}
	rec.parent = w.parentOf(g)
	// Watch first, read then: nothing falls between.
	conn, err := w.inotify.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch cgroup %s: %w", g, err)
	}
	controlErr := conn.Control(func(fd uintptr) {
		rec.watch, err = unix.InotifyAddWatch(int(fd), filepath.Join(g.paths[""], "memory.events"), unix.IN_MODIFY)
	})
	if err := errors.Join(controlErr, err); err != nil {
		w.release(rec.parent)
		if gone(err) {
			return fmt.Errorf("watch cgroup %s: %w", g, errdefs.ErrNotFound)
		}
		return fmt.Errorf("watch cgroup %s: %w", g, err)
	}
	r := reader{dir: g.paths[""]}
	rec.kills, _ = r.oomKills()
	w.containers[id], w.byWatch[rec.watch] = rec, rec
	return nil
}

// Killed says whether a process of the container was killed for lack of memory since its cgroup was made. It is false for
// an ID that is not watched.
func (w *OOMWatcher) Killed(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	rec, ok := w.containers[id]
	if !ok {
		return false
	}
	w.settle(rec)
	return rec.kills > 0
}

// Remove ends the watch. An ID that is not watched is no error.
func (w *OOMWatcher) Remove(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(id)
}

// Close ends the watcher and returns when nothing of it runs any more. It must be called once.
func (w *OOMWatcher) Close() error {
	if w.inotify == nil {
		return nil
	}
	err := w.inotify.Close()
	<-w.done
	return err
}

// run reads events until the watcher is closed.
func (w *OOMWatcher) run() {
	defer close(w.done)
	buf := make([]byte, 64*unix.SizeofInotifyEvent)
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				w.log.Error("watch for lack of memory ended; containers may miss the reason OOMKilled", "error", err)
			}
			return
		}
		w.handle(buf[:n])
	}
}

// handle takes whole events: files that are watched themselves give no names, so all have the same size.
func (w *OOMWatcher) handle(events []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ; len(events) >= unix.SizeofInotifyEvent; events = events[unix.SizeofInotifyEvent:] {
		watch := int(int32(binary.NativeEndian.Uint32(events[0:])))
		mask := binary.NativeEndian.Uint32(events[4:])
		if mask&unix.IN_Q_OVERFLOW != 0 {
			for _, rec := range w.byWatch {
				w.read(rec)
			}
			continue
		}
		rec, ok := w.byWatch[watch]
		if !ok {
			continue
		}
		if mask&unix.IN_IGNORED != 0 { // the kernel dropped it with the file, and may use the number again
			delete(w.byWatch, watch)
			rec.watch = -1
			continue
		}
		w.read(rec)
	}
}

// read takes over the container's own count and says whether it could be read.
func (w *OOMWatcher) read(rec *oomRecord) bool {
	r := reader{dir: rec.group.paths[""]}
	n, ok := r.oomKills()
	if n > rec.kills {
		if rec.parent != nil {
			rec.parent.explained += n - rec.kills
		}
		rec.kills = n
	}
	return ok
}

// settle makes kills as right as it can be now. For a cgroup that is gone unread, it takes what the pod cannot explain;
// of two such containers the first that is asked about.
func (w *OOMWatcher) settle(rec *oomRecord) {
	if !w.host.Unified {
		if n, err := rec.group.OOMKills(); err == nil {
			rec.kills = n
		}
		return
	}
	if w.read(rec) || rec.kills > 0 || rec.parent == nil {
		return
	}
	r := reader{dir: rec.parent.dir}
	if total, ok := r.oomKills(); ok && total > rec.parent.explained {
		rec.kills = total - rec.parent.explained
		rec.parent.explained = total
	}
}

func (w *OOMWatcher) forget(id string) {
	rec, ok := w.containers[id]
	if !ok {
		return
	}
	w.settle(rec) // so that its kills are not taken for those of another container of the pod
	delete(w.containers, id)
	if rec.watch >= 0 {
		delete(w.byWatch, rec.watch)
		if conn, err := w.inotify.SyscallConn(); err == nil {
			_ = conn.Control(func(fd uintptr) {
				_, _ = unix.InotifyRmWatch(int(fd), uint32(rec.watch)) // EINVAL: it went with the file
			})
		}
	}
	w.release(rec.parent)
}

func (w *OOMWatcher) parentOf(g *Group) *oomParent {
	dir := filepath.Dir(g.paths[""])
	p, ok := w.parents[dir]
	if !ok {
		r := reader{dir: dir}
		p = &oomParent{dir: dir}
		p.explained, _ = r.oomKills()
		w.parents[dir] = p
	}
	p.users++
	return p
}

func (w *OOMWatcher) release(p *oomParent) {
	if p == nil {
		return
	}
	if p.users--; p.users == 0 {
		delete(w.parents, p.dir)
	}
}
