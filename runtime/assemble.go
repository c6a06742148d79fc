package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/network"
	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/sandboxns"
	"github.com/berth-node/berth/runtime/spec"
)

// The parts of a sandbox, each with the step that makes it; teardown, at the end, unmakes all of them from the record.

// makeSandboxFiles makes what containers of the sandbox find at /etc/resolv.conf, /etc/hostname, /etc/hosts and /dev/shm.
func (r *Runtime) makeSandboxFiles(sb *sandbox) error {
	id := sb.record.ID
	if err := makePodDir(r.paths.runSandbox(id), sb); err != nil {
		return err
	}
	files, err := r.podFiles(sb)
	if err != nil {
		return err
	}
	for path, data := range files {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	if hostIPC(sb.config) {
		return nil // the containers get the host's /dev/shm
	}
	return r.mountShm(sb)
}

// podFiles are the files of a sandbox, by their paths.
func (r *Runtime) podFiles(sb *sandbox) (map[string][]byte, error) {
	resolv, err := resolvConf(sb.config.GetDnsConfig())
	if err != nil {
		return nil, err
	}
	hostname, err := hostnameOf(sb.config)
	if err != nil {
		return nil, err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	id := sb.record.ID
	return map[string][]byte{
		r.paths.resolvConf(id): resolv,
		r.paths.hostname(id):   []byte(hostname + "\n"),
		r.paths.hosts(id):      hosts,
	}, nil
}

// makePodDir makes a folder of the run dir that nobody but root, and the root of the pod's user namespace, can walk
// through: what is in it (pipes, /dev/shm) is open to any user who gets there.
func makePodDir(path string, sb *sandbox) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	m := spec.UserMapping(sb.config)
	if m == nil {
		return nil
	}
	if err := os.Chown(path, -1, int(m.HostID)); err != nil {
		return err
	}
	return os.Chmod(path, 0o710)
}

// shmSize is the size of a pod's /dev/shm in bytes: what all container runtimes give.
const shmSize = 64 << 20

func (r *Runtime) mountShm(sb *sandbox) error {
	path := r.paths.shm(sb.record.ID)
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	options := fmt.Sprintf("mode=1777,size=%d", shmSize)
	if m := spec.UserMapping(sb.config); m != nil {
		options += fmt.Sprintf(",uid=%d,gid=%d", m.HostID, m.HostID)
	}
	if err := unix.Mount("shm", path, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return nil
}

func resolvConf(dns *cri.DNSConfig) ([]byte, error) {
	if dns == nil {
		data, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
	var b strings.Builder
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, server := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return []byte(b.String()), nil
}

func hostnameOf(cfg *cri.PodSandboxConfig) (string, error) {
	if cfg.Hostname != "" && !hostNetwork(cfg) {
		return cfg.Hostname, nil
	}
	return os.Hostname()
}

// makeNamespaces pins the namespaces that the containers share. They are pinned before the network is attached: killed
// in between, the daemon would otherwise leave an address allocated to a namespace that no path names.
func (r *Runtime) makeNamespaces(ctx context.Context, sb *sandbox) error {
	sysctls, err := r.sysctls(sb)
	if err != nil {
		return err
	}
	req := sandboxns.Request{
		Dir:     r.paths.runSandbox(sb.record.ID),
		NetPath: sb.record.Anchors.NetNS,
		IPC:     !hostIPC(sb.config),
		UTS:     !hostNetwork(sb.config),
		Sysctls: sysctls,
	}
	if req.UTS {
		if req.Hostname, err = hostnameOf(sb.config); err != nil {
			return err
		}
	}
	if m := spec.UserMapping(sb.config); m != nil {
		maps := []specs.LinuxIDMapping{*m}
		req.User = &sandboxns.IDMappings{UIDs: maps, GIDs: maps}
	}
	paths, err := sandboxns.Create(ctx, req)
	if err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	failpoint.Here(failpoint.SandboxNamespaces)
	inode := sandboxns.Inode(paths.Net)
	sb.learn(func(f *sandboxFacts) {
		f.UserNS, f.IPCNS, f.UTSNS, f.NetInode = paths.User, paths.IPC, paths.UTS, inode
	})
	return nil
}

// sysctls are the pod's and, where it says nothing, those that the node gives all pods.
func (r *Runtime) sysctls(sb *sandbox) (map[string]string, error) {
	defaults := spec.DefaultSysctls(sb.config)
	if !r.cfg.UnprivilegedPorts {
		delete(defaults, "net.ipv4.ip_unprivileged_port_start")
	}
	if !r.cfg.UnprivilegedPing {
		delete(defaults, "net.ipv4.ping_group_range")
	}
	list, err := spec.SandboxSysctls(sb.config, defaults)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, s := range list {
		out[s.File] = s.Value
	}
	return out, nil
}

func (r *Runtime) attachNetwork(ctx context.Context, sb *sandbox) error {
	if sb.record.Anchors.NetNS == "" {
		return nil
	}
	began := time.Now()
	result, err := r.cfg.Network.Attach(ctx, networkRequest(sb))
	r.cfg.Metrics.NetworkAttached(time.Since(began), err)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	failpoint.Here(failpoint.SandboxAttached)
	sb.learn(func(f *sandboxFacts) { f.IPs, f.CNI = result.IPs, result.Raw })
	return nil
}

// networkRequest is the same for attaching and detaching: it follows from the record.
func networkRequest(sb *sandbox) network.Request {
	a := sb.factsNow().Anchors
	req := network.Request{
		SandboxID: sb.record.ID, Name: a.Name, Namespace: a.Namespace, UID: a.UID,
		NetNS: a.NetNS, CgroupParent: a.CgroupParent,
		Annotations: sb.config.GetAnnotations(), RuntimeHandler: sb.record.Handler,
	}
	for _, p := range sb.config.GetPortMappings() {
		req.PortMappings = append(req.PortMappings, network.PortMapping{
			HostIP: p.HostIp, HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol.String(),
		})
	}
	if dns := sb.config.GetDnsConfig(); dns != nil {
		req.DNS = network.DNS{Servers: dns.Servers, Searches: dns.Searches, Options: dns.Options}
	}
	return req
}

// startPause starts the process that holds and reaps the pod's shared PID namespace.
func (r *Runtime) startPause(ctx context.Context, sb *sandbox) error {
	id := sb.record.ID
	root, err := r.pauseRoot()
	if err != nil {
		return err
	}
	cgroupsPath, err := r.cfg.Cgroups.ContainerPath(sb.record.Anchors.CgroupParent, id)
	if err != nil {
		return err
	}
	f := sb.factsNow()
	s, _, err := spec.PauseSpec(spec.PauseInput{
		ID: id, Sandbox: sb.config, Rootfs: root, CgroupsPath: cgroupsPath, Node: r.node.spec,
		LoadSeccomp: spec.LoadSeccompFile, ProcessLabel: f.ProcessLabel, MountLabel: f.MountLabel,
		Namespaces: spec.Namespaces{Net: f.Anchors.NetNS, IPC: f.IPCNS, UTS: f.UTSNS, User: f.UserNS},
	})
	if err != nil {
		return err
	}
	if err := makePodDir(r.paths.bundle(id), sb); err != nil {
		return err
	}
	if err := writeBundle(r.paths.bundle(id), s); err != nil {
		return err
	}
	k, err := r.keeper.client(ctx)
	if err != nil {
		return err
	}
	r.parents.RLock()
	p, err := k.Create(ctx, r.pauseRequest(id))
	r.parents.RUnlock()
	if err != nil {
		return err
	}
	failpoint.Here(failpoint.SandboxPause)
	if err := sb.update(func(f *sandboxFacts) { f.Pause = procfs.Process(p) }); err != nil {
		return err
	}
	return k.Start(ctx, id)
}

func (r *Runtime) pauseRequest(id string) keeper.CreateRequest {
	return keeper.CreateRequest{ID: id, Bundle: r.paths.bundle(id), SystemdCgroup: r.systemdCgroup(), Libcontainer: r.cfg.CreateByLibcontainer}
}

// teardown unmakes everything of a sandbox but its records and its containers, in the order opposite to assemble. Each
// step does nothing where nothing is, and each is tried whatever became of the others.
func (r *Runtime) teardown(ctx context.Context, sb *sandbox) error {
	id := sb.record.ID
	failed := r.removePause(ctx, sb)
	a := sb.factsNow().Anchors
	paths := r.namespacePaths(sb)
	if a.NetNS != "" {
		began := time.Now()
		err := r.cfg.Network.Detach(ctx, networkRequest(sb))
		r.cfg.Metrics.NetworkDetached(time.Since(began), err)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("network: %w", err))
			paths.Net = "" // it stays: plugins need it to give back what they took
		}
	}
	failpoint.Here(failpoint.SandboxDetached)
	failed = errors.Join(failed, sandboxns.Remove(ctx, paths))
	failpoint.Here(failpoint.SandboxUnpinned)
	failed = errors.Join(failed, unmount(r.paths.shm(id)))
	if failed == nil {
		failed = os.RemoveAll(r.paths.runSandbox(id))
	}
	return errors.Join(failed, r.removeParent(ctx, a))
}

// removeParent removes the cgroup that the pod's containers were in if it is ours and nobody else's container is in it.
func (r *Runtime) removeParent(ctx context.Context, a anchors) error {
	if !a.MadeParent && a.CgroupParent != "" {
		return nil
	}
	// Not while a container is being made: its cgroup would find no parent.
	r.parents.Lock()
	defer r.parents.Unlock()
	return r.cfg.Cgroups.RemoveParentIfEmpty(ctx, a.CgroupParent)
}

// namespacePaths follow from the ID, so that a teardown finds what a creation made that was cut off.
func (r *Runtime) namespacePaths(sb *sandbox) sandboxns.Paths {
	dir := r.paths.runSandbox(sb.record.ID)
	return sandboxns.PathsIn(dir, sb.factsNow().Anchors.NetNS)
}

func (r *Runtime) removePause(ctx context.Context, sb *sandbox) error {
	id := sb.record.ID
	if _, err := os.Lstat(r.paths.bundle(id)); errors.Is(err, fs.ErrNotExist) && sb.factsNow().Pause.Pid == 0 {
		return nil
	}
	path, err := r.cfg.Cgroups.ContainerPath(sb.factsNow().Anchors.CgroupParent, id)
	if err != nil {
		return err
	}
	return r.dismantle(ctx, id, path)
}

// eraseSandbox deletes the records, the last thing that is left.
func (r *Runtime) eraseSandbox(sb *sandbox) error {
	if label := sb.factsNow().ProcessLabel; label != "" {
		spec.ReleaseSELinuxLabel(label)
	}
	return sb.erase()
}

// unmount detaches what is mounted at path; nil if nothing is.
func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || err == unix.EINVAL || err == unix.ENOENT {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", path, err)
}
