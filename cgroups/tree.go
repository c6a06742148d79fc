package cgroups

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// walk comes to a cgroup and to each one below it: enter is called before those below, with the path of one that lasts as long as the
// call; leave, if there is one, after them, with what is above (not for the first one). What goes meanwhile is passed over.
//
// A workload that has cgroups of its own may nest them deeper than a path can be long, and than there are descriptors or stack. So each
// is opened from the one above by its name, and that again from below, and only one is open at a time.
func walk(dir string, enter func(path string) error, leave func(above int, name string) error) error {
	at, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { at.Close() }()
	type level struct {
		name  string
		below []string // those that are still to be seen
	}
	below, err := visit(at, enter)
	if err != nil {
		return err
	}
	for stack := []level{{below: below}}; ; {
		top := &stack[len(stack)-1]
		name := top.name
		step := ".."
		if n := len(top.below); n > 0 {
			step, top.below = top.below[n-1], top.below[:n-1]
		} else if len(stack) == 1 {
			return nil
		}
		next, err := openBelow(at, step)
		if step != ".." && gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		at.Close()
		at = next
		if step == ".." {
			stack = stack[:len(stack)-1]
			if leave != nil {
				err = leave(int(at.Fd()), name)
			}
		} else {
			below, err = visit(at, enter)
			stack = append(stack, level{step, below})
		}
		if err != nil && !gone(err) {
			return err
		}
	}
}

// visit enters a cgroup and returns the names of those below it.
func visit(at *os.File, enter func(path string) error) (below []string, err error) {
	if err := enter(fmt.Sprintf("/proc/self/fd/%d", at.Fd())); err != nil {
		return nil, err
	}
	entries, err := at.ReadDir(-1)
	for _, e := range entries {
		if e.IsDir() {
			below = append(below, e.Name())
		}
	}
	return below, err
}

func openBelow(at *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(at.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "openat", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// allPids returns the processes in a cgroup and below it.
func allPids(dir string) ([]int, error) {
	var all []int
	err := walk(dir, func(path string) error {
		data, err := os.ReadFile(path + "/cgroup.procs")
		if errors.Is(err, unix.ENOTSUP) { // a threaded one
			data, err = os.ReadFile(path + "/cgroup.threads")
		}
		if err != nil {
			return err
		}
		for _, field := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			all = append(all, pid)
		}
		return nil
	}, nil)
	return all, err
}

// removeTree removes a cgroup and those below it. One that is not there is no error.
func removeTree(dir string) error {
	err := unix.Rmdir(dir) // nearly always enough
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err := removeBelow(dir); err != nil {
		return err
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// removeBelow removes the cgroups below one.
func removeBelow(dir string) error {
	err := walk(dir, func(string) error { return nil }, func(above int, name string) error {
		if err := unix.Unlinkat(above, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "rmdir", Path: dir + "/…/" + name, Err: err}
		}
		return nil
	})
	if gone(err) {
		return nil
	}
	return err
}
