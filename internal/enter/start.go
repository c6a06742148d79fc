package enter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/spawn"
	"github.com/berth-node/berth/internal/wire"
)

// Files are what a process is started with. All stay the caller's to close.
type Files struct {
	// Program is an open file with Binary, executable; its number is above FileProc.
	Program *os.File
	// Plan is an encoded plan, open for reading.
	Plan *os.File
	// Init is the number of a pidfd of the container's init.
	Init int
	// Proc is the node's /proc.
	Proc *os.File
	// Stdio are the workload's standard streams.
	Stdio [3]*os.File
	// Cgroup, if it is not nil, is the folder of the cgroup (v2) in which the process is born.
	Cgroup *os.File
}

// An Error says which step failed. It wraps the system's error.
type Error struct{ Report Report }

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Report.Step, e.Report.Errno) }

// Unwrap returns the number that the kernel gave.
func (e *Error) Unwrap() error { return e.Report.Errno }

// ErrNotStarted says that the program itself could not be started, so that nothing has happened.
var ErrNotStarted = errors.New("the enter program was not started")

// Start starts the workload and returns when it runs: its pid and a pidfd, which is the caller's. It is a child of the
// caller's process; so is the program itself, which has ended by then: the caller reaps both. At the end of ctx all is
// killed. A step that failed is an *Error; it is ESRCH if the container's init has ended.
func Start(ctx context.Context, f Files) (pid int, pidfd *os.File, err error) {
	const attempts = 200
	for range attempts {
		pid, pidfd, err = start(ctx, f)
		if !errors.Is(err, unix.ESRCH) || hasEnded(f.Init) {
			break
		}
		// A thread of init's is executing another program, and is about to take the place of the first one, which is gone already,
		// with its namespaces.
		time.Sleep(time.Millisecond)
	}
	return pid, pidfd, err
}

// hasEnded looks at a pidfd.
func hasEnded(pidfd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return n != 0 || err != nil
}

func start(ctx context.Context, f Files) (pid int, pidfd *os.File, err error) {
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	conn, theirs, err := wire.Pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrNotStarted, err)
	}
	defer conn.Close()
	first, err := f.exec(theirs)
	theirs.Close()
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrNotStarted, err)
	}
	defer unix.Close(first)
	defer awaitEnd(first)
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()

	pid, pidfd, err = read(conn)
	if err == nil {
		err = ended(conn)
	} else {
		_ = unix.PidfdSendSignal(first, unix.SIGKILL, nil, 0) // it has ended, as a rule
	}
	if err == nil {
		return pid, pidfd, nil
	}
	if pidfd != nil {
		_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
		pidfd.Close()
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return 0, nil, err
}

// exec starts the program and returns its pidfd.
func (f *Files) exec(report *os.File) (int, error) {
	attr := &syscall.SysProcAttr{}
	if f.Cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(f.Cgroup.Fd())
	}
	path := fmt.Sprintf("/proc/self/fd/%d", f.Program.Fd())
	_, pidfd, err := spawn.Start(path, []string{"berth-enter"}, syscall.ProcAttr{
		Dir: "/",
		Files: []uintptr{
			f.Stdio[0].Fd(), f.Stdio[1].Fd(), f.Stdio[2].Fd(),
			FilePlan: f.Plan.Fd(), FileReport: report.Fd(), FileInit: uintptr(f.Init), FileProc: f.Proc.Fd(),
		},
		Sys: attr,
	})
	return pidfd, err
}

// endLimit bounds the wait for the end of a process, in milliseconds: what does not die is stuck in the kernel.
const endLimit = 1000

// awaitEnd returns when the first process is gone from its cgroup, which whoever looks at it would take for the workload's
// child. It has nothing to do any more, or was killed.
func awaitEnd(pidfd int) {
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, endLimit); err != unix.EINTR {
			return
		}
	}
}

// read reads the report that the process was made.
func read(conn *net.UnixConn) (int, *os.File, error) {
	data, oob := make([]byte, ReportSize), make([]byte, unix.CmsgSpace(4))
	n, oobn, err := receive(conn, data, oob)
	if err != nil {
		return 0, nil, fmt.Errorf("read the report: %w", err)
	}
	pidfd := received(oob[:oobn])
	report, err := ParseReport(data[:n])
	if err == nil && report.Pid == 0 {
		err = &Error{report}
	}
	if err == nil && pidfd == nil {
		err = errors.New("the report came without a pidfd")
	}
	return report.Pid, pidfd, err
}

// receive reads one message. What the kernel says first of a socket whose other end is closed may hide one: a reset, if that end has
// left something unread; and its end, if message and end both came between the kernel's look for messages and that for the end
// (__unix_dgram_recvmsg). What it says when it is asked again is so.
func receive(conn *net.UnixConn, data, oob []byte) (n, oobn int, err error) {
	for range 2 {
		n, oobn, _, _, err = conn.ReadMsgUnix(data, oob)
		if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			break
		}
	}
	return n, oobn, err
}

func received(oob []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil
	}
	return os.NewFile(uintptr(fds[0]), "pidfd")
}

// ended returns nil when the socket ends: the workload runs. Anything else is a failure on the way.
func ended(conn *net.UnixConn) error {
	data := make([]byte, ReportSize)
	n, _, err := receive(conn, data, nil)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for the workload: %w", err)
	}
	report, err := ParseReport(data[:n])
	if err != nil {
		return err
	}
	return &Error{report}
}
