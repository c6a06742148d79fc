package network

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
)

// DefaultStateDir is the state folder of the first node on a machine, whose bridge and table have names without a suffix.
const DefaultStateDir = "/var/lib/berth/network"

// Files and folders in the state folder.
const (
	rangesFile = "ranges.json"
	rangesTwin = "ranges.twin.json" // the same once more
	sysctlFile = "sysctls.json"
	bootFile   = "boot"
	leasesDir  = "leases"
)

// setUpsAtOnce bounds the attachments under way. They all want the kernel's one RTNL lock; more of them would not be
// faster, only hold threads and starve the others who want it.
const setUpsAtOnce = 3

// netlinkLimit bounds each wait for the kernel's answer: it comes at once, unless RTNL is stuck.
const netlinkLimit = 30 * time.Second

// statusLimit bounds the repair in Status.
const statusLimit = 30 * time.Second

// BuiltinConfig describes the built-in network. Only StateDir is required.
type BuiltinConfig struct {
	// Bridge is the name of the (first) bridge, at most 12 bytes. Default: berth0 for the default StateDir, else a name
	// that follows from StateDir, so that several nodes can run side by side.
	Bridge string
	// IPv4 is the pods' range, /16 to /28. Default: a private /20 that no route of the host covers, chosen once.
	IPv4 netip.Prefix
	// IPv6 is the pods' range, at most /108. Default: a random ULA /48, chosen once.
	IPv6 netip.Prefix
	// MTU of bridge and pods in bytes. Default: that of the link with the default route.
	MTU int
	// StateDir keeps ranges, leases and the settings to restore. It must survive a restart of the host.
	StateDir string
	// Log takes errors that are passed over; nil for slog.Default.
	Log *slog.Logger
}

// Builtin is berth's own network: a bridge with a veth pair for each sandbox, addresses of both families, masquerading
// and host ports by nftables.
//
// Nothing runs for it. What it set up stays when the daemon goes, and is found again by names that follow from the
// configuration and from the sandboxes' IDs. The addresses are leases on disk; the host ports in memory come from Restore.
type Builtin struct {
	dir      string
	mtu      int
	ranges   ranges
	subnets  []subnet
	ipv6     bool
	log      *slog.Logger
	h        *netlink.Handle
	leases   *leases
	ports    *portTable
	firewall *firewall
	sysctls  sysctlLog
	slots    chan struct{}

	watch *ruleWatch // nil if the kernel does not tell

	// setup is held while the host is set up, mended or cleared. It guards made, the subnets that have been set up, and
	// localhost6, what the rules say about ::1.
	setup      sync.Mutex
	made       map[int]bool
	localhost6 bool
	// rulesMu makes a change of the port table and of the rules one step for whoever rebuilds the rules. Taken last.
	rulesMu sync.Mutex
}

