package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/network"
	"github.com/berth-node/berth/network/netns"
)

// ContainerStats reads the numbers of one container.
func (r *Runtime) ContainerStats(_ context.Context, id string) (ContainerStats, error) {
	c, err := r.index.findContainer(id)
	if err != nil {
		return ContainerStats{}, err
	}
	return r.statsOf(c)
}

// ListContainerStats reads the numbers of the containers that fit and have not exited.
func (r *Runtime) ListContainerStats(ctx context.Context, f ContainerFilter) ([]ContainerStats, error) {
	var out []ContainerStats
	for _, c := range r.selected(f) {
		if c.state() == Exited {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s, err := r.statsOf(c)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func (r *Runtime) statsOf(c *container) (ContainerStats, error) {
	stats, err := r.groupStats(r.cfg.Cgroups.Open(c.record.CgroupsPath))
	if err != nil {
		return ContainerStats{}, fmt.Errorf("stats of container %s: %w", c.id(), err)
	}
	stats.Rootfs = r.usageOf(c)
	return ContainerStats{Container: r.view(c), Stats: stats}, nil
}

// groupStats reads a cgroup; one that is not there has no numbers, which is no error.
func (r *Runtime) groupStats(group *cgroups.Group, err error) (Stats, error) {
	if err != nil {
		return Stats{}, err
	}
	stats := Stats{At: time.Now()}
	if !group.Exists() {
		return stats, nil
	}
	stats.Cgroup, err = group.Stats()
	if errors.Is(err, errdefs.ErrNotFound) {
		return stats, nil // it went while we looked
	}
	return stats, err
}

// SandboxStats reads the numbers of one pod.
func (r *Runtime) SandboxStats(ctx context.Context, id string) (SandboxStats, error) {
	sb, err := r.index.findSandbox(id)
	if err != nil {
		return SandboxStats{}, err
	}
	return r.sandboxStats(ctx, sb)
}

// ListSandboxStats reads the numbers of the ready pods that fit.
func (r *Runtime) ListSandboxStats(ctx context.Context, f SandboxFilter) ([]SandboxStats, error) {
	var out []SandboxStats
	for _, v := range r.Sandboxes(f) {
		sb := r.index.sandbox(v.ID)
		if sb == nil || !sb.ready() {
			continue
		}
		s, err := r.sandboxStats(ctx, sb)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func (r *Runtime) sandboxStats(ctx context.Context, sb *sandbox) (SandboxStats, error) {
	out := SandboxStats{Sandbox: sb.view(), Stats: Stats{At: time.Now()}}
	var err error
	if parent := sb.record.Anchors.CgroupParent; parent != "" {
		if out.Stats, err = r.groupStats(r.cfg.Cgroups.OpenParent(parent)); err != nil {
			return SandboxStats{}, fmt.Errorf("stats of sandbox %s: %w", sb.record.ID, err)
		}
	}
	if path := sb.record.Anchors.NetNS; path != "" && sb.ready() {
		if out.Interfaces, err = interfaceStats(path); err != nil {
			r.log.Debug("network statistics could not be read, ignoring", "sandbox", sb.record.ID, "err", err)
		}
	}
	if out.Containers, err = r.ListContainerStats(ctx, ContainerFilter{SandboxID: sb.record.ID}); err != nil {
		return SandboxStats{}, err
	}
	var parts []*cgroups.Stats
	for _, c := range out.Containers {
		if c.Cgroup != nil {
			parts = append(parts, c.Cgroup)
		}
		out.Processes += r.processesOf(c.Container.CgroupsPath)
	}
	if out.Cgroup == nil {
		// The pod has no cgroup of its own: its containers are below the node's default parent with others.
		out.Cgroup = cgroups.Sum(out.At, parts)
	}
	return out, nil
}

// processesOf counts processes, where the pids controller counts threads.
func (r *Runtime) processesOf(cgroupsPath string) uint64 {
	group, err := r.cfg.Cgroups.Open(cgroupsPath)
	if err != nil {
		return 0
	}
	pids, err := group.Pids()
	if err != nil {
		return 0 // it went while we looked
	}
	return uint64(len(pids))
}

// interfaceStats reads the counters of the interfaces in a network namespace, but for its loopback.
func interfaceStats(path string) ([]InterfaceStats, error) {
	var out []InterfaceStats
	err := netns.Do(path, func() error {
		// thread-self: the namespace is that of this thread, not of the process.
		data, err := os.ReadFile("/proc/thread-self/net/dev")
		if err == nil {
			out = parseNetDev(string(data))
		}
		return err
	})
	return out, err
}

// parseNetDev reads /proc/net/dev: per interface eight counters received, eight sent (proc_pid_net(5)).
func parseNetDev(text string) []InterfaceStats {
	var out []InterfaceStats
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, counters, ok := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(counters)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(fields) < 16 {
			continue
		}
		n := func(i int) uint64 {
			v, _ := strconv.ParseUint(fields[i], 10, 64) // the kernel writes numbers
			return v
		}
		out = append(out, InterfaceStats{
			Name:    name,
			RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3),
			TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11),
		})
	}
	slices.SortStableFunc(out, func(a, b InterfaceStats) int {
		switch { // the pod's own interface first
		case a.Name == network.InterfaceName && b.Name != network.InterfaceName:
			return -1
		case b.Name == network.InterfaceName && a.Name != network.InterfaceName:
			return 1
		}
		return 0
	})
	return out
}

// usageTTL is how long a measured use of disk stands. Measuring walks the writable layer, which is not free.
const usageTTL = 10 * time.Second

// usageCache remembers the size of writable layers.
type usageCache struct {
	mu   sync.Mutex
	last map[string]FsUsage
}

func (r *Runtime) usageOf(c *container) FsUsage {
	usage := r.usage.of(c.id(), c.dir)
	if r.index.container(c.id()) == nil { // removed while it was measured
		r.usage.forget(c.id())
	}
	return usage
}

func (u *usageCache) of(id, dir string) FsUsage {
	u.mu.Lock()
	last, ok := u.last[id]
	u.mu.Unlock()
	if ok && time.Since(last.At) < usageTTL {
		return last
	}
	now := FsUsage{At: time.Now(), Mountpoint: dir}
	for _, part := range []string{"upper", "volumes"} {
		walkUsage(filepath.Join(dir, part), &now)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last == nil {
		u.last = map[string]FsUsage{}
	}
	u.last[id] = now
	return now
}

func (u *usageCache) forget(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.last, id)
}

// walkUsage adds what is below dir; what vanishes on the way does not count.
func walkUsage(dir string, sum *FsUsage) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum.Bytes += uint64(st.Blocks) * 512
			sum.Inodes++
		}
		return nil
	})
}

// ContainersFsUsage is the space that all writable layers take.
func (r *Runtime) ContainersFsUsage(context.Context) (FsUsage, error) {
	total := FsUsage{Mountpoint: r.paths.containers(), At: time.Now()}
	for _, c := range r.index.allContainers() {
		u := r.usageOf(c)
		total.Bytes += u.Bytes
		total.Inodes += u.Inodes
	}
	return total, nil
}
