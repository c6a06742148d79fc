package cgroups

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

const root = "/sys/fs/cgroup"

// v1Hierarchies are the hierarchies that libcontainer joins a container to, where they are mounted. "" is the v2 tree
// of a hybrid node.
var v1Hierarchies = []string{
	"cpuset", "devices", "memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb", "net_cls", "net_prio", "perf_event",
	"freezer", "rdma", "name=systemd", "misc", "",
}

// Probe looks at the cgroups of this machine. With an empty driver it takes systemd where that is PID 1, else cgroupfs.
// What is missing and can be done without is logged and told by [Host.Limitations]; an error means that no container
// can be made at all.
func Probe(driver Driver, log *slog.Logger) (*Host, error) {
	h := &Host{Driver: driver, HugePageSizes: slices.Sorted(slices.Values(cgroups.HugePageSizes()))}
	if err := h.chooseDriver(exists("/run/systemd/system")); err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return nil, fmt.Errorf("no cgroups at %s: %w: %w", root, err, errdefs.ErrFailedPrecondition)
	}
	h.Unified = st.Type == unix.CGROUP2_SUPER_MAGIC
	probe := h.probeV1
	if h.Unified {
		probe = h.probeV2
	}
	if err := probe(); err != nil {
		return nil, err
	}
	log.Debug("cgroups probed", "unified", h.Unified, "driver", h.Driver, "controllers", h.Controllers)
	return h, nil
}

// chooseDriver settles the driver and the default parent that goes with it.
func (h *Host) chooseDriver(systemdRuns bool) error {
	if h.Driver == "" {
		h.Driver = Cgroupfs
		if systemdRuns {
			h.Driver = Systemd
		}
	}
	switch h.Driver {
	case Cgroupfs:
		h.DefaultParent = "/berth"
	case Systemd:
		h.DefaultParent = "berth.slice"
		if !systemdRuns {
			return fmt.Errorf("cgroup driver systemd: systemd is not running: %w", errdefs.ErrFailedPrecondition)
		}
	default:
		return fmt.Errorf("cgroup driver %q is neither cgroupfs nor systemd: %w", h.Driver, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (h *Host) probeV2() error {
	h.mounts = map[string]string{"": root}
	text, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("controllers of cgroup v2: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err := writable(root); err != nil {
		return err
	}
	h.Controllers = slices.Sorted(strings.FieldsSeq(string(text)))
	sample := sampleGroup(root)
	h.AtomicKill = sample == "" || exists(filepath.Join(sample, "cgroup.kill"))
	h.PSI = readable(filepath.Join(root, "cpu.pressure")) || readable(filepath.Join(sample, "cpu.pressure"))
	// The root cgroup has no limits to look at. A kernel with swap has /proc/swaps, and counts it from 6.1 on; before,
	// it could be switched off, which shows where memory is limited and swap is not.
	h.Swap = exists("/proc/swaps") &&
		(!exists(filepath.Join(sample, "memory.max")) || exists(filepath.Join(sample, "memory.swap.max")))
	return nil
}

func (h *Host) probeV1() error {
	h.mounts = map[string]string{}
	for _, name := range v1Hierarchies {
		dir := filepath.Join(root, "unified")
		if name != "" {
			var err error
			if dir, err = cgroups.FindCgroupMountpoint(root, name); err != nil {
				continue // not mounted
			}
		} else if !cgroups.IsCgroup2HybridMode() {
			continue
		}
		h.mounts[name] = dir
		if name != "" && !strings.HasPrefix(name, "name=") {
			h.Controllers = append(h.Controllers, name)
		}
	}
	if len(h.Controllers) == 0 {
		return fmt.Errorf("no cgroup v1 controller is mounted below %s: %w", root, errdefs.ErrFailedPrecondition)
	}
	slices.Sort(h.Controllers)
	if err := writable(h.mounts[h.Controllers[0]]); err != nil {
		return err
	}
	h.Swap = exists(filepath.Join(h.mounts["memory"], "memory.memsw.limit_in_bytes"))
	if unified, ok := h.mounts[""]; ok {
		h.PSI = readable(filepath.Join(unified, "cpu.pressure"))
	}
	return nil
}

// sampleGroup returns some cgroup below root, since the root itself lacks many files, or "" if there is none.
func sampleGroup(root string) string {
	entries, err := os.ReadDir(root)
	if err != nil {
		return ""
	}
	for _, e := range entries {
		if e.IsDir() {
			return filepath.Join(root, e.Name())
		}
	}
	return ""
}

func writable(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("cgroups at %s: %w: %w", dir, err, errdefs.ErrFailedPrecondition)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("cgroups at %s are mounted read-only: %w", dir, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// readable says whether a file gives text: pressure files are there, but fail, where PSI is switched off.
func readable(path string) bool {
	_, err := os.ReadFile(path)
	return err == nil
}
