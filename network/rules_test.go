package network

import (
	"net/netip"
	"strings"
	"testing"

	"sigs.k8s.io/knftables"
)

func testRules() rules {
	pod4, pod6 := netip.MustParseAddr("10.64.0.2"), netip.MustParseAddr("fd00::2")
	return rules{
		ranges:  ranges{netip.MustParsePrefix("10.64.0.0/20"), netip.MustParsePrefix("fd00::/48")},
		bridges: []string{"berth0", "berth0-1"}, ipv6: true, localhost6: true,
		ports: []hostPort{
			{Protocol: "tcp", Port: 8080, To: netip.AddrPortFrom(pod4, 80)},
			{Protocol: "tcp", Port: 8080, To: netip.AddrPortFrom(pod6, 80)},
			{Protocol: "udp", HostIP: netip.MustParseAddr("127.0.0.1"), Port: 53, To: netip.AddrPortFrom(pod4, 5353)},
			{Protocol: "sctp", HostIP: netip.MustParseAddr("2001:db8::1"), Port: 99, To: netip.AddrPortFrom(pod6, 99)},
		},
	}
}

// apply runs one transaction on a fake that refuses what nft would.
func apply(t *testing.T, fake *knftables.Fake, fill func(*knftables.Transaction)) error {
	t.Helper()
	tx := fake.NewTransaction()
	fill(tx)
	return fake.Run(t.Context(), tx)
}

func TestRules(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, "berth")
	r := testRules()
	for range 2 { // the second time in place of the first
		if err := apply(t, fake, r.replace); err != nil {
			t.Fatal(err)
		}
	}
	want := `
add table inet berth { comment "berth pod network" ; }
add chain inet berth guard { type filter hook prerouting priority -300 ; }
add chain inet berth hostports
add chain inet berth output { type nat hook output priority -100 ; }
add chain inet berth postrouting { type nat hook postrouting priority 100 ; }
add chain inet berth prerouting { type nat hook prerouting priority -100 ; }
add set inet berth bridges { type ifname ; }
add map inet berth hostports4 { type inet_proto . inet_service : ipv4_addr . inet_service ; }
add map inet berth hostports4-ip { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service ; }
add map inet berth hostports6 { type inet_proto . inet_service : ipv6_addr . inet_service ; }
add map inet berth hostports6-ip { type inet_proto . ipv6_addr . inet_service : ipv6_addr . inet_service ; }
add rule inet berth guard iifname @bridges ip daddr 127.0.0.0/8 drop
add rule inet berth guard iifname @bridges ip saddr 127.0.0.0/8 drop
add rule inet berth hostports dnat ip to meta l4proto . ip daddr . th dport map @hostports4-ip
add rule inet berth hostports dnat ip to meta l4proto . th dport map @hostports4
add rule inet berth hostports dnat ip6 to meta l4proto . ip6 daddr . th dport map @hostports6-ip
add rule inet berth hostports dnat ip6 to meta l4proto . th dport map @hostports6
add rule inet berth output fib daddr type local jump hostports
add rule inet berth postrouting oifname @bridges ip saddr 127.0.0.0/8 masquerade
add rule inet berth postrouting oifname @bridges ip6 saddr ::1 masquerade
add rule inet berth postrouting ct status dnat ip saddr 10.64.0.0/20 ip daddr 10.64.0.0/20 masquerade
add rule inet berth postrouting oifname != @bridges ip saddr 10.64.0.0/20 ip daddr != { 10.64.0.0/20, 224.0.0.0/4 } masquerade fully-random
add rule inet berth postrouting ct status dnat ip6 saddr fd00::/48 ip6 daddr fd00::/48 masquerade
add rule inet berth postrouting oifname != @bridges ip6 saddr fd00::/48 ip6 daddr != { fd00::/48, ff00::/8 } masquerade fully-random
add rule inet berth prerouting ip daddr 127.0.0.0/8 return
add rule inet berth prerouting fib daddr type local jump hostports
add element inet berth bridges { "berth0" }
add element inet berth bridges { "berth0-1" }
add element inet berth hostports4 { tcp . 8080 : 10.64.0.2 . 80 }
add element inet berth hostports4-ip { udp . 127.0.0.1 . 53 : 10.64.0.2 . 5353 }
add element inet berth hostports6 { tcp . 8080 : fd00::2 . 80 }
add element inet berth hostports6-ip { sctp . 2001:db8::1 . 99 : fd00::2 . 99 }
`
	if got := fake.Dump(); strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("got:\n%s\nwant:%s", got, want)
	}
}

func TestRulesElements(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, "berth")
	r := testRules()
	ports := r.ports
	r.ports = nil
	if err := apply(t, fake, r.replace); err != nil {
		t.Fatal(err)
	}
	empty := fake.Dump()
	add := func(tx *knftables.Transaction) {
		for _, p := range ports {
			tx.Add(p.element())
		}
	}
	remove := func(tx *knftables.Transaction) {
		for _, p := range ports {
			tx.Delete(p.element())
		}
	}
	if err := apply(t, fake, add); err != nil {
		t.Fatal(err)
	}
	if err := apply(t, fake, remove); err != nil {
		t.Fatal(err)
	}
	if got := fake.Dump(); got != empty {
		t.Errorf("after adding and removing:\n%s\nwant:\n%s", got, empty)
	}
	if err := apply(t, fake, remove); err == nil {
		t.Error("elements that are not there were removed: closePorts relies on an error to see flushed rules")
	}
}

func TestRulesWithoutIPv6(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, "berth")
	r := testRules()
	r.ipv6, r.localhost6 = false, false
	if err := apply(t, fake, r.replace); err != nil {
		t.Fatal(err)
	}
	got := fake.Dump()
	if strings.Contains(got, "ip6 saddr fd00") || !strings.Contains(got, "output ip6 daddr ::1 return") {
		t.Errorf("got:\n%s", got)
	}
}
