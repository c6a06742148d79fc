package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/spec"
)

// execTable holds those who wait for the exit of an exec.
type execTable struct {
	mu      sync.Mutex
	waiting map[string]chan keeper.Exit
	serving map[string]struct{}
	tell    func(ids []string) error // see tellOthers
}

func (t *execTable) await(id string) <-chan keeper.Exit {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting == nil {
		t.waiting = map[string]chan keeper.Exit{}
	}
	ch := make(chan keeper.Exit, 1)
	t.waiting[id] = ch
	return ch
}

func (t *execTable) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, id)
}

// exited reports whether anybody has waited for e.
func (t *execTable) exited(e keeper.Exit) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	ch := t.waiting[e.ExecID]
	if ch == nil {
		return false
	}
	ch <- e // has room for the one exit there is
	delete(t.waiting, e.ExecID)
	return true
}

// lost ends all waiting: a keeper that is gone reports nothing any more.
func (t *execTable) lost() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, ch := range t.waiting {
		ch <- keeper.Exit{ExecID: id, Unknown: true, Code: keeper.UnknownExitCode, At: time.Now()}
		delete(t.waiting, id)
	}
}

// An execution is a further process in a container, in a cgroup of its own: its end can take all its children with it.
type execution struct {
	r       *Runtime
	id      string
	c       *container
	group   *cgroups.Group
	exit    <-chan keeper.Exit
	console *os.File // with a terminal
}

// execIO are the process's ends of its streams; nil is /dev/null. A terminal is made for the process, of this size.
type execIO struct {
	stdin, stdout, stderr *os.File
	size                  Size
}

// startExec starts a process in a running container. The caller calls wait or kill, then done.
func (r *Runtime) startExec(ctx context.Context, c *container, cmd []string, terminal bool, stdio execIO) (*execution, error) {
	id := newID()[:32]
	if err := r.execs.begin(id); err != nil {
		return nil, err
	}
	x, err := r.startExecAs(ctx, id, c, cmd, terminal, stdio)
	if err != nil {
		r.execs.end(id)
	}
	return x, err
}

func (r *Runtime) startExecAs(ctx context.Context, id string, c *container, cmd []string, terminal bool, stdio execIO) (*execution, error) {
	s, err := r.specOf(c)
	if err != nil {
		return nil, err
	}
	ociProcess := spec.ExecProcess(s, cmd, terminal)
	if terminal && stdio.size != (Size{}) {
		ociProcess.ConsoleSize = &specs.Box{Width: uint(stdio.size.Width), Height: uint(stdio.size.Height)}
	}
	process, err := json.Marshal(ociProcess)
	if err != nil {
		return nil, err
	}
	parent, err := r.cfg.Cgroups.Open(c.record.CgroupsPath)
	if err != nil {
		return nil, err
	}
	x := &execution{r: r, id: id, c: c, group: parent.Sub(execCgroup + id)}
	if err := x.group.Create(); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id(), err)
	}
	files, err := r.enterFiles(c, s, ociProcess, parent, x.group)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("exec in container %s: %w", c.id(), err), x.endGroup())
	}
	defer files.close()
	k, err := r.keeper.client(ctx)
	if err != nil {
		return nil, errors.Join(err, x.endGroup())
	}
	failpoint.Here(failpoint.ExecGrouped)
	x.exit = r.execs.await(id)
	_, x.console, err = k.Exec(ctx, keeper.ExecRequest{
		ContainerID: c.id(), ExecID: id, Process: process, Terminal: terminal,
		SubCgroups: parent.SubPaths(execCgroup + id),
		Stdin:      stdio.stdin, Stdout: stdio.stdout, Stderr: stdio.stderr,
		Plan: files.plan, Cgroup: files.cgroup,
	})
	if err != nil {
		r.execs.forget(id)
		// Whoever does not know what became of the request kills what may have come of it.
		return nil, errors.Join(fmt.Errorf("exec in container %s: %w", c.id(), err), x.endGroup())
	}
	failpoint.Here(failpoint.ExecRunning)
	r.cfg.Metrics.ExecStarted(files.plan != nil)
	return x, nil
}

// execCgroup is the prefix of the cgroups of execs, below their container's.
const execCgroup = "exec-"

