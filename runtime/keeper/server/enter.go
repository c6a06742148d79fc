package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/enter"
	"github.com/berth-node/berth/runtime/keeper"
)

// entry is what execs by plan need: the program, sealed, and the node's /proc.
type entry struct{ program, proc *os.File }

func newEntry() (*entry, error) {
	program, err := sealFrom("berth-enter", bytes.NewReader(enter.Binary()))
	if err != nil {
		return nil, fmt.Errorf("the enter program: %w", err)
	}
	proc, err := openFile("/proc", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		program.Close()
		return nil, err
	}
	return &entry{program, proc}, nil
}

// plan is what came with an exec that needs no libcontainer; file is nil for one that does.
type plan struct{ file, cgroup *os.File }

// enter starts a process in c by plan. An error that is an enter.ErrNotStarted says that nothing has happened yet.
func (c *container) enter(ctx context.Context, req keeper.ExecRequest, stdio [3]*os.File, p plan) (*process, error) {
	c.mu.Lock()
	init := c.proc
	c.mu.Unlock()
	if init == nil {
		return nil, &keeper.LaunchError{Failure: keeper.FailureNotRunning, Message: fmt.Sprintf("container %s has no process", c.id)}
	}
	var pid int
	var pidfd *os.File
	err := control(init.pidfd, func(fd int) (err error) {
		pid, pidfd, err = enter.Start(ctx, enter.Files{
			Program: c.k.entry.program, Plan: p.file, Init: fd, Proc: c.k.entry.proc, Stdio: stdio, Cgroup: p.cgroup,
		})
		return err
	})
	if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ESRCH) {
		return nil, &keeper.LaunchError{Failure: keeper.FailureNotRunning, Message: fmt.Sprintf("container %s has ended", c.id)}
	}
	if err != nil {
		return nil, enterError(err, req.Process)
	}
	started, _ := readProcess(pid) // zero if it has ended and was reaped: then nobody asks for it by its number
	return madeProcess(keeper.JobResult{Pid: pid, StartTime: started.StartTime}, pidfd)
}

// enterError puts a failure into libcontainer's words and classes.
func enterError(err error, process json.RawMessage) error {
	var failed *enter.Error
	if !errors.As(err, &failed) {
		return err
	}
	failure, message := keeper.FailureSetup, failed.Error()
	var p struct{ Args []string }
	_ = json.Unmarshal(process, &p) // the daemon made the plan of it
	if len(p.Args) == 0 {
		p.Args = []string{""}
	}
	if reason := commandReason(failed.Report, p.Args[0]); reason != "" {
		failure, message = keeper.FailureCommand, fmt.Sprintf("exec: %q: %s", p.Args[0], reason)
	}
	return &keeper.LaunchError{Failure: failure, Message: message}
}

// commandReason says what is wrong with a command in the words of os/exec; "" if it is something else.
func commandReason(r enter.Report, name string) string {
	switch r.Step {
	case enter.StepNotInPath:
		return "executable file not found in $PATH"
	case enter.StepRelative:
		return "cannot run executable found relative to current directory"
	case enter.StepCommand:
		switch r.Errno {
		case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG:
			return fmt.Sprintf("stat %s: %v", name, r.Errno)
		}
		return r.Errno.Error()
	default:
		return ""
	}
}
