package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/startfifo"
	"github.com/berth-node/berth/runtime/crilog"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// container is one container, from the intent to make it until it is deleted. What its life has come to follows from
// what is set: proc (made), started, rec.Exit (ended).
type container struct {
	k   *Keeper
	id  string
	dir string
	// log is set before the container is made and closed when it has ended.
	log     *crilog.Writer
	viewers viewers
	// dead is closed when the process has ended; its output may not be on disk yet.
	dead chan struct{}
	// deleting is held by who does that.
	deleting sync.Mutex

	mu      sync.Mutex
	rec     record
	proc    *process // nil while the container is made, or if the process was gone when this keeper came
	started bool
	// starting is not nil while a start is under way; untold says that nobody waited for its success.
	starting *starting
	untold   bool
	adopted  bool
	ending   bool  // nothing is taken over any more: the end was seen
	io       stdio // empty when the container has ended
	pumps    []*pump
	execs    map[string]*execution
}

func (k *Keeper) newContainer(req keeper.CreateRequest) *container {
	return &container{
		k:     k,
		id:    req.ID,
		dir:   filepath.Join(k.runDir, keeper.ContainersDir, req.ID),
		rec:   record{Request: req},
		dead:  make(chan struct{}),
		execs: make(map[string]*execution),
	}
}

// stateDir is libcontainer's folder of the container.
func (c *container) stateDir() string {
	return filepath.Join(c.k.runDir, keeper.LibcontainerDir, c.id)
}

func (c *container) execFIFO() string { return filepath.Join(c.stateDir(), "exec.fifo") }

// living says why the keeper must not end; "" if c is no reason.
func (c *container) living() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, e := range c.execs {
		if e.exit == nil {
			return "has the process " + id
		}
	}
	switch {
	case c.rec.Exit != nil:
		return ""
	case !c.made():
		return "is being made"
	default:
		return "lives"
	}
}

// made says whether the container came into being; c.mu is held.
func (c *container) made() bool { return c.rec.Process.Pid != 0 }

// saveRecord is called with c.mu held.
func (c *container) saveRecord() error { return writeRecord(filepath.Join(c.dir, recordName), c.rec) }

// pump begins to move the output; c.mu is held and c.io set.
func (c *container) pump() {
	if f := c.io.stdout; f != nil {
		c.pumps = append(c.pumps, startPump(c, f, keeper.Stdout, false))
	}
	if f := c.io.stderr; f != nil {
		c.pumps = append(c.pumps, startPump(c, f, keeper.Stderr, false))
	}
	if f := c.io.console; f != nil {
		c.pumps = append(c.pumps, startPump(c, f, keeper.Stdout, true))
	}
}

// emit is where all output passes: to the log first, which nobody can delay, then to those attached.
func (c *container) emit(stream keeper.Stream, now time.Time, data []byte) {
	c.log.Write(logStream(stream), now, data)
	c.viewers.send(stream, data)
}

// settled says whether all that was emitted of stream is in the log.
func (c *container) settled(stream keeper.Stream) bool { return c.log.Settled(logStream(stream)) }

func logStream(stream keeper.Stream) crilog.Stream {
	if stream == keeper.Stderr {
		return crilog.Stderr
	}
	return crilog.Stdout
}

// sayLost notes when a log cannot be written, and when it goes on.
func (c *container) sayLost(why error) {
	if why == nil {
		c.k.log.Warn("the log of a container goes on", "container", c.id, "path", c.rec.Request.LogPath)
		return
	}
	c.k.log.Error("output of a container is lost, its log cannot be written", "container", c.id, "error", why)
}

// watch waits for the end of the process and reports it. gone is closed when the launcher has ended: until then the
// process is its child and tells us nothing.
func (c *container) watch(proc *process, gone <-chan struct{}) {
	if err := proc.wait(); err != nil {
		c.k.log.Error("wait for a container", "container", c.id, "pid", proc.Pid, "error", err)
	}
	at := time.Now()
	close(c.dead) // at once: a start that waits for it is inside the gate
	<-gone
	status, known := c.k.ended(proc)
	defer c.k.work.leave()
	c.end(exitOf(keeper.Ref{ID: c.id}, status, known, at))
}

// end is the one way into the state exited: output on disk, record written, exit reported, in this order. The caller has
// closed dead, and is inside the gate.
func (c *container) end(exit keeper.Exit) {
	failpoint.Here(failpoint.KeeperExitSeen)
	c.mu.Lock()
	c.ending = true
	pumps := c.pumps
	c.pumps = nil
	c.mu.Unlock()
	written := c.finishLog(pumps, exit.At)
	failpoint.Here(failpoint.KeeperLogWritten)
	c.viewers.end()
	c.k.exits.add(exit, nil, func(numbered keeper.Exit) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rec.Exit = &numbered
		c.closeIO(written)
		if c.proc != nil {
			c.proc.pidfd.Close()
		}
		if err := c.saveRecord(); err != nil {
			c.k.log.Error("record an exit, known to this keeper only", "container", c.id, "error", err)
		}
		failpoint.Here(failpoint.KeeperExitRecorded)
	})
}

