package network

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// minBurst lets one segment of the largest size pass at once (64 KiB with offloads), whatever the rate.
const minBurst = 64 << 10

// shape limits the traffic of the pod behind the link host, the host's end of its veth pair.
//
// What the pod receives leaves through host, so a queue there limits it. What it sends comes in through host, where there
// is no queue; it is led through a device made for the purpose, ifb, and limited where it leaves that. The pod's own end
// would have a queue, but with NET_ADMIN a pod could remove it.
func shape(h *netlink.Handle, host netlink.Link, ifb string, mtu int, limit bandwidth) error {
	if limit.Ingress > 0 {
		if err := limitQueue(h, host.Attrs().Index, limit.Ingress); err != nil {
			return fmt.Errorf("limit what the pod receives: %w", err)
		}
	}
	if limit.Egress == 0 {
		return nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = ifb, mtu
	if err := h.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("limit what the pod sends: add %s: %w", ifb, err)
	}
	via, err := h.LinkByName(ifb)
	if err == nil {
		err = h.LinkSetUp(via)
	}
	if err == nil {
		err = redirect(h, host.Attrs().Index, via.Attrs().Index)
	}
	if err == nil {
		err = limitQueue(h, via.Attrs().Index, limit.Egress)
	}
	if err != nil {
		return fmt.Errorf("limit what the pod sends: %w", err)
	}
	return nil
}

// redirect makes everything that comes in on the link from leave on the link to, from where it goes on as it would have.
func redirect(h *netlink.Handle, from, to int) error {
	in := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: from, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	if err := h.QdiscAdd(in); err != nil {
		return fmt.Errorf("add ingress queue: %w", err)
	}
	// u32 without a key matches everything. matchall would say so, but is missing in more kernels.
	all := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: from, Parent: in.Handle, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		ClassId: netlink.MakeHandle(1, 1),
		Actions: []netlink.Action{netlink.NewMirredAction(to)},
	}
	if err := h.FilterAdd(all); err != nil {
		return fmt.Errorf("redirect incoming traffic: %w", err)
	}
	return nil
}

// limitQueue lets bits per second leave through the link.
func limitQueue(h *netlink.Handle, link int, bits uint64) error {
	rate := bits / 8
	// 10 ms of traffic at once, and 25 ms more may wait before packets are dropped, as with the CNI plugin.
	burst := max(rate/100, minBurst)
	queue := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Buffer:     netlink.Xmittime(rate, uint32(min(burst, math.MaxUint32))),
		Limit:      uint32(min(rate/40+burst, math.MaxUint32)),
	}
	if err := h.QdiscReplace(queue); err != nil {
		return fmt.Errorf("add token bucket: %w", err)
	}
	return nil
}

// unshape removes the device that shape made. The queues go with the veth pair.
func unshape(h *netlink.Handle, ifb string) error {
	return deleteLink(h, ifb)
}

// deleteLink removes a link; nil where there is none.
func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up link %s: %w", name, err)
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}
