package network

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/berth-node/berth/internal/errdefs"
)

// A bridge of the kernel has 1,024 ports (BR_MAX_PORTS), so a range is cut into subnets of at most 1,022 hosts, each with
// a bridge of its own. Pods of two subnets reach each other through the host, which routes between its bridges.
const (
	subnetBits4 = 22
	subnetBits6 = 64
	maxPods     = 1000 // on one bridge, which leaves the administrator some ports
)

// ranges are the addresses of one node's pods.
type ranges struct {
	IPv4 netip.Prefix `json:"ipv4"`
	IPv6 netip.Prefix `json:"ipv6"`
}

// A subnet is the part of the ranges that is on one bridge. Host n of it has the addresses IPv4+n and IPv6+n; host 1 is
// the bridge. With IPv6 switched off in the kernel IPv6 is the zero Prefix.
type subnet struct {
	Bridge string
	IPv4   netip.Prefix
	IPv6   netip.Prefix
}

// check says whether berth can work with r, which the administrator may have configured.
func (r ranges) check() error {
	if !r.IPv4.IsValid() || !r.IPv4.Addr().Is4() || r.IPv4.Bits() < 16 || r.IPv4.Bits() > 28 {
		return fmt.Errorf("IPv4 range %v: must be an IPv4 prefix of /16 to /28: %w", r.IPv4, errdefs.ErrInvalidArgument)
	}
	if !r.IPv6.IsValid() || !r.IPv6.Addr().Is6() || r.IPv6.Addr().Is4In6() || r.IPv6.Bits() > 108 {
		return fmt.Errorf("IPv6 range %v: must be an IPv6 prefix of at most /108: %w", r.IPv6, errdefs.ErrInvalidArgument)
	}
	return nil
}

// subnets cuts r up. The bridge of the first subnet has the name bridge, further ones have a number added.
func (r ranges) subnets(bridge string) []subnet {
	bits4 := max(r.IPv4.Bits(), subnetBits4)
	count := 1 << (bits4 - r.IPv4.Bits())
	// A /64 each where there is room, as is the custom; else equal parts.
	bits6 := max(subnetBits6, r.IPv6.Bits()+bits4-r.IPv4.Bits())
	nets := make([]subnet, count)
	for i := range nets {
		nets[i] = subnet{
			Bridge: bridge,
			IPv4:   netip.PrefixFrom(offset(r.IPv4.Masked().Addr(), i, 32-bits4), bits4),
			IPv6:   netip.PrefixFrom(offset(r.IPv6.Masked().Addr(), i, 128-bits6), bits6),
		}
		if i > 0 {
			nets[i].Bridge = fmt.Sprintf("%s-%d", bridge, i)
		}
	}
	return nets
}

// hosts returns how many pods fit in s. The hosts are numbered from 2 to hosts()+1.
func (s subnet) hosts() int {
	return min(1<<(32-s.IPv4.Bits())-3, maxPods) // without the network's, the bridge's and the broadcast address
}

// addr4 and addr6 return the addresses of host n. addr6 is the zero Addr without IPv6.
func (s subnet) addr4(n int) netip.Addr { return offset(s.IPv4.Addr(), n, 0) }

func (s subnet) addr6(n int) netip.Addr {
	if !s.IPv6.IsValid() {
		return netip.Addr{}
	}
	return offset(s.IPv6.Addr(), n, 0)
}

// host returns n such that addr4(n) is ip, which must be in s.
func (s subnet) host(ip netip.Addr) int {
	base, host := s.IPv4.Addr().As4(), ip.As4()
	return int(binary.BigEndian.Uint32(host[:]) - binary.BigEndian.Uint32(base[:]))
}

// offset returns a + n<<shift.
func offset(a netip.Addr, n, shift int) netip.Addr {
	b := a.AsSlice()
	if shift%8 != 0 {
		n <<= shift % 8
	}
	carry := uint(n)
	for i := len(b) - 1 - shift/8; i >= 0 && carry > 0; i-- {
		carry += uint(b[i])
		b[i] = byte(carry)
		carry >>= 8
	}
	sum, _ := netip.AddrFromSlice(b)
	return sum
}

// chooseIPv4 returns a private /20 that overlaps none of used. seed moves the start of the search, so that nodes side by
// side, which may choose before either has set up its bridge, choose differently.
//
// 10.64.0.0/10 comes first, in the middle of the space where overlays rarely are (they begin at 10.0, 10.42, 10.43, 10.88,
// 10.96 or 10.244); then what is left of the private space for hosts whose site routes all of 10.0.0.0/8.
func chooseIPv4(used []netip.Prefix, seed uint32) (netip.Prefix, error) {
	spaces := []netip.Prefix{
		netip.MustParsePrefix("10.64.0.0/10"), netip.MustParsePrefix("10.128.0.0/9"),
		netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	}
	for _, space := range spaces {
		count := uint32(1) << (20 - space.Bits())
		for i := range count {
			n := (seed%count + i) % count
			p := netip.PrefixFrom(offset(space.Addr(), int(n), 12), 20)
			if !overlapsAny(p, used) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("no private IPv4 range is free of the host's routes, name one in the configuration: %w",
		errdefs.ErrFailedPrecondition)
}

func overlapsAny(p netip.Prefix, used []netip.Prefix) bool {
	for _, u := range used {
		if p.Overlaps(u) {
			return true
		}
	}
	return false
}

// newULA returns a random unique local IPv6 prefix, as RFC 4193 makes them.
func newULA() netip.Prefix {
	b := [16]byte{0: 0xfd}
	_, _ = rand.Read(b[1:6]) // never fails: crypto/rand ends the program instead
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}
