package network

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// aliasPrefix begins the alias (`ip link show`) of every bridge of berth. The state folder of its node follows.
const aliasPrefix = "berth network "

// localhostMetric puts the route of ::1 on a bridge behind the one on lo.
const localhostMetric = 4096

// setUp makes what the host needs to carry the pods of the given subnets: bridges, settings and the nftables table. It
// leaves alone what is right already, so it is repair as well. b.setup must be held.
//
// Bridges come first: by their aliases nodes side by side find each other's records of the settings.
func (b *Builtin) setUp(ctx context.Context, subnets map[int]bool) error {
	unlock, err := lockHost()
	if err != nil {
		return err
	}
	defer unlock()
	for i := range subnets {
		if err := b.setUpBridge(b.subnets[i]); err != nil {
			return fmt.Errorf("set up bridge %s: %w", b.subnets[i].Bridge, err)
		}
		b.made[i] = true
	}
	others, err := b.otherNodes()
	if err != nil {
		return err
	}
	settings, err := forwardingSettings(b.ipv6)
	if err != nil {
		return err
	}
	if err := b.sysctls.set(settings, others); err != nil {
		return fmt.Errorf("switch on forwarding: %w", err)
	}
	return b.rebuildRules(ctx)
}

// rebuildRules makes the nftables table anew from what is in memory. b.setup must be held.
func (b *Builtin) rebuildRules(ctx context.Context) error {
	b.localhost6 = localhost6Possible(b.ipv6)
	r := rules{ranges: b.ranges, ipv6: b.ipv6, localhost6: b.localhost6}
	for i := range b.subnets {
		if b.made[i] {
			r.bridges = append(r.bridges, b.subnets[i].Bridge)
		}
	}
	b.rulesMu.Lock()
	defer b.rulesMu.Unlock()
	r.ports = b.ports.all()
	return b.firewall.replace(ctx, r)
}

// setUpBridge makes or mends one bridge.
func (b *Builtin) setUpBridge(s subnet) error {
	link, err := b.h.LinkByName(s.Bridge)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		link, err = b.makeBridge(s)
	}
	if err != nil {
		return err
	}
	if !b.owns(link, s) {
		return fmt.Errorf("the host has a %s of that name which is not this node's", link.Type())
	}
	if link.Attrs().Alias == "" {
		if err := b.completeBridge(link, s); err != nil {
			return err
		}
	}
	conf4, conf6 := "/proc/sys/net/ipv4/conf/"+s.Bridge+"/", "/proc/sys/net/ipv6/conf/"+s.Bridge+"/"
	// Lets a packet from 127.0.0.1 leave for a pod, and its answer come back. The rule "guard" closes what this opens.
	if err := writeSysctl(conf4+"route_localnet", "1"); err != nil {
		return err
	}
	addrs := []netip.Prefix{netip.PrefixFrom(s.addr4(1), s.IPv4.Bits())}
	if b.ipv6 {
		addrs = append(addrs, netip.PrefixFrom(s.addr6(1), s.IPv6.Bits()))
		// Router advertisements come from pods here. And nobody else has the bridge's link-local address: while the
		// kernel made sure of that, for a second or two, it would not look for the neighbours it forwards to.
		err := errors.Join(writeSysctl(conf6+"disable_ipv6", "0"), writeSysctl(conf6+"accept_ra", "0"),
			writeSysctl(conf6+"accept_dad", "0"))
		if err != nil {
			return err
		}
	}
	if err := dropOtherAddrs(b.h, link, addrs); err != nil {
		return err
	}
	for _, addr := range addrs {
		if err := addAddr(b.h, link, addr); err != nil {
			return err
		}
	}
	if err := b.h.LinkSetUp(link); err != nil {
		return err
	}
	if !b.ipv6 {
		return nil
	}
	return routeLocalhost6(b.h, link)
}

// dropOtherAddrs removes from a bridge the addresses of earlier ranges, which it has when the state folder was lost.
func dropOtherAddrs(h *netlink.Handle, bridge netlink.Link, wanted []netip.Prefix) error {
	addrs, err := h.AddrList(bridge, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || ip.IsLinkLocalUnicast() {
			continue
		}
		bits, _ := a.Mask.Size()
		if slices.Contains(wanted, netip.PrefixFrom(ip.Unmap(), bits)) {
			continue
		}
		if err := h.AddrDel(bridge, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	return nil
}

// owns reports whether link is this node's bridge for s. One without an alias is if it has the address that makeBridge
// gives: a daemon was killed before it had completed it.
func (b *Builtin) owns(link netlink.Link, s subnet) bool {
	a := link.Attrs()
	return link.Type() == "bridge" &&
		(a.Alias == b.alias() || a.Alias == "" && bytes.Equal(a.HardwareAddr, bridgeMAC(s)))
}

// bridgeMAC is given to a bridge, since it else takes the lowest address of its ports, and changes it as pods come and go.
func bridgeMAC(s subnet) net.HardwareAddr { return mac(0x0e, s.addr4(1)) }

// makeBridge makes a bridge that is still to be completed.
func (b *Builtin) makeBridge(s subnet) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = s.Bridge, b.mtu, bridgeMAC(s)
	noSnooping := false // without a router that queries groups, snooping only costs
	err := b.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &noSnooping})
	if err != nil {
		return nil, err
	}
	return b.h.LinkByName(s.Bridge)
}

