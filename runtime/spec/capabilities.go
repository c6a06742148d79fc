package spec

import (
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/internal/caps"
)

// defaultCapabilities are those of a container that asks for nothing, the same with all runtimes since Docker.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// capabilities sets the five sets. Adding ALL comes first, dropping ALL second, then single names are added and dropped;
// so "drop ALL, add X" gives X and "add ALL, drop X" all but X.
//
// Nothing is inheritable (a program with inheritable file capabilities would gain them from any user, CVE-2022-24769) and
// nothing ambient, but what add_ambient_capabilities names: without ambient ones the capabilities of a container that does
// not run as root are what its programs' files give it, up to the bounding set.
func (b *builder) capabilities() error {
	const field = "linux.security_context.capabilities"
	ask := b.sc.GetCapabilities()
	var ambient []string
	caps := slices.Clone(defaultCapabilities)
	if b.sc.GetPrivileged() {
		caps = b.allCapabilities()
	} else {
		if hasAll(ask.GetAddCapabilities()) {
			caps = b.allCapabilities()
		}
		if hasAll(ask.GetDropCapabilities()) {
			caps = nil
		}
		add, err := capabilityNames(field+".add_capabilities", ask.GetAddCapabilities())
		if err != nil {
			return err
		}
		drop, err := capabilityNames(field+".drop_capabilities", ask.GetDropCapabilities())
		if err != nil {
			return err
		}
		if ambient, err = capabilityNames(field+".add_ambient_capabilities", ask.GetAddAmbientCapabilities()); err != nil {
			return err
		}
		caps = append(append(caps, add...), ambient...)
		caps = slices.DeleteFunc(caps, func(c string) bool { return slices.Contains(drop, c) })
	}
	caps = b.available(unique(caps))
	if hasAll(ask.GetAddAmbientCapabilities()) {
		ambient = caps
	}
	ambient = slices.DeleteFunc(unique(ambient), func(c string) bool { return !slices.Contains(caps, c) })
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: caps, Effective: slices.Clone(caps), Permitted: slices.Clone(caps),
		Inheritable: ambient, Ambient: slices.Clone(ambient),
	}
	return nil
}

// allCapabilities are those that the node can give.
func (b *builder) allCapabilities() []string {
	if b.Node.Capabilities != nil {
		return slices.Clone(b.Node.Capabilities)
	}
	return slices.Clone(knownCapabilities())
}

// available leaves out what the node cannot give: asking the kernel for it would fail the start as a whole.
func (b *builder) available(caps []string) []string {
	if b.Node.Capabilities == nil {
		return caps
	}
	return slices.DeleteFunc(caps, func(c string) bool {
		missing := !slices.Contains(b.Node.Capabilities, c)
		if missing {
			b.limited("%s is not given: the node's runtime does not have it", c)
		}
		return missing
	})
}

func hasAll(names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, "ALL") })
}

// capabilityNames turns Kubernetes' names (NET_ADMIN; with CAP_ is understood) into the kernel's, without ALL.
func capabilityNames(field string, names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		n = strings.ToUpper(n)
		if n == "ALL" {
			continue
		}
		if !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		if !slices.Contains(knownCapabilities(), n) {
			return nil, invalid(field, "%q is not a capability", n)
		}
		out = append(out, n)
	}
	return out, nil
}

// knownCapabilities are all that have a name, whether or not the running kernel has them.
var knownCapabilities = sync.OnceValue(func() []string {
	var names []string
	for _, c := range capability.ListKnown() {
		names = append(names, caps.Name(c))
	}
	return names
})

// unique drops later duplicates and keeps the order.
func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
