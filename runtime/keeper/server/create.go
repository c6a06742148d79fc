package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/crilog"
	"github.com/berth-node/berth/runtime/keeper"
)

// create makes a container. The caller calls watch when it has answered, so that the news of the exit does not overtake
// the answer.
func (k *Keeper) create(ctx context.Context, req keeper.CreateRequest) (c *container, watch func(), err error) {
	if err := checkCreate(req); err != nil {
		return nil, nil, err
	}
	c = k.newContainer(req)
	if err := k.reserve(c); err != nil {
		return nil, nil, err
	}
	var l *launcher
	watch, l, err = c.make(ctx)
	if err != nil {
		c.undo(l)
		return nil, nil, err
	}
	return c, watch, nil
}

func checkCreate(req keeper.CreateRequest) error {
	switch {
	case !validID(req.ID):
		return fmt.Errorf("container ID %q: %w", req.ID, errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(req.Bundle):
		return fmt.Errorf("bundle %q is not absolute: %w", req.Bundle, errdefs.ErrInvalidArgument)
	case req.LogPath != "" && !filepath.IsAbs(req.LogPath):
		return fmt.Errorf("log path %q is not absolute: %w", req.LogPath, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (k *Keeper) reserve(c *container) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closing {
		return fmt.Errorf("the keeper is ending: %w", errdefs.ErrUnavailable)
	}
	if k.containers[c.id] != nil {
		return fmt.Errorf("container %s: %w", c.id, errdefs.ErrAlreadyExists)
	}
	k.containers[c.id] = c
	return nil
}

// make does the work of create. It returns the launcher that was given the job, if it came to that, also with an error.
func (c *container) make(ctx context.Context) (watch func(), l *launcher, err error) {
	req := c.rec.Request
	var ours stdio
	var theirs []*os.File
	var consoles *net.UnixConn
	if req.Terminal {
		var socket *os.File
		if consoles, socket, err = wire.Pair(unix.SOCK_STREAM); err != nil {
			return nil, nil, err
		}
		defer consoles.Close()
		theirs = []*os.File{socket}
	} else if ours, theirs, err = makeFIFOs(c.dir, req.Stdin, req.StdinOnce); err != nil {
		return nil, nil, err
	}
	defer wire.CloseAll(theirs)
	c.setIO(ours) // from here on undo closes it
	if c.log, err = crilog.Open(req.LogPath, req.MaxLogLine); err != nil {
		return nil, nil, err
	}
	c.log.Lost = c.sayLost

	if l, err = c.k.pool.get(ctx); err != nil {
		return nil, nil, err
	}
	// The intent, before the act: a keeper that comes after us finds what was half made.
	if err := c.setLauncher(l.proc.Process); err != nil {
		return nil, l, err
	}
	failpoint.Here(failpoint.KeeperJobRecorded)
	result, pidfd, err := l.do(ctx, keeper.Job{
		Kind:          keeper.JobCreate,
		Root:          filepath.Join(c.k.runDir, keeper.LibcontainerDir),
		ID:            c.id,
		Bundle:        req.Bundle,
		SystemdCgroup: req.SystemdCgroup,
		Libcontainer:  req.Libcontainer,
		Terminal:      req.Terminal,
		Filters:       filepath.Join(c.k.runDir, keeper.FiltersDir),
		Places:        filepath.Join(c.k.runDir, keeper.PlacesDir),
	}, theirs...)
	if err != nil {
		return nil, l, err
	}
	failpoint.Here(failpoint.KeeperJobDone)
	c.logFallback(ctx, result)
	proc, err := madeProcess(result, pidfd)
	if err != nil {
		return nil, l, err
	}
	if req.Terminal {
		consoles.SetReadDeadline(time.Now().Add(killGrace))
		if ours.console, err = receiveConsole(consoles); err != nil {
			proc.signal(int(unix.SIGKILL))
			proc.pidfd.Close()
			return nil, l, err
		}
	}
	if err := c.becomeCreated(proc, ours); err != nil {
		proc.signal(int(unix.SIGKILL))
		return nil, l, err
	}
	failpoint.Here(failpoint.KeeperCreated)
	parent := l.parent()
	c.k.doWork(func() { c.k.pool.release(l) })
	return func() { c.watch(proc, parent) }, l, nil
}

// logFallback says why libcontainer has set up init, where berth's own program usually does. What that has not even tried is no news.
func (c *container) logFallback(ctx context.Context, result keeper.JobResult) {
	level := slog.LevelDebug
	if result.Tried {
		level = slog.LevelWarn
	}
	if result.Fallback != "" {
		c.k.log.Log(ctx, level, "libcontainer set up the container's first process", "container", c.id, "reason", result.Fallback)
	}
}

func (c *container) setIO(s stdio) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.io = s
}

func (c *container) setLauncher(p keeper.Process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Launcher = p
	return c.saveRecord()
}

// becomeCreated is the one way into the state created.
func (c *container) becomeCreated(proc *process, ours stdio) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Launcher, c.rec.Process = keeper.Process{}, proc.Process
	c.proc, c.io = proc, ours
	c.hold()
	if err := c.saveRecord(); err != nil {
		c.rec.Process = keeper.Process{}
		return err
	}
	c.pump()
	return nil
}

// madeProcess turns a launcher's result into a process to watch; it takes over pidfd.
func madeProcess(result keeper.JobResult, pidfd *os.File) (*process, error) {
	if pidfd == nil || result.Pid <= 0 {
		wire.CloseAll([]*os.File{pidfd})
		return nil, &keeper.LaunchError{Failure: keeper.FailureSetup, Message: fmt.Sprintf("the launcher's answer has pid %d and no pidfd", result.Pid)}
	}
	defer pidfd.Close()
	dup, err := unix.FcntlInt(pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return newProcess(keeper.Process{Pid: result.Pid, StartTime: result.StartTime}, dup, true)
}

// undo takes back what is half made: the launcher, the init, the folder, the FIFOs, the record. It waits for a launcher
// that is killed; for one that is stuck in the kernel the rest is done when it has ended, and the ID is taken until then.
func (c *container) undo(l *launcher) {
	c.mu.Lock()
	c.io.close()
	if c.proc != nil {
		c.proc.pidfd.Close()
	}
	c.mu.Unlock()
	if c.log != nil {
		c.log.Close(time.Now())
	}
	if l == nil {
		c.clean()
		return
	}
	l.kill()
	l.dismiss()
	select {
	case <-l.gone:
		c.clean()
	default:
		c.k.log.Error("a launcher is stuck in the kernel", "container", c.id, "pid", l.proc.Pid)
		go func() {
			<-l.gone
			c.k.work.enter()
			defer c.k.work.leave()
			c.clean()
		}()
	}
}

// clean removes what is left of a container whose launcher has gone.
func (c *container) clean() {
	c.killHalfMade()
	if err := c.remove(); err != nil {
		c.k.log.Error("undo a half-made container, ignoring", "container", c.id, "error", err)
	}
	c.k.forget(c)
}

// killHalfMade kills an init that its launcher has left at the exec FIFO without a word to us. Before that stage an init
// dies with its launcher; behind it libcontainer has written its pid.
func (c *container) killHalfMade() {
	var state struct {
		Pid       int    `json:"init_process_pid"`
		StartTime uint64 `json:"init_process_start"`
	}
	data, err := os.ReadFile(filepath.Join(c.stateDir(), "state.json"))
	if err != nil || json.Unmarshal(data, &state) != nil || state.Pid <= 0 {
		return
	}
	proc, err := openProcess(keeper.Process{Pid: state.Pid, StartTime: state.StartTime})
	if err != nil {
		return // it has gone
	}
	defer proc.pidfd.Close()
	if err := proc.signal(int(unix.SIGKILL)); err != nil {
		return
	}
	proc.pidfd.SetReadDeadline(time.Now().Add(killGrace))
	if err := proc.wait(); err != nil {
		c.k.log.Error("a half-made init does not die", "container", c.id, "pid", proc.Pid)
	}
}

// remove deletes all files that are the keeper's or libcontainer's.
func (c *container) remove() error {
	errs := []error{os.RemoveAll(c.stateDir())}
	// The record goes last: as long as it is there, a next keeper finds the rest. Names with a dot in front are what a
	// keeper left that died while it wrote a record.
	for _, pattern := range []string{
		stdinFIFO.name, stdoutFIFO.name, stderrFIFO.name,
		"." + execPrefix + "*" + execSuffix + ".*", execPrefix + "*" + execSuffix, "." + recordName + ".*", recordName,
	} {
		paths, err := filepath.Glob(filepath.Join(c.dir, pattern))
		errs = append(errs, err)
		for _, path := range paths {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (k *Keeper) forget(c *container) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.containers[c.id] == c {
		delete(k.containers, c.id)
	}
}

// delete forgets a container that has ended. It may be called again after an error.
func (c *container) delete(ctx context.Context) error {
	c.deleting.Lock()
	defer c.deleting.Unlock()
	c.mu.Lock()
	ended, req := c.rec.Exit != nil, c.rec.Request
	c.mu.Unlock()
	if !ended {
		return fmt.Errorf("it has not ended: %w", errdefs.ErrFailedPrecondition)
	}
	if _, err := os.Stat(c.stateDir()); req.Hooks && err == nil {
		if _, err := c.k.job(ctx, keeper.Job{
			Kind:          keeper.JobDestroy,
			Root:          filepath.Join(c.k.runDir, keeper.LibcontainerDir),
			ID:            c.id,
			Bundle:        req.Bundle,
			SystemdCgroup: req.SystemdCgroup,
		}); err != nil {
			return err
		}
	}
	if err := c.remove(); err != nil {
		return err
	}
	failpoint.Here(failpoint.KeeperDeleted)
	c.k.forget(c)
	c.k.exits.forget(c.id)
	return nil
}

// job has a launcher do what has no process as its result.
func (k *Keeper) job(ctx context.Context, job keeper.Job) (keeper.JobResult, error) {
	l, err := k.pool.get(ctx)
	if err != nil {
		return keeper.JobResult{}, err
	}
	result, pidfd, err := l.do(ctx, job)
	if err != nil {
		return keeper.JobResult{}, err
	}
	wire.CloseAll([]*os.File{pidfd})
	k.doWork(func() { k.pool.release(l) })
	return result, nil
}

// checkpoint has a launcher dump the container; unless it is left running, its exit is reported as any other.
func (c *container) checkpoint(ctx context.Context, opts keeper.CheckpointOptions) error {
	c.mu.Lock()
	phase, _ := c.phase()
	req := c.rec.Request
	c.mu.Unlock()
	if phase != keeper.PhaseRunning {
		return fmt.Errorf("it does not run: %w", errdefs.ErrFailedPrecondition)
	}
	_, err := c.k.job(ctx, keeper.Job{
		Kind:          keeper.JobCheckpoint,
		Root:          filepath.Join(c.k.runDir, keeper.LibcontainerDir),
		ID:            c.id,
		Bundle:        req.Bundle,
		SystemdCgroup: req.SystemdCgroup,
		Checkpoint:    &opts,
		Places:        filepath.Join(c.k.runDir, keeper.PlacesDir),
	})
	return err
}