// completeBridge joins the pods to a new bridge that have leases in its subnet (none, unless somebody removed the one
// before) and marks it as this node's. Not every kernel takes an alias in the message that makes a link.
func (b *Builtin) completeBridge(link netlink.Link, s subnet) error {
	for _, ls := range b.leases.all() {
		if b.subnets[ls.subnet].Bridge != s.Bridge {
			continue
		}
		port, err := b.h.LinkByName(hostLink(ls.SandboxID))
		if err != nil {
			continue // the sandbox died with its namespace; its Detach is still to come
		}
		if err := b.h.LinkSetMaster(port, link); err != nil {
			return err
		}
		if err := (veth{host: port.Attrs().Name}).makePort(); err != nil {
			return err
		}
	}
	return b.h.LinkSetAlias(link, b.alias())
}

// routeLocalhost6 makes the kernel accept ::1 as a destination of what comes in by the bridge.
//
// That is what IPv4 has route_localnet for. A connection to a host port on ::1 leaves for the pod with the bridge as its
// masqueraded source; the answer is turned back to ::1 in prerouting, and then routed: for loopback addresses IPv6 wants
// a route on the very link that the packet came in by. Packets that arrive with ::1 in them are dropped before
// prerouting, so pods gain nothing by this route, and its metric keeps the host's own ::1 on lo.
//
// It does not work where br_netfilter handles IPv6 (bridge-nf-call-ip6tables): there the answer is turned within the
// bridge, and arrives with ::1 in it. A proxy in the daemon that listens on ::1 would be no way out: host ports would
// stop when the daemon does, which pods must survive. See localhost6Possible.
func routeLocalhost6(h *netlink.Handle, bridge netlink.Link) error {
	route := &netlink.Route{
		LinkIndex: bridge.Attrs().Index,
		Dst:       &net.IPNet{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
		Type:      unix.RTN_LOCAL,
		Table:     unix.RT_TABLE_LOCAL,
		Priority:  localhostMetric,
	}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("route ::1 on %s: %w", bridge.Attrs().Name, err)
	}
	return nil
}

// localhost6Possible says whether host ports can be reached through ::1 now.
func localhost6Possible(ipv6 bool) bool {
	calls, err := readSysctl(bridgeCalls6)
	return ipv6 && (err != nil || calls == "0")
}

// intact says whether what setUp made is all there.
func (b *Builtin) intact() bool {
	for i := range b.made {
		if _, err := b.h.LinkByName(b.subnets[i].Bridge); err != nil {
			return false
		}
	}
	for path, needed := range map[string]bool{forwarding4: true, forwarding6: b.ipv6} {
		if value, err := readSysctl(path); needed && (err != nil || value == "0") {
			return false
		}
	}
	whole, err := b.firewall.whole()
	return err == nil && whole && b.localhost6 == localhost6Possible(b.ipv6)
}

// Teardown removes all that the network made on the host: bridges, nftables table, settings, leases. The chosen ranges
// stay on record. While a sandbox is attached it does nothing and returns ErrFailedPrecondition.
func (b *Builtin) Teardown(ctx context.Context) error {
	b.setup.Lock()
	defer b.setup.Unlock()
	if err := b.leases.unused(); err != nil {
		return err
	}
	unlock, err := lockHost()
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.firewall.drop(ctx); err != nil {
		return err
	}
	for i, s := range b.subnets {
		link, err := b.h.LinkByName(s.Bridge)
		if err != nil || !b.owns(link, s) {
			continue
		}
		if err := b.h.LinkDel(link); err != nil {
			return fmt.Errorf("remove bridge %s: %w", s.Bridge, err)
		}
		delete(b.made, i)
	}
	others, err := b.otherNodes()
	if err != nil {
		return err
	}
	if len(others) > 0 {
		err = b.sysctls.forget() // they have the earlier values on their records, and still need the settings
	} else {
		err = b.sysctls.restore()
	}
	if err != nil {
		return fmt.Errorf("restore settings: %w", err)
	}
	return b.leases.close()
}

// otherNodes returns the records of the nodes whose bridges are on this host beside this node's.
func (b *Builtin) otherNodes() ([]sysctlLog, error) {
	links, err := b.h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var others []sysctlLog
	for _, link := range links {
		dir, ok := strings.CutPrefix(link.Attrs().Alias, aliasPrefix)
		if ok && link.Attrs().Alias != b.alias() {
			others = append(others, sysctlLog{path: filepath.Join(dir, sysctlFile)})
		}
	}
	return others, nil
}

// alias marks the bridges of this node. The kernel takes at most 255 bytes.
func (b *Builtin) alias() string {
	alias := aliasPrefix + b.dir
	if len(alias) > 255 {
		return aliasPrefix + fmt.Sprintf("%x", sha256.Sum256([]byte(b.dir)))
	}
	return alias
}

// lockHost keeps other nodes in this network namespace from setting up or tearing down at the same time. The lock is on
// the namespace itself, which has exactly the reach of what is being changed.
func lockHost() (unlock func(), err error) {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the network namespace: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
