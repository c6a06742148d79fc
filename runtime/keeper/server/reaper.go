package server

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// maxOrphans bounds the exit codes that are kept of children nobody asked for yet.
const maxOrphans = 4096

// reaper waits for all children: launchers, the inits and execs that they leave behind, and orphans of containers that
// have no pid namespace of their own. It cannot know beforehand which of them matters: the init of a container may have
// ended before the launcher's answer was read. So it keeps what it saw, and who knows a pid takes it.
type reaper struct {
	mu    sync.Mutex
	ended map[int]unix.WaitStatus
	order []int // pids in ended, oldest first; pids that were taken may be among them
}

func newReaper() *reaper { return &reaper{ended: make(map[int]unix.WaitStatus)} }

// run keeps zombies from piling up. Nobody waits for it: take collects too.
func (r *reaper) run(ctx context.Context) {
	child := make(chan os.Signal, 1) // one signal stands for any number of children
	signal.Notify(child, unix.SIGCHLD)
	defer signal.Stop(child)
	for {
		r.mu.Lock()
		r.collect()
		r.mu.Unlock()
		select {
		case <-child:
		case <-ctx.Done():
			return
		}
	}
}

// take returns the exit status of a child that has ended, once. It is false if pid was no child, or is one still.
func (r *reaper) take(pid int) (unix.WaitStatus, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collect()
	status, ok := r.ended[pid]
	delete(r.ended, pid)
	return status, ok
}

func (r *reaper) collect() {
	for {
		var status unix.WaitStatus
		// __WALL: also children that were cloned with another signal than SIGCHLD.
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		r.put(pid, status)
	}
}

// put keeps the status of a child; r.mu is held, or nobody else knows r yet.
func (r *reaper) put(pid int, status unix.WaitStatus) {
	// A pid that is there already belonged to an orphan that nobody asked for: the newer one is meant.
	r.ended[pid] = status
	r.order = append(r.order, pid)
	if len(r.order) > maxOrphans {
		delete(r.ended, r.order[0])
		r.order = r.order[1:]
	}
}
