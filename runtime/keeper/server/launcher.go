package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/memfile"
	"github.com/berth-node/berth/internal/spawn"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
)

const (
	// killGrace is how long a launcher may take to die of SIGKILL before its job is answered without it. It takes that
	// long only when it is stuck in the kernel.
	killGrace = 2 * time.Second
	// sealedFD is the lowest descriptor of the sealed launcher: spawn.Start places the child's descriptors from 0
	// on, before the path /proc/self/fd/N is looked up, and must not hit it.
	sealedFD = 100
)

// freeSoon is how long a job waits for a launcher while none of those at work gets done. A creation takes some 10 ms on a
// machine that has nothing else to do.
const freeSoon = 250 * time.Millisecond

// pool keeps launchers waiting, started ahead: a Go program with libcontainer takes several milliseconds to start. No more are
// started for jobs that come all at once: each would want as much of a processor as the job itself. Only those that are
// stuck, on a mount that hangs or at a long job, are replaced.
type pool struct {
	binary *os.File // sealed, at sealedFD or above
	runDir string
	// slots has an element for each launcher of the pool, waiting or at work, and for each that would not start.
	slots  chan struct{}
	ready  chan candidate // has room for all of them
	lean   *lean          // nil: launchers are born among the host's mounts
	reaper *reaper
	log    *slog.Logger

	mu     sync.Mutex
	atWork map[*launcher]bool // those of the pool that have a job
	done   uint64             // how often one was
}

// candidate is a launcher that waits, or why there is none.
type candidate struct {
	*launcher
	err error
}

// newPool makes a pool of launchers of a sealed binary, which it takes over.
func newPool(binary *os.File, runDir string, size int, reaper *reaper, log *slog.Logger) *pool {
	size = max(size, 1)
	return &pool{
		binary: binary, runDir: runDir, slots: make(chan struct{}, size), ready: make(chan candidate, size), reaper: reaper, log: log,
		atWork: make(map[*launcher]bool),
	}
}

// seal copies the launcher at path into a sealed memfd. libcontainer sees its own executable sealed and does not copy it once
// per container; and an upgrade of the package does not mix two versions within one keeper.
func seal(path string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	return sealFrom(keeper.SealedLauncher, src)
}

// sealFrom is for src what seal is for a file. Its descriptor is one from which startProcess can start it.
func sealFrom(name string, src io.Reader) (*os.File, error) {
	f, err := memfile.Sealed(name, memfile.Program, src)
	if err != nil {
		return nil, err
	}
	return raise(f)
}

// raise moves f to a descriptor from which startProcess can start it.
func raise(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, sealedFD)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// run keeps the pool full until ctx ends, then ends those who wait.
func (p *pool) run(ctx context.Context) {
	var err error
	if p.lean, err = newLean(p.runDir); err != nil {
		p.log.Warn("launchers see all mounts of the host, and are slower on a full node", "error", err)
	}
	for ctx.Err() == nil {
		select {
		case p.slots <- struct{}{}:
			l, err := p.start()
			p.ready <- candidate{l, err} // an error waits like a launcher: no start is tried again unasked
		case <-ctx.Done():
		}
	}
	for {
		select {
		case c := <-p.ready:
			if c.launcher != nil {
				c.dismiss()
			}
		default:
			return
		}
	}
}

// get returns a launcher that lives: one that waits, or is done with its job soon. Those that died waiting are skipped;
// after a poolful of bad ones it gives up.
func (p *pool) get(ctx context.Context) (*launcher, error) {
	stuck := time.NewTimer(freeSoon)
	defer stuck.Stop()
	done := p.replaceStuck(math.MaxUint64)
	var last error
	for bad := 0; bad < cap(p.ready)+2; {
		select {
		case c := <-p.ready:
			if last = p.check(c); last == nil {
				return c.launcher, nil
			}
			bad++
		case <-stuck.C:
			done = p.replaceStuck(done)
			stuck.Reset(freeSoon)
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a launcher: %w", ctx.Err())
		}
	}
	return nil, fmt.Errorf("no launcher: %w: %w", last, errdefs.ErrUnavailable)
}

