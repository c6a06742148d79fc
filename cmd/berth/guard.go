package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/filelock"
)

// guard is what the first daemon of a node does after an upgrade where nobody is told of the new process: a shell, a
// container, a simple supervisor. They go on watching the process that they have started: it stays until the node's daemon
// has ended, passes their signals on (for SIGHUP see reloadAt), and its exit status says whether the end was a good one.
func guard(ctx context.Context, rootDir, runDir string) error {
	debug.FreeOSMemory() // nothing of the daemon is needed any more
	ended := make(chan error, 1)
	// Not the lock of the run dir: somebody may empty that, and the daemon then has another file.
	go func() { ended <- filelock.Wait(lockPath(rootDir)) }()
	told := ctx.Done()
	var again <-chan time.Time
	last := 0
	for {
		select {
		case <-told:
			told = nil
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			again = tick.C
			last = passOn(runDir, unix.SIGTERM, last)
		case <-again:
			// It may have been in the middle of a hand-over, and another one has the node now.
			last = passOn(runDir, unix.SIGTERM, last)
		case err := <-ended:
			if err != nil {
				return err
			}
			return wellEnded(runDir)
		}
	}
}

// passOn sends a signal to the daemon that has the node, unless that is the one that got it last, and returns who has it.
func passOn(runDir string, sig unix.Signal, last int) (pid int) {
	pid, err := filelock.Holder(lockPath(runDir))
	if err != nil || pid == 0 {
		return last
	}
	if pid != last && pid != os.Getpid() {
		_ = unix.Kill(pid, sig) // it holds the lock, so it is the one that we mean
	}
	return pid
}

// wellEnded says whether the last daemon has cleared up after itself, which it does unless it was killed.
func wellEnded(runDir string) error {
	if _, err := os.Lstat(adminSocket(runDir)); !errors.Is(err, fs.ErrNotExist) {
		return errors.New("the daemon has been killed or has failed")
	}
	return nil
}
