package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/mountns"
)

// On cgroup v1 what a container has at /sys/fs/cgroup is a dozen mounts: a tmpfs, and in it a folder of each hierarchy.
// libcontainer's init makes them one by one, each with a walk through the container's root and several looks at what is
// there, which is a fifth of all that it does. Here the same is made ahead, with plain calls, and init mounts it at once.
//
// It needs a place that nobody else sees, so it is for launchers away from the host's mounts. What is not as usual is left
// to libcontainer.

// cgroupPlace is where the mounts are made, in the folder of places.
const cgroupPlace = "cgroups"

// usualCgroupFlags are those that a mount of cgroups may have, or be said not to have.
const usualCgroupFlags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RELATIME

// mountCgroups makes the cgroup mounts of a container that is about to start, and has init take them. If it fails everything is
// as before, and what is left at the place goes with the rest.
func (l *lean) mountCgroups(places string, container *libcontainer.Container, config *configs.Config) error {
	if l == nil || l.left || cgroups.IsCgroup2UnifiedMode() {
		return nil
	}
	m := usualCgroupMount(config)
	if m == nil {
		return nil
	}
	state, err := container.State()
	if err != nil {
		return err
	}
	hierarchies, err := hierarchiesOf(state.CgroupPaths)
	if err != nil || hierarchies == nil {
		return err
	}
	place := filepath.Join(places, cgroupPlace)
	tmpfs := &configs.Mount{Source: "tmpfs", Device: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, Data: "mode=755"}
	if err := l.mountAt(place, tmpfs); err != nil {
		return err
	}
	for _, h := range hierarchies {
		if err := h.mount(place, m); err != nil {
			return err
		}
	}
	l.names[place] = m.Source
	m.Device, m.Source, m.Flags, m.ClearedFlags = "bind", place, unix.MS_BIND|unix.MS_REC, 0
	return nil
}

// usualCgroupMount returns the mount of cgroups of a container as most have it; nil if this one has none, or another.
func usualCgroupMount(config *configs.Config) *configs.Mount {
	if config.Cgroups.Systemd { // it makes the cgroup when init is to go there
		return nil
	}
	if config.Namespaces.Contains(configs.NEWCGROUP) || config.Namespaces.Contains(configs.NEWUSER) || config.MountLabel != "" {
		return nil
	}
	var usual *configs.Mount
	for _, m := range config.Mounts {
		if m.Device != "cgroup" {
			continue
		}
		if usual != nil || (m.Flags|m.ClearedFlags)&^usualCgroupFlags != 0 || m.RecAttr != nil || len(m.PropagationFlags) > 0 {
			return nil
		}
		usual = m
	}
	return usual
}

// A hierarchy is one of cgroup v1, as a container sees it.
type hierarchy struct {
	name  string // of its mount: cpu,cpuacct
	group string // the container's folder in it
}

// hierarchiesOf returns, in libcontainer's order, those that it mounts for a container with these cgroups. It is nil if
// libcontainer leaves the container in the launcher's cgroup in one of them.
func hierarchiesOf(paths map[string]string) ([]hierarchy, error) {
	mounts, err := cgroups.GetCgroupMounts(false)
	if err != nil {
		return nil, err
	}
	var all []hierarchy
	for _, m := range mounts {
		group, ok := paths[m.Subsystems[0]]
		if !ok {
			group, ok = paths[cgroups.CgroupNamePrefix+m.Subsystems[0]]
		}
		if !ok {
			return nil, nil
		}
		all = append(all, hierarchy{filepath.Base(m.Mountpoint), group})
	}
	return all, nil
}

// mountAt mounts at a place what is no bind mount.
func (l *lean) mountAt(place string, m *configs.Mount) error {
	// Others have made the folder, most of the time, and have their own mounts there, in their own namespaces.
	if err := os.Mkdir(place, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.Mount(m.Source, place, m.Device, uintptr(m.Flags), m.Data); err != nil {
		return fmt.Errorf("mount %s: %w", place, err)
	}
	return nil
}

// mount mounts the container's folder of the hierarchy below dir, as m says. libcontainer finds the cgroup made.
func (h hierarchy) mount(dir string, m *configs.Mount) error {
	if err := makeGroup(h.group); err != nil {
		return err
	}
	tree, err := mountns.Clone(h.group, false)
	if err != nil {
		return err
	}
	defer tree.Close()
	if m.Flags|m.ClearedFlags != 0 { // else it has the attributes of the host's mount
		if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, attributesOf(m.Flags)); err != nil {
			return fmt.Errorf("attributes of the mount of %s: %w", h.group, err)
		}
	}
	path := filepath.Join(dir, h.name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	if err := mountns.Attach(tree, path); err != nil {
		return err
	}
	controllers := strings.Split(h.name, ",")
	if len(controllers) < 2 {
		return nil
	}
	for _, c := range controllers {
		if err := os.Symlink(h.name, filepath.Join(dir, c)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// makeGroup makes a cgroup, and those above it if they are not there, which is rare.
func makeGroup(path string) error {
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(path, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// namedCgroups makes of a configuration that libcontainer has on record what it was before mountCgroups, for criu, which
// has to be told of each of the mounts.
func namedCgroups(config *configs.Config, places string) {
	for _, m := range config.Mounts {
		if m.Source == filepath.Join(places, cgroupPlace) {
			m.Device, m.Source = "cgroup", "cgroup"
		}
	}
}
