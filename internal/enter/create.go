package enter

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/wire"
)

// InitFiles are what an init is started with. All stay the caller's to close.
type InitFiles struct {
	// Program is an open file with Binary, executable; its number is above FileProc.
	Program *os.File
	// Plan is an encoded plan with an Init, open for reading.
	Plan *os.File
	// Fifo is the FIFO at which init waits for its start, open for writing: it writes a byte before it becomes the workload.
	Fifo *os.File
	// Proc is the node's /proc.
	Proc *os.File
	// Stdio are the workload's standard streams.
	Stdio [3]*os.File
	// Cgroup, if it is not nil, is the folder of the cgroup (v2) in which init is born. Who is moved to a cgroup waits until all
	// processors have taken notice of it; who is born there does not.
	Cgroup *os.File
}

// Steps are the caller's part in a creation.
type Steps struct {
	// Place is called with the process that is going to make init, which waits meanwhile. It is to put it where init belongs:
	// into its cgroups, if it has not been born there.
	Place func(pid int) error
	// Made is called with init, while that makes its surroundings. Init does not go on to what cannot be taken back before it
	// returns: the caller has it on record from then on.
	Made func(pid int) error
}

// Create starts the init of a container and returns when it waits at its FIFO: its pid and a pidfd, which is the caller's. Init
// is no child of the caller's, but of the nearest subreaper above; the program that made it is a child and has been reaped. At the
// end of ctx, and if a step fails, all is killed; init may then be there still for as long as the kernel takes to end it. If the
// caller dies before Made has returned, init ends by itself. A step of the program that failed is an *Error.
func Create(ctx context.Context, f InitFiles, steps Steps) (pid int, pidfd *os.File, err error) {
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	conn, theirs, err := wire.Pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrNotStarted, err)
	}
	defer conn.Close() // init that has not been let go ends with it
	first, err := f.exec(theirs)
	theirs.Close()
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrNotStarted, err)
	}
	reap := func() { _, _ = first.Wait() } // says that it ended well, or was killed
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	if err = letGo(conn, steps.Place, first.Pid); err == nil {
		pid, pidfd, err = read(conn)
	}
	if err != nil {
		_ = first.Kill()
		reap()
		return 0, nil, cause(ctx, err)
	}
	reap()
	if err = letGo(conn, steps.Made, pid); err != nil {
		_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
	}
	if said := ended(conn); said != nil {
		err = said // of an init that has ended before it was let go the socket has the reason
	}
	if err == nil {
		return pid, pidfd, nil
	}
	_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
	awaitEnd(int(pidfd.Fd()))
	pidfd.Close()
	return 0, nil, cause(ctx, err)
}

// letGo does a step of the caller's and lets the process go on.
func letGo(conn *net.UnixConn, step func(int) error, pid int) error {
	if err := step(pid); err != nil {
		return err
	}
	_, err := conn.Write([]byte{0})
	return err
}

// cause is why something was broken off, or what went wrong by itself.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// exec starts the program.
func (f *InitFiles) exec(report *os.File) (*os.Process, error) {
	attr := &syscall.SysProcAttr{}
	if f.Cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(f.Cgroup.Fd())
	}
	return os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", f.Program.Fd()), []string{"berth-enter"}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: []*os.File{f.Stdio[0], f.Stdio[1], f.Stdio[2], FilePlan: f.Plan, FileReport: report, FileInit: f.Fifo, FileProc: f.Proc},
		Sys:   attr,
	})
}
