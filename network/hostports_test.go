package network

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

func TestHostPortsOf(t *testing.T) {
	pod4, pod6 := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
	to4, to6 := netip.AddrPortFrom(pod4, 80), netip.AddrPortFrom(pod6, 80)
	local4, local6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("2001:db8::1")
	cases := []struct {
		name string
		in   []PortMapping
		want []hostPort
	}{
		{"none", nil, nil},
		{"not mapped", []PortMapping{{ContainerPort: 80}}, nil},
		{"any address", []PortMapping{{HostPort: 8080, ContainerPort: 80}},
			[]hostPort{{Protocol: "tcp", Port: 8080, To: to4}, {Protocol: "tcp", Port: 8080, To: to6}}},
		{"the same twice", []PortMapping{{HostPort: 8080, ContainerPort: 80}, {HostIP: "0.0.0.0", HostPort: 8080, ContainerPort: 80}},
			[]hostPort{{Protocol: "tcp", Port: 8080, To: to4}, {Protocol: "tcp", Port: 8080, To: to6}}},
		{"any IPv4", []PortMapping{{HostIP: "0.0.0.0", HostPort: 53, ContainerPort: 80, Protocol: "UDP"}},
			[]hostPort{{Protocol: "udp", Port: 53, To: to4}}},
		{"any IPv6", []PortMapping{{HostIP: "::", HostPort: 53, ContainerPort: 80, Protocol: "SCTP"}},
			[]hostPort{{Protocol: "sctp", Port: 53, To: to6}}},
		{"one IPv4", []PortMapping{{HostIP: "::ffff:127.0.0.1", HostPort: 53, ContainerPort: 80}},
			[]hostPort{{Protocol: "tcp", HostIP: local4, Port: 53, To: to4}}},
		{"one IPv6", []PortMapping{{HostIP: "2001:db8::1", HostPort: 53, ContainerPort: 80}},
			[]hostPort{{Protocol: "tcp", HostIP: local6, Port: 53, To: to6}}},
	}
	for _, c := range cases {
		m, err := mapped(c.in)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got, err := hostPortsOf(m, []netip.Addr{pod4, pod6})
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, %v, want %v", c.name, got, err, c.want)
		}
	}
	m, _ := mapped([]PortMapping{{HostIP: "::1", HostPort: 53, ContainerPort: 80}})
	if _, err := hostPortsOf(m, []netip.Addr{pod4}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("IPv6 address for a pod without IPv6: %v, want ErrInvalidArgument", err)
	}
}

func TestMappedRefuses(t *testing.T) {
	for _, bad := range []PortMapping{
		{HostPort: 80, ContainerPort: 80, Protocol: "ICMP"},
		{HostPort: 80},
		{HostPort: -1, ContainerPort: 80},
		{HostPort: 65536, ContainerPort: 80},
		{HostPort: 80, ContainerPort: 65536},
		{HostPort: 80, ContainerPort: 80, HostIP: "localhost"},
		{HostPort: 80, ContainerPort: 80, HostIP: "fe80::1%eth0"},
	} {
		if _, err := mapped([]PortMapping{bad}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%+v: %v, want ErrInvalidArgument", bad, err)
		}
	}
}

func TestPortTable(t *testing.T) {
	to := netip.MustParseAddrPort("10.0.0.2:80")
	lo, other := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1")
	any, onLo := hostPort{Protocol: "tcp", Port: 80, To: to}, hostPort{Protocol: "tcp", HostIP: lo, Port: 80, To: to}
	cases := []struct {
		name       string
		held, want hostPort
		free       bool
	}{
		{"the same", any, any, false},
		{"one address of a port held on all", any, onLo, false},
		{"all addresses of a port held on one", onLo, any, false},
		{"the same address", onLo, onLo, false},
		{"another address", onLo, hostPort{Protocol: "tcp", HostIP: other, Port: 80, To: to}, true},
		{"another protocol", any, hostPort{Protocol: "udp", Port: 80, To: to}, true},
		{"another port", any, hostPort{Protocol: "tcp", Port: 81, To: to}, true},
		{"the other family", any, hostPort{Protocol: "tcp", Port: 80, To: netip.MustParseAddrPort("[fd00::2]:80")}, true},
	}
	for _, c := range cases {
		table := newPortTable()
		if err := table.reserve("a", []hostPort{c.held}); err != nil {
			t.Fatal(err)
		}
		also := hostPort{Protocol: "tcp", Port: 9999, To: to}
		err := table.reserve("b", []hostPort{also, c.want})
		if c.free != (err == nil) || err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("%s: %v, want free %v", c.name, err, c.free)
		}
		if err != nil && len(table.all()) != 1 {
			t.Errorf("%s: a refused reservation took %v", c.name, table.all())
		}
		table.release("a")
		table.release("b")
		if len(table.owners) != 0 || len(table.all()) != 0 {
			t.Errorf("%s: left after release: %v", c.name, table.owners)
		}
	}
}
