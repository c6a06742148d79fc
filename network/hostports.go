package network

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/berth-node/berth/internal/errdefs"
)

// A hostPort is one mapped port in one IP family: what comes to Port, on HostIP or on any address of the host, goes to To.
type hostPort struct {
	Protocol string // tcp, udp or sctp, as nftables writes them
	HostIP   netip.Addr
	Port     uint16
	To       netip.AddrPort // its address decides the family
}

// mapped returns the mappings that map something, with their protocols in lower case, or says what is wrong with one.
func mapped(mappings []PortMapping) ([]PortMapping, error) {
	var out []PortMapping
	for _, m := range mappings {
		if m.HostPort == 0 {
			continue
		}
		m.Protocol = strings.ToLower(m.Protocol)
		switch m.Protocol {
		case "":
			m.Protocol = "tcp"
		case "tcp", "udp", "sctp":
		default:
			return nil, fmt.Errorf("port mapping: protocol %q: %w", m.Protocol, errdefs.ErrInvalidArgument)
		}
		if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
			return nil, fmt.Errorf("port mapping %d to %d: %w", m.HostPort, m.ContainerPort, errdefs.ErrInvalidArgument)
		}
		if m.HostIP != "" {
			ip, err := netip.ParseAddr(m.HostIP)
			if err != nil || ip.Zone() != "" {
				return nil, fmt.Errorf("port mapping: host IP %q: %w", m.HostIP, errdefs.ErrInvalidArgument)
			}
			m.HostIP = ip.Unmap().String()
		}
		out = append(out, m)
	}
	return out, nil
}

// hostPortsOf spells mappings (as mapped returns them) out for a pod with the addresses addrs.
func hostPortsOf(mappings []PortMapping, addrs []netip.Addr) ([]hostPort, error) {
	var ports []hostPort
	seen := make(map[hostPort]bool)
	for _, m := range mappings {
		found := false
		for _, addr := range addrs {
			p := hostPort{Protocol: m.Protocol, Port: uint16(m.HostPort)}
			p.To = netip.AddrPortFrom(addr, uint16(m.ContainerPort))
			if m.HostIP != "" {
				ip := netip.MustParseAddr(m.HostIP)
				if ip.Is4() != addr.Is4() {
					continue
				}
				if !ip.IsUnspecified() {
					p.HostIP = ip
				}
			}
			found = true
			if !seen[p] {
				seen[p] = true
				ports = append(ports, p)
			}
		}
		if !found {
			return nil, fmt.Errorf("host port %d on %s: the pod has no address of that family: %w",
				m.HostPort, m.HostIP, errdefs.ErrInvalidArgument)
		}
	}
	return ports, nil
}

// A portTable knows which sandbox has which host ports.
type portTable struct {
	mu        sync.Mutex
	bySandbox map[string][]hostPort
	// owners tells who has a port, by the host IP that limits it; the zero Addr stands for any.
	owners map[portKey]map[netip.Addr]string
}

type portKey struct {
	protocol string
	port     uint16
	is4      bool
}

func (p hostPort) key() portKey { return portKey{p.Protocol, p.Port, p.To.Addr().Is4()} }

func newPortTable() *portTable {
	return &portTable{bySandbox: make(map[string][]hostPort), owners: make(map[portKey]map[netip.Addr]string)}
}

// reserve gives the ports to the sandbox, all or none.
func (t *portTable) reserve(sandboxID string, ports []hostPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, p := range ports {
		if err := t.take(sandboxID, p); err != nil {
			t.drop(ports[:i])
			return err
		}
	}
	if len(ports) > 0 {
		t.bySandbox[sandboxID] = ports
	}
	return nil
}

// take gives one port to the sandbox. A port on any address overlaps with the same port on each one.
func (t *portTable) take(sandboxID string, p hostPort) error {
	for ip, owner := range t.owners[p.key()] {
		if ip == p.HostIP || !ip.IsValid() || !p.HostIP.IsValid() {
			return fmt.Errorf("host port %d/%s is taken by sandbox %s: %w", p.Port, p.Protocol, owner, errdefs.ErrAlreadyExists)
		}
	}
	if t.owners[p.key()] == nil {
		t.owners[p.key()] = make(map[netip.Addr]string)
	}
	t.owners[p.key()][p.HostIP] = sandboxID
	return nil
}

// release takes the sandbox's ports back and returns them.
func (t *portTable) release(sandboxID string) []hostPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	ports := t.bySandbox[sandboxID]
	delete(t.bySandbox, sandboxID)
	t.drop(ports)
	return ports
}

func (t *portTable) drop(ports []hostPort) {
	for _, p := range ports {
		delete(t.owners[p.key()], p.HostIP)
		if len(t.owners[p.key()]) == 0 {
			delete(t.owners, p.key())
		}
	}
}

// all returns every port of every sandbox.
func (t *portTable) all() []hostPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []hostPort
	for _, ports := range t.bySandbox {
		all = append(all, ports...)
	}
	return all
}