// NewBuiltin loads or chooses the ranges. It changes nothing on the host's network: that is done by the first Attach. A
// range that differs from the one of sandboxes still attached is refused (ErrFailedPrecondition).
func NewBuiltin(cfg BuiltinConfig) (*Builtin, error) {
	dir, err := filepath.Abs(cfg.StateDir)
	if err != nil || cfg.StateDir == "" {
		return nil, fmt.Errorf("network state folder %q: %w", cfg.StateDir, errdefs.ErrInvalidArgument)
	}
	if len(cfg.Bridge) > 12 {
		return nil, fmt.Errorf("bridge name %q is longer than 12 bytes: %w", cfg.Bridge, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(netlinkLimit); err != nil {
		h.Close()
		return nil, fmt.Errorf("bound netlink calls: %w", err)
	}
	b := &Builtin{
		dir: dir, mtu: cfg.MTU, ipv6: ipv6Enabled(), log: cfg.Log, h: h,
		ports: newPortTable(), firewall: &firewall{table: "berth"},
		sysctls: sysctlLog{path: filepath.Join(dir, sysctlFile), log: cfg.Log},
		slots:   make(chan struct{}, setUpsAtOnce), made: make(map[int]bool),
	}
	if b.log == nil {
		b.log = slog.Default()
		b.sysctls.log = b.log
	}
	if err := b.load(cfg); err != nil {
		h.Close()
		return nil, err
	}
	return b, nil
}

// load finds ranges, names and leases.
func (b *Builtin) load(cfg BuiltinConfig) error {
	hash := sha256.Sum256([]byte(b.dir))
	bridge := cfg.Bridge
	if b.dir != DefaultStateDir {
		b.firewall.table += "_" + tableSuffix(hash)
	}
	if bridge == "" && b.dir == DefaultStateDir {
		bridge = "berth0"
	} else if bridge == "" {
		bridge = "berth" + tableSuffix(hash)
	}
	if err := b.forgetEarlierBoot(); err != nil {
		return err
	}
	if err := b.loadRanges(cfg, binary.BigEndian.Uint32(hash[4:])); err != nil {
		return err
	}
	b.subnets = b.ranges.subnets(bridge)
	if !b.ipv6 {
		for i := range b.subnets {
			b.subnets[i].IPv6 = netip.Prefix{}
		}
	}
	if b.mtu == 0 {
		b.mtu = uplinkMTU(b.h)
	}
	var err error
	b.leases, err = openLeases(filepath.Join(b.dir, leasesDir), b.subnets, b.log)
	return err
}

// forgetEarlierBoot drops leases and the record of settings when the host has been restarted since they were made: no
// sandbox has survived that, and the settings are the host's own again.
func (b *Builtin) forgetEarlierBoot() error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	path := filepath.Join(b.dir, bootFile)
	known, err := atomicfile.Read(path)
	switch {
	case err == nil && bytes.Equal(known, boot):
		return nil
	case err == nil && len(known) != len(boot), err != nil && !errors.Is(err, fs.ErrNotExist):
		// No boot's name. The leases are kept: those of sandboxes that are gone are freed by Restore.
		setAside(b.log, path, errors.Join(err, errors.New("it names no boot")), "none: it is written anew")
		return b.writable(atomicfile.Write(path, boot, 0o600))
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(b.dir, leasesDir)), b.sysctls.forget()); err != nil {
		return b.writable(err)
	}
	return b.writable(atomicfile.Write(path, boot, 0o600))
}

// loadRanges takes the configured ranges, else those on record, else new ones, and puts them on record.
func (b *Builtin) loadRanges(cfg BuiltinConfig, seed uint32) error {
	path, twin := filepath.Join(b.dir, rangesFile), filepath.Join(b.dir, rangesTwin)
	bad := b.readRanges(path)
	if bad {
		// What the ranges were follows from nothing else, and the sandboxes have addresses of them.
		b.readRanges(twin)
	}
	known := b.ranges
	if cfg.IPv4.IsValid() {
		b.ranges.IPv4 = cfg.IPv4.Masked()
	}
	if cfg.IPv6.IsValid() {
		b.ranges.IPv6 = cfg.IPv6.Masked()
	}
	if !b.ranges.IPv6.IsValid() {
		b.ranges.IPv6 = newULA()
	}
	if !b.ranges.IPv4.IsValid() {
		used, err := usedPrefixes(b.h, nil)
		if err != nil {
			return err
		}
		if b.ranges.IPv4, err = chooseIPv4(used, seed); err != nil {
			return err
		}
	}
	if err := b.ranges.check(); err != nil {
		return err
	}
	if b.ranges == known && !bad {
		return nil
	}
	if b.ranges != known && known.IPv4.IsValid() && holdsLeases(filepath.Join(b.dir, leasesDir)) {
		return fmt.Errorf("pod ranges changed from %v, %v to %v, %v while sandboxes are attached, drain the node first: %w",
			known.IPv4, known.IPv6, b.ranges.IPv4, b.ranges.IPv6, errdefs.ErrFailedPrecondition)
	}
	return b.writable(errors.Join(atomicfile.WriteJSON(path, b.ranges, 0o600), atomicfile.WriteJSON(twin, b.ranges, 0o600)))
}

// readRanges is true if the file cannot be used, or is not there.
func (b *Builtin) readRanges(path string) (bad bool) {
	var r ranges
	err := atomicfile.ReadJSON(path, &r)
	if err == nil {
		err = r.check()
	}
	if err == nil {
		b.ranges = r
		return false
	}
	setAside(b.log, path, err, "its twin is read; without one, new ranges are chosen")
	return true
}

