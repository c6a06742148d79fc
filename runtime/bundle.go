package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/spec"
)

// followCgroup puts on record that plugins want the container in another cgroup: everything that limits, measures and ends
// it looks there. The cgroups above that one are the plugin's.
func (r *Runtime) followCgroup(c *container, s *specs.Spec) error {
	if s.Linux == nil || s.Linux.CgroupsPath == c.record.CgroupsPath {
		return nil
	}
	if _, err := r.cfg.Cgroups.Open(s.Linux.CgroupsPath); err != nil {
		return err
	}
	c.record.CgroupsPath = s.Linux.CgroupsPath
	return atomicfile.WriteJSON(filepath.Join(c.dir, recordFile), c.record, 0o600)
}

// launch makes the container's process, which then waits for the start.
func (r *Runtime) launch(ctx context.Context, sb *sandbox, c *container, s *specs.Spec) error {
	late, err := r.writeLaunchBundle(c, s)
	if err != nil {
		return err
	}
	if err := r.noteSpec(c, s); err != nil {
		return err
	}
	if c.record.LogPath != "" {
		if _, err := r.cfg.HostPaths.Resolve(ctx, filepath.Dir(c.record.LogPath)); err != nil {
			return fmt.Errorf("folder of the log: %w", err)
		}
	}
	k, err := r.keeper.client(ctx)
	if err != nil {
		return err
	}
	failpoint.Here(failpoint.ContainerBundled)
	r.parents.RLock()
	p, err := k.Create(ctx, r.createRequest(c, s.Hooks != nil && len(s.Hooks.Poststop) > 0))
	r.parents.RUnlock()
	var failed *keeper.LaunchError
	if errors.As(err, &failed) && failed.Failure == keeper.FailureCommand {
		// The container is all right, its command is not: that is for the start to say, as the kubelet expects it.
		c.learn(func(f *containerFacts) { f.CommandError = failed.Message })
		return nil
	}
	if err != nil {
		return err
	}
	failpoint.Here(failpoint.ContainerLaunched)
	c.learn(func(f *containerFacts) { f.Process = procfs.Process(p) })
	r.watchOOM(c)
	return r.limitLate(ctx, c, late)
}

// createRequest follows from the record, so that a container can be given to a keeper that does not know it.
func (r *Runtime) createRequest(c *container, hooks bool) keeper.CreateRequest {
	return keeper.CreateRequest{
		ID: c.id(), Bundle: r.paths.bundle(c.id()), LogPath: c.record.LogPath, MaxLogLine: r.cfg.MaxLogLine,
		Terminal: c.config.Tty, Stdin: c.config.Stdin, StdinOnce: c.config.StdinOnce,
		SystemdCgroup: r.systemdCgroup(), Hooks: hooks, Libcontainer: r.cfg.CreateByLibcontainer,
	}
}

// writeLaunchBundle writes the spec for the launcher, without the CPU quota: under it, the set-up itself would be
// throttled. The quota is returned; it is set when init waits for its start.
func (r *Runtime) writeLaunchBundle(c *container, s *specs.Spec) (*specs.LinuxResources, error) {
	launch := *s
	var late *specs.LinuxResources
	if cpu := quotaOf(s); cpu != nil {
		late = &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: cpu.Quota, Period: cpu.Period}}
		rest := *cpu
		rest.Quota, rest.Period = nil, nil
		linux, resources := *s.Linux, *s.Linux.Resources
		resources.CPU, linux.Resources, launch.Linux = &rest, &resources, &linux
	}
	return late, writeBundle(r.paths.bundle(c.id()), &launch)
}

func quotaOf(s *specs.Spec) *specs.LinuxCPU {
	if s.Linux == nil || s.Linux.Resources == nil || s.Linux.Resources.CPU == nil || s.Linux.Resources.CPU.Quota == nil {
		return nil
	}
	return s.Linux.Resources.CPU
}

func (r *Runtime) limitLate(ctx context.Context, c *container, late *specs.LinuxResources) error {
	if late == nil {
		return nil
	}
	group, err := r.cfg.Cgroups.Open(c.record.CgroupsPath)
	if err != nil {
		return err
	}
	return group.Set(ctx, late)
}

// noteSpec keeps of the spec what the status shows and what a stop needs.
func (r *Runtime) noteSpec(c *container, s *specs.Spec) error {
	resources, err := marshalProto(c.config.GetLinux().GetResources())
	if err != nil {
		return err
	}
	user, err := marshalProto(spec.ContainerUser(s.Process.User))
	if err != nil {
		return err
	}
	mounts, err := r.statusMounts(c)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.specMemo = s
	c.mu.Unlock()
	c.learn(func(f *containerFacts) {
		f.Resources, f.Limits, f.User, f.Mounts = resources, limitsOf(s), user, mounts
		f.Hooks = s.Hooks != nil && len(s.Hooks.Poststop) > 0
	})
	return nil
}

// spec returns the container's spec, from the bundle after a restart of the daemon.
func (r *Runtime) specOf(c *container) (*specs.Spec, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.specMemo != nil {
		return c.specMemo, nil
	}
	s, err := r.readBundle(c.id())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("spec of container %s: its bundle is gone, somebody has emptied the run dir: %w", c.id(), errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("spec of container %s: %w", c.id(), err)
	}
	c.specMemo = s
	return s, nil
}

func (r *Runtime) readBundle(id string) (*specs.Spec, error) {
	s := &specs.Spec{}
	if err := atomicfile.ReadJSON(r.specPath(id), s); err != nil {
		return nil, err
	}
	return s, nil
}

func (r *Runtime) specPath(id string) string { return filepath.Join(r.paths.bundle(id), "config.json") }

func writeBundle(dir string, s *specs.Spec) error {
	return atomicfile.WriteJSON(filepath.Join(dir, "config.json"), s, 0o600)
}

func (r *Runtime) systemdCgroup() bool { return r.cfg.Cgroups.Driver == cgroups.Systemd }
