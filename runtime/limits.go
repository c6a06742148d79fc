package runtime

import (
	"context"
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
)

// The limits of a container come from its creator, from the kubelet that resizes it, and from NRI plugins. The record has
// them twice: as the CRI asked for them, which is what the status tells (a kubelet that saw a plugin's values there would
// resize the container for ever), and as they are, which is what plugins and verbose status are told.

// changeLimits writes limits to the container's cgroup, and to its record what then holds, with what else changes there.
// What change does not name stays. A container that has ended is ErrNotFound.
func (r *Runtime) changeLimits(ctx context.Context, c *container, change *specs.LinuxResources, also func(*containerFacts)) error {
	c.limits.Lock()
	defer c.limits.Unlock()
	f := c.factsNow()
	if f.state() == Exited {
		return fmt.Errorf("limits of container %s, which has ended: %w", c.id(), errdefs.ErrNotFound)
	}
	change = withSwapAllowance(f.Limits, change)
	now, err := mergeLimits(f.Limits, change)
	if err != nil {
		return err
	}
	if _, lives := f.process(); lives {
		group, err := r.cfg.Cgroups.Open(c.record.CgroupsPath)
		if err != nil {
			return err
		}
		if err := group.Set(ctx, change); err != nil {
			return err
		}
	}
	failpoint.Here(failpoint.UpdateWritten)
	return c.update(func(f *containerFacts) {
		f.Limits = now
		also(f)
	})
}

// limitsOf are the limits in a spec. Device rules are not among them: nobody changes those.
func limitsOf(s *specs.Spec) *specs.LinuxResources {
	if s.Linux == nil || s.Linux.Resources == nil {
		return nil
	}
	limits := *s.Linux.Resources
	limits.Devices = nil
	return &limits
}

// withSwapAllowance completes a change that was made to held: see keepSwapAllowance.
func withSwapAllowance(held, change *specs.LinuxResources) *specs.LinuxResources {
	if held == nil || change == nil {
		return change
	}
	out := *change
	out.Memory = keepSwapAllowance(held.Memory, change.Memory)
	return &out
}

// afterPlugins is what plugins have made of resources. One that changes the memory limit alone does not mean to change how
// much swap there is.
func afterPlugins(asked, wished *specs.LinuxResources) *specs.LinuxResources {
	if asked == nil || wished == nil || asked.Memory == nil || wished.Memory == nil {
		return wished
	}
	was, m := asked.Memory, *wished.Memory
	if was.Limit == nil || was.Swap == nil || m.Swap == nil || *was.Swap != *m.Swap {
		return wished
	}
	out := *wished
	m.Swap = nil
	out.Memory = keepSwapAllowance(was, &m)
	return &out
}

// keepSwapAllowance completes a change of the memory limit alone: the limit of memory and swap together moves with it, so
// that as much swap is allowed as before. Else a higher limit would be refused, and a lower one would allow more swap.
func keepSwapAllowance(was, now *specs.LinuxMemory) *specs.LinuxMemory {
	if was == nil || now == nil || was.Limit == nil || was.Swap == nil || now.Limit == nil || now.Swap != nil {
		return now
	}
	both := int64(-1)
	if *was.Swap >= 0 && *now.Limit >= 0 {
		both = *now.Limit + *was.Swap - *was.Limit
	}
	out := *now
	out.Swap = &both
	return &out
}

// mergeLimits returns what holds when change is made to held. By way of the form on disk, in which what is not said is not
// there.
func mergeLimits(held, change *specs.LinuxResources) (*specs.LinuxResources, error) {
	now := &specs.LinuxResources{}
	for _, from := range []*specs.LinuxResources{held, change} {
		data, err := json.Marshal(from)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, now); err != nil {
			return nil, err
		}
	}
	now.Devices = nil
	return now, nil
}

// specNow is the container's spec with the limits that hold now.
func (r *Runtime) specNow(c *container) (*specs.Spec, error) {
	s, err := r.specOf(c)
	if err != nil {
		return nil, err
	}
	limits := c.factsNow().Limits
	if limits == nil || s.Linux == nil {
		return s, nil
	}
	now, linux, resources := *s, *s.Linux, *limits
	if linux.Resources != nil {
		resources.Devices = linux.Resources.Devices
	}
	linux.Resources, now.Linux = &resources, &linux
	return &now, nil
}
