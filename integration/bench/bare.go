package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// statFiles are what the statistics of the CRI are made of, by controller; the empty one is cgroup v2.
var statFiles = map[string][]string{
	"": {
		"cpu.stat", "cpu.weight", "cpu.max", "memory.stat", "memory.current", "memory.peak", "memory.swap.current",
		"memory.events", "memory.max", "memory.swap.max", "memory.low", "pids.current", "pids.max", "io.stat",
		"cpu.pressure", "memory.pressure", "io.pressure",
	},
	"cpuacct": {"cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys"},
	"cpu":     {"cpu.stat", "cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"},
	"memory": {
		"memory.stat", "memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.kmem.usage_in_bytes", "memory.failcnt",
		"memory.soft_limit_in_bytes", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control",
	},
	"pids":  {"pids.current", "pids.max"},
	"blkio": {"blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"},
}

// readStats reads the files of all containers' cgroups below pods, and those of the pods if they are asked for.
func readStats(pods string, withPods bool) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	buffer := make([]byte, 16<<10)
	for controller, files := range statFiles {
		root, ok := all[controller]
		if !ok {
			continue
		}
		groups, err := filepath.Glob(filepath.Join(root, pods, "*", "*", "cgroup.procs"))
		if err != nil {
			return err
		}
		if withPods {
			more, err := filepath.Glob(filepath.Join(root, pods, "*", "cgroup.procs"))
			if err != nil {
				return err
			}
			groups = append(groups, more...)
		}
		for _, group := range groups {
			for _, file := range files {
				if err := readOnce(filepath.Join(filepath.Dir(group), file), buffer); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// readOnce reads a file, which may be missing on this kernel.
func readOnce(file string, buffer []byte) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if _, err := f.Read(buffer); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}