// writable passes an error on unless the state folder is full or read-only, on which a node that was set up before can
// still stop and remove its sandboxes.
func (b *Builtin) writable(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS) {
		b.log.Error("the network's state cannot be written, ignoring", "err", err)
		return nil
	}
	return err
}

// Attach implements Attacher.
func (b *Builtin) Attach(ctx context.Context, req Request) (Result, error) {
	limit, err := bandwidthOf(req.Annotations)
	if err != nil {
		return Result{}, err
	}
	mappings, err := mapped(req.PortMappings)
	if err != nil {
		return Result{}, err
	}
	if req.SandboxID == "" || req.NetNS == "" {
		return Result{}, fmt.Errorf("attach: sandbox ID %q, namespace %q: %w", req.SandboxID, req.NetNS, errdefs.ErrInvalidArgument)
	}
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	case <-ctx.Done():
		return Result{}, fmt.Errorf("wait for a turn to attach sandbox %s: %w", req.SandboxID, ctx.Err())
	}
	ls, err := b.leases.acquire(req.SandboxID, limit.Egress > 0)
	if err != nil {
		return Result{}, err
	}
	failpoint.Here(failpoint.NetworkLeased)
	res, err := b.attach(ctx, req, ls, mappings, limit)
	if err != nil {
		// The steps of Detach; each does nothing where nothing is. The link goes with the namespace as well, but who
		// tries again may use the same one.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), nftLimit)
		defer cancel()
		err = errors.Join(err, deleteLink(b.h, hostLink(req.SandboxID)), b.free(ctx, req.SandboxID))
		return Result{}, fmt.Errorf("attach sandbox %s: %w", req.SandboxID, err)
	}
	return res, nil
}

// attach does all that comes after the lease.
func (b *Builtin) attach(ctx context.Context, req Request, ls lease, mappings []PortMapping, limit bandwidth) (Result, error) {
	ports, err := hostPortsOf(mappings, b.leases.addrs(ls))
	if err != nil {
		return Result{}, err
	}
	if err := b.ensure(ctx, ls.subnet); err != nil {
		return Result{}, err
	}
	v, err := b.vethOf(req, ls)
	if err != nil {
		return Result{}, err
	}
	// Reserved first: a port that is taken ends it here, before anything is made. The link comes before the rules, since
	// who connects to a port that leads nowhere waits, while one that is not mapped is refused.
	if err := b.ports.reserve(req.SandboxID, ports); err != nil {
		return Result{}, err
	}
	if err := v.connect(b.h); err != nil {
		return Result{}, err
	}
	failpoint.Here(failpoint.NetworkConnected)
	if limit != (bandwidth{}) {
		link, err := b.h.LinkByName(v.host)
		if err != nil {
			return Result{}, err
		}
		if err := shape(b.h, link, ifbLink(req.SandboxID), b.mtu, limit); err != nil {
			return Result{}, err
		}
	}
	if err := b.openPorts(ctx, ports); err != nil {
		return Result{}, err
	}
	return v.result(b.subnets[ls.subnet].Bridge)
}

// vethOf plans the pair for a lease.
func (b *Builtin) vethOf(req Request, ls lease) (veth, error) {
	s := b.subnets[ls.subnet]
	bridge, err := b.h.LinkByName(s.Bridge)
	if err != nil {
		return veth{}, fmt.Errorf("bridge %s: %w", s.Bridge, err)
	}
	ip4 := s.addr4(ls.host)
	v := veth{
		host: hostLink(req.SandboxID), bridge: bridge.Attrs().Index, mtu: b.mtu, netns: req.NetNS,
		hostMAC: mac(0x06, ip4), podMAC: mac(0x0a, ip4),
		addrs:    []netip.Prefix{netip.PrefixFrom(ip4, s.IPv4.Bits())},
		gateways: []netip.Addr{s.addr4(1)},
	}
	if b.ipv6 {
		v.addrs = append(v.addrs, netip.PrefixFrom(s.addr6(ls.host), s.IPv6.Bits()))
		v.gateways = append(v.gateways, s.addr6(1))
	}
	return v, nil
}