// kill ends the process and all its children at once. It does not return before they have ended.
func (x *execution) kill() {
	ctx, cancel := context.WithTimeout(x.r.life, releaseLimit)
	defer cancel()
	if err := x.group.Kill(ctx); err != nil {
		x.r.log.Error("exec could not be killed", "container", x.c.id(), "exec", x.id, "err", err)
	}
}

// wait returns how the process ended. At the end of ctx it kills it with all its children and returns ctx.Err(). So it
// does if the keeper is lost, and with it the news of the end; the error is of class ErrUnavailable.
func (x *execution) wait(ctx context.Context) (keeper.Exit, error) {
	select {
	case e := <-x.exit:
		if e.Unknown {
			x.kill()
			return e, fmt.Errorf("exec in container %s: the keeper was lost: %w", x.c.id(), errdefs.ErrUnavailable)
		}
		return e, nil
	case <-ctx.Done():
		x.kill()
		x.r.execs.forget(x.id)
		return keeper.Exit{}, ctx.Err()
	}
}

// done removes the cgroup, unless the process left children behind in it: these live as long as the container does.
func (x *execution) done() {
	defer x.r.execs.end(x.id)
	if x.console != nil {
		x.console.Close()
	}
	if x.group.RemoveEmpty() {
		return // nearly always
	}
	if pids, err := x.group.Pids(); err == nil && len(pids) > 0 {
		// The mark is for the next daemon, which kills what was cut off.
		if err := os.WriteFile(x.r.paths.leftBehind(x.c.id(), x.id), nil, 0o600); err != nil {
			x.r.log.Warn("what a command left behind could not be marked, ignoring", "container", x.c.id(), "exec", x.id, "err", err)
		}
		return
	}
	if err := x.endGroup(); err != nil {
		x.r.log.Warn("cgroup of an exec could not be removed, ignoring", "container", x.c.id(), "exec", x.id, "err", err)
	}
}

// endGroup removes the cgroup with whatever is in it.
func (x *execution) endGroup() error {
	ctx, cancel := context.WithTimeout(x.r.life, releaseLimit)
	defer cancel()
	return x.group.Remove(ctx)
}

// ExecSync runs a command in a container and returns what it printed. After timeout (0: none) the command is killed with
// all its children, and the error is context.DeadlineExceeded.
func (r *Runtime) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (ExecResult, error) {
	c, err := r.running(id, "exec in")
	if err != nil {
		return ExecResult{}, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("command %q timed out after %s: %w", cmd, timeout, context.DeadlineExceeded))
		defer cancel()
	}
	stdout, err := newCapture(r.cfg.MaxExecOutput)
	if err != nil {
		return ExecResult{}, err
	}
	defer stdout.close()
	stderr, err := newCapture(r.cfg.MaxExecOutput)
	if err != nil {
		return ExecResult{}, err
	}
	defer stderr.close()
	x, err := r.startExec(ctx, c, cmd, false, execIO{stdout: stdout.w, stderr: stderr.w})
	stdout.closeWrite()
	stderr.closeWrite()
	if err != nil {
		return ExecResult{}, err
	}
	defer x.done()
	exit, err := x.wait(ctx)
	if err != nil && ctx.Err() != nil {
		return ExecResult{}, context.Cause(ctx)
	}
	if err != nil {
		return ExecResult{}, err
	}
	failpoint.Here(failpoint.ExecEnded)
	// A child that was left behind may hold the pipes for ever: what the command itself wrote is there already.
	drain := time.Now().Add(r.cfg.ExecDrain)
	return ExecResult{Stdout: stdout.finish(drain), Stderr: stderr.finish(drain), ExitCode: int32(exit.Code)}, nil
}

// A capture keeps the first bytes written to a pipe and discards the rest.
type capture struct {
	r, w *os.File
	done chan struct{} // closed when nobody writes to buf any more
	buf  bytes.Buffer
}

func newCapture(limit int) (*capture, error) {
	r, w, err := outputPipe()
	if err != nil {
		return nil, err
	}
	c := &capture{r: r, w: w, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		_, _ = io.Copy(&capped{&c.buf, limit}, r) // ends with the pipe, or with finish
	}()
	return c, nil
}

// capped takes everything and keeps what comes first, limit bytes at the most.
type capped struct {
	buf   *bytes.Buffer
	limit int
}

