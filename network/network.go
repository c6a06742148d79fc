// Package network attaches sandboxes to the network.
//
// Two implementations keep the contract of Attacher: CNI runs the plugins that the node's CNI configuration names, Builtin
// is berth's own dual-stack bridge network with host ports. Both work on a network namespace that package netns has
// pinned to a path, with its loopback up, and both put the interface eth0 in it.
package network

import (
	"context"
	"encoding/json"
	"net/netip"
)

// InterfaceName is the name of a pod's interface in its network namespace.
const InterfaceName = "eth0"

// A Request says which sandbox is to be attached, and how. The same Request serves Attach, Detach and Restore, so the
// caller keeps it on record before it attaches. It is plain data and survives encoding as JSON.
type Request struct {
	// SandboxID is unique on the node for all time. Everything that a sandbox owns in the network follows from it.
	SandboxID string
	// Name, Namespace and UID are the pod's, for CNI plugins.
	Name      string
	Namespace string
	UID       string
	// NetNS is the path that pins the sandbox's network namespace. For Detach it may be gone.
	NetNS string
	// Annotations are the pod's. The two of kubernetes.io/{ingress,egress}-bandwidth limit its traffic.
	Annotations  map[string]string
	PortMappings []PortMapping
	DNS          DNS
	// CgroupParent is the pod's cgroup, for CNI plugins with the capability cgroupPath.
	CgroupParent string
	// RuntimeHandler is the handler that the pod asked for; empty for the default one.
	RuntimeHandler string
	// Aliases are further names of the pod in its network, for CNI plugins with the capability aliases.
	Aliases []string
}

// A PortMapping makes a port of the sandbox reachable through a port of the host.
type PortMapping struct {
	// HostIP limits the mapping to one address of the host. Empty means every address of both families, 0.0.0.0 every
	// IPv4 address and :: every IPv6 address.
	HostIP string
	// HostPort 0 means that the port is not mapped; such a mapping is ignored.
	HostPort      int32
	ContainerPort int32
	// Protocol is TCP, UDP or SCTP in any case; empty means TCP.
	Protocol string
}

// DNS is the resolver configuration of the pod, for CNI plugins with the capability dns.
type DNS struct {
	Servers  []string
	Searches []string
	Options  []string
}

// A Result says how a sandbox is attached.
type Result struct {
	// IPs are the sandbox's addresses in the order that the network gave them. The first one is the primary address.
	IPs []netip.Addr
	// Interfaces are the interfaces made for the sandbox, in its namespace and on the host.
	Interfaces []Interface
	// Raw is the result as a CNI result (version 1.0.0 or later), for verbose status.
	Raw json.RawMessage
}

// An Interface is one end of a sandbox's attachment.
type Interface struct {
	Name string
	MAC  string
	// NetNS is the path of the namespace that holds the interface; empty for the host's.
	NetNS string
	// Addrs are the addresses with their prefix lengths.
	Addrs []netip.Prefix
}

// An Attacher gives sandboxes their network. Its methods may be called concurrently; calls for one sandbox must not
// overlap.
//
// A life: Restore once after the daemon's start, with the sandboxes that are recorded as attached. Then for each sandbox
// one Attach, and Detach until it succeeds: after a failed Attach too, and before the namespace is removed where possible.
type Attacher interface {
	// Attach connects the sandbox's namespace and maps its host ports. On an error nothing is left behind, as far as
	// that could be done; Detach remains allowed. Errors: ErrInvalidArgument for a request that cannot succeed,
	// ErrAlreadyExists for a host port or sandbox that is taken, ErrUnavailable while the network is not ready.
	Attach(ctx context.Context, req Request) (Result, error)
	// Detach frees the sandbox's addresses and host ports. It works without the namespace, and where nothing is left to
	// free it returns nil. The namespace itself is the caller's to remove, which also removes the interface.
	Detach(ctx context.Context, req Request) error
	// Restore brings host and records in line after a restart of the daemon or of the host: host ports of live are
	// rebuilt in one transaction, what belongs to a sandbox not in live is freed.
	Restore(ctx context.Context, live []Request) error
	// Status returns nil when sandboxes can be attached, or else the reason why not, for the condition NetworkReady.
	Status() error
	// Warnings returns what limits the network without making it unusable, in words for the administrator. It may run
	// programs and take some milliseconds.
	Warnings() []string
	// Damaged names files of records that could not be used and were set aside, as long as they are there.
	Damaged() []string
	// UpdatePodCIDR takes the address ranges given to this node: one or two (dual stack), comma separated.
	UpdatePodCIDR(cidrs string) error
	// Close ends the watching of configuration. Attached sandboxes stay attached.
	Close() error
}

var (
	_ Attacher = (*CNI)(nil)
	_ Attacher = (*Builtin)(nil)
)
