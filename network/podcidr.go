package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
)

const (
	// templateConf is the file in the configuration folder that UpdatePodCIDR writes.
	templateConf = "10-berth.conflist"
	// podCIDRFile is where the ranges are kept for the time after a restart: the kubelet tells them but once.
	podCIDRFile = "pod-cidrs"
)

// parsePodCIDRs reads the ranges that a cluster gives to a node: one or several, comma separated.
func parsePodCIDRs(cidrs string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for text := range strings.SplitSeq(cidrs, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("pod CIDR %q: %w: %w", text, err, errdefs.ErrInvalidArgument)
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes, nil
}

// UpdatePodCIDR implements Attacher. With a template it writes a configuration into the configuration folder, unless the
// folder already has a usable one of somebody else: network add-ons bring their own. Without, the ranges go to the
// plugins that have the capability ipRanges.
func (c *CNI) UpdatePodCIDR(cidrs string) error {
	prefixes, err := parsePodCIDRs(cidrs)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(c.cfg.CacheDir, podCIDRFile), []byte(cidrs), 0o600); err != nil {
		return err
	}
	if c.cfg.ConfTemplate == "" {
		return nil
	}
	ours := filepath.Join(c.cfg.ConfDir, templateConf)
	if _, err := os.Lstat(ours); err != nil {
		if conf, _ := loadConf(c.cfg.ConfDir); conf != nil {
			return nil
		}
	}
	data, err := renderTemplate(c.cfg.ConfTemplate, prefixes)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.cfg.ConfDir, 0o755); err != nil {
		return err
	}
	if err := atomicfile.Write(ours, data, 0o644); err != nil {
		return err
	}
	c.reload()
	return nil
}

// renderTemplate fills in a template with the names that containerd's templates use.
func renderTemplate(path string, prefixes []netip.Prefix) ([]byte, error) {
	var data struct {
		PodCIDR       string   // the first range
		PodCIDRRanges []string // all of them
		Routes        []string // a default route for each family
	}
	default4, default6 := "0.0.0.0/0", "::/0"
	has := make(map[string]bool)
	for _, p := range prefixes {
		data.PodCIDRRanges = append(data.PodCIDRRanges, p.String())
		route := default6
		if p.Addr().Is4() {
			route = default4
		}
		if !has[route] {
			has[route] = true
			data.Routes = append(data.Routes, route)
		}
	}
	data.PodCIDR = data.PodCIDRRanges[0]
	t, err := template.ParseFiles(path)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration template: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return nil, fmt.Errorf("CNI configuration template: %w", err)
	}
	return out.Bytes(), nil
}

// ipRanges returns the node's ranges for the capability ipRanges. With a template they stand in the configuration, and a
// plugin that got them twice would find them overlapping.
func (c *CNI) ipRanges() [][]cniRange {
	if c.cfg.ConfTemplate != "" {
		return nil
	}
	path := filepath.Join(c.cfg.CacheDir, podCIDRFile)
	cidrs, err := atomicfile.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var prefixes []netip.Prefix
	if err == nil {
		prefixes, err = parsePodCIDRs(string(cidrs))
	}
	if err != nil {
		setAside(c.log, path, err, "plugins are not told the node's pod ranges until the kubelet, started anew, tells them")
		return nil
	}
	var ranges [][]cniRange
	for _, p := range prefixes {
		ranges = append(ranges, []cniRange{{Subnet: p.String()}})
	}
	return ranges
}
