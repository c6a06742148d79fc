package runtime

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/runtime/spec"
)

// UpdateContainerResources changes the limits of a container that was created or runs. Fields that are zero stay as they
// are.
func (r *Runtime) UpdateContainerResources(ctx context.Context, id string, linux *cri.LinuxContainerResources, _ map[string]string) error {
	c, err := r.index.findContainer(id)
	if err != nil {
		return err
	}
	if err := c.op.lock(ctx); err != nil {
		return err
	}
	defer c.op.unlock()
	c.telling.Lock()
	defer c.telling.Unlock()
	if c.state() == Exited {
		return c.precondition("update")
	}
	sb := r.index.sandbox(c.record.SandboxID)
	if sb == nil {
		return fmt.Errorf("sandbox of container %s: %w", c.id(), errdefs.ErrNotFound)
	}
	resources, limitations, err := spec.LinuxResources(linux, r.node.spec)
	if err != nil {
		return err
	}
	for _, l := range limitations {
		r.log.Debug("the node cannot give a container all that it asks for", "container", c.id(), "limitation", l)
	}
	release := r.cfg.NRI.Block()
	defer release()
	wished, updates, err := r.cfg.NRI.UpdateContainer(ctx, r.nriPod(sb), r.nriContainer(c), resources)
	if err != nil {
		return fmt.Errorf("NRI plugin refused the update of container %s: %w", c.id(), err)
	}
	r.tryUpdates(ctx, updates)
	resources = afterPlugins(resources, wished)
	spec.ClampResources(resources, r.node.spec)
	if err := r.setResources(ctx, c, linux, resources); err != nil {
		return fmt.Errorf("update container %s: %w", c.id(), err)
	}
	failpoint.Here(failpoint.UpdateRecorded)
	if err := r.cfg.NRI.PostUpdateContainer(ctx, r.nriPod(sb), r.nriContainer(c)); err != nil {
		r.log.Warn("NRI plugin failed after the update of a container, ignoring", "container", c.id(), "err", err)
	}
	return nil
}

// setResources writes limits to the cgroup, and them and what was asked for to the record. It needs c.op.
func (r *Runtime) setResources(ctx context.Context, c *container, linux *cri.LinuxContainerResources, resources *specs.LinuxResources) error {
	now := &cri.LinuxContainerResources{}
	if err := unmarshalProto(c.factsNow().Resources, now); err != nil {
		return err
	}
	proto.Merge(mergeable(now, linux), linux)
	data, err := marshalProto(now)
	if err != nil {
		return err
	}
	return r.changeLimits(ctx, c, resources, func(f *containerFacts) { f.Resources = data })
}

// mergeable prepares base for a merge in which what update says replaces, and does not add to, what base has.
func mergeable(base, update *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	if len(update.GetHugepageLimits()) > 0 {
		base.HugepageLimits = nil
	}
	return base
}
