package spec

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/caps"
)

// HostCapabilities are the capabilities that this process, and so what it starts, can give to a container.
func HostCapabilities() ([]string, error) {
	own, err := capability.NewPid2(0)
	if err != nil {
		return nil, fmt.Errorf("own capabilities: %w", err)
	}
	if err := own.Load(); err != nil {
		return nil, fmt.Errorf("own capabilities: %w", err)
	}
	last, err := capability.LastCap()
	if err != nil {
		return nil, fmt.Errorf("capabilities of the kernel: %w", err)
	}
	names := []string{}
	for _, c := range capability.ListKnown() {
		if c <= last && own.Get(capability.PERMITTED, c) && own.Get(capability.BOUNDING, c) {
			names = append(names, caps.Name(c))
		}
	}
	return names, nil
}

// rlimits are the numbers of all limits.
var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// HostRlimitCeilings are this process's hard limits: without CAP_SYS_RESOURCE nothing that it starts can go higher. With
// it there are no ceilings: nil.
func HostRlimitCeilings(capabilities []string) (map[string]uint64, error) {
	if slices.Contains(capabilities, "CAP_SYS_RESOURCE") {
		return nil, nil
	}
	ceilings := make(map[string]uint64, len(rlimits))
	for name, resource := range rlimits {
		var limit unix.Rlimit
		if err := unix.Getrlimit(resource, &limit); err != nil {
			return nil, fmt.Errorf("own %s: %w", name, err)
		}
		ceilings[name] = limit.Max
	}
	return ceilings, nil
}

// cgroupOptions are the options of a cgroup2 file system that concern the whole of it.
var cgroupOptions = []string{
	"nsdelegate", "favordynmods", "memory_localevents", "memory_recursiveprot", "memory_hugetlb_accounting", "pids_localevents",
}

// HostCgroupOptions are the options of the host's cgroup2 file system, none where /sys/fs/cgroup is something else. It
// reads the whole mount table: once at the daemon's start, not on the path of a pod.
func HostCgroupOptions() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	var options []string
	for lines.Scan() {
		if o, ok := cgroupMountOptions(lines.Text()); ok {
			options = o // the mount on top comes last
		}
	}
	return options, lines.Err()
}

// cgroupMountOptions reads one line of mountinfo:
//
//	35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
func cgroupMountOptions(line string) ([]string, bool) {
	mount, super, ok := strings.Cut(line, " - ")
	fields, superFields := strings.Fields(mount), strings.Fields(super)
	if !ok || len(fields) < 5 || fields[4] != cgroupDir || len(superFields) < 3 {
		return nil, false
	}
	if superFields[0] != "cgroup2" {
		return nil, true
	}
	var found []string
	for _, o := range strings.Split(superFields[2], ",") {
		if slices.Contains(cgroupOptions, o) {
			found = append(found, o)
		}
	}
	return found, true
}
