package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
)

// A lease is what a sandbox holds of the node's addresses.
type lease struct {
	SandboxID string `json:"sandbox"`
	// Shaped says that an ifb device belongs to the sandbox, which does not go with its namespace.
	Shaped bool `json:"shaped,omitempty"`

	// subnet and host give the addresses; on disk the file's name does.
	subnet int
	host   int
}

// leases is the table of addresses in use. Each lease is a file named by its IPv4 address, written before the address is
// used and not synced: after a crash of the kernel no sandbox is alive to hold one.
//
// A free address is taken next-fit, so that one just given back rests for as long as the others last: peers may have
// cached its neighbour entry, and connection tracking its flows.
type leases struct {
	dir     string
	subnets []subnet
	log     *slog.Logger

	mu        sync.Mutex
	bySandbox map[string]lease
	used      []map[int]string // by subnet: host → sandbox
	next      []int            // by subnet: where the search begins
	ahead     []int            // by subnet: how many addresses lie from there to the one after that in lastFile
}

// lastFile remembers the address last given, or one that comes after it, for the search after a restart.
const lastFile = "last"

// maxAhead bounds how far lastFile runs ahead, so that it need not be replaced with each lease. A restart passes over as many.
const maxAhead = 16

// openLeases reads the leases in dir, which is made when missing. A file that is no lease of these subnets is removed: it
// is one of earlier ranges. A lease that cannot be read is set aside; the address of a sandbox that lives is adopted by
// Restore.
func openLeases(dir string, subnets []subnet, log *slog.Logger) (*leases, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l := &leases{dir: dir, subnets: subnets, log: log, bySandbox: make(map[string]lease)}
	l.next, l.ahead = make([]int, len(subnets)), make([]int, len(subnets))
	l.used = make([]map[int]string, len(subnets))
	for i := range l.used {
		l.used[i] = make(map[int]string)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if f.Name() == lastFile || strings.HasSuffix(f.Name(), damagedSuffix) {
			continue
		}
		if err := l.load(f.Name()); err != nil {
			return nil, err
		}
	}
	last, err := atomicfile.Read(filepath.Join(dir, lastFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		setAside(l.log, filepath.Join(dir, lastFile), err, "none: it is written anew")
	}
	if err == nil {
		if subnet, host, ok := l.locate(strings.TrimSpace(string(last))); ok {
			l.next[subnet] = host - 1 // the index of the host after it
		}
	}
	return l, nil
}

// load reads one lease.
func (l *leases) load(name string) error {
	path := filepath.Join(l.dir, name)
	subnet, host, ok := l.locate(name)
	if !ok {
		return os.RemoveAll(path)
	}
	var found lease
	err := atomicfile.ReadJSON(path, &found)
	if err == nil && found.SandboxID == "" {
		err = errors.New("it names no sandbox")
	}
	if err != nil {
		setAside(l.log, path, err, "the address is free unless a living sandbox is found to have it")
		return nil
	}
	if _, twice := l.bySandbox[found.SandboxID]; twice {
		return os.Remove(path)
	}
	found.subnet, found.host = subnet, host
	l.hold(found)
	return nil
}

// locate finds the subnet and host that a lease's name stands for.
func (l *leases) locate(name string) (subnet, host int, ok bool) {
	ip, err := netip.ParseAddr(name)
	if err != nil {
		return 0, 0, false
	}
	for i, s := range l.subnets {
		if s.IPv4.Contains(ip) {
			host := s.host(ip)
			return i, host, host >= 2 && host <= s.hosts()+1
		}
	}
	return 0, 0, false
}

// acquire leases the next free address to the sandbox.
func (l *leases) acquire(sandboxID string, shaped bool) (lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.bySandbox[sandboxID]; ok {
		return lease{}, fmt.Errorf("sandbox %s is attached: %w", sandboxID, errdefs.ErrAlreadyExists)
	}
	for i, s := range l.subnets {
		if len(l.used[i]) >= s.hosts() {
			continue
		}
		got := lease{SandboxID: sandboxID, Shaped: shaped, subnet: i, host: l.free(i)}
		if err := l.write(got); err != nil {
			return lease{}, err
		}
		if err := l.remember(got); err != nil {
			return lease{}, errors.Join(err, l.erase(got))
		}
		l.hold(got)
		return got, nil
	}
	return lease{}, fmt.Errorf("all %d pod addresses are in use: %w", len(l.bySandbox), errdefs.ErrResourceExhausted)
}

// free returns the first free host of a subnet, which has one, from where the last search ended.
func (l *leases) free(subnet int) int {
	hosts := l.subnets[subnet].hosts()
	for i := range hosts {
		host := 2 + (l.next[subnet]+i)%hosts
		if _, taken := l.used[subnet][host]; !taken {
			return host
		}
	}
	panic("network: a subnet with a free address has none")
}

// adopt leases the address ip to a sandbox that is found to use it without a lease.
func (l *leases) adopt(sandboxID string, ip netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	subnet, host, ok := l.locate(ip.String())
	if !ok {
		return fmt.Errorf("address %s of sandbox %s: %w", ip, sandboxID, errdefs.ErrNotFound)
	}
	if other, taken := l.used[subnet][host]; taken {
		return fmt.Errorf("address %s of sandbox %s is leased to %s: %w", ip, sandboxID, other, errdefs.ErrAlreadyExists)
	}
	found := lease{SandboxID: sandboxID, subnet: subnet, host: host}
	if err := l.write(found); err != nil {
		return err
	}
	l.hold(found)
	return nil
}

// remember has the next search begin after the address that is given, also after a restart.
func (l *leases) remember(ls lease) error {
	hosts := l.subnets[ls.subnet].hosts()
	next := (ls.host - 1) % hosts
	passed := (next - l.next[ls.subnet]%hosts + hosts) % hosts
	if passed == 0 {
		passed = hosts
	}
	ahead := l.ahead[ls.subnet] - passed
	if ahead < 0 {
		ahead = min(maxAhead, hosts/maxAhead)
		last := ls
		last.host = 2 + (ls.host-2+ahead)%hosts
		if err := atomicfile.Write(filepath.Join(l.dir, lastFile), []byte(l.name(last)), 0o600); err != nil {
			return err
		}
	}
	l.next[ls.subnet], l.ahead[ls.subnet] = next, ahead
	return nil
}

// name is that of a lease's file.
func (l *leases) name(ls lease) string { return l.addrs(ls)[0].String() }

// erase takes a lease off the disk.
func (l *leases) erase(ls lease) error { return removeRecord(filepath.Join(l.dir, l.name(ls))) }

// write puts a lease on disk.
func (l *leases) write(ls lease) error {
	data, err := json.Marshal(ls)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil { // close takes it away
		return err
	}
	return atomicfile.Write(filepath.Join(l.dir, l.name(ls)), data, 0o600)
}

// hold enters a lease into the table.
func (l *leases) hold(ls lease) {
	l.bySandbox[ls.SandboxID] = ls
	l.used[ls.subnet][ls.host] = ls.SandboxID
}

// release gives the sandbox's address back; nil where it has none.
func (l *leases) release(sandboxID string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ls, ok := l.bySandbox[sandboxID]
	if !ok {
		return nil
	}
	if err := l.erase(ls); err != nil {
		return err
	}
	delete(l.bySandbox, sandboxID)
	delete(l.used[ls.subnet], ls.host)
	return nil
}

// of returns the sandbox's lease.
func (l *leases) of(sandboxID string) (lease, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ls, ok := l.bySandbox[sandboxID]
	return ls, ok
}

// all returns every lease.
func (l *leases) all() []lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]lease, 0, len(l.bySandbox))
	for _, ls := range l.bySandbox {
		all = append(all, ls)
	}
	return all
}

// addrs returns the addresses of a lease, IPv4 first, then IPv6 where there is any.
func (l *leases) addrs(ls lease) []netip.Addr {
	s := l.subnets[ls.subnet]
	addrs := []netip.Addr{s.addr4(ls.host)}
	if ip := s.addr6(ls.host); ip.IsValid() {
		addrs = append(addrs, ip)
	}
	return addrs
}

// unused returns nil when no address is leased, or else an error that names a holder.
func (l *leases) unused() error {
	all := l.all()
	if len(all) == 0 {
		return nil
	}
	return fmt.Errorf("%d sandboxes are attached, %s among them: %w", len(all), all[0].SandboxID, errdefs.ErrFailedPrecondition)
}

// close removes the folder, unless it holds a lease by now.
func (l *leases) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.bySandbox) > 0 {
		return nil
	}
	return os.RemoveAll(l.dir)
}

// holdsLeases says whether there are leases in a folder, of whatever ranges.
func holdsLeases(dir string) bool {
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		if f.Name() != lastFile && !strings.HasSuffix(f.Name(), damagedSuffix) && !strings.HasPrefix(f.Name(), ".") {
			return true
		}
	}
	return false
}
