package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/sigmask"
	"github.com/berth-node/berth/internal/sysmon"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// A keeper is replaced in place:
//
//	the one that goes                                 the one that comes
//	opens the binary, asks it what it is (Describe)
//	shuts the gates: nothing is half done any more
//	writes its state into a memfd (handover.go)
//	makes duplicates of all descriptors, named there
//	execve                                        --> reads the state, takes everything up (takeover.go)
//	                                                  answers the request
//
// The pid stays, so children, locks and parents do not notice; and neither do daemons, whose connections are handed over as
// well: what they send meanwhile waits in the socket. Until execve nothing has been changed, and an error opens the gates
// again. Goroutines are not stopped: each is either outside of the gates, where it waits for something that happens once
// more for the next keeper (a readable descriptor), or waits to be let in.
//
// Waiting launchers are not handed over: their sockets close with execve and they go. The next keeper is to use the launchers
// of its own release.

const (
	// describeGrace is how long a program may take to say what it is.
	describeGrace = 10 * time.Second
	// restGrace is how long what is under way may take to end. Nothing new begins meanwhile, so it is not long.
	restGrace = 5 * time.Second
)

// The flags by which a keeper is started as a replacement, and asked what it is.
const (
	TakeOverFlag = "take-over"
	DescribeFlag = "describe"
)

// A Description is what a keeper's binary says of itself with DescribeFlag, as JSON on its stdout.
type Description struct {
	Build string `json:"build"`
	// Protocols are those that it speaks with daemons, Handovers the forms of state that it takes over.
	Protocols keeper.Range `json:"protocols"`
	Handovers keeper.Range `json:"handovers"`
}

// Describe describes this program.
func Describe(build string) Description {
	return Description{Build: build, Protocols: keeper.Protocols(), Handovers: keeper.Range{Oldest: handoverVersion, Newest: handoverVersion}}
}

// beginReplace does a replace request. Not as work: it waits for all work to end.
func (c *conn) beginReplace(ctx context.Context, msg keeper.Message) error {
	if !c.k.replacing.TryLock() {
		return c.answer(msg.Number, reply{}, fmt.Errorf("the keeper is being replaced already: %w", errdefs.ErrUnavailable))
	}
	ctx, done := c.bound(ctx, msg)
	go func() {
		err := c.k.replace(ctx, c, msg)
		c.k.work.enter()
		defer c.k.work.leave()
		c.k.replacing.Unlock()
		done()
		if err := c.answer(msg.Number, reply{}, err); err != nil {
			c.uc.Close()
		}
	}()
	return nil
}

