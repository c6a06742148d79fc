package spec

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/caps"
	"github.com/berth-node/berth/internal/enter"
	"github.com/berth-node/berth/internal/rlimit"
)

// cloneFlags are the namespaces that package enter can join; libcontainer has to join others.
var cloneFlags = map[specs.LinuxNamespaceType]uint32{
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
}

// CanEnter says whether package enter can start a further process of a container as libcontainer would. It cannot make
// terminals, speak with seccomp agents, or set what Kubernetes never asks for.
func CanEnter(container *specs.Spec, p *specs.Process) bool {
	l := container.Linux
	switch {
	case l == nil, p.Capabilities == nil, p.Terminal, p.SelinuxLabel != "", l.MountLabel != "":
		return false
	case p.Scheduler != nil, p.IOPriority != nil, p.ExecCPUAffinity != nil, l.Personality != nil, l.MemoryPolicy != nil, l.IntelRdt != nil:
		return false
	case l.Seccomp != nil && (l.Seccomp.ListenerPath != "" || slices.ContainsFunc(l.Seccomp.Syscalls, notifies)):
		return false
	case !slices.ContainsFunc(l.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.MountNamespace }):
		return false
	}
	if slices.ContainsFunc(l.Namespaces, func(ns specs.LinuxNamespace) bool { return cloneFlags[ns.Type] == 0 }) {
		return false
	}
	return !slices.ContainsFunc(p.Rlimits, func(r specs.POSIXRlimit) bool { _, ok := rlimit.Number(r.Type); return !ok })
}

func notifies(c specs.LinuxSyscall) bool { return c.Action == specs.ActNotify }

// Enter is what package enter does for a process that CanEnter. The cgroups, the keyring and the filter are the caller's to
// add.
func Enter(container *specs.Spec, p *specs.Process) *enter.Plan {
	plan := &enter.Plan{
		NoNewPrivileges: p.NoNewPrivileges,
		Umask:           container.Process.User.Umask,
		Cwd:             p.Cwd,
		UID:             p.User.UID,
		GID:             p.User.GID,
		Groups:          p.User.AdditionalGids,
		Bounding:        caps.Bits(p.Capabilities.Bounding),
		Effective:       caps.Bits(p.Capabilities.Effective),
		Permitted:       caps.Bits(p.Capabilities.Permitted),
		Inheritable:     caps.Bits(p.Capabilities.Inheritable),
		Ambient:         caps.Bits(p.Capabilities.Ambient),
		AppArmor:        p.ApparmorProfile,
		Args:            p.Args,
		Env:             p.Env,
	}
	// As the container's own, or 0: the keeper's would be inherited.
	if adj := container.Process.OOMScoreAdj; adj != nil {
		plan.OOMScoreAdj = *adj
	}
	for _, r := range p.Rlimits {
		number, _ := rlimit.Number(r.Type)
		plan.Rlimits = append(plan.Rlimits, enter.Rlimit{Resource: uint32(number), Soft: r.Soft, Hard: r.Hard})
	}
	for _, ns := range container.Linux.Namespaces {
		if ns.Type == specs.CgroupNamespace {
			// Not the container's: from there an exec, whose cgroup is below, would not see its limits.
			plan.OwnCgroupNamespace = true
			continue
		}
		plan.Namespaces |= cloneFlags[ns.Type]
	}
	return plan
}
