package runtime

import (
	"context"
	"fmt"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/runtime/image"
	"github.com/berth-node/berth/runtime/image/layer"
	"github.com/berth-node/berth/runtime/spec"
)

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
