package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/nri"
	"github.com/berth-node/berth/runtime/spec"
)

func (r *Runtime) nriPod(sb *sandbox) nri.Pod {
	v := sb.view()
	return nri.Pod{
		ID: v.ID, Name: v.Config.Metadata.Name, Namespace: v.Config.Metadata.Namespace, UID: v.Config.Metadata.Uid,
		Labels: v.Config.Labels, Annotations: v.Config.Annotations, RuntimeHandler: v.Handler,
		CgroupParent: v.Config.GetLinux().GetCgroupParent(), NetNS: v.NetNS, Pid: v.PausePid, IPs: v.IPs,
		Stopped:  sb.factsNow().TornDown,
		Overhead: v.Config.GetLinux().GetOverhead(), Resources: v.Config.GetLinux().GetResources(),
	}
}

func (r *Runtime) nriContainer(c *container) nri.Container {
	f := c.factsNow()
	out := nri.Container{
		Image: c.record.Image.UserSpecified, ImageDigest: c.record.Image.Ref, ImageID: c.record.Image.ID,
		ID: c.id(), PodID: c.record.SandboxID, Name: c.config.Metadata.Name,
		Labels: c.config.Labels, Annotations: c.config.Annotations, State: f.state().String(), Pid: f.Process.Pid,
		CreatedAt: c.record.CreatedAt, StartedAt: f.StartedAt, FinishedAt: f.FinishedAt,
		ExitCode: f.ExitCode, Reason: f.Reason, Message: f.Message,
		Seccomp: c.config.GetLinux().GetSecurityContext().GetSeccomp(),
	}
	for _, d := range c.config.GetCDIDevices() {
		out.CDIDevices = append(out.CDIDevices, d.GetName())
	}
	// Of a container that was cleared up the spec is gone; plugins then see the rest.
	if s, err := r.specNow(c); err == nil {
		out.Spec = s
	}
	return out
}

// adjust lets the plugins change the spec of a container in the making.
func (r *Runtime) adjust(ctx context.Context, sb *sandbox, c *container, s *specs.Spec) (*specs.Spec, error) {
	ctr := r.nriContainer(c)
	ctr.Spec = s
	adjusted, updates, err := r.cfg.NRI.CreateContainer(ctx, r.nriPod(sb), ctr)
	if err != nil {
		return nil, fmt.Errorf("NRI plugin refused it: %w", err)
	}
	r.tryUpdates(ctx, updates)
	if adjusted != s && s.Linux != nil && adjusted.Linux != nil {
		adjusted.Linux.Resources = afterPlugins(s.Linux.Resources, adjusted.Linux.Resources)
	}
	for _, l := range spec.Clamp(adjusted, r.node.spec) {
		r.log.Debug("the node cannot give a container all that a plugin asks for", "container", c.id(), "limitation", l)
	}
	return adjusted, nil
}

// StartPlugins lets NRI plugins in. Before Recover has ended they would see a part of what there is.
func (r *Runtime) StartPlugins() error {
	defer r.waiting()()
	return r.cfg.NRI.Start(nri.Callbacks{
		List:   r.nriObjects,
		Update: r.applyUpdates,
		Evict: func(ctx context.Context, id, reason string) error {
			r.log.Info("an NRI plugin evicts a container", "container", id, "reason", reason)
			return r.StopContainer(ctx, id, 0)
		},
	})
}

func (r *Runtime) nriObjects() (pods []nri.Pod, containers []nri.Container) {
	for _, sb := range r.index.allSandboxes() {
		pods = append(pods, r.nriPod(sb))
	}
	for _, c := range r.index.allContainers() {
		containers = append(containers, r.nriContainer(c))
	}
	return pods, containers
}

// applyUpdates changes the limits of containers as plugins wish. One that is gone has no limits to change.
func (r *Runtime) applyUpdates(ctx context.Context, updates []nri.Update) (failed []nri.Update, err error) {
	for _, u := range updates {
		e := r.applyUpdate(ctx, u)
		if e == nil || errors.Is(e, errdefs.ErrNotFound) || errors.Is(e, fs.ErrNotExist) {
			continue
		}
		failed = append(failed, u)
		if u.IgnoreFailure {
			r.log.Warn("update by an NRI plugin failed, ignoring", "container", u.ContainerID, "err", e)
			continue
		}
		err = errors.Join(err, fmt.Errorf("NRI update of container %s: %w", u.ContainerID, e))
	}
	return failed, err
}

// tryUpdates does what plugins want of other containers while one is being handled, whose business their failure is not.
func (r *Runtime) tryUpdates(ctx context.Context, updates []nri.Update) {
	if _, err := r.applyUpdates(ctx, updates); err != nil {
		r.log.Warn("updates by NRI plugins failed, ignoring", "err", err)
	}
}

func (r *Runtime) applyUpdate(ctx context.Context, u nri.Update) error {
	c, err := r.index.findContainer(u.ContainerID)
	if err != nil {
		return err
	}
	for _, l := range spec.ClampResources(u.Resources, r.node.spec) {
		r.log.Debug("the node cannot give a container all that a plugin asks for", "container", c.id(), "limitation", l)
	}
	return r.changeLimits(ctx, c, u.Resources, func(*containerFacts) {})
}