func (w *capped) Write(p []byte) (int, error) {
	w.buf.Write(p[:min(len(p), w.limit-w.buf.Len())])
	return len(p), nil
}

func (c *capture) closeWrite() { c.w.Close() }

// finish returns what came until all writers have closed, or the deadline.
func (c *capture) finish(deadline time.Time) []byte {
	_ = c.r.SetReadDeadline(deadline) // a pipe always has one
	<-c.done
	return c.buf.Bytes()
}

func (c *capture) close() {
	c.r.Close()
	c.w.Close()
}

// Exec runs a command in a container, connected to a client, and returns its exit code when its output is passed on. If
// ctx ends first, the command is killed with its children.
func (r *Runtime) Exec(ctx context.Context, id string, cmd []string, s Streams) (int32, error) {
	c, err := r.running(id, "exec in")
	if err != nil {
		return 0, err
	}
	if s.Terminal {
		return r.execTerminal(ctx, c, cmd, s)
	}
	pipes, err := newPipes(s)
	if err != nil {
		return 0, err
	}
	defer pipes.close()
	x, err := r.startExec(ctx, c, cmd, false, pipes.theirs)
	pipes.closeTheirs()
	if err != nil {
		return 0, err
	}
	defer x.done()
	pipes.pump(s)
	exit, err := x.wait(ctx)
	if err != nil {
		return 0, err
	}
	pipes.drain(time.Now().Add(r.cfg.ExecDrain))
	return int32(exit.Code), nil
}

func (r *Runtime) execTerminal(ctx context.Context, c *container, cmd []string, s Streams) (int32, error) {
	x, err := r.startExec(ctx, c, cmd, true, execIO{size: firstSize(ctx, s.Resize)})
	if err != nil {
		return 0, err
	}
	defer x.done()
	if err := x.pollConsole(); err != nil {
		x.kill()
		return 0, err
	}
	stop := resizeLoop(s.Resize, func(size Size) error { return setSize(x.console, size) })
	defer stop()
	if s.Stdin != nil {
		go func() { _, _ = io.Copy(x.console, s.Stdin) }() // ends with the client's stream or with the terminal
	}
	output := make(chan struct{})
	go func() {
		defer close(output)
		passOn(s.Stdout, x.console) // a terminal ends with EIO when the last process has closed it
	}()
	exit, err := x.wait(ctx)
	if err != nil {
		return 0, err
	}
	_ = x.console.SetReadDeadline(time.Now().Add(r.cfg.ExecDrain)) // a child left behind may hold the terminal; see pollConsole
	select {
	case <-output:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return int32(exit.Code), nil
}

// sizeWait is how long a command waits for the size of its terminal. Clients that have a terminal send it first of all.
const sizeWait = 100 * time.Millisecond

// firstSize returns the size that a terminal shall have from its process's first moment on: what looks but once, as a
// shell's script does, would find 0 by 0, and never the right one. Zero if none comes in time; later ones are resizes.
func firstSize(ctx context.Context, sizes <-chan Size) Size {
	if sizes == nil {
		return Size{}
	}
	late := time.NewTimer(sizeWait)
	defer late.Stop()
	select {
	case size := <-sizes:
		return size
	case <-late.C:
	case <-ctx.Done():
	}
	return Size{}
}

// pollConsole makes reading the terminal a matter of the poller: done can then end a read that nothing else would end.
func (x *execution) pollConsole() error {
	if x.console == nil {
		return fmt.Errorf("exec in container %s: no terminal came", x.c.id())
	}
	fd, err := unix.FcntlInt(x.console.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return fmt.Errorf("terminal: %w", err)
	}
	x.console.Close()
	x.console = os.NewFile(uintptr(fd), "terminal")
	return nil
}

func setSize(console *os.File, size Size) error {
	raw, err := console.SyscallConn() // not Fd, which would make reads block again
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
	return errors.Join(err, set)
}

// resizeLoop passes on sizes until they end or stop is called.
func resizeLoop(sizes <-chan Size, set func(Size) error) (stop func()) {
	done := make(chan struct{})
	go func() {
		for {
			select {
			case size, ok := <-sizes:
				if !ok {
					return
				}
				_ = set(size) // the process may just have ended
			case <-done:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}
