package nri

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// reap asks for the end of each plugin that this process has as a child, when it comes. The library does so for those that it ends
// itself, and forgets all others: one that ended before it was registered, or fails one day, would stay a zombie for as long as this
// process lives, through every reload. To have closed its connection is not yet to have ended, so nobody else can say when it does.
func reap(pluginPath string) error {
	entries, err := os.ReadDir(pluginPath)
	if err != nil {
		return nil // no folder, no plugins
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[comm(e.Name())] = true
	}
	var errs []error
	for _, pid := range children() {
		if names[nameOf(pid)] {
			errs = append(errs, reapOne(pid))
		}
	}
	return errors.Join(errs...)
}

// reapOne returns at once.
func reapOne(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // somebody has asked
	}
	if err == nil {
		err = unix.SetNonblock(fd, true) // so that Go's poller waits, and no thread
	}
	if err != nil {
		return os.NewSyscallError("pidfd", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	conn, err := f.SyscallConn()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	go func() {
		defer f.Close()
		_ = conn.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			if n == 0 || err != nil {
				return false
			}
			// By descriptor: the pid may be another child's by now. That the library was first is as good.
			_ = unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG, nil)
			return true
		})
	}()
	return nil
}

// comm is what the kernel calls a process that runs the file: the first 15 bytes.
func comm(file string) string { return file[:min(len(file), 15)] }

// children are the pids of all children of this process, each of which is listed with the thread that started it.
func children() []int {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil
	}
	var pids []int
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// nameOf returns the kernel's name of a process.
func nameOf(pid int) string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(text), "\n")
}
