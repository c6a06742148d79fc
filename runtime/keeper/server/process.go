package server

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// reapGrace is how long the parent of an adopted process may take to reap it, where the kernel tells the exit code only
// then.
const reapGrace = 10 * time.Second

// process is a process that the keeper watches.
type process struct {
	keeper.Process
	// pidfd is non-blocking, so that Go's poller waits for it.
	pidfd *os.File
	// child says that it is, or will be when its launcher is gone, a child of this keeper.
	child bool
}

// newProcess takes over the descriptor fd.
func newProcess(p keeper.Process, fd int, child bool) (*process, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("pidfd of %d: %w", p.Pid, err)
	}
	return &process{Process: p, pidfd: os.NewFile(uintptr(fd), "pidfd"), child: child}, nil
}

// openProcess finds a process that runs already. It is of class ErrNotFound if it is gone or its number is another's.
func openProcess(p keeper.Process) (*process, error) {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w: %w", p.Pid, err, errdefs.ErrNotFound)
	}
	// Looked at after the pidfd was opened: if it is the same process now, the pidfd is of this one.
	now, err := readProcess(p.Pid)
	if err != nil || now != p {
		unix.Close(fd)
		return nil, fmt.Errorf("process %d with start time %d: %w", p.Pid, p.StartTime, errdefs.ErrNotFound)
	}
	return newProcess(p, fd, false)
}

// wait returns when the process has ended; it may be a zombie still.
func (p *process) wait() error {
	return p.poll(unix.POLLIN)
}

func (p *process) poll(events int16) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		return err == nil && n > 0 && poll[0].Revents&events != 0
	})
}

// signal sends sig; class ErrNotFound if the process has ended.
func (p *process) signal(sig int) error {
	return control(p.pidfd, func(fd int) error {
		err := unix.PidfdSendSignal(fd, unix.Signal(sig), nil, 0)
		if errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("process %d has ended: %w", p.Pid, errdefs.ErrNotFound)
		}
		return os.NewSyscallError("pidfd_send_signal", err)
	})
}

// ended returns how proc ended, after wait and when its launcher has gone, and has entered the gate of work: the status of a
// child can be taken once. That of another's child may be long in coming, and can be asked for again.
func (k *Keeper) ended(proc *process) (status unix.WaitStatus, known bool) {
	if !proc.child {
		status, known = proc.strangerStatus()
	}
	k.work.enter()
	if proc.child {
		status, known = proc.status(k.reaper)
	}
	return status, known
}

// workloadGrace bounds the time from the start of a container to the execve of its workload, which is no millisecond.
const workloadGrace = time.Second

// initExes begin the paths of what an init executes before it is the workload: libcontainer's, and package enter's.
var initExes = []string{"/memfd:berth-launch", "/memfd:berth-enter"}

// awaitWorkload returns when init has become the workload. Until then a signal is libcontainer's, whose Go runtime ends
// with status 2 of some and drops others, or package enter's, which drops them all, where the workload would have handled it.
// There is nothing to wait on: the kernel tells nobody but a tracer of an execve.
func (p *process) awaitWorkload() {
	exe := "/proc/" + strconv.Itoa(p.Pid) + "/exe"
	for deadline := time.Now().Add(workloadGrace); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		link, err := os.Readlink(exe)
		if err != nil || !slices.ContainsFunc(initExes, func(init string) bool { return strings.HasPrefix(link, init) }) {
			return
		}
	}
}

// status returns how the process ended, after wait and, for a child, after its launcher has gone. False if nobody knows.
func (p *process) status(r *reaper) (unix.WaitStatus, bool) {
	if p.child {
		if status, ok := r.take(p.Pid); ok {
			return status, true
		}
	}
	return p.strangerStatus()
}

// strangerStatus is for a process that is another's child, pid 1's as a rule. While it is a zombie /proc has its status,
// afterwards its pidfd (Linux 6.15).
func (p *process) strangerStatus() (unix.WaitStatus, bool) {
	if status, ok := p.zombieStatus(); ok {
		return status, true
	}
	if status, ok, err := p.exitInfo(); ok || err != nil {
		return status, ok
	}
	// A zombie whose status we may not see. When it is reaped, the pidfd says so with POLLHUP.
	p.pidfd.SetReadDeadline(time.Now().Add(reapGrace))
	defer p.pidfd.SetReadDeadline(time.Time{})
	if err := p.poll(unix.POLLHUP); err != nil {
		return 0, false
	}
	status, ok, _ := p.exitInfo()
	return status, ok
}

// zombieStatus reads field 52 of /proc/PID/stat, which is 0 for those who may not see it. The link is under the same
// rule and says so: a zombie has no working directory, but to some it does not even say that.
func (p *process) zombieStatus() (unix.WaitStatus, bool) {
	proc := "/proc/" + strconv.Itoa(p.Pid)
	if _, err := os.Readlink(proc + "/cwd"); !errors.Is(err, os.ErrNotExist) {
		return 0, false
	}
	data, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return 0, false
	}
	// The second field is the name in parentheses and may hold anything: count from behind it.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	const state, start, exitCode = 0, 22 - 3, 52 - 3 // fields 3, 22 and 52
	if len(fields) <= exitCode || fields[state] != "Z" || fields[start] != strconv.FormatUint(p.StartTime, 10) {
		return 0, false
	}
	status, err := strconv.ParseUint(fields[exitCode], 10, 32)
	return unix.WaitStatus(status), err == nil
}

func (p *process) exitInfo() (status unix.WaitStatus, ok bool, err error) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	err = control(p.pidfd, func(fd int) error { return unix.IoctlPidfdInfo(fd, &info) })
	ok = err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0
	return unix.WaitStatus(info.Exit_code), ok, err
}

// exitOf puts a status into the words of the protocol.
func exitOf(ref keeper.Ref, status unix.WaitStatus, known bool, at time.Time) keeper.Exit {
	e := keeper.Exit{ID: ref.ID, ExecID: ref.ExecID, At: at}
	switch {
	case !known:
		e.Code, e.Unknown = keeper.UnknownExitCode, true
	case status.Signaled():
		e.Signal = int(status.Signal())
		e.Code = 128 + e.Signal
	default:
		e.Code = status.ExitStatus()
	}
	return e
}

// readProcess reads a process' start time, which together with pid names it.
func readProcess(pid int) (keeper.Process, error) {
	stat, err := procfs.ReadStat(pid)
	if err != nil {
		return keeper.Process{}, err
	}
	return keeper.Process{Pid: pid, StartTime: stat.StartTime}, nil
}

// control runs f with the descriptor of file, which cannot be closed meanwhile; os.ErrClosed if it was before.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return fmt.Errorf("%s: %w", file.Name(), os.ErrClosed) // the only reason, which comes as an error of no class
	}
	return failed
}

// duplicate returns a second descriptor of file.
func duplicate(file *os.File) (*os.File, error) {
	fd := -1
	err := control(file, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", file.Name(), err)
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}
