package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// Status says whether pods can run here, and what this node can do.
func (r *Runtime) Status(ctx context.Context) NodeStatus {
	s := NodeStatus{
		Network:      r.cfg.Network.Status(),
		CgroupDriver: r.cfg.Cgroups.Driver,
		Features: Features{
			SupplementalGroupsPolicy: true, MountOptions: true,
		},
		Limitations: append(slices.Clone(r.node.limitations), r.cfg.Network.Warnings()...),
		Info: map[string]any{
			"bootID": r.boot,
		},
	}
	if !r.keeper.connected() {
		s.Runtime = errNoKeeper
	}
	for _, name := range append([]string{""}, slices.Sorted(maps.Keys(r.cfg.Handlers))...) {
		s.Handlers = append(s.Handlers, Handler{
			Name: name, RecursiveReadOnlyMounts: r.node.spec.RecursiveReadOnly, UserNamespaces: r.node.idmap == nil,
		})
	}
	s.State = writable(r.cfg.RootDir)
	if problem := r.records.problem(); problem != "" {
		s.State = errors.Join(s.State, errors.New(problem))
	}
	if s.State != nil {
		s.Limitations = append(s.Limitations, strings.ReplaceAll(s.State.Error(), "\n", "; "))
	}
	for _, h := range r.held.all() {
		s.Damaged = append(s.Damaged, h.String())
	}
	s.Damaged = append(s.Damaged, r.damaged.said()...)
	if without := r.withoutBundle(); len(without) > 0 {
		s.Damaged = append(s.Damaged, fmt.Sprintf("%s was emptied: no exec in these containers until they are made anew: %s",
			r.paths.run, strings.Join(without, ", ")))
	}
	s.Damaged = append(s.Damaged, r.cfg.Images.Damaged()...)
	s.Damaged = append(s.Damaged, r.cfg.Network.Damaged()...)
	return s
}

// SandboxInfo is more of a sandbox for a person or a tool.
func (r *Runtime) SandboxInfo(_ context.Context, id string) (map[string]any, error) {
	sb, err := r.index.findSandbox(id)
	if err != nil {
		return nil, err
	}
	v := sb.view()
	info := map[string]any{
		"sandboxID":      v.ID,
		"pid":            r.sandboxPid(sb),
		"processStatus":  map[bool]string{true: "running", false: "stopped"}[v.Ready],
		"runtimeHandler": v.Handler,
		"runtimeType":    "berth",
		"owner":          v.Owner,
		"config":         v.Config,
		"cniResult":      v.CNI,
		"namespaces": map[string]string{
			"network": v.NetNS, "ipc": sb.factsNow().IPCNS, "uts": sb.factsNow().UTSNS, "user": v.UserNS,
		},
	}
	return info, nil
}

// sandboxPid is the pid of something that lives in the sandbox's namespaces: the pause process, or a container.
func (r *Runtime) sandboxPid(sb *sandbox) int {
	if pid := sb.factsNow().Pause.Pid; pid != 0 {
		return pid
	}
	for _, c := range r.index.containersOf(sb.record.ID) {
		if p, lives := c.factsNow().process(); lives {
			return p.Pid
		}
	}
	return 0
}

// ContainerInfo is more of a container for a person or a tool.
func (r *Runtime) ContainerInfo(_ context.Context, id string) (map[string]any, error) {
	c, err := r.index.findContainer(id)
	if err != nil {
		return nil, err
	}
	v := r.view(c)
	info := map[string]any{
		"sandboxID":   v.SandboxID,
		"pid":         v.Pid,
		"runtimeType": "berth",
		"config":      v.Config,
		"bundle":      v.Bundle,
		"rootfs":      r.paths.rootfs(v.ID),
		"cgroupsPath": v.CgroupsPath,
	}
	s, err := r.specNow(c)
	if err == nil {
		info["runtimeSpec"] = s
	} else if ignoreNotFound(err) != nil {
		info["runtimeSpecError"] = err.Error() // a damaged bundle; the rest is good
	}
	return info, nil
}

// UpdatePodCIDR passes the node's pod ranges on to the network.
func (r *Runtime) UpdatePodCIDR(cidrs string) error { return r.cfg.Network.UpdatePodCIDR(cidrs) }

var errNoKeeper = errdefs.ErrUnavailable

// writable says why nothing can be written into a folder; nil if it can. What runs needs no room, what is made does.
func writable(dir string) error {
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return fmt.Errorf("%s cannot be written, no pod and no image can be made: %w", dir, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	// Some file systems have no fixed number of inodes, and say 0.
	if st.Bavail == 0 && st.Bfree == 0 && st.Blocks > 0 || st.Ffree == 0 && st.Files > 0 {
		return fmt.Errorf("%s is full (%d blocks and %d inodes are free), no pod and no image can be made", dir, st.Bfree, st.Ffree)
	}
	return nil
}

// LostOutput says of which running containers output could not be written to the log.
func (r *Runtime) LostOutput(ctx context.Context) []string {
	if !r.keeper.connected() {
		return nil
	}
	k, err := r.keeper.client(ctx)
	if err != nil {
		return nil
	}
	states, err := k.List(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, s := range states {
		if s.LogDropped > 0 {
			out = append(out, fmt.Sprintf("%d bytes of the output of container %s could not be written to %s, and are lost", s.LogDropped, s.ID, s.Request.LogPath))
		}
	}
	return out
}
