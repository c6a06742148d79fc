package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/network/netns"
)

// Restore implements Attacher. Problems with single sandboxes do not keep the others from their network: all that can be
// restored is, and what could not comes back as one error.
func (b *Builtin) Restore(ctx context.Context, live []Request) error {
	var errs error
	lives := make(map[string]bool, len(live))
	for _, req := range live {
		lives[req.SandboxID] = true
	}
	b.rulesMu.Lock()
	for _, ls := range b.leases.all() {
		if !lives[ls.SandboxID] {
			errs = errors.Join(errs, b.dropLease(ls))
		}
	}
	for _, req := range live {
		if err := b.restore(req); err != nil {
			errs = errors.Join(errs, fmt.Errorf("restore network of sandbox %s: %w", req.SandboxID, err))
		}
	}
	b.rulesMu.Unlock()

	if b.watch == nil {
		b.watchRules() // from now on: two that watch the same table before would mend each other's work
	}
	b.setup.Lock()
	defer b.setup.Unlock()
	inUse := b.subnetsInUse()
	if len(inUse) == 0 {
		return errs
	}
	return errors.Join(errs, b.setUp(ctx, inUse))
}

// dropLease frees what a sandbox that is gone had. Its ports go with the rebuilding of the rules.
func (b *Builtin) dropLease(ls lease) error {
	b.ports.release(ls.SandboxID)
	if ls.Shaped {
		if err := unshape(b.h, ifbLink(ls.SandboxID)); err != nil {
			return err
		}
	}
	return b.leases.release(ls.SandboxID)
}

// restore puts the ports of one living sandbox back into the table.
func (b *Builtin) restore(req Request) error {
	ls, ok := b.leases.of(req.SandboxID)
	if !ok {
		ip, err := addrInside(req.NetNS)
		if err != nil {
			return err
		}
		if err := b.leases.adopt(req.SandboxID, ip); err != nil {
			return err
		}
		ls, _ = b.leases.of(req.SandboxID)
	}
	mappings, err := mapped(req.PortMappings)
	if err != nil {
		return err
	}
	ports, err := hostPortsOf(mappings, b.leases.addrs(ls))
	if err != nil {
		return err
	}
	b.ports.release(req.SandboxID)
	return b.ports.reserve(req.SandboxID, ports)
}

// subnetsInUse returns the subnets that have leases, or a bridge left by an earlier run of this node.
func (b *Builtin) subnetsInUse() map[int]bool {
	inUse := make(map[int]bool)
	for _, ls := range b.leases.all() {
		inUse[ls.subnet] = true
	}
	for i, s := range b.subnets {
		link, err := b.h.LinkByName(s.Bridge)
		if err == nil && b.owns(link, s) {
			inUse[i] = true
		}
	}
	return inUse
}

// addrInside reads the IPv4 address of a sandbox out of its namespace.
func addrInside(path string) (netip.Addr, error) {
	ips, err := AddrsInside(path)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, ip := range ips {
		if ip.Is4() {
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no IPv4 address", InterfaceName)
}

// AddrsInside reads the addresses of a sandbox out of its network namespace, IPv4 first. It is for whoever has lost the
// Result of its attachment.
func AddrsInside(path string) ([]netip.Addr, error) {
	var ips []netip.Addr
	err := netns.Do(path, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName(InterfaceName)
		if err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			addrs, err := h.AddrList(link, family)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if found, ok := netip.AddrFromSlice(a.IP); ok && !found.IsLinkLocalUnicast() {
					ips = append(ips, found.Unmap())
				}
			}
		}
		return nil
	})
	return ips, err
}
