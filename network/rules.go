package network

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"
)

// The maps of host ports: where connections to a port go, for any address of the host and for a certain one.
const (
	anyPorts4 = "hostports4"
	anyPorts6 = "hostports6"
	ipPorts4  = "hostports4-ip"
	ipPorts6  = "hostports6-ip"
)

// rules is what berth's nftables table is made from. Everything static stands in the chains; a host port is one element
// of a map and nothing else, so that a pod costs one line in one transaction, and a pod without host ports none.
type rules struct {
	ranges  ranges
	bridges []string
	ipv6    bool
	// localhost6 says that host ports can be offered on ::1 (see setup.go).
	localhost6 bool
	ports      []hostPort
}

// replace writes to tx the whole table, in place of what is there.
func (r rules) replace(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{}) // so that there is one to delete
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("berth pod network")})
	tx.Add(&knftables.Set{Name: "bridges", Type: "ifname"})
	for _, name := range r.bridges {
		tx.Add(&knftables.Element{Set: "bridges", Key: []string{strconv.Quote(name)}})
	}
	tx.Add(&knftables.Map{Name: anyPorts4, Type: "inet_proto . inet_service : ipv4_addr . inet_service"})
	tx.Add(&knftables.Map{Name: anyPorts6, Type: "inet_proto . inet_service : ipv6_addr . inet_service"})
	tx.Add(&knftables.Map{Name: ipPorts4, Type: "inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service"})
	tx.Add(&knftables.Map{Name: ipPorts6, Type: "inet_proto . ipv6_addr . inet_service : ipv6_addr . inet_service"})
	r.guard(tx)
	r.dnat(tx)
	r.masquerade(tx)
	for _, p := range r.ports {
		tx.Add(p.element())
	}
}

// guard drops what pods send to 127.0.0.0/8 of the host, or from there. The kernel does so by itself, but not on a bridge
// with route_localnet, and without that host ports would not work on 127.0.0.1. Replies to such connections are
// addressed to the bridge here; connection tracking, which comes after the raw priority, turns them.
func (r rules) guard(tx *knftables.Transaction) {
	addChain(tx, "guard", knftables.FilterType, knftables.PreroutingHook, knftables.RawPriority)
	addRule(tx, "guard", "iifname @bridges ip daddr 127.0.0.0/8 drop")
	addRule(tx, "guard", "iifname @bridges ip saddr 127.0.0.0/8 drop")
}

// dnat sends connections to the host's own addresses to the pods: those from elsewhere and from pods in prerouting, those
// of the host's processes in output.
func (r rules) dnat(tx *knftables.Transaction) {
	tx.Add(&knftables.Chain{Name: "hostports"})
	addRule(tx, "hostports", "dnat ip to meta l4proto . ip daddr . th dport map @"+ipPorts4)
	addRule(tx, "hostports", "dnat ip to meta l4proto . th dport map @"+anyPorts4)
	addRule(tx, "hostports", "dnat ip6 to meta l4proto . ip6 daddr . th dport map @"+ipPorts6)
	addRule(tx, "hostports", "dnat ip6 to meta l4proto . th dport map @"+anyPorts6)

	addChain(tx, "prerouting", knftables.NATType, knftables.PreroutingHook, knftables.DNATPriority)
	// The routing would drop these later. Translated they would pass, and open a port on 127.0.0.1 to the whole link.
	addRule(tx, "prerouting", "ip daddr 127.0.0.0/8 return")
	addRule(tx, "prerouting", "fib daddr type local jump hostports")

	addChain(tx, "output", knftables.NATType, knftables.OutputHook, "-100")
	if !r.localhost6 {
		// Without a way back a connection would hang. Left alone it is refused, and clients go on with 127.0.0.1.
		addRule(tx, "output", "ip6 daddr ::1 return")
	}
	addRule(tx, "output", "fib daddr type local jump hostports")
}

// masquerade gives an address of the host to what could not be answered otherwise.
func (r rules) masquerade(tx *knftables.Transaction) {
	addChain(tx, "postrouting", knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority)
	addRule(tx, "postrouting", "oifname @bridges ip saddr 127.0.0.0/8 masquerade")
	addRule(tx, "postrouting", "oifname @bridges ip6 saddr ::1 masquerade")
	r.masqueradePods(tx, "ip", r.ranges.IPv4, "224.0.0.0/4")
	if r.ipv6 {
		r.masqueradePods(tx, "ip6", r.ranges.IPv6, "ff00::/8")
	}
}

func (r rules) masqueradePods(tx *knftables.Transaction, family string, pods netip.Prefix, multicast string) {
	// A pod that reaches a pod through the host: the answer must come back through the host, not over the bridge.
	addRule(tx, "postrouting", fmt.Sprintf("ct status dnat %s saddr %s %s daddr %s masquerade", family, pods, family, pods))
	// A pod that reaches the world. Random ports, since the kernel's first choice races between CPUs and then drops.
	addRule(tx, "postrouting", fmt.Sprintf("oifname != @bridges %s saddr %s %s daddr != { %s, %s } masquerade fully-random",
		family, pods, family, pods, multicast))
}

// element is p as an element of the map that it belongs to.
func (p hostPort) element() *knftables.Element {
	e := &knftables.Element{
		Key:   []string{p.Protocol, strconv.Itoa(int(p.Port))},
		Value: []string{strings.Join([]string{p.To.Addr().String(), strconv.Itoa(int(p.To.Port()))}, " . ")},
	}
	if p.HostIP.IsValid() {
		e.Key = []string{p.Protocol, p.HostIP.String(), strconv.Itoa(int(p.Port))}
	}
	switch {
	case p.To.Addr().Is4() && p.HostIP.IsValid():
		e.Map = ipPorts4
	case p.To.Addr().Is4():
		e.Map = anyPorts4
	case p.HostIP.IsValid():
		e.Map = ipPorts6
	default:
		e.Map = anyPorts6
	}
	return e
}

func addChain(tx *knftables.Transaction, name string, typ knftables.BaseChainType, hook knftables.BaseChainHook, prio knftables.BaseChainPriority) {
	tx.Add(&knftables.Chain{Name: name, Type: &typ, Hook: &hook, Priority: &prio})
}

func addRule(tx *knftables.Transaction, chain, rule string) {
	tx.Add(&knftables.Rule{Chain: chain, Rule: rule})
}