// ensure sets up the host for a subnet, once.
func (b *Builtin) ensure(ctx context.Context, i int) error {
	b.setup.Lock()
	defer b.setup.Unlock()
	if b.made[i] {
		return nil
	}
	if err := haveNFT(); err != nil {
		return err
	}
	return b.setUp(ctx, map[int]bool{i: true})
}

// openPorts maps ports that have been reserved. It costs a pod without host ports nothing.
func (b *Builtin) openPorts(ctx context.Context, ports []hostPort) error {
	if len(ports) == 0 {
		return nil
	}
	b.rulesMu.Lock()
	err := b.firewall.add(ctx, ports)
	b.rulesMu.Unlock()
	if err != nil && ctx.Err() == nil {
		// Somebody may have flushed the rules, in which case the whole table, these ports included, is to be made.
		err = b.mend(ctx)
	}
	if err != nil {
		return err
	}
	failpoint.Here(failpoint.NetworkPortsMapped)
	return forget(ports)
}

// mend makes what setUp made, and the rules in any case, anew.
func (b *Builtin) mend(ctx context.Context) error {
	b.setup.Lock()
	defer b.setup.Unlock()
	return b.setUp(ctx, b.made)
}

// Detach implements Attacher. The veth pair is left to the namespace: removing it here would take 30 ms of the caller's
// time, while links that die with their namespace are cleared by the kernel many at once.
func (b *Builtin) Detach(ctx context.Context, req Request) error {
	if err := b.free(ctx, req.SandboxID); err != nil {
		return fmt.Errorf("detach sandbox %s: %w", req.SandboxID, err)
	}
	return nil
}

// free takes back what a sandbox has on the host. The lease goes last: while it is there, a repeated Detach finds work.
func (b *Builtin) free(ctx context.Context, sandboxID string) error {
	if err := b.closePorts(ctx, sandboxID); err != nil {
		return err
	}
	failpoint.Here(failpoint.NetworkPortsUnmapped)
	if ls, ok := b.leases.of(sandboxID); ok && ls.Shaped {
		if err := unshape(b.h, ifbLink(sandboxID)); err != nil {
			return err
		}
	}
	return b.leases.release(sandboxID)
}

// closePorts takes the mapping of a sandbox's ports away.
func (b *Builtin) closePorts(ctx context.Context, sandboxID string) error {
	b.rulesMu.Lock()
	ports := b.ports.release(sandboxID)
	if len(ports) == 0 {
		b.rulesMu.Unlock()
		return nil
	}
	err := b.firewall.remove(ctx, ports)
	b.rulesMu.Unlock()
	if err != nil {
		// Not there any more, or never there: one transaction with the ports that are left makes it right.
		if err = b.mend(ctx); err != nil {
			// Keep the ports with the sandbox, so that Detach tried again comes here again.
			return errors.Join(err, b.ports.reserve(sandboxID, ports))
		}
	}
	return forget(ports)
}

// Status implements Attacher. It mends what somebody else damaged, such as flushed rules or a removed bridge.
func (b *Builtin) Status() error {
	if err := haveNFT(); err != nil {
		return err
	}
	b.setup.Lock()
	defer b.setup.Unlock()
	if len(b.made) == 0 || b.intact() {
		return nil
	}
	b.log.Warn("the pod network on the host is damaged, setting it up again")
	ctx, cancel := context.WithTimeout(context.Background(), statusLimit)
	defer cancel()
	return b.setUp(ctx, b.made)
}

// Damaged implements Attacher.
func (b *Builtin) Damaged() []string { return damagedIn(b.dir, filepath.Join(b.dir, leasesDir)) }

// UpdatePodCIDR implements Attacher. The built-in network has ranges of its own, so the cluster's are only checked.
func (b *Builtin) UpdatePodCIDR(cidrs string) error {
	_, err := parsePodCIDRs(cidrs)
	return err
}

// Close implements Attacher.
func (b *Builtin) Close() error {
	var err error
	if b.watch != nil {
		err = b.watch.close()
	}
	b.h.Close()
	return err
}
