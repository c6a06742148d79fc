package server

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/hold"
	"github.com/berth-node/berth/runtime/keeper"
)

// A workload may die of the end of its terminal, or of its input, and the ends of both that the keeper has go with the keeper,
// and with the daemon, which has duplicates. So a process of their own, the holder, has one more until the workload ends.

func newHoldProgram() (*os.File, error) {
	f, err := sealFrom("berth-hold", bytes.NewReader(hold.Binary()))
	if err != nil {
		return nil, fmt.Errorf("the hold program: %w", err)
	}
	return f, nil
}

// held is what a holder is to have, nil where the workload needs none: it has the other side of a FIFO open itself, unless its
// input is to end.
func (c *container) held() *os.File {
	req := c.rec.Request
	switch {
	case req.Terminal:
		return c.io.console
	case req.Stdin && req.StdinOnce && !c.rec.StdinClosed:
		return c.io.stdin
	}
	return nil
}

// hold starts a holder if c needs one and has none. Without it the container is worse off only when keeper and daemon die at
// once. The caller saves the record; c.mu is held.
func (c *container) hold() {
	what := c.held()
	if what == nil || c.proc == nil {
		return
	}
	if now, err := readProcess(c.rec.Holder.Pid); err == nil && now == c.rec.Holder {
		return
	}
	var holder *process
	// By number: File.Fd would make the descriptors blocking ones, which are the keeper's too.
	err := control(c.proc.pidfd, func(pidfd int) error {
		return control(what, func(fd int) (err error) {
			holder, err = startWith(c.k.holding, []string{"berth-hold"}, []uintptr{
				hold.FileProcess: uintptr(pidfd), hold.FileHeld: uintptr(fd),
			})
			return err
		})
	})
	if err != nil {
		c.k.log.Error("no holder: the container ends if keeper and daemon die at once", "container", c.id, "error", err)
		return
	}
	holder.pidfd.Close() // it ends by itself; the reaper takes every child
	c.rec.Holder = holder.Process
}

// letGo ends the holder, so that the workload sees the end of its input. c.mu is held.
func (c *container) letGo() {
	holder, err := openProcess(c.rec.Holder)
	if err != nil {
		return // there is none
	}
	defer holder.pidfd.Close()
	if err := holder.signal(int(unix.SIGKILL)); err != nil {
		c.k.log.Error("end a holder", "container", c.id, "pid", holder.Pid, "error", err)
	}
	c.rec.Holder = keeper.Process{}
}

// fetchConsole gets the terminal back that a holder has; nil if it cannot be had.
func (c *container) fetchConsole() *os.File {
	holder, err := openProcess(c.rec.Holder)
	if err != nil {
		return nil
	}
	defer holder.pidfd.Close()
	fd := -1
	if err := control(holder.pidfd, func(pidfd int) (err error) {
		fd, err = unix.PidfdGetfd(pidfd, hold.FileHeld, 0) // close-on-exec
		return os.NewSyscallError("pidfd_getfd", err)
	}); err != nil {
		c.k.log.Error("the terminal of a container cannot be fetched, the daemon may have it", "container", c.id, "error", err)
		return nil
	}
	return os.NewFile(uintptr(fd), "console") // non-blocking, as it was
}
