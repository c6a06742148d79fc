package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/internal/startfifo"
	"github.com/berth-node/berth/runtime/crilog"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// adopt takes over what a keeper before has left. What lived is watched by pidfd from now on: it is no child of this
// keeper, so the exit code comes from the kernel where it tells (6.15), or is unknown. A record that cannot be read is
// set aside and reported; the rest goes on.
func (k *Keeper) adopt(ctx context.Context) {
	paths, err := filepath.Glob(filepath.Join(k.runDir, keeper.ContainersDir, "*", recordName))
	if err != nil {
		k.log.Error("look for containers of a keeper before", "error", err)
	}
	for _, path := range paths {
		var rec record
		err := readRecord(path, &rec)
		if err == nil && rec.Request.ID != filepath.Base(filepath.Dir(path)) {
			err = errors.New("it names another container")
		}
		if err != nil {
			k.log.Error("damaged record set aside", "path", path, "error", errors.Join(err, setAside(path)))
			continue
		}
		k.adoptContainer(ctx, rec)
	}
}

func (k *Keeper) adoptContainer(ctx context.Context, rec record) {
	c := k.newContainer(rec.Request)
	c.rec, c.adopted = rec, true
	k.containers[c.id] = c
	switch {
	case rec.Exit != nil:
		close(c.dead)
		c.started, c.ending = true, true
		if !rec.Acked {
			k.exits.adopt(*rec.Exit)
		}
	case !c.made():
		k.log.Warn("half-made container of a keeper before is undone", "container", c.id)
		k.killLauncher(rec.Launcher)
		c.clean()
		return
	default:
		c.takeOver(ctx)
	}
	c.adoptExecs(ctx)
}

// killLauncher ends the launcher of a keeper before, which may be at work still.
func (k *Keeper) killLauncher(p keeper.Process) {
	proc, err := openProcess(p)
	if err != nil {
		return // it has gone
	}
	defer proc.pidfd.Close()
	proc.signal(int(unix.SIGKILL))
	proc.pidfd.SetReadDeadline(time.Now().Add(killGrace))
	if err := proc.wait(); err != nil {
		k.log.Error("a launcher of a keeper before does not die", "pid", p.Pid)
	}
}

// takeOver goes on with a container that lived when the keeper before died.
func (c *container) takeOver(ctx context.Context) {
	req := c.rec.Request
	err := c.learnStarted()
	if err != nil {
		c.k.log.Error("learn whether a container was started, ignoring", "container", c.id, "error", err)
	}
	if c.log, err = crilog.Open(req.LogPath, req.MaxLogLine); err != nil {
		c.k.log.Error("open a log again, the output is dropped until it can be opened", "container", c.id, "error", err)
		c.log = crilog.OpenLater(req.LogPath, req.MaxLogLine)
	}
	c.log.Lost = c.sayLost
	if req.Terminal {
		c.io.console = c.fetchConsole()
	} else {
		c.io = reopenFIFOs(c.dir, c.rec.Process.Pid, req.Stdin && !c.rec.StdinClosed)
		c.resync()
	}
	if c.rec.StdinClosed {
		c.letGo() // the keeper before may have died over it
	}
	c.pump()
	proc, err := openProcess(c.rec.Process)
	if err != nil {
		go c.awaitSpare(ctx)
		return
	}
	c.proc = proc
	c.holdAgain()
	go c.watch(proc, closed)
}

// holdAgain is hold for a container that was taken over: its holder may have been killed, or it is of a keeper that had none.
func (c *container) holdAgain() {
	before := c.rec.Holder
	if c.hold(); c.rec.Holder == before {
		return
	}
	if err := c.saveRecord(); err != nil {
		c.k.log.Error("record a holder, known to this keeper only", "container", c.id, "error", err)
	}
}

// resync keeps the end of a line whose beginning went with the keeper before from passing for a line.
func (c *container) resync() {
	for stream, f := range map[keeper.Stream]*os.File{keeper.Stdout: c.io.stdout, keeper.Stderr: c.io.stderr} {
		if f == nil || !isMarked(f) {
			continue
		}
		if err := c.log.Resync(logStream(stream), time.Now()); err != nil {
			c.k.log.Error("repair a log, ignoring", "container", c.id, "error", err)
		}
	}
}

