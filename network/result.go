package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/berth-node/berth/internal/errdefs"
)

// result describes a sandbox that has been attached by v to the named bridge, in the words of CNI.
func (v veth) result(bridge string) (Result, error) {
	inPod := 2
	res := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: bridge},
			{Name: v.host, Mac: v.hostMAC.String()},
			{Name: InterfaceName, Mac: v.podMAC.String(), Sandbox: v.netns},
		},
	}
	for i, addr := range v.addrs {
		gw := v.gateways[i]
		res.IPs = append(res.IPs, &types100.IPConfig{Interface: &inPod, Address: *ipNet(addr), Gateway: gw.AsSlice()})
		res.Routes = append(res.Routes, &types.Route{Dst: *defaultRoute(gw), GW: gw.AsSlice()})
	}
	return resultOf(res)
}

// resultOf reads a CNI result. The sandbox's addresses are those of its interface eth0, in the order given.
func resultOf(from types.Result) (Result, error) {
	r, err := types100.NewResultFromResult(from)
	if err != nil {
		return Result{}, fmt.Errorf("read CNI result: %w", err)
	}
	var res Result
	for _, i := range r.Interfaces {
		if i == nil {
			return Result{}, errors.New("CNI result: an interface is null")
		}
		res.Interfaces = append(res.Interfaces, Interface{Name: i.Name, MAC: i.Mac, NetNS: i.Sandbox})
	}
	for _, conf := range r.IPs {
		if conf == nil {
			return Result{}, errors.New("CNI result: an address is null")
		}
		addr, ok := netip.AddrFromSlice(conf.Address.IP)
		if !ok {
			return Result{}, fmt.Errorf("CNI result: address %v is none", conf.Address.IP)
		}
		bits, size := conf.Address.Mask.Size()
		if size == 32 {
			addr = addr.Unmap()
		}
		if conf.Interface == nil {
			res.IPs = append(res.IPs, addr) // a plugin of CNI 0.2 or earlier knows but one interface
			continue
		}
		n := *conf.Interface
		if n < 0 || n >= len(res.Interfaces) {
			return Result{}, fmt.Errorf("CNI result: address %v belongs to interface %d of %d", addr, n, len(res.Interfaces))
		}
		res.Interfaces[n].Addrs = append(res.Interfaces[n].Addrs, netip.PrefixFrom(addr, bits))
		if i := res.Interfaces[n]; i.Name == InterfaceName && i.NetNS != "" {
			res.IPs = append(res.IPs, addr)
		}
	}
	if len(res.IPs) == 0 {
		return Result{}, fmt.Errorf("CNI result: no address on %s of the sandbox: %w", InterfaceName, errdefs.ErrUnavailable)
	}
	if res.Raw, err = json.Marshal(r); err != nil {
		return Result{}, fmt.Errorf("write CNI result: %w", err)
	}
	return res, nil
}
