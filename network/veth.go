package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/network/netns"
)

// addrGenModeNone is the kernel's IN6_ADDR_GEN_MODE_NONE, which golang.org/x/sys/unix lacks.
const addrGenModeNone = 1

// A veth is the pair of links that joins a sandbox to a bridge.
type veth struct {
	host     string // name of the host's end
	bridge   int    // index of the bridge
	mtu      int
	netns    string
	hostMAC  net.HardwareAddr
	podMAC   net.HardwareAddr
	addrs    []netip.Prefix
	gateways []netip.Addr
}

// hostLink and ifbLink name a sandbox's links on the host. They follow from its ID, so that they can be found without a
// record of them.
func hostLink(sandboxID string) string { return "veth" + shortHash(sandboxID) }
func ifbLink(sandboxID string) string  { return "bifb" + shortHash(sandboxID) }

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:11] // 15 bytes are the most for a link's name
}

// mac makes a locally administered hardware address from an IPv4 address. An address that is given to another pod keeps
// its hardware address with that, so neighbours that remember it are not wrong.
func mac(first byte, ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{first, 0x58, b[0], b[1], b[2], b[3]}
}

// connect makes the pair and sets up both ends.
func (v veth) connect(h *netlink.Handle) error {
	ns, err := unix.Open(v.netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", v.netns, err)
	}
	defer unix.Close(ns)
	if err := v.create(ns); err != nil {
		return fmt.Errorf("make veth pair %s: %w", v.host, err)
	}
	if err := v.makePort(); err != nil {
		return fmt.Errorf("make %s a port of the bridge: %w", v.host, err)
	}
	if err := netns.Do(v.netns, v.setUpPod); err != nil {
		return fmt.Errorf("set up %s of the pod: %w", InterfaceName, err)
	}
	return nil
}

// queues of each end, and each way. The kernel makes one for each processor that the machine could have, with files in /sys, if
// it is not told, and then takes all but one away again.
const queues = 1

// create makes the pair in one message: the host's end up and on the bridge, the other one in the sandbox. One message is
// one turn at the kernel's RTNL lock, which all set-ups of the node share; the library would take three.
func (v veth) create(ns int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.host)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.mtu))))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, v.hostMAC))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(v.bridge))))
	req.AddData(nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(queues)))
	req.AddData(nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(queues)))

	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(InterfaceName))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.mtu)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, v.podMAC)
	peer.AddRtAttr(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(queues))
	peer.AddRtAttr(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(queues))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns)))
	req.AddData(info)

	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// makePort sets what the kernel takes only for a link that exists. It comes before the pod's end is up, which is when the
// kernel would give the host's end a link-local address. A bridge port needs none, and every pod's start would send its
// detection of duplicates and its group reports to all others.
//
// In hairpin mode the bridge sends a frame back to where it came from. A pod needs that to reach itself through a host
// port or a service where br_netfilter translates within the bridge.
func (v veth) makePort() error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.host)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil).AddRtAttr(nl.IFLA_BRPORT_MODE, []byte{1})
	req.AddData(info)
	if ipv6Enabled() {
		families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
		families.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{addrGenModeNone})
		req.AddData(families)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// setUpPod gives the pod's end its addresses and routes. It runs in the pod's namespace.
func (v veth) setUpPod() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(InterfaceName)
	if err != nil {
		return err
	}
	if err := v.podSysctls(); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, addr := range v.addrs {
		if err := addAddr(h, link, addr); err != nil {
			return err
		}
	}
	for _, gw := range v.gateways {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Dst: defaultRoute(gw)}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route by %s: %w", gw, err)
		}
	}
	return nil
}

// podSysctls readies IPv6: on, where addresses are wanted; deaf to router advertisements, which any pod could send to make
// itself the router of the others; and without detection of duplicates, of which there are none. /proc/sys/net is that of
// the calling thread's namespace.
func (v veth) podSysctls() error {
	for _, addr := range v.addrs {
		if addr.Addr().Is4() {
			continue
		}
		conf := "/proc/sys/net/ipv6/conf/" + InterfaceName + "/"
		return errors.Join(switchOn(conf+"disable_ipv6"), writeSysctl(conf+"accept_ra", "0"), writeSysctl(conf+"accept_dad", "0"))
	}
	return nil
}

// switchOn sets a disable_ipv6 to 0, and writes only where it is not: the kernel has such a write try for the one lock of all
// networking over and over, which beside the starts of other pods costs more than all else here.
func switchOn(path string) error {
	now, err := readSysctl(path)
	if err != nil || now == "0" {
		return err
	}
	return writeSysctl(path, "0")
}

func defaultRoute(gw netip.Addr) *net.IPNet {
	n := gw.BitLen()
	return &net.IPNet{IP: make(net.IP, n/8), Mask: net.CIDRMask(0, n)}
}

// addAddr gives addr to link, at once: IPv6 would else first wait a second for somebody who has it already, which the
// lease excludes.
func addAddr(h *netlink.Handle, link netlink.Link, addr netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(addr)}
	if addr.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrReplace(link, a); err != nil {
		return fmt.Errorf("add address %s: %w", addr, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// ipv6Enabled says whether the kernel has IPv6 at all (it has not with ipv6.disable=1).
func ipv6Enabled() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return !errors.Is(err, fs.ErrNotExist)
}
