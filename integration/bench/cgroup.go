package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies returns the mounted trees by controller: one with the empty name on cgroup v2, one each on v1.
func hierarchies() (map[string]string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			return nil, fmt.Errorf("/proc/self/cgroup: unexpected line %q", line)
		}
		names := strings.TrimPrefix(fields[1], "name=")
		dir := filepath.Join(cgroupRoot, names)
		if names == "" {
			if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
				continue // a v2 tree beside v1
			}
		}
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		for _, controller := range strings.Split(names, ",") {
			out[controller] = dir
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no cgroups are mounted in " + cgroupRoot)
	}
	return out, nil
}

// accounting is the hierarchy that counts CPU time and in which runtimes are told apart.
func accounting() (string, error) {
	all, err := hierarchies()
	if err != nil {
		return "", err
	}
	for _, name := range []string{"", "cpuacct"} {
		if dir, ok := all[name]; ok {
			return dir, nil
		}
	}
	return "", errors.New("no cgroup hierarchy counts CPU time")
}

// cgroupOf returns the cgroup of a process in the accounting hierarchy.
func cgroupOf(pid int) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	v2 := ""
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && slices.Contains(strings.Split(fields[1], ","), "cpuacct") {
			return fields[2], nil
		}
		if len(fields) == 3 && fields[1] == "" {
			v2 = fields[2]
		}
	}
	return v2, nil
}

func ownCgroup() (string, error) { return cgroupOf(os.Getpid()) }

// enterCgroup makes a cgroup in the accounting hierarchy, if need be, and moves this process into it.
func enterCgroup(path string) error {
	root, err := accounting()
	if err != nil {
		return err
	}
	dir := filepath.Join(root, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

// removeCgroup removes a cgroup with those below it from the accounting hierarchy.
func removeCgroup(path string) error {
	root, err := accounting()
	if err != nil {
		return err
	}
	return removeTree(filepath.Join(root, path))
}

// removeTree removes a cgroup in one hierarchy. Its last processes may still be on their way out.
func removeTree(dir string) error {
	var err error
	for range 100 {
		var dirs []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // gone
		})
		err = nil
		for _, d := range slices.Backward(dirs) {
			err = errors.Join(err, os.Remove(d))
		}
		if err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// podsCgroup is where a target's pods are: relative to the root of each hierarchy.
func podsCgroup(target string) string { return "/bench-pods-" + strings.ReplaceAll(target, "+", "-") }

// makePodCgroup makes the cgroup of a pod in all hierarchies, as a kubelet does before it asks for the sandbox.
func makePodCgroup(path string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for controller, root := range all {
		dir := root
		for _, part := range strings.Split(strings.Trim(path, "/"), "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if controller == "cpuset" {
				if err := inheritCpuset(parent, dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// inheritCpuset fills what v1 leaves empty in a new cgroup, so that no process could enter it.
func inheritCpuset(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0); err != nil {
			return err
		}
	}
	return nil
}

func removePodCgroups(path string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range all {
		errs = append(errs, removeTree(filepath.Join(root, path)))
	}
	return errors.Join(errs...)
}

// cpuTime is what all processes of a target have used since it was started, those of its pods included; false if it
// cannot be told apart from others.
func (t *target) cpuTime() (time.Duration, bool) {
	root, err := accounting()
	if err != nil || t.own == "" {
		return 0, false
	}
	own, ok := cpuUsage(filepath.Join(root, t.own))
	pods, _ := cpuUsage(filepath.Join(root, t.pods)) // none before the first pod
	return own + pods, ok
}

func cpuUsage(dir string) (time.Duration, bool) {
	if data, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage")); err == nil {
		n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
		return time.Duration(n), err == nil
	}
	f, err := os.Open(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "usage_usec "); ok {
			n, err := strconv.ParseInt(value, 10, 64)
			return time.Duration(n) * time.Microsecond, err == nil
		}
	}
	return 0, false
}

// processes returns the processes of a target, without those that are its containers' workload.
func (t *target) processes() ([]int, bool) {
	root, err := accounting()
	if err != nil || t.own == "" {
		return nil, false
	}
	var pids []int
	for _, group := range []string{t.own, t.pods} {
		_ = filepath.WalkDir(filepath.Join(root, group), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // gone
			}
			data, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, field := range strings.Fields(string(data)) {
				pid, err := strconv.Atoi(field)
				if err == nil && !isWorkload(pid) {
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	return pids, true
}

func isWorkload(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && filepath.Base(exe) == "wait"
}

// A memory is what processes take, in bytes. PSS counts a page that several share in parts.
type memory struct{ PSS, RSS int64 }

// memory sums up the memory of a target's processes. detail is by program.
func (t *target) memory() (sum memory, detail map[string]memory, ok bool) {
	pids, ok := t.processes()
	detail = map[string]memory{}
	for _, pid := range pids {
		m, err := memoryOf(pid)
		if err != nil {
			continue // gone
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		key := strings.TrimSpace(string(name))
		sum = memory{sum.PSS + m.PSS, sum.RSS + m.RSS}
		detail[key] = memory{detail[key].PSS + m.PSS, detail[key].RSS + m.RSS}
	}
	return sum, detail, ok
}

func memoryOf(pid int) (memory, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return memory{}, err
	}
	defer f.Close()
	var m memory
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(fields[1], 10, 64) // the first line has no number
		switch fields[0] {
		case "Pss:":
			m.PSS = n << 10
		case "Rss:":
			m.RSS = n << 10
		}
	}
	return m, lines.Err()
}

// threads counts the threads of a target.
func (t *target) threads() (int, bool) {
	pids, ok := t.processes()
	n := 0
	for _, pid := range pids {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)) // gone: none
		n += len(tasks)
	}
	return n, ok
}

// resetPeak makes the kernel count the peak of a process's memory anew; peak returns it in bytes.
func resetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

func peak(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmHWM:" {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("the kernel does not tell the peak of a process's memory")
}
