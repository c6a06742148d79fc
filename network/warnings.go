package network

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inspectLimit bounds each program that Warnings runs.
const inspectLimit = 5 * time.Second

// Warnings implements Attacher.
func (b *Builtin) Warnings() []string {
	var w []string
	if !b.ipv6 {
		w = append(w, "IPv6 is switched off in the kernel: pods have IPv4 only")
	} else if !localhost6Possible(b.ipv6) {
		w = append(w, "host ports cannot be reached through ::1 while net.bridge.bridge-nf-call-ip6tables is 1 (127.0.0.1 works)")
	}
	own := make(map[string]bool)
	for _, s := range b.subnets {
		own[s.Bridge] = true
	}
	if used, err := usedPrefixes(b.h, own); err == nil {
		for _, p := range used {
			if p.Overlaps(b.ranges.IPv4) || p.Overlaps(b.ranges.IPv6) {
				w = append(w, fmt.Sprintf("the pod ranges %v and %v overlap with %v, which the host reaches otherwise", b.ranges.IPv4, b.ranges.IPv6, p))
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), inspectLimit)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "nft", "-j", "list", "chains").Output(); err == nil {
		w = append(w, droppingChains(out)...)
	}
	return append(w, legacyDrop()...)
}

// droppingChains finds in the output of `nft -j list chains` firewalls that drop forwarded packets. Whatever berth's own
// rules accept, a drop elsewhere is final. What the compatibility layer of iptables made is listed among the rest.
func droppingChains(out []byte) []string {
	var list struct {
		Nftables []struct {
			Chain *struct{ Family, Table, Name, Type, Hook, Policy string }
		}
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil
	}
	var w []string
	firewalld := false
	for _, item := range list.Nftables {
		c := item.Chain
		if c == nil || c.Hook != "forward" {
			continue
		}
		if c.Policy == "drop" {
			w = append(w, fmt.Sprintf("the firewall chain %s %s %s drops forwarded packets by policy (Docker sets this): "+
				"pods may not reach other networks; accept the pods' ranges there", c.Family, c.Table, c.Name))
		}
		if c.Table == "firewalld" && !firewalld {
			firewalld = true
			w = append(w, "firewalld is active and may drop the traffic of pods: add the pods' bridge to a zone that forwards, such as trusted")
		}
	}
	return w
}

// legacyDrop asks the old iptables, whose rules nft does not see. It is asked only where the kernel has such tables.
func legacyDrop() []string {
	var w []string
	for _, c := range []struct{ tables, program string }{
		{"/proc/net/ip_tables_names", "iptables-legacy"}, {"/proc/net/ip6_tables_names", "ip6tables-legacy"},
	} {
		tables, err := os.ReadFile(c.tables)
		if err != nil || !strings.Contains(string(tables), "filter") {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), inspectLimit)
		out, err := exec.CommandContext(ctx, c.program, "-S", "FORWARD").Output()
		cancel()
		if err == nil && strings.HasPrefix(string(out), "-P FORWARD DROP") {
			w = append(w, c.program+": the policy of FORWARD is DROP: pods may not reach other networks")
		}
	}
	return w
}

// usedPrefixes returns what the host reaches by a route other than its default one and not over a link in own, and its
// name servers.
func usedPrefixes(h *netlink.Handle, own map[string]bool) ([]netip.Prefix, error) {
	skip := make(map[int]bool)
	for name := range own {
		if link, err := h.LinkByName(name); err == nil {
			skip[link.Attrs().Index] = true
		}
	}
	// All tables, since VPNs like to have one of their own.
	filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	used := nameServers("/etc/resolv.conf")
	for _, r := range routes {
		if r.Dst == nil || skip[r.LinkIndex] {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, size := r.Dst.Mask.Size()
		// Without the default routes, and loopback and multicast, which are nobody's network.
		if !ok || bits == 0 || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			continue
		}
		if size == 32 {
			addr = addr.Unmap()
		}
		used = append(used, netip.PrefixFrom(addr, bits))
	}
	return used, nil
}

// nameServers returns the host's name servers: they may be reached by the default route and yet be in a private range.
func nameServers(path string) []netip.Prefix {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var servers []netip.Prefix
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(fields[1]); err == nil && !ip.IsLoopback() {
			servers = append(servers, netip.PrefixFrom(ip.WithZone(""), ip.BitLen()))
		}
	}
	return servers
}

// uplinkMTU returns the MTU of the link with the default route, which is what a pod's packets must fit through.
func uplinkMTU(h *netlink.Handle) int {
	const ethernet = 1500
	routes, err := h.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return ethernet
	}
	mtu := 0
	for _, r := range routes {
		if r.Dst != nil {
			if bits, _ := r.Dst.Mask.Size(); bits > 0 {
				continue
			}
		}
		link, err := h.LinkByIndex(r.LinkIndex)
		if err != nil || link.Attrs().MTU <= 0 {
			continue
		}
		if mtu == 0 || link.Attrs().MTU < mtu {
			mtu = link.Attrs().MTU
		}
	}
	if mtu < 1280 { // none, or less than IPv6 needs
		return ethernet
	}
	return mtu
}