// check takes a launcher out of the ranks of those that wait. If it lives it is at work from now on.
func (p *pool) check(c candidate) error {
	if c.err != nil {
		<-p.slots
		return c.err
	}
	select {
	case <-c.gone:
		<-p.slots
		return fmt.Errorf("a waiting launcher died: %s", c.dismiss())
	default:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.atWork[c.launcher] = true
		return nil
	}
}

// replaceStuck gives the slots of all launchers at work to others if none of them has got done since done was returned, and
// returns how often one has.
func (p *pool) replaceStuck(done uint64) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == done {
		for l := range p.atWork {
			p.giveSlot(l)
		}
	}
	return p.done
}

// leave gives the slot of l to another, if it has one.
func (p *pool) leave(l *launcher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.atWork[l] {
		p.giveSlot(l)
	}
}

// giveSlot needs p.mu, and that l is at work.
func (p *pool) giveSlot(l *launcher) {
	delete(p.atWork, l)
	<-p.slots
}

// release takes a launcher back that has done its job, or lets it end by itself.
func (p *pool) release(l *launcher) {
	if p.takeBack(l, l.stays && l.isReady()) {
		return
	}
	l.leave()
	l.conn.Close()
	<-l.gone
	l.tail.stop()
}

// takeBack is false for a launcher that is not ready for a further job, and for one that was replaced.
func (p *pool) takeBack(l *launcher, ready bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	if !ready || !p.atWork[l] {
		return false
	}
	delete(p.atWork, l)
	p.ready <- candidate{launcher: l} // has room: l has a slot
	return true
}

// launcher is one process of berth-launch.
type launcher struct {
	proc *process
	conn *net.UnixConn
	tail *tail
	// gone is closed when the process has ended. Its children are the keeper's from then on.
	gone chan struct{}
	// stays says that it waits for a further job, and that what its last job made is the keeper's child already.
	stays bool
	// leave gives its slot of the pool to another.
	leave func()
}

// start starts a launcher: a session of its own, nothing of the keeper's environment, and no descriptors but a null
// stdin, its complaints, and its end of a socket.
func (p *pool) start() (*launcher, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer errW.Close()
	conn, theirs, err := wire.Pair(unix.SOCK_STREAM)
	if err != nil {
		errR.Close()
		return nil, err
	}
	defer theirs.Close()

	start := startProcess
	if p.lean != nil {
		start = p.lean.startProcess
	}
	proc, err := start(p.binary, []string{"berth-launch"}, null, null, errW, theirs)
	if err != nil {
		errR.Close()
		conn.Close()
		return nil, fmt.Errorf("start a launcher: %w", err)
	}
	pid := proc.Pid
	l := &launcher{proc: proc, conn: conn, tail: newTail(errR), gone: make(chan struct{})}
	l.leave = func() { p.leave(l) }
	go func() {
		if err := proc.wait(); err != nil {
			p.log.Error("wait for a launcher, taken for dead", "pid", pid, "error", err)
		}
		p.reaper.take(pid)
		proc.pidfd.Close()
		close(l.gone)
	}()
	return l, nil
}

// startProcess starts a child from an open binary, which is at sealedFD or above: in a session of its own, with nothing of
// the keeper's environment and no descriptors but files.
func startProcess(binary *os.File, args []string, files ...*os.File) (*process, error) {
	return startWith(binary, args, fdsOf(files))
}

func fdsOf(files []*os.File) (fds []uintptr) {
	for _, f := range files {
		fds = append(fds, f.Fd())
	}
	return fds
}