// learnStarted finds out whether init was let go: the exec FIFO is gone, and from init too, or is empty, since the keeper before
// died over the start.
func (c *container) learnStarted() error {
	f, err := c.openExecFIFO()
	if err != nil {
		c.started = errors.Is(err, os.ErrNotExist)
		return nil
	}
	defer f.Close()
	blocked := true
	err = control(f, func(fd int) (err error) { blocked, err = startfifo.Blocked(uintptr(fd)); return err })
	// Init is asked after the FIFO: what was full is empty if it has died, too.
	if err != nil || blocked || !procfs.Process(c.rec.Process).Alive() {
		return err
	}
	c.started = true
	if err := os.Remove(c.execFIFO()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// awaitSpare is for a process that was gone when this keeper came: only a pidfd that the daemon has held can tell its
// exit code now. restore calls watch if it comes.
func (c *container) awaitSpare(ctx context.Context) {
	if !c.k.awaitRestored(ctx) {
		return
	}
	c.k.work.enter()
	defer c.k.work.leave()
	c.mu.Lock()
	lost := c.proc == nil
	c.ending = lost
	c.mu.Unlock()
	if lost {
		close(c.dead)
		c.end(exitOf(keeper.Ref{ID: c.id}, 0, false, time.Now()))
	}
}

// awaitRestored waits until a daemon has handed over what it held; false if the keeper ends.
func (k *Keeper) awaitRestored(ctx context.Context) bool {
	timer := time.NewTimer(adoptGrace)
	defer timer.Stop()
	select {
	case <-k.restored:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}

// closed stands for a launcher that has gone.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// adoptExecs does the same for the processes that Exec started.
func (c *container) adoptExecs(ctx context.Context) {
	paths, err := filepath.Glob(filepath.Join(c.dir, execPrefix+"*"+execSuffix))
	if err != nil {
		c.k.log.Error("look for execs of a keeper before", "container", c.id, "error", err)
	}
	for _, path := range paths {
		var rec execRecord
		if err := readRecord(path, &rec); err != nil {
			c.k.log.Error("damaged record set aside", "path", path, "error", errors.Join(err, setAside(path)))
			continue
		}
		e := &execution{c: c, id: rec.ExecID, process: rec.Process, exit: rec.Exit}
		c.mu.Lock()
		c.execs[e.id] = e
		c.mu.Unlock()
		if e.exit != nil {
			c.k.exits.adopt(*e.exit)
			continue
		}
		if proc, err := openProcess(rec.Process); err == nil {
			e.proc = proc
			go e.watch(proc, closed)
			continue
		}
		go e.awaitSpare(ctx)
	}
}

func (e *execution) awaitSpare(ctx context.Context) {
	if !e.c.k.awaitRestored(ctx) {
		return
	}
	e.c.k.work.enter()
	defer e.c.k.work.leave()
	e.c.mu.Lock()
	lost := e.proc == nil
	e.ended = lost
	e.c.mu.Unlock()
	if lost {
		e.end(exitOf(keeper.Ref{ID: e.c.id, ExecID: e.id}, 0, false, time.Now()))
	}
}

// restore takes what a daemon has held for a keeper before and hands over now; what is not needed is closed.
func (k *Keeper) restore(s keeper.Spare, files map[string]*os.File) {
	defer func() { closeNamed(files) }()
	c, err := k.container(s.ID)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.ExecID != "" {
		if e := c.execs[s.ExecID]; e != nil && e.process == s.Process && e.proc == nil && !e.ended {
			if e.proc = takeProcess(s.Process, files); e.proc != nil {
				go e.watch(e.proc, closed)
			}
		}
		return
	}
	if c.rec.Process != s.Process || c.ending {
		return
	}
	if console := files[keeper.FileConsole]; console != nil && c.rec.Request.Terminal && c.io.console == nil {
		delete(files, keeper.FileConsole)
		c.io.console = console
		c.pumps = append(c.pumps, startPump(c, console, keeper.Stdout, true))
		c.holdAgain()
	}
	if c.proc == nil {
		if c.proc = takeProcess(s.Process, files); c.proc != nil {
			go c.watch(c.proc, closed)
		}
	}
}

// takeProcess makes a process of the pidfd among files; nil if there is none.
func takeProcess(p keeper.Process, files map[string]*os.File) *process {
	pidfd := files[keeper.FilePidfd]
	if pidfd == nil {
		return nil
	}
	delete(files, keeper.FilePidfd)
	return &process{Process: p, pidfd: pidfd} // non-blocking, as we had sent it
}
