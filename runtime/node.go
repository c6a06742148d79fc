package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/contrib/apparmor"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/runtime/sandboxns"
	"github.com/berth-node/berth/runtime/spec"
)

// nodeFacts are what this node can do, probed once: tried, not concluded from the version of the kernel.
type nodeFacts struct {
	spec spec.Node
	// idmap is nil if user namespaces and idmapped mounts work below the root dir, else why not.
	idmap       error
	limitations []string
}

func probeNode(cfg Config) nodeFacts {
	n := nodeFacts{spec: spec.Node{
		Unified: cfg.Cgroups.Unified, Swap: cfg.Cgroups.Swap,
		RecursiveReadOnly: probeRecursiveReadOnly() == nil,
		Seccomp:           fileExists("/proc/sys/kernel/seccomp/actions_avail"),
	}}
	if cfg.Cgroups.Has("hugetlb") {
		n.spec.HugePageSizes = cfg.Cgroups.HugePageSizes
	}
	n.limitations = append(n.limitations, cfg.Cgroups.Limitations()...)
	lacks := func(err error, words string) {
		if err != nil {
			n.limitations = append(n.limitations, words+": "+err.Error())
		}
	}
	var err error
	if n.spec.CgroupOptions, err = spec.HostCgroupOptions(); err != nil {
		lacks(err, "options of the cgroup file system are unknown")
	}
	if n.spec.Capabilities, err = spec.HostCapabilities(); err != nil {
		lacks(err, "own capabilities are unknown")
	}
	if n.spec.RlimitCeilings, err = spec.HostRlimitCeilings(n.spec.Capabilities); err != nil {
		lacks(err, "own resource limits are unknown")
	}
	n.probeResourceCapability()
	n.probeAppArmor(cfg.AppArmorProfile)
	if !n.spec.RecursiveReadOnly {
		n.limitations = append(n.limitations, "no recursive read-only mounts: the kernel lacks mount_setattr")
	}
	if !n.spec.Seccomp {
		n.limitations = append(n.limitations, "no seccomp: profiles are left out")
	}
	n.idmap = probeIDMap(cfg)
	lacks(n.idmap, "no user namespaces for pods")
	return n
}

// probeResourceCapability: without CAP_SYS_RESOURCE, nobody can go below the oom_score_adj that he was started with.
func (n *nodeFacts) probeResourceCapability() {
	if n.spec.Capabilities == nil || slices.Contains(n.spec.Capabilities, "CAP_SYS_RESOURCE") {
		return
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return
	}
	if own, err := strconv.Atoi(string(bytes.TrimSpace(data))); err == nil {
		n.spec.OOMScoreFloor = &own
	}
	n.limitations = append(n.limitations,
		"no CAP_SYS_RESOURCE: oom_score_adj of containers cannot be lowered, nor their resource limits raised, beyond the daemon's own")
}

func (n *nodeFacts) probeAppArmor(profile string) {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	n.spec.AppArmor = err == nil && strings.HasPrefix(string(enabled), "Y") && fileExists("/sys/kernel/security/apparmor/profiles")
	if !n.spec.AppArmor {
		n.limitations = append(n.limitations, "no AppArmor: its profiles cannot be asked for")
		return
	}
	n.spec.AppArmorLoaded = appArmorLoaded
	if profile == "" {
		return
	}
	if !appArmorLoaded(profile) {
		if err := apparmor.LoadDefaultProfile(profile); err != nil {
			n.limitations = append(n.limitations, "no default AppArmor profile (is apparmor_parser installed?): "+err.Error())
			return
		}
	}
	n.spec.AppArmorDefault = profile
}

// appArmorLoaded asks the kernel for its profiles: lines of the form "name (mode)".
func appArmorLoaded(profile string) bool {
	data, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if i := strings.LastIndex(line, " ("); i >= 0 && line[:i] == profile {
			return true
		}
	}
	return false
}

// probeRecursiveReadOnly makes a copy of a mount tree, which nobody else sees, read-only.
func probeRecursiveReadOnly() error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

// probeIDMap makes a user namespace and maps a copy of the mount that holds the containers with it.
func probeIDMap(cfg Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := removeProbes(ctx, cfg.RunDir); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(cfg.RunDir, probePrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 65536, Size: 65536}}
	paths, err := sandboxns.Create(ctx, sandboxns.Request{Dir: dir, User: &sandboxns.IDMappings{UIDs: maps, GIDs: maps}})
	if err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	defer sandboxns.Remove(ctx, paths)
	user, err := os.Open(paths.User)
	if err != nil {
		return err
	}
	defer user.Close()
	fd, err := unix.OpenTree(unix.AT_FDCWD, filepath.Join(cfg.RootDir, "containers"), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone a mount: %w", err)
	}
	defer unix.Close(fd)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(user.Fd())})
	if err != nil {
		return fmt.Errorf("idmapped mount of %s: %w", cfg.RootDir, err)
	}
	return nil
}

// probePrefix begins the names of the folders of probeIDMap.
const probePrefix = "probe-"

// removeProbes removes what daemons left that were killed in the middle of probeIDMap.
func removeProbes(ctx context.Context, runDir string) error {
	for _, name := range names(runDir) {
		if !strings.HasPrefix(name, probePrefix) {
			continue
		}
		dir := filepath.Join(runDir, name)
		if err := errors.Join(sandboxns.Remove(ctx, sandboxns.PathsIn(dir, "")), os.RemoveAll(dir)); err != nil {
			return fmt.Errorf("leftover of a probe: %w", err)
		}
	}
	return nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// selinuxLabels are empty where SELinux is off.
type selinuxLabels struct{ process, mount string }

// labels are those of a container: the pod's level, unless the request has options of its own.
func (r *Runtime) labels(sb *sandbox, cfg *cri.ContainerConfig) (selinuxLabels, error) {
	if !selinux.GetEnabled() {
		return selinuxLabels{}, nil
	}
	options := cfg.GetLinux().GetSecurityContext().GetSelinuxOptions()
	process, mount, err := spec.SELinuxLabels(options, sb.factsNow().ProcessLabel)
	return selinuxLabels{process, mount}, err
}

// podLabels reserves the SELinux labels of a pod.
func (r *Runtime) podLabels(cfg *cri.PodSandboxConfig) (process, mount string, err error) {
	if !selinux.GetEnabled() || hostNetwork(cfg) && cfg.GetLinux().GetSecurityContext().GetSelinuxOptions() == nil {
		return "", "", nil // a pod on the host's network is not kept apart from the host
	}
	return spec.SELinuxLabels(cfg.GetLinux().GetSecurityContext().GetSelinuxOptions(), "")
}
