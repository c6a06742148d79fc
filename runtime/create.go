package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/runtime/image"
	"github.com/berth-node/berth/runtime/image/layer"
	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/spec"
)

// CreateContainer makes a container in a ready sandbox and leaves its init waiting for the start. As with RunSandbox, a
// repeated call joins the running one or returns the ID of the container that it made.
func (r *Runtime) CreateContainer(ctx context.Context, sandboxID string, cfg *cri.ContainerConfig, _ *cri.PodSandboxConfig) (string, error) {
	if cfg.GetMetadata() == nil {
		return "", fmt.Errorf("config.metadata is missing: %w", errdefs.ErrInvalidArgument)
	}
	sb, err := r.index.findSandbox(sandboxID)
	if err != nil {
		return "", err
	}
	key := containerKey(sb.record.ID, cfg.Metadata)
	return join(ctx, r, key, func() (string, error) {
		if c := r.index.containerByKey(key); c != nil {
			if c.state() == Created {
				return c.id(), nil
			}
			return "", fmt.Errorf("attempt %d at container %s of this sandbox was started already (container %s): %w",
				cfg.Metadata.Attempt, cfg.Metadata.Name, c.id(), errdefs.ErrAlreadyExists)
		}
		ctx, cancel := r.detached(createLimit)
		defer cancel()
		ctx, done, err := sb.creations.enter(ctx)
		if err != nil {
			return "", err
		}
		defer done()
		id, err := r.createContainer(ctx, sb, cfg)
		return id, becauseOf(ctx, err)
	})
}

func (r *Runtime) createContainer(ctx context.Context, sb *sandbox, cfg *cri.ContainerConfig) (string, error) {
	if !sb.ready() {
		return "", sb.notReady()
	}
	if err := spec.ValidateContainer(sb.config, cfg); err != nil {
		return "", err
	}
	img, err := r.cfg.Images.Get(cfg.GetImage().GetImage())
	if err != nil {
		return "", fmt.Errorf("config.image: %w", err)
	}
	c, err := r.newContainerRecord(sb, cfg, img)
	if err != nil {
		return "", err
	}
	r.index.addMaking(c)
	defer r.index.dropMaking(c)
	if err := r.build(ctx, sb, c, img); err != nil {
		undo, cancel := r.detached(teardownLimit)
		defer cancel()
		r.undoCreate(undo, c)
		return "", fmt.Errorf("create container %s: %w", cfg.Metadata.Name, err)
	}
	return c.id(), nil
}

// undoCreate leaves nothing of a container that could not be made. If that fails, the container is left as exited, for
// its removal to try again.
func (r *Runtime) undoCreate(ctx context.Context, c *container) {
	err := r.eraseContainer(ctx, c)
	if err == nil {
		r.index.dropContainer(c) // where an earlier daemon began to make it
		return
	}
	if r.ctx.Err() != nil {
		return // the next daemon goes on
	}
	r.log.Error("container could not be undone", "container", c.id(), "err", err)
	c.life.Lock()
	defer c.life.Unlock()
	c.making = false
	r.index.addContainer(c)
	if c.state() == Exited { // an earlier daemon failed too
		r.background(func() { r.release(c) })
		return
	}
	_ = r.failStart(c, errors.New("it could not be made"))
}

// newContainerRecord puts on record what is going to be made.
func (r *Runtime) newContainerRecord(sb *sandbox, cfg *cri.ContainerConfig, img image.Image) (*container, error) {
	config, err := marshalProto(cfg)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	id := newID()
	cgroupsPath, err := r.cfg.Cgroups.ContainerPath(sb.record.Anchors.CgroupParent, id)
	if err != nil {
		return nil, err
	}
	signal, err := spec.StopSignal(cfg.GetStopSignal(), img.Config.Config.StopSignal)
	if err != nil {
		return nil, err
	}
	logPath, err := logPathOf(sb.config, cfg)
	if err != nil {
		return nil, err
	}
	c := newContainer(r.paths.container(id))
	c.config, c.making = cfg, true
	c.record = containerRecord{
		Version: recordVersion, ID: id, SandboxID: sb.record.ID, CreatedAt: time.Now(), Boot: r.boot,
		Image:   imageRecord{ID: img.ID, Ref: imageRef(img), UserSpecified: userSpecified(cfg.GetImage())},
		LogPath: logPath, CgroupsPath: cgroupsPath, StopSignal: int(signal), Config: config,
	}
	return c, writeRecord(c.dir, c.record)
}