// logGrace is how long the rest of a log may take to be written.
const logGrace = 10 * time.Second

// finishLog writes what is left of the output. A log on a mount that hangs must not keep the end of the container from
// everybody: it goes on being written when the mount is well again.
// What it returns is closed when all is written.
func (c *container) finishLog(pumps []*pump, at time.Time) <-chan struct{} {
	written := make(chan struct{})
	go func() {
		defer close(written)
		for _, p := range pumps {
			p.finish()
		}
		if err := c.log.Close(at); err != nil {
			c.k.log.Error("close a log", "container", c.id, "error", err)
		}
	}()
	over := time.NewTimer(logGrace)
	defer over.Stop()
	select {
	case <-written:
	case <-over.C:
		c.k.log.Error("the log of an ended container hangs, not waiting for it", "container", c.id, "path", c.rec.Request.LogPath)
	}
	return written
}

// closeIO closes the workload's streams, which waits for those who use them: after the log, then. c.mu is held.
func (c *container) closeIO(written <-chan struct{}) {
	streams := c.io
	c.io = stdio{}
	select {
	case <-written:
		streams.close()
	default:
		go func() { <-written; streams.close() }()
	}
}

// starting is a start from the moment on in which init may go on: there is no way back then, whoever asked for it.
type starting struct {
	callers int
	done    chan struct{}
	err     error // when done is closed
}

// start lets the workload go. If ctx ends when init may go on already, the start itself goes on, and the next call joins it
// or gets its result.
func (c *container) start(ctx context.Context) error {
	s, err := c.beginStart(ctx)
	if s == nil {
		return err
	}
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.starting != s {
			return s.err
		}
		s.callers--
		return ctx.Err()
	}
}

// beginStart opens the exec FIFO, at which init waits, unless somebody lets it go already. Without an error, nil is a start
// that has succeeded.
func (c *container) beginStart(ctx context.Context) (*starting, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.starting != nil {
		c.starting.callers++
		return c.starting, nil
	}
	if c.untold {
		c.untold = false
		return nil, nil
	}
	if err := errors.Join(c.startable(), ctx.Err()); err != nil {
		return nil, err
	}
	f, err := c.openExecFIFO()
	if err != nil {
		return nil, err
	}
	s := &starting{callers: 1, done: make(chan struct{})}
	c.starting = s
	c.k.doWork(func() {
		s.err = c.finishStart(f)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.starting, c.untold = nil, s.err == nil && s.callers == 0
		close(s.done)
	})
	return s, nil
}

// openExecFIFO opens the FIFO by its name or, if somebody has emptied the run dir, through init, which has it open.
func (c *container) openExecFIFO() (*os.File, error) {
	f, err := startfifo.Open(c.execFIFO())
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	through := c.namelessExecFIFO()
	if through == "" {
		return nil, err
	}
	return openThrough(through, unix.O_RDONLY)
}

// namelessExecFIFO is the link to the FIFO among the files of an init that has not gone on, if the FIFO has lost its name. The
// path before the container's own folder may look different from there.
func (c *container) namelessExecFIFO() string {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.rec.Process.Pid)) // the pattern is good
	lost := "/" + filepath.Join(c.id, filepath.Base(c.execFIFO())) + " (deleted)"
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil && strings.HasSuffix(path, lost) {
			return link
		}
	}
	return ""
}

// finishStart lets init go, and waits for the byte that it writes before it executes the workload.
func (c *container) finishStart(f *os.File) error {
	defer f.Close()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-c.dead:
			f.SetReadDeadline(time.Unix(1, 0))
		case <-over:
		}
	}()
	if !letGo(f) {
		return fmt.Errorf("its init has died: %w", errdefs.ErrFailedPrecondition)
	}
	failpoint.Here(failpoint.KeeperOpened)
	c.mu.Lock()
	c.started = true
	c.mu.Unlock()
	// libcontainer takes a container without the FIFO as running, and so does a next keeper.
	if err := os.Remove(c.execFIFO()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	failpoint.Here(failpoint.KeeperStarted)
	return nil
}

// awaitStart waits a moment for a start that is under way, so that who asks next hears what becomes of it.
func (c *container) awaitStart(ctx context.Context) {
	c.mu.Lock()
	s := c.starting
	c.mu.Unlock()
	if s == nil {
		return
	}
	select {
	case <-s.done:
	case <-time.After(workloadGrace):
	case <-ctx.Done():
	}
}

