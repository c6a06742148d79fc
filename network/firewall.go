package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/berth-node/berth/internal/errdefs"
)

// nftLimit bounds one run of nft. It takes milliseconds, and long only where the kernel is stuck.
const nftLimit = 30 * time.Second

// A firewall is berth's table in nftables: its changes, each one transaction, one after the other.
type firewall struct {
	table string

	mu  sync.Mutex
	nft knftables.Interface // nil until first used: finding out what nft can do runs it twice
	// rules is how many the table had when replace had made it.
	rules int
}

// haveNFT says whether host ports and masquerading can work at all.
func haveNFT() error {
	if _, err := exec.LookPath("nft"); err != nil {
		return fmt.Errorf("the built-in network needs the program nft (package nftables): %w", errdefs.ErrUnavailable)
	}
	return nil
}

// replace puts a table made from r in place of the table there.
func (f *firewall) replace(ctx context.Context, r rules) error {
	if err := f.run(ctx, r.replace); err != nil {
		return err
	}
	rules, err := countRules(f.table)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = rules
	return err
}

// whole says whether the table has all the rules that replace gave it.
func (f *firewall) whole() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rules, err := countRules(f.table)
	return err == nil && rules == f.rules, err
}

// add maps ports.
func (f *firewall) add(ctx context.Context, ports []hostPort) error {
	return f.run(ctx, func(tx *knftables.Transaction) {
		for _, p := range ports {
			tx.Add(p.element())
		}
	})
}

// remove takes the mapping of ports away.
func (f *firewall) remove(ctx context.Context, ports []hostPort) error {
	return f.run(ctx, func(tx *knftables.Transaction) {
		for _, p := range ports {
			tx.Delete(p.element())
		}
	})
}

// drop removes the table, if there is one.
func (f *firewall) drop(ctx context.Context) error {
	exists, err := f.exists()
	if err != nil || !exists {
		return err
	}
	return f.run(ctx, func(tx *knftables.Transaction) {
		tx.Add(&knftables.Table{}) // so that a table which went away meanwhile is no error
		tx.Delete(&knftables.Table{})
	})
}

// run runs one transaction.
func (f *firewall) run(ctx context.Context, fill func(*knftables.Transaction)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, nftLimit)
	defer cancel()
	if f.nft == nil {
		nft, err := knftables.New(knftables.InetFamily, f.table)
		if err != nil {
			return fmt.Errorf("nftables: %w: %w", err, errdefs.ErrUnavailable)
		}
		f.nft = nft
	}
	tx := f.nft.NewTransaction()
	fill(tx)
	if err := f.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("change nftables table %s: %w", f.table, err)
	}
	return nil
}

// exists asks the kernel, not the program nft: Status does so every few seconds.
func (f *firewall) exists() (bool, error) {
	const getTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETTABLE
	req := nl.NewNetlinkRequest(getTable, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(f.table)))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up nftables table %s: %w", f.table, err)
	}
	return true, nil
}

// forget makes the kernel forget UDP flows that the change of a host port has made wrong: those sent to the port before it
// was mapped, which are bound to the host, and those to the pod that had it. A flow is else kept for as long as packets
// come, and they come by retries. TCP needs no help, since its connections end.
func forget(ports []hostPort) error {
	stale := map[netlink.InetFamily]staleFlows{}
	for _, p := range ports {
		if p.Protocol != "udp" {
			continue
		}
		family := netlink.InetFamily(unix.AF_INET6)
		if p.To.Addr().Is4() {
			family = unix.AF_INET
		}
		stale[family] = append(stale[family], p)
	}
	var errs error
	for family, flows := range stale {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, flows); err != nil {
			errs = errors.Join(errs, fmt.Errorf("forget UDP flows to changed host ports: %w", err))
		}
	}
	return errs
}

// staleFlows matches the flows that forget means.
type staleFlows []hostPort

func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	direct := flow.Forward.DstIP.Equal(flow.Reverse.SrcIP) && flow.Forward.SrcIP.Equal(flow.Reverse.DstIP)
	for _, p := range s {
		if flow.Forward.DstPort == p.Port && (direct || flow.Reverse.SrcIP.Equal(p.To.Addr().AsSlice())) {
			return true
		}
	}
	return false
}

// tableSuffix makes names of different state folders different.
func tableSuffix(hash [32]byte) string {
	return fmt.Sprintf("%06x", binary.BigEndian.Uint32(hash[:])>>8)
}
