package cgroups

import (
	"slices"
	"sync/atomic"
)

// Driver says who makes the cgroups of containers.
type Driver string

const (
	// Cgroupfs is mkdir in the cgroup file system.
	Cgroupfs Driver = "cgroupfs"
	// Systemd is one transient scope per container, asked for over D-Bus.
	Systemd Driver = "systemd"
)

// Host is what this node's cgroups are. [Probe] makes it once at start; it does not change afterwards and is safe for
// concurrent use.
type Host struct {
	// Unified says that /sys/fs/cgroup is cgroup v2. A hybrid node, v1 with a v2 tree beside it, is not unified.
	Unified bool
	// Driver is the driver in use, never empty.
	Driver Driver
	// Controllers are those that can be used for containers, sorted, by the kernel's names ("io" on v2, "blkio" on v1).
	Controllers []string
	// DefaultParent is the parent of sandboxes whose request names none: "/berth" or "berth.slice". It may be set to
	// another one, in the driver's own syntax, before the first use of the host.
	DefaultParent string
	// Swap says that limits on swap can be set.
	Swap bool
	// PSI says that the kernel counts pressure per cgroup.
	PSI bool
	// AtomicKill says that cgroup.kill is there (Linux 5.14), so that a fork bomb ends at once.
	AtomicKill bool
	// HugePageSizes are the sizes of huge pages of this machine as the hugetlb controller names them ("2MB", "1GB").
	HugePageSizes []string

	// mounts has the root directory of each hierarchy: on v2 only "", on v1 one for each controller and for
	// "name=systemd", and "" for the v2 tree of a hybrid node.
	mounts map[string]string
	// warming counts the calls of Warm since it began its work; 0 while it does none.
	warming atomic.Int32
}

// Has says whether limits of a controller can be set, by the kernel's name of the controller.
func (h *Host) Has(controller string) bool { return slices.Contains(h.Controllers, controller) }

// Limitations returns what this node lacks, one sentence each, for an operator. Empty means that nothing is missed.
func (h *Host) Limitations() []string {
	var out []string
	add := func(missing bool, words string) {
		if missing {
			out = append(out, words)
		}
	}
	if !h.Unified {
		out = append(out, "cgroup v1: no memory.high and no unified settings; Kubernetes has deprecated it")
	}
	io := "io"
	if !h.Unified {
		io = "blkio"
	}
	for _, c := range []struct{ name, loss string }{
		{"cpu", "CPU limits and shares cannot be set"},
		{"cpuset", "containers cannot be bound to CPUs"},
		{"memory", "memory limits cannot be set, and the end of a container by lack of memory is not seen"},
		{"pids", "the number of processes cannot be limited"},
		{io, "disk traffic can be neither limited nor counted"},
		{"hugetlb", "limits on huge pages are left out"},
	} {
		add(!h.Has(c.name), "no cgroup controller "+c.name+": "+c.loss)
	}
	if !h.Unified {
		add(!h.Has("devices"), "no cgroup controller devices: containers that restrict devices cannot start")
		add(!h.Has("freezer"), "no cgroup controller freezer: containers cannot be paused, and a fork bomb may outrun its end")
		add(!h.Has("cpuacct"), "no cgroup controller cpuacct: CPU time is not counted")
	}
	add(h.Has("memory") && !h.Swap, "no swap accounting: limits on swap are left out")
	add(!h.PSI, "no pressure stall information per cgroup (CONFIG_PSI, or switched off by psi=0)")
	add(h.Unified && !h.AtomicKill, "no cgroup.kill (Linux before 5.14): containers are frozen to be killed")
	return out
}
