package cri

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/runtime"
)

var processMetrics = []metric{
	{
		name: "container_processes", help: "Number of processes running inside the container.", kind: gauge,
		values: fromProcesses(func(p *processes) uint64 { return p.count }),
	}, {
		name: "container_file_descriptors", help: "Number of open file descriptors for the container.", kind: gauge,
		values: fromProcesses(func(p *processes) uint64 { return p.files }),
	}, {
		name: "container_sockets", help: "Number of open sockets for the container.", kind: gauge,
		values: fromProcesses(func(p *processes) uint64 { return p.sockets }),
	}, {
		name: "container_threads_max", help: "Maximum number of threads allowed inside the container, infinity if value is zero", kind: gauge,
		values: fromPids(func(p *cgroups.PidsStats) uint64 { return limit(p.Limit) }),
	}, {
		name: "container_threads", help: "Number of threads running inside the container", kind: gauge,
		values: fromPids(func(p *cgroups.PidsStats) uint64 { return p.Current }),
	}, {
		name: "container_ulimits_soft", help: "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice",
		kind: gauge, extra: []string{"ulimit"},
		values: func(s *sample) []value {
			if s.processes == nil || s.processes.maxFiles == nil {
				return nil
			}
			return []value{{n: *s.processes.maxFiles, labels: []string{"max_open_files"}}}
		},
	},
}

func fromProcesses(read func(*processes) uint64) func(*sample) []value {
	return func(s *sample) []value {
		if s.processes == nil {
			return nil
		}
		return one(read(s.processes))
	}
}

func fromPids(read func(*cgroups.PidsStats) uint64) func(*sample) []value {
	return func(s *sample) []value {
		if s.stats == nil || s.stats.Pids == nil {
			return nil
		}
		return one(read(s.stats.Pids))
	}
}

// processes are those of one container.
type processes struct {
	count, files, sockets uint64
	// maxFiles is the soft limit of open files of the container's init; nil without a limit. cAdvisor shows no other.
	maxFiles *uint64
}

// processes counts the processes of a container; nil if its cgroup cannot be read any more.
func (m *meter) processes(c runtime.Container) *processes {
	group, err := m.cgroups.Open(c.CgroupsPath)
	if err != nil {
		return nil
	}
	pids, err := group.Pids()
	if err != nil {
		return nil
	}
	p := &processes{count: uint64(len(pids))}
	for _, pid := range pids {
		files, sockets := openFiles(procPath(pid, "fd"))
		p.files += files
		p.sockets += sockets
	}
	if c.Pid != 0 {
		if limits, err := os.ReadFile(procPath(c.Pid, "limits")); err == nil {
			p.maxFiles = softMaxFiles(limits)
		}
	}
	return p
}

func procPath(pid int, file string) string { return filepath.Join("/proc", strconv.Itoa(pid), file) }

// openFiles counts the entries of a process' fd folder; a process that has gone has none.
func openFiles(dir string) (files, sockets uint64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0
	}
	for _, e := range entries {
		files++
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			sockets++
		}
	}
	return files, sockets
}

// softMaxFiles reads the line "Max open files   1024   4096   files" of /proc/PID/limits; nil if it says "unlimited".
func softMaxFiles(limits []byte) *uint64 {
	lines := bufio.NewScanner(bytes.NewReader(limits))
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "Max open files")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return nil
		}
		n, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return nil
		}
		return &n
	}
	return nil
}