// startable is c's table of what Start finds; c.mu is held.
func (c *container) startable() error {
	phase, ok := c.phase()
	if !ok {
		return fmt.Errorf("it is being made: %w", errdefs.ErrFailedPrecondition)
	}
	if phase != keeper.PhaseCreated {
		return fmt.Errorf("it is %s: %w", phase, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// letGo returns false if no byte has come at the deadline of f. Then it looks once more, since a short workload may have run
// and ended already.
func letGo(f *os.File) (gone bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	look := func(fd uintptr) bool {
		gone = gone || startfifo.LetGo(fd)
		return gone
	}
	once := func(fd uintptr) { look(fd) }
	raw.Control(once)
	failpoint.Here(failpoint.KeeperLetGo)
	if raw.Read(look) != nil {
		raw.Control(once)
	}
	return gone
}

// phase is false while the container is made; c.mu is held.
func (c *container) phase() (keeper.Phase, bool) {
	switch {
	case c.rec.Exit != nil:
		return keeper.PhaseExited, true
	case !c.made():
		return "", false
	case c.started:
		return keeper.PhaseRunning, true
	default:
		return keeper.PhaseCreated, true
	}
}

// state is false while the container is made.
func (c *container) state() (keeper.State, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	phase, ok := c.phase()
	if !ok {
		return keeper.State{}, false
	}
	s := keeper.State{
		ID:          c.id,
		Request:     c.rec.Request,
		Process:     c.rec.Process,
		Phase:       phase,
		Exit:        c.rec.Exit,
		Adopted:     c.adopted,
		ConsoleLost: c.rec.Request.Terminal && c.rec.Exit == nil && c.io.console == nil,
		StdinClosed: c.rec.StdinClosed,
	}
	if c.log != nil {
		s.LogBytes, s.LogDropped = c.log.Counts()
	}
	for _, id := range slices.Sorted(maps.Keys(c.execs)) {
		if e := c.execs[id]; e.made() {
			s.Execs = append(s.Execs, keeper.ExecState{ExecID: id, Process: e.process, Exit: e.exit})
		}
	}
	return s, true
}

// alive returns an error of class ErrFailedPrecondition unless the container is made and has not ended; c.mu is held.
func (c *container) alive() error {
	if phase, ok := c.phase(); !ok || phase == keeper.PhaseExited {
		return fmt.Errorf("container %s does not live: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// signal sends sig to the init, or to an exec.
func (c *container) signal(execID string, sig int) error {
	c.mu.Lock()
	proc, ended := c.proc, c.rec.Exit != nil
	phase, _ := c.phase()
	if execID != "" {
		e := c.execs[execID]
		proc, ended = nil, true
		if e != nil {
			proc, ended = e.proc, e.exit != nil
		}
	}
	c.mu.Unlock()
	if proc == nil || ended {
		return fmt.Errorf("container %s: process %q: %w", c.id, execID, errdefs.ErrNotFound)
	}
	if execID == "" && phase == keeper.PhaseRunning && sig != int(unix.SIGKILL) {
		proc.awaitWorkload()
	}
	err := proc.signal(sig)
	if errors.Is(err, os.ErrClosed) { // it ended just now
		err = fmt.Errorf("container %s: process %q: %w", c.id, execID, errdefs.ErrNotFound)
	}
	return err
}

// closeStdin lets the workload see the end of its input when no client has it open.
func (c *container) closeStdin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.made() || c.rec.Request.Terminal || c.rec.StdinClosed || c.rec.Exit != nil {
		return nil
	}
	c.rec.StdinClosed = true
	if err := c.saveRecord(); err != nil { // before the act: a next keeper must not open it again
		return err
	}
	c.letGo()
	if c.io.stdin != nil {
		c.io.stdin.Close()
		c.io.stdin = nil
	}
	return nil
}

func (c *container) resize(width, height uint16) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.io.console == nil {
		return fmt.Errorf("container %s has no terminal: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	return control(c.io.console, func(fd int) error {
		return os.NewSyscallError("TIOCSWINSZ", unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}))
	})
}

func (c *container) reopenLog() error {
	c.mu.Lock()
	err := c.alive()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if err := c.log.Reopen(); err != nil {
		return fmt.Errorf("reopen the log of container %s: %w", c.id, err)
	}
	failpoint.Here(failpoint.KeeperLogReopened)
	return nil
}

// attach returns an attached client's descriptors, by name.
func (c *container) attach() (map[string]*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.alive(); err != nil {
		return nil, err
	}
	output, ok, err := c.addViewer()
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("container %s has ended: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	files := map[string]*os.File{keeper.FileOutput: output}
	var stdin, console *os.File
	if c.io.console != nil {
		console, err = duplicate(c.io.console)
	}
	if err == nil && c.rec.Request.Stdin && !c.rec.StdinClosed {
		if c.rec.Request.Terminal && c.io.console != nil {
			stdin, err = duplicate(c.io.console)
		} else if !c.rec.Request.Terminal {
			stdin, err = c.io.openInput()
		}
	}
	for name, f := range map[string]*os.File{keeper.FileStdin: stdin, keeper.FileConsole: console} {
		if f != nil {
			files[name] = f
		}
	}
	if err != nil {
		closeNamed(files)
		return nil, fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	return files, nil
}

func closeNamed(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}
