package network

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-node/berth/internal/atomicfile"
)

const (
	forwarding4 = "/proc/sys/net/ipv4/ip_forward"
	forwarding6 = "/proc/sys/net/ipv6/conf/all/forwarding"
	// bridgeCalls6 is on where br_netfilter hands bridged IPv6 packets to nftables. Not there: br_netfilter is not loaded.
	bridgeCalls6 = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
)

// A sysctlLog is the record of the settings of the host that were changed for the network, by path, with their earlier
// values. It is written before the change, so that a crash cannot lose the way back.
type sysctlLog struct {
	path string
	log  *slog.Logger // nil for the record of another node, which is only read
}

func (l sysctlLog) read() (map[string]string, error) {
	was := make(map[string]string)
	err := atomicfile.ReadJSON(l.path, &was)
	if errors.Is(err, fs.ErrNotExist) {
		return was, nil
	}
	if err != nil && l.log != nil {
		setAside(l.log, l.path, err, "settings of the host that were changed before stay as they are after a drain")
		return make(map[string]string), nil
	}
	return was, err
}

// set changes settings and records what they were. others are the records of nodes that run beside this one: what one of
// them changed has the earlier value that its record says, and whichever node leaves last can restore it.
func (l sysctlLog) set(settings map[string]string, others []sysctlLog) error {
	was, err := l.read()
	if err != nil {
		return err
	}
	known := maps.Clone(was)
	for _, other := range others {
		theirs, err := other.read()
		if err != nil {
			continue // a damaged or foreign record is that node's concern; ours is then as good as we can know
		}
		for path, value := range theirs {
			if _, ok := was[path]; !ok {
				was[path] = value
			}
		}
	}
	changed := make(map[string]string)
	for path, value := range settings {
		now, err := readSysctl(path)
		if linkGone(path, err) || err == nil && now == value {
			continue
		}
		if err != nil {
			return err
		}
		changed[path] = value
		if _, ok := was[path]; !ok {
			was[path] = now
		}
	}
	if !maps.Equal(was, known) { // on a full disk, what is set already needs no record
		if err := l.write(was); err != nil {
			return err
		}
	}
	for path, value := range changed {
		if err := writeSysctl(path, value); err != nil && !linkGone(path, err) {
			return err
		}
	}
	return nil
}

// linkGone says that a setting is not there because its link has gone since the settings were listed: veths of other pods
// come and go at any time.
func linkGone(path string, err error) bool {
	return errors.Is(err, fs.ErrNotExist) && path != forwarding4 && path != forwarding6
}

func (l sysctlLog) write(was map[string]string) error {
	if len(was) == 0 {
		return nil
	}
	return atomicfile.WriteJSON(l.path, was, 0o600)
}

// restore gives the settings their earlier values and removes the record.
func (l sysctlLog) restore() error {
	was, err := l.read()
	if err != nil {
		return err
	}
	for path, value := range was {
		if err := writeSysctl(path, value); err != nil && !errors.Is(err, fs.ErrNotExist) { // its link may be gone
			return err
		}
	}
	return l.forget()
}

// forget removes the record: after a reboot, which has reset everything, or because other nodes need the settings.
func (l sysctlLog) forget() error {
	if err := os.Remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// forwardingSettings returns the settings that make the host a router.
//
// A host that forwards IPv6 ignores router advertisements on links with accept_ra 1, and so in a while loses its own
// default route. 2 means to listen nevertheless. (It must be set first: a map has no order, but an advertisement is
// minutes apart.)
func forwardingSettings(ipv6 bool) (map[string]string, error) {
	settings := map[string]string{forwarding4: "1"}
	if !ipv6 {
		return settings, nil
	}
	now, err := readSysctl(forwarding6)
	if err != nil {
		return nil, err
	}
	settings[forwarding6] = "1"
	if now != "0" {
		return settings, nil
	}
	links, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return nil, err
	}
	for _, path := range links {
		switch filepath.Base(filepath.Dir(path)) {
		case "all", "default", "lo":
			continue
		}
		if value, err := readSysctl(path); err == nil && value == "1" {
			settings[path] = "2"
		}
	}
	return settings, nil
}

func readSysctl(path string) (string, error) {
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(data)), err
}

func writeSysctl(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
