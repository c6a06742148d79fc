package evict

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Node returns what Config.Observe is on a real node: by proc, where procfs is mounted, and by a folder on each of the two file
// systems.
func Node(proc, nodeFs, imageFs string) func(context.Context) (map[Signal]Observation, error) {
	return func(context.Context) (map[Signal]Observation, error) {
		all := map[Signal]Observation{}
		var err error
		if all[MemoryAvailable], err = memoryOf(proc); err != nil {
			return nil, err
		}
		if all[PIDAvailable], err = processesOf(proc); err != nil {
			return nil, err
		}
		if err := addDisk(all, nodeFs, NodeFsAvailable, NodeFsInodesFree); err != nil {
			return nil, err
		}
		return all, addDisk(all, imageFs, ImageFsAvailable, ImageFsInodesFree)
	}
}

// memoryOf reckons as the kubelet does with the root cgroup: its working set is what is used but for the page cache that was not
// used lately.
func memoryOf(proc string) (Observation, error) {
	path := filepath.Join(proc, "meminfo")
	data, err := os.ReadFile(path)
	if err != nil {
		return Observation{}, err
	}
	kib := map[string]int64{}
	for line := range bytes.Lines(data) {
		if f := strings.Fields(string(line)); len(f) >= 2 {
			kib[strings.TrimSuffix(f[0], ":")], _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	for _, name := range []string{"MemTotal", "MemFree", "Inactive(file)"} {
		if _, ok := kib[name]; !ok {
			return Observation{}, fmt.Errorf("%s has no %s", path, name)
		}
	}
	return Observation{Available: min(kib["MemFree"]+kib["Inactive(file)"], kib["MemTotal"]) << 10, Capacity: kib["MemTotal"] << 10}, nil
}

// processesOf takes the number of tasks from loadavg: sysinfo(2) has 16 bits for it (kubernetes/kubernetes#107107).
func processesOf(proc string) (Observation, error) {
	most := int64(1) << 22
	for _, name := range []string{"sys/kernel/pid_max", "sys/kernel/threads-max"} {
		n, err := number(filepath.Join(proc, name), func(text string) string { return text })
		if err != nil {
			return Observation{}, err
		}
		most = min(most, n)
	}
	tasks, err := number(filepath.Join(proc, "loadavg"), func(text string) string {
		if f := strings.Fields(text); len(f) == 5 {
			_, all, _ := strings.Cut(f[3], "/")
			return all
		}
		return ""
	})
	return Observation{Available: most - tasks, Capacity: most}, err
}

func number(path string, find func(string) string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(find(string(data))), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

func addDisk(all map[Signal]Observation, dir string, bytes, inodes Signal) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	all[bytes] = Observation{Available: int64(s.Bavail) * s.Bsize, Capacity: int64(s.Blocks) * s.Bsize}
	if s.Files > 0 { // btrfs makes them as it goes
		all[inodes] = Observation{Available: int64(s.Ffree), Capacity: int64(s.Files)}
	}
	return nil
}