// startWith is startProcess with the numbers of descriptors, and what the thread that does it does before.
func startWith(binary *os.File, args []string, fds []uintptr, before ...func() error) (*process, error) {
	pid, pidfd, err := spawn.Start(fmt.Sprintf("/proc/self/fd/%d", binary.Fd()), args, syscall.ProcAttr{
		Dir:   "/",
		Env:   append(failpoint.Environment(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
		Files: fds,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}, before...)
	if err != nil {
		return nil, err
	}
	started, _ := readProcess(pid) // zero if it is dead already; then nobody needs it
	return newProcess(keeper.Process{Pid: pid, StartTime: started.StartTime}, pidfd, true)
}

// do hands the job to l and waits for the answer. At the end of ctx it kills l. The pidfd of a
// create or an exec is the caller's. A job that failed is a *LaunchError.
func (l *launcher) do(ctx context.Context, job keeper.Job, files ...*os.File) (keeper.JobResult, *os.File, error) {
	defer context.AfterFunc(ctx, func() {
		l.kill()
		l.conn.SetDeadline(time.Unix(1, 0))
	})()
	var result keeper.JobResult
	err := wire.Write(l.conn, job, files...)
	var back []*os.File
	if err == nil {
		back, err = wire.Read(l.conn, &result)
	}
	switch {
	case ctx.Err() != nil && err != nil:
		err = fmt.Errorf("%s job: %w", job.Kind, ctx.Err())
	case err != nil:
		l.kill() // it has closed its socket, or says what nobody understands
		err = &keeper.LaunchError{Failure: keeper.FailureSetup, Message: fmt.Sprintf("the launcher gave no answer: %v", err)}
	case result.Error != "":
		err = &keeper.LaunchError{Failure: cmp.Or(result.Failure, keeper.FailureSetup), Message: result.Error}
	}
	if err != nil {
		wire.CloseAll(back)
		complaint := l.dismiss()
		var launch *keeper.LaunchError
		if complaint != "" && result.Error == "" && errors.As(err, &launch) {
			launch.Message += ": " + complaint
		}
		return keeper.JobResult{}, nil, err
	}
	l.stays = result.Stays
	var pidfd *os.File
	if len(back) > 0 {
		pidfd = back[0]
		wire.CloseAll(back[1:])
	}
	return result, pidfd, nil
}

// isReady waits until a launcher that stays has cleared away what was its last job's.
func (l *launcher) isReady() bool {
	l.conn.SetReadDeadline(time.Now().Add(killGrace))
	defer l.conn.SetReadDeadline(time.Time{})
	var again keeper.JobResult
	files, err := wire.Read(l.conn, &again)
	wire.CloseAll(files)
	return err == nil && again.Stays
}

// kill does nothing if l has ended.
func (l *launcher) kill() { _ = l.proc.signal(int(unix.SIGKILL)) }

// dismiss ends a launcher that has no job any more: it goes by itself when its socket is closed, or is killed. It
// returns what l complained of last, and when l has ended or is stuck in the kernel.
func (l *launcher) dismiss() string {
	l.leave()
	l.conn.Close()
	over := time.NewTimer(killGrace)
	defer over.Stop()
	select {
	case <-l.gone:
	case <-over.C:
		l.kill()
	}
	return l.tail.stop()
}

// parent returns what is closed when that which l has made is the keeper's child.
func (l *launcher) parent() <-chan struct{} {
	if l.stays {
		return closed
	}
	return l.gone
}

// tail keeps the last words that a launcher writes to its stderr: a Go panic, or an error of the C code in it.
type tail struct {
	r    *os.File
	done chan struct{}

	mu   sync.Mutex
	text []byte
}

// tailLength bounds a tail, in bytes.
const tailLength = 4 << 10

func newTail(r *os.File) *tail {
	t := &tail{r: r, done: make(chan struct{})}
	go t.read()
	return t
}

func (t *tail) read() {
	defer close(t.done)
	buf := make([]byte, 512)
	for {
		n, err := t.r.Read(buf)
		t.mu.Lock()
		t.text = append(t.text, buf[:n]...)
		if over := len(t.text) - tailLength; over > 0 {
			t.text = t.text[over:]
		}
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// stop ends the reading and returns the text. A process that the launcher left behind may hold the pipe, so it does not
// wait for its end for long.
func (t *tail) stop() string {
	t.r.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	<-t.done
	t.r.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}