// replace returns only if it fails, and nothing has changed then.
func (k *Keeper) replace(ctx context.Context, from *conn, msg keeper.Message) error {
	var req keeper.ReplaceRequest
	if err := decode(msg.Body, &req); err != nil {
		return err
	}
	if !filepath.IsAbs(req.Binary) || !filepath.IsAbs(req.Launch) {
		return fmt.Errorf("replace the keeper by %q with %q: not absolute: %w", req.Binary, req.Launch, errdefs.ErrInvalidArgument)
	}
	// Opened once: what is described is what is executed, whatever is installed at the path meanwhile.
	f, err := os.Open(req.Binary)
	if err == nil {
		f, err = raise(f)
	}
	if err != nil {
		return fmt.Errorf("replace the keeper: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	defer f.Close()
	what, err := k.describe(ctx, f)
	if err == nil {
		err = k.become(ctx, f, req, what, handedRequest{from: from, Number: msg.Number})
	}
	if err != nil {
		k.log.Error("the keeper is not replaced and goes on", "binary", req.Binary, "error", err)
		return fmt.Errorf("replace the keeper by %s: %w", req.Binary, err)
	}
	return nil
}

// describe asks the program in f what it is.
func (k *Keeper) describe(ctx context.Context, f *os.File) (Description, error) {
	ctx, cancel := context.WithTimeout(ctx, describeGrace)
	defer cancel()
	text, err := k.output(ctx, f, "--"+DescribeFlag)
	var what Description
	if err == nil {
		err = json.Unmarshal(text, &what)
	}
	if err != nil {
		return Description{}, fmt.Errorf("it does not say what it is, so it is no keeper that can take over: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if !what.Handovers.Has(handoverVersion) {
		return Description{}, fmt.Errorf("build %s takes over state of %s, not of %d: %w", what.Build, what.Handovers, handoverVersion, errdefs.ErrFailedPrecondition)
	}
	return what, nil
}

// output runs the program in f and returns what it prints, if it succeeds before ctx ends.
func (k *Keeper) output(ctx context.Context, f *os.File, flag string) ([]byte, error) {
	const maxOutput = 64 << 10
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	proc, err := startProcess(f, []string{"berth-keeper", flag}, null, w, null)
	w.Close()
	if err != nil {
		return nil, err
	}
	defer proc.pidfd.Close()
	defer context.AfterFunc(ctx, func() {
		proc.signal(int(unix.SIGKILL))
		r.SetReadDeadline(time.Unix(1, 0))
	})()
	text, err := io.ReadAll(io.LimitReader(r, maxOutput))
	if err == nil {
		err = proc.wait()
	}
	if err != nil {
		proc.signal(int(unix.SIGKILL))
		return nil, errors.Join(err, ctx.Err())
	}
	status, ok := k.reaper.take(proc.Pid)
	if !ok || status != 0 {
		return nil, fmt.Errorf("exit status %d", status.ExitStatus())
	}
	return text, nil
}

// become brings the keeper to rest and executes f.
func (k *Keeper) become(ctx context.Context, f *os.File, req keeper.ReplaceRequest, what Description, asked handedRequest) error {
	rest, cancel := context.WithTimeout(ctx, restGrace)
	defer cancel()
	if err := k.work.shut(rest); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	defer k.work.open()
	if err := k.flow.shut(rest); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	defer k.flow.open()
	k.reaper.mu.Lock() // whom it reaps from now on nobody would know
	defer k.reaper.mu.Unlock()

	if err := k.replaceable(what); err != nil {
		return err
	}
	state, fds, err := k.handOver(asked)
	defer fds.close()
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	memfd, err := writeHandover(state)
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	defer memfd.Close()
	fds.files = append(fds.files, memfd)
	args := append([]string{
		req.Binary,
		"--run-dir", k.runDir, "--launch", req.Launch, "--launchers", strconv.Itoa(k.launchers),
		"--" + TakeOverFlag, strconv.Itoa(int(memfd.Fd())),
	}, k.args...)
	failpoint.Here(failpoint.KeeperReplacing)
	return fmt.Errorf("execute it: %w", execute(f, args, fds.numbers()))
}

// replaceable says why the keeper cannot be replaced by what; the gates are shut.
func (k *Keeper) replaceable(what Description) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closing {
		return fmt.Errorf("the keeper is ending: %w", errdefs.ErrUnavailable)
	}
	for c := range k.conns {
		if c.version != 0 && !what.Protocols.Has(c.version) {
			return fmt.Errorf("build %s speaks protocol %s, and a daemon is connected that speaks %d: replace that one first: %w", what.Build, what.Protocols, c.version, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// execute becomes the program in f, with these descriptors. It returns only if that fails.
func execute(f *os.File, args []string, fds []int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	// A signal that comes before the new program has its handlers would end it. It waits then, and arrives: Go unblocks a
	// signal for the thread that takes those of package os/signal. Children are started with nothing blocked.
	defer sigmask.Block(unix.SIGTERM, unix.SIGHUP, unix.SIGINT)()
	// No child may be born while these descriptors are not close-on-exec.
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	sysmon.Restore()
	err := syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), args, os.Environ())
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	// Exec has put back the limit that the Go runtime had found, for the new program.
	return errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
}
