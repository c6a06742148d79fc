package network

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, text := range texts {
		ps = append(ps, netip.MustParsePrefix(text))
	}
	return ps
}

func TestChooseIPv4(t *testing.T) {
	cases := []struct {
		name string
		used []netip.Prefix
		seed uint32
		want string
	}{
		{name: "free host", want: "10.64.0.0/20"},
		{name: "another node's seed", seed: 17, want: "10.65.16.0/20"},
		{name: "the seed wraps", seed: 1024, want: "10.64.0.0/20"},
		{name: "taken in part", used: prefixes("10.64.5.1/32"), want: "10.64.16.0/20"},
		{name: "taken at the end of the space", used: prefixes("10.127.240.0/24"), seed: 1023, want: "10.64.0.0/20"},
		{name: "a wide route", used: prefixes("10.64.0.0/10"), want: "10.128.0.0/20"},
		{name: "a site that routes 10/8", used: prefixes("10.0.0.0/8"), want: "172.16.0.0/20"},
		{name: "and Docker", used: prefixes("10.0.0.0/8", "172.16.0.0/12"), want: "192.168.0.0/20"},
		{name: "IPv6 does not matter", used: prefixes("fd00::/8"), want: "10.64.0.0/20"},
	}
	for _, c := range cases {
		got, err := chooseIPv4(c.used, c.seed)
		if err != nil || got.String() != c.want {
			t.Errorf("%s: got %v, %v, want %s", c.name, got, err, c.want)
		}
	}
	_, err := chooseIPv4(prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"), 0)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("nothing free: %v, want ErrFailedPrecondition", err)
	}
}

func TestNewULA(t *testing.T) {
	a, b := newULA(), newULA()
	if a == b || a.Bits() != 48 || a.Addr().As16()[0] != 0xfd || a != a.Masked() {
		t.Errorf("got %v and %v, want two /48 in fd00::/8", a, b)
	}
}

func TestSubnets(t *testing.T) {
	cases := []struct {
		name, ipv4, ipv6 string
		count            int
		last             subnet
		lastPod4         string
		lastPod6         string
	}{
		{"the default", "10.64.16.0/20", "fd00:1::/48", 4,
			subnet{"br-3", netip.MustParsePrefix("10.64.28.0/22"), netip.MustParsePrefix("fd00:1:0:3::/64")},
			"10.64.31.233", "fd00:1:0:3::3e9"},
		{"one bridge", "192.168.7.0/24", "fd00:2::/64", 1,
			subnet{"br", netip.MustParsePrefix("192.168.7.0/24"), netip.MustParsePrefix("fd00:2::/64")},
			"192.168.7.254", "fd00:2::fe"},
		{"a single /64 for four", "10.0.0.0/20", "fd00:3::/64", 4,
			subnet{"br-3", netip.MustParsePrefix("10.0.12.0/22"), netip.MustParsePrefix("fd00:3:0:0:c000::/66")},
			"10.0.15.233", "fd00:3::c000:0:0:3e9"},
		{"the largest", "10.9.0.0/16", "fd00:4::/108", 64,
			subnet{"br-63", netip.MustParsePrefix("10.9.252.0/22"), netip.MustParsePrefix("fd00:4::f:c000/114")},
			"10.9.255.233", "fd00:4::f:c3e9"},
		{"the smallest", "10.9.0.16/28", "fd00:5::/64", 1,
			subnet{"br", netip.MustParsePrefix("10.9.0.16/28"), netip.MustParsePrefix("fd00:5::/64")},
			"10.9.0.30", "fd00:5::e"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := ranges{netip.MustParsePrefix(c.ipv4), netip.MustParsePrefix(c.ipv6)}
			if err := r.check(); err != nil {
				t.Fatal(err)
			}
			nets := r.subnets("br")
			last := nets[len(nets)-1]
			if len(nets) != c.count || last != c.last {
				t.Errorf("got %d subnets, the last %v, want %d and %v", len(nets), last, c.count, c.last)
			}
			host := last.hosts() + 1
			pod4, pod6 := last.addr4(host), last.addr6(host)
			if pod4.String() != c.lastPod4 || pod6.String() != c.lastPod6 || last.host(pod4) != host {
				t.Errorf("the last pod has %v, %v, want %s, %s", pod4, pod6, c.lastPod4, c.lastPod6)
			}
			if !last.IPv4.Contains(pod4) || !last.IPv6.Contains(pod6) || !r.IPv6.Contains(pod6) {
				t.Error("the last pod is outside of its subnet")
			}
		})
	}
}

func TestRangesCheck(t *testing.T) {
	good4, good6 := "10.0.0.0/20", "fd00::/48"
	for _, bad := range []ranges{
		{IPv6: netip.MustParsePrefix(good6)},
		{IPv4: netip.MustParsePrefix(good4)},
		{netip.MustParsePrefix("10.0.0.0/15"), netip.MustParsePrefix(good6)},
		{netip.MustParsePrefix("10.0.0.0/29"), netip.MustParsePrefix(good6)},
		{netip.MustParsePrefix(good6), netip.MustParsePrefix(good4)},
		{netip.MustParsePrefix(good4), netip.MustParsePrefix("fd00::/112")},
	} {
		if err := bad.check(); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%v: %v, want ErrInvalidArgument", bad, err)
		}
	}
}