// logPathOf joins the pod's folder and the container's file, which must lie in it.
func logPathOf(pod *cri.PodSandboxConfig, cfg *cri.ContainerConfig) (string, error) {
	if pod.GetLogDirectory() == "" || cfg.GetLogPath() == "" {
		return "", nil
	}
	if !filepath.IsLocal(cfg.LogPath) {
		return "", fmt.Errorf("config.log_path: %q leaves the pod's log_directory: %w", cfg.LogPath, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(pod.LogDirectory, cfg.LogPath), nil
}

func imageRef(img image.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return img.ID
}

func userSpecified(s *cri.ImageSpec) string {
	if s.GetUserSpecifiedImage() != "" {
		return s.UserSpecifiedImage
	}
	return s.GetImage()
}

// build makes the container, in an order in which each step needs only the ones before it.
func (r *Runtime) build(ctx context.Context, sb *sandbox, c *container, img image.Image) error {
	if err := r.cfg.Images.Acquire(img.ID, c.id()); err != nil {
		return err
	}
	if err := makePodDir(r.paths.bundle(c.id()), sb); err != nil {
		return err
	}
	labels, err := r.labels(sb, c.config)
	if err != nil {
		return err
	}
	if err := r.mountRootfs(ctx, sb, c, img, labels.mount); err != nil {
		return fmt.Errorf("root filesystem: %w", err)
	}
	s, err := r.specFor(ctx, sb, c, img, labels)
	if err != nil {
		return err
	}
	return r.publishContainer(ctx, sb, c, s)
}

// publishContainer lets the plugins adjust the container, makes its process and only then shows it to everybody.
func (r *Runtime) publishContainer(ctx context.Context, sb *sandbox, c *container, s *specs.Spec) error {
	c.telling.Lock()
	defer c.telling.Unlock()
	release := r.cfg.NRI.Block()
	defer release()
	s, err := r.adjust(ctx, sb, c, s)
	if err != nil {
		return err
	}
	now := time.Now()
	if err = r.followCgroup(c, s); err == nil {
		err = r.launch(ctx, sb, c, s)
	}
	if err == nil {
		err = c.update(func(f *containerFacts) { f.MadeAt = now })
	}
	if err != nil {
		// The plugins have seen a container that there will not be.
		if nerr := r.cfg.NRI.RemoveContainer(ctx, r.nriPod(sb), r.nriContainer(c)); nerr != nil {
			r.log.Warn("NRI plugin failed on the removal of a container, ignoring", "container", c.id(), "err", nerr)
		}
		return err
	}
	r.becomeVisible(c, now)
	if err := r.cfg.NRI.PostCreateContainer(ctx, r.nriPod(sb), r.nriContainer(c)); err != nil {
		r.log.Warn("NRI plugin failed after the creation of a container, ignoring", "container", c.id(), "err", err)
	}
	return nil
}

// becomeVisible shows a container that is made, and then its end if that came already.
func (r *Runtime) becomeVisible(c *container, at time.Time) {
	c.life.Lock()
	c.making = false
	r.index.addContainer(c)
	r.announce(EventCreated, c.record.SandboxID, c.id(), at)
	early := c.early
	c.life.Unlock()
	if early != nil {
		r.finish(c, *early)
	}
}

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

func (r *Runtime) mountRootfs(ctx context.Context, sb *sandbox, c *container, img image.Image, label string) error {
	return r.cfg.Images.Layers().MountRoot(ctx, layer.RootRequest{
		Chain:      img.ChainIDs,
		Upper:      filepath.Join(c.dir, "upper"),
		Work:       filepath.Join(c.dir, "work"),
		Target:     r.paths.rootfs(c.id()),
		IDMap:      idMapOf(sb),
		MountLabel: label,
		Volatile:   true, // a container does not outlive a crash of the machine
	})
}

// idMapOf is the mapping of the pod's user namespace; empty without one.
func idMapOf(sb *sandbox) layer.IDMap {
	m := spec.UserMapping(sb.config)
	if m == nil {
		return layer.IDMap{}
	}
	maps := []specs.LinuxIDMapping{*m}
	return layer.IDMap{UID: maps, GID: maps, UserNS: sb.factsNow().UserNS}
}

// specFor looks up what the spec depends on and builds it.
func (r *Runtime) specFor(ctx context.Context, sb *sandbox, c *container, img image.Image, labels selinuxLabels) (*specs.Spec, error) {
	sc := c.config.GetLinux().GetSecurityContext()
	user, err := spec.ResolveUser(r.paths.rootfs(c.id()), img.Config.Config, sc)
	if err != nil {
		return nil, err
	}
	mounts, err := r.resolveMounts(ctx, sb, c, labels.mount)
	if err != nil {
		return nil, err
	}
	volumes, err := r.imageVolumes(c, img, sb)
	if err != nil {
		return nil, err
	}
	devices, err := spec.ResolveDevices(c.config.GetDevices())
	if err != nil {
		return nil, err
	}
	namespaces, err := r.namespacesFor(sb, c)
	if err != nil {
		return nil, err
	}
	node := r.node.spec
	if sc.GetPrivileged() {
		if node.Devices, err = spec.HostDevices(); err != nil {
			return nil, err
		}
	}
	handler := r.cfg.Handlers[sb.record.Handler]
	hostname, err := hostnameOf(sb.config)
	if err != nil {
		return nil, err
	}
	s, limitations, err := spec.Build(spec.Input{
		SandboxID: sb.record.ID, Sandbox: sb.config, Container: c.config,
		Image: img.Config.Config, ImageName: c.record.Image.UserSpecified,
		Rootfs: r.paths.rootfs(c.id()), User: user, Namespaces: namespaces, CgroupsPath: c.record.CgroupsPath,
		Hostname: hostname, HostnameFile: r.paths.hostname(sb.record.ID), HostsFile: r.paths.hosts(sb.record.ID),
		ResolvConf: r.paths.resolvConf(sb.record.ID), Shm: r.shmFor(sb),
		Mounts: mounts, Volumes: volumes, Devices: devices,
		LoadSeccomp: spec.LoadSeccompFile, ProcessLabel: labels.process, MountLabel: labels.mount,
		Handler: spec.Handler{PrivilegedWithoutHostDevices: handler.PrivilegedWithoutHostDevices},
		Node:    node,
	})
	if err != nil {
		return nil, err
	}
	cdi, err := spec.CDIDevices(c.config)
	if err != nil {
		return nil, err
	}
	if err := spec.ApplyCDI(s, append(cdi, handler.CDIDevices...), r.cfg.CDISpecDirs); err != nil {
		return nil, err
	}
	for _, l := range limitations {
		r.log.Debug("the node cannot give a container all that it asks for", "container", c.id(), "limitation", l)
	}
	return s, nil
}

// shmFor is the pod's /dev/shm; "" in a pod with the host's IPC, which has the host's.
func (r *Runtime) shmFor(sb *sandbox) string {
	if hostIPC(sb.config) {
		return ""
	}
	return r.paths.shm(sb.record.ID)
}

// namespacesFor names the namespaces that the container joins.
func (r *Runtime) namespacesFor(sb *sandbox, c *container) (spec.Namespaces, error) {
	f := sb.factsNow()
	ns := spec.Namespaces{Net: f.Anchors.NetNS, IPC: f.IPCNS, UTS: f.UTSNS, User: f.UserNS}
	switch spec.PIDMode(sb.config, c.config) {
	case cri.NamespaceMode_POD:
		ns.PID = pidNamespace(f.Pause)
	case cri.NamespaceMode_TARGET:
		target := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetTargetId()
		t, err := r.running(target, "share the processes of")
		if err != nil {
			return ns, fmt.Errorf("linux.security_context.namespace_options.target_id: %w", err)
		}
		if t.record.SandboxID != sb.record.ID {
			return ns, fmt.Errorf("linux.security_context.namespace_options.target_id: container %s is in another sandbox: %w",
				target, errdefs.ErrInvalidArgument)
		}
		ns.PID = pidNamespace(t.factsNow().Process)
	}
	return ns, nil
}

func pidNamespace(p procfs.Process) string {
	if p.Pid == 0 {
		return ""
	}
	return fmt.Sprintf("/proc/%d/ns/pid", p.Pid)
}

// imageVolumes makes the folders that stand for the image's VOLUMEs, with what the image has at these places.
func (r *Runtime) imageVolumes(c *container, img image.Image, sb *sandbox) ([]spec.Volume, error) {
	mounted := map[string]bool{}
	for _, m := range c.config.GetMounts() {
		mounted[filepath.Clean(m.GetContainerPath())] = true
	}
	var volumes []spec.Volume
	for path := range img.Config.Config.Volumes {
		if mounted[filepath.Clean(path)] {
			continue
		}
		source := filepath.Join(c.dir, "volumes", strings.ReplaceAll(strings.Trim(filepath.Clean("/"+path), "/"), "/", "-"))
		if err := copyVolume(r.paths.rootfs(c.id()), path, source, sb); err != nil {
			return nil, fmt.Errorf("volume %s of the image: %w", path, err)
		}
		volumes = append(volumes, spec.Volume{Source: source, Destination: path})
	}
	return volumes, nil
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
		if err := os.MkdirAll(filepath.Dir(c.record.LogPath), 0o755); err != nil {
			return err
		}
	}
	k, err := r.keeper.client(ctx)
	if err != nil {
		return err
	}
	r.parents.RLock()
	p, err := k.Create(ctx, keeper.CreateRequest{
		ID: c.id(), Bundle: r.paths.bundle(c.id()), LogPath: c.record.LogPath, MaxLogLine: r.cfg.MaxLogLine,
		Terminal: c.config.Tty, Stdin: c.config.Stdin, StdinOnce: c.config.StdinOnce,
		SystemdCgroup: r.systemdCgroup(), Hooks: s.Hooks != nil && len(s.Hooks.Poststop) > 0,
	})
	r.parents.RUnlock()
	var failed *keeper.LaunchError
	if errors.As(err, &failed) && failed.Failure == keeper.FailureCommand {
		// The container is all right, its command is not: that is for the start to say, as the kubelet expects it.
		return c.update(func(f *containerFacts) { f.CommandError = failed.Message })
	}
	if err != nil {
		return err
	}
	if err := c.update(func(f *containerFacts) { f.Process = procfs.Process(p) }); err != nil {
		return err
	}
	r.watchOOM(c)
	return r.limitLate(ctx, c, late)
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
	return c.update(func(f *containerFacts) {
		f.Resources, f.Limits, f.User, f.Mounts = resources, limitsOf(s), user, mounts
		f.Hooks = s.Hooks != nil && len(s.Hooks.Poststop) > 0
	})
}

// spec returns the container's spec, from the bundle after a restart of the daemon.
func (r *Runtime) specOf(c *container) (*specs.Spec, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.specMemo != nil {
		return c.specMemo, nil
	}
	data, err := os.ReadFile(filepath.Join(r.paths.bundle(c.id()), "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("spec of container %s: %w", c.id(), errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("spec of container %s: %w", c.id(), err)
	}
	c.specMemo = s
	return s, nil
}

func writeBundle(dir string, s *specs.Spec) error {
	return atomicfile.WriteJSON(filepath.Join(dir, "config.json"), s, 0o600)
}

func (r *Runtime) systemdCgroup() bool { return r.cfg.Cgroups.Driver == cgroups.Systemd }
