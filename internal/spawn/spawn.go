// Package spawn starts processes that get none of the caller's files but those that they are to have, not even for a moment.
//
// What a new process must not have it closes at its execve, and whoever closes a file that was written, on a file system like
// NFS or FUSE, waits for that file system, with no signal to end it. Files that may lie on a mount that hangs are therefore put
// out of the way by Withhold, and processes are started by a thread that has a table of descriptors without them.
package spawn

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/nsfile"
	"github.com/berth-node/berth/internal/sigmask"
	"github.com/berth-node/berth/internal/sysmon"
)

// withheld is the lowest descriptor that no process gets, as long as those below suffice for all else. They are as many as a
// node ever needs or, where the limit on open files allows for fewer, half of those that there can be.
var withheld = sync.OnceValue(func() int {
	const enough = 1 << 14
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur >= 2*enough {
		return enough
	}
	return int(limit.Cur / 2)
})

// Withhold moves f to a descriptor that no process gets from Start. Where the limit on open files leaves no room for that, f
// stays what it is.
func Withhold(f *os.File) *os.File {
	if int(f.Fd()) >= withheld() {
		return f
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, withheld())
	if err != nil {
		return f
	}
	_ = f.Close() // the file stays open
	return os.NewFile(uintptr(fd), f.Name())
}

// Start starts a program, with no signal blocked, and returns its pid and a pidfd, which is the caller's. Nobody waits for it
// here, as os.StartProcess would in a thread: the caller reaps. What is to happen before is done by the thread that starts the
// program and then ends; it may change its namespaces.
func Start(path string, args []string, attr syscall.ProcAttr, before ...func() error) (pid int, pidfd int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, -1, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	err = nsfile.OnThread(func() (err error) {
		for _, f := range before {
			if err := f(); err != nil {
				return err
			}
		}
		// The table is copied up to the first that is left out: nothing is closed.
		if err := unix.CloseRange(above(attr.Files, pair[1]), math.MaxUint32, unix.CLOSE_RANGE_UNSHARE); err != nil {
			return os.NewSyscallError("close_range", err)
		}
		pid, err = start(path, args, attr, pair[1])
		return err
	})
	if err != nil {
		return 0, -1, err
	}
	pidfd, err = receive(pair[0])
	return pid, pidfd, err
}

// above is the lowest descriptor that is left out: the first withheld one or, if so many files are open that the process is to have
// some of those, the one behind them.
func above(files []uintptr, socket int) uint {
	least := max(withheld(), socket+1)
	for _, fd := range files {
		least = max(least, int(fd)+1)
	}
	return uint(least)
}

// start is Start on a thread with a table of its own: the pidfd, which is in that table, goes through a socket.
func start(path string, args []string, attr syscall.ProcAttr, to int) (int, error) {
	var sys syscall.SysProcAttr
	if attr.Sys != nil {
		sys = *attr.Sys
	}
	pidfd := -1
	sys.PidFD = &pidfd
	attr.Sys = &sys
	defer sigmask.Clear()()
	sysmon.Restore()
	pid, _, err := syscall.StartProcess(path, args, &attr)
	if err != nil {
		return 0, err
	}
	if pidfd < 0 {
		return 0, errors.New("this kernel gives no pidfd")
	}
	if err := unix.Sendmsg(to, []byte{0}, unix.UnixRights(pidfd), nil, 0); err != nil {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		return 0, os.NewSyscallError("sendmsg", err)
	}
	return pid, nil
}

// receive returns the descriptor that start has sent.
func receive(from int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(from, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("no room for a pidfd: %w", unix.EMFILE)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}
