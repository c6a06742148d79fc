package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/enter"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
)

// execution is a process that Exec started, until its exit is acknowledged. c.mu of its container guards it.
type execution struct {
	c     *container
	id    string
	owner *conn // who asked for it; nil if a keeper before knew
	// process is zero while it is made.
	process keeper.Process
	proc    *process // nil while it is made, or if it was gone when this keeper came
	ended   bool     // nothing is taken over any more
	exit    *keeper.Exit
}

func (e *execution) made() bool { return e.process.Pid != 0 }

// exec starts a process in c. stdio are stdin, stdout and stderr of the process, nil for /dev/null; they stay the
// caller's. The caller calls watch when it has answered, and gets the master end of a terminal to close.
func (c *container) exec(ctx context.Context, from *conn, req keeper.ExecRequest, stdio [3]*os.File, p plan) (e *execution, console *os.File, watch func(), err error) {
	e, err = c.reserveExec(req.ExecID)
	if err != nil {
		return nil, nil, nil, err
	}
	proc, console, gone, err := c.startExec(ctx, req, stdio, p)
	if err != nil {
		c.mu.Lock()
		delete(c.execs, e.id)
		c.mu.Unlock()
		return nil, nil, nil, err
	}
	failpoint.Here(failpoint.KeeperExecMade)
	e.owner = from
	e.become(proc)
	return e, console, func() { e.watch(proc, gone) }, nil
}

func (c *container) reserveExec(id string) (*execution, error) {
	if !validID(id) {
		return nil, fmt.Errorf("exec ID %q: %w", id, errdefs.ErrInvalidArgument)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if phase, _ := c.phase(); phase != keeper.PhaseRunning {
		return nil, fmt.Errorf("it does not run: %w", errdefs.ErrFailedPrecondition)
	}
	if c.execs[id] != nil {
		return nil, fmt.Errorf("exec %s in container %s: %w", id, c.id, errdefs.ErrAlreadyExists)
	}
	e := &execution{c: c, id: id}
	c.execs[id] = e
	return e, nil
}

// startExec also returns what is closed when the process is a child of the keeper: its launcher has gone.
func (c *container) startExec(ctx context.Context, req keeper.ExecRequest, stdio [3]*os.File, p plan) (*process, *os.File, <-chan struct{}, error) {
	if req.Terminal {
		return c.launchTerminal(ctx, req)
	}
	null, err := openFile(os.DevNull, unix.O_RDWR)
	if err != nil {
		return nil, nil, nil, err
	}
	defer null.Close()
	for i, f := range stdio {
		if f == nil {
			stdio[i] = null
		}
	}
	if p.file != nil {
		proc, err := c.enter(ctx, req, stdio, p)
		if err == nil || !errors.Is(err, enter.ErrNotStarted) {
			return proc, nil, closed, err
		}
		c.k.log.Warn("exec without a launcher, now with one", "container", c.id, "exec", req.ExecID, "error", err)
	}
	proc, l, err := c.launchExec(ctx, req, stdio[:])
	if err != nil {
		return nil, nil, nil, err
	}
	c.k.doWork(func() { c.k.pool.release(l) })
	return proc, nil, l.gone, nil
}

func (c *container) launchTerminal(ctx context.Context, req keeper.ExecRequest) (*process, *os.File, <-chan struct{}, error) {
	ours, theirs, err := wire.Pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, nil, nil, err
	}
	defer ours.Close()
	defer theirs.Close()
	proc, l, err := c.launchExec(ctx, req, []*os.File{theirs})
	if err != nil {
		return nil, nil, nil, err
	}
	ours.SetReadDeadline(time.Now().Add(killGrace))
	console, err := receiveConsole(ours)
	if err != nil {
		proc.signal(int(unix.SIGKILL))
		proc.pidfd.Close()
		l.dismiss()
		return nil, nil, nil, err
	}
	c.k.doWork(func() { c.k.pool.release(l) })
	return proc, console, l.gone, nil
}

// launchExec has a launcher start the process. The caller releases or dismisses the launcher.
func (c *container) launchExec(ctx context.Context, req keeper.ExecRequest, files []*os.File) (*process, *launcher, error) {
	l, err := c.k.pool.get(ctx)
	if err != nil {
		return nil, nil, err
	}
	result, pidfd, err := l.do(ctx, keeper.Job{
		Kind:          keeper.JobExec,
		Root:          filepath.Join(c.k.runDir, keeper.LibcontainerDir),
		ID:            c.id,
		SystemdCgroup: c.rec.Request.SystemdCgroup, // written once, before the container was made
		Terminal:      req.Terminal,
		Process:       req.Process,
		SubCgroups:    req.SubCgroups,
		Filters:       filepath.Join(c.k.runDir, keeper.FiltersDir),
	}, files...)
	if err != nil {
		return nil, nil, err
	}
	proc, err := madeProcess(result, pidfd)
	if err != nil {
		l.dismiss()
		return nil, nil, err
	}
	return proc, l, nil
}

// become makes e a living process. A record that cannot be written is no reason to fail: it serves only a next keeper.
func (e *execution) become(proc *process) {
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	e.process, e.proc = proc.Process, proc
	if err := writeRecord(execRecordPath(e.c.dir, e.id), execRecord{ExecID: e.id, Process: proc.Process}); err != nil {
		e.c.k.log.Warn("record an exec, ignoring", "container", e.c.id, "exec", e.id, "error", err)
	}
}

func (e *execution) watch(proc *process, gone <-chan struct{}) {
	if err := proc.wait(); err != nil {
		e.c.k.log.Error("wait for an exec", "container", e.c.id, "exec", e.id, "pid", proc.Pid, "error", err)
	}
	at := time.Now()
	<-gone
	status, known := e.c.k.ended(proc)
	defer e.c.k.work.leave()
	e.end(exitOf(keeper.Ref{ID: e.c.id, ExecID: e.id}, status, known, at))
}

// end reports the exit. The record changes only for a container that is still there.
func (e *execution) end(exit keeper.Exit) {
	c := e.c
	c.k.exits.add(exit, e.owner, func(numbered keeper.Exit) {
		c.mu.Lock()
		defer c.mu.Unlock()
		e.exit = &numbered
		if e.proc != nil {
			e.proc.pidfd.Close()
		}
		path := execRecordPath(c.dir, e.id)
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			return
		}
		if err := writeRecord(path, execRecord{ExecID: e.id, Process: e.process, Exit: e.exit}); err != nil {
			c.k.log.Warn("record the exit of an exec, ignoring", "container", c.id, "exec", e.id, "error", err)
		}
	})
}

// ack notes that the daemon knows of an exit. An exec is then forgotten.
func (k *Keeper) ack(seq uint64, from *conn) {
	exit, ok := k.exits.ack(seq, from)
	if !ok {
		return
	}
	c, err := k.container(exit.ID)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if exit.ExecID == "" {
		c.rec.Acked = true
		if err := c.saveRecord(); err != nil {
			k.log.Warn("record an acknowledgement, ignoring", "container", c.id, "error", err)
		}
		failpoint.Here(failpoint.KeeperAcked)
		return
	}
	delete(c.execs, exit.ExecID)
	if err := os.Remove(execRecordPath(c.dir, exit.ExecID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		k.log.Warn("remove the record of an exec, ignoring", "container", c.id, "exec", exit.ExecID, "error", err)
	}
}
