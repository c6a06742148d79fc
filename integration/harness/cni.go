package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// A CNI is a network of the reference plugins for one node. Close removes what the plugins leave by design: the bridge,
// and the nftables tables that they share.
type CNI struct {
	ConfDir, BinDir string

	bridge string
	tables []string // those that were there before
}

// cniTables are what the plugins make and never delete. The tables called nat come from the iptables command, which they
// run to see whether there is something to remove.
var cniTables = []string{"inet cni_plugins_masquerade", "inet cni_hostport", "ip cni_hostport", "ip6 cni_hostport", "ip nat", "ip6 nat"}

// NewCNI writes a dual-stack bridge network with host ports into dir.
func NewCNI(dir, bridge string) (*CNI, error) {
	c := &CNI{ConfDir: filepath.Join(dir, "net.d"), BinDir: Tool("cni"), bridge: bridge}
	if err := os.MkdirAll(c.ConfDir, 0o755); err != nil {
		return nil, err
	}
	tables, err := listTables()
	if err != nil {
		return nil, err
	}
	c.tables = tables
	return c, os.WriteFile(filepath.Join(c.ConfDir, "10-test.conflist"), fmt.Appendf(nil, `{
  "cniVersion": "1.0.0",
  "name": %[1]q,
  "plugins": [
    {
      "type": "bridge", "bridge": %[1]q, "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": %[2]q,
        "ranges": [[{"subnet": "10.213.0.0/24"}], [{"subnet": "fd12:be27:4000::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true, "backend": "nftables"}
  ]
}
`, bridge, filepath.Join(dir, "ipam")), 0o644)
}

// Close removes the bridge and the tables.
func (c *CNI) Close() error {
	var errs []error
	if _, err := os.Stat("/sys/class/net/" + c.bridge); err == nil {
		errs = append(errs, run("ip", "link", "delete", c.bridge))
	}
	now, err := listTables()
	errs = append(errs, err)
	for _, table := range now {
		if slices.Contains(cniTables, table) && !slices.Contains(c.tables, table) {
			errs = append(errs, run("nft", append([]string{"delete", "table"}, strings.Fields(table)...)...))
		}
	}
	return errors.Join(errs...)
}

func listTables() ([]string, error) {
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		return nil, fmt.Errorf("nft list tables: %w", err)
	}
	var tables []string
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		tables = append(tables, strings.TrimPrefix(line, "table "))
	}
	return tables, nil
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
