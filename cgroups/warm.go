package cgroups

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Whoever moves a process between cgroups takes one lock of the whole machine (cgroup_threadgroup_rwsem). When nobody has
// taken it for a while, its readers, which are all forks and exits, do without memory barriers, and the first writer waits
// for an RCU grace period until they all know: 8 to 16 ms in which nothing is done. The writers after it do not wait.

// Warm makes the move of a process soon after, by whomever, go without that wait, which then passes beside the work in
// between. It returns at once and changes nothing: a thread of its own is put into the cgroup in which it is already. Calls
// that come while one is at work make it begin once more.
func (h *Host) Warm() {
	if h.warming.Add(1) > 1 {
		return
	}
	go func() {
		// Never unlocked, so that the thread ends with this function: were it moved, by a mount of another cgroup
		// namespace, nothing else would run in it.
		runtime.LockOSThread()
		for calls := int32(1); ; calls = h.warming.Load() {
			_ = h.touch() // what does not work here costs the caller the wait, no more
			if h.warming.CompareAndSwap(calls, 0) {
				return
			}
		}
	}()
}

// touch moves this thread to where it is.
func (h *Host) touch() error {
	path, err := h.threadsFile("/proc/thread-self/cgroup")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(strconv.Itoa(unix.Gettid()))
	return err
}

// threadsFile returns the list of threads of the cgroup that list, a file as proc_pid_cgroup(5) has it, names in one of the
// hierarchies; the lock is the same in all. The v2 tree is preferred, where a move looks at less.
func (h *Host) threadsFile(list string) (string, error) {
	f, err := os.Open(list)
	if err != nil {
		return "", err
	}
	defer f.Close()
	found := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		_, rest, _ := strings.Cut(lines.Text(), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		name, _, _ := strings.Cut(controllers, ",")
		mount, ok := h.mounts[name]
		switch {
		case !ok:
		case name == "":
			return filepath.Join(mount, path, "cgroup.threads"), nil
		default:
			found = filepath.Join(mount, path, "tasks")
		}
	}
	if found == "" {
		return "", fmt.Errorf("%s names no cgroup below %v", list, h.mounts)
	}
	return found, nil
}
