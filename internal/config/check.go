package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/berth-node/berth/internal/errdefs"
)

// maxExecOutput is what fits into an answer that CRI clients take (their limit is 16 MiB for all of it, which the kubelet
// reads as one for each stream).
const maxExecOutput = 16 << 20

// handlerName is what Kubernetes takes as the handler of a RuntimeClass: a DNS label.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Check returns the faults of a configuration that did not come from a file, one a line; an ErrInvalidArgument.
func (c *Config) Check() error {
	var faults []fault
	c.check(func(key, words string) { faults = append(faults, fault{text: key + ": " + words}) })
	if len(faults) == 0 {
		return nil
	}
	return summary(faults)
}

// check calls fault for each value that cannot be meant, with its key.
func (c *Config) check(fault func(key, words string)) {
	c.checkPaths(fault)
	c.checkNetwork(fault)
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			fault(key, fmt.Sprintf("%q is none of %s", value, strings.Join(allowed, ", ")))
		}
	}
	oneOf("cgroup.driver", c.Cgroup.Driver, CgroupAuto, "cgroupfs", "systemd")
	oneOf("log.format", c.Log.Format, "text", "json")
	if new(slog.Level).UnmarshalText([]byte(c.Log.Level)) != nil {
		fault("log.level", fmt.Sprintf("%q is none of debug, info, warn, error", c.Log.Level))
	}
	atLeast := func(key string, value, least int) {
		if value < least {
			fault(key, fmt.Sprintf("%d is less than %d", value, least))
		}
	}
	atLeast("criSocketGroup", c.CRISocketGroup, 0)
	atLeast("image.maxParallelLayers", c.Image.MaxParallelLayers, 1)
	atLeast("exec.maxOutput", c.Exec.MaxOutput, 1)
	if c.Exec.MaxOutput > maxExecOutput {
		fault("exec.maxOutput", fmt.Sprintf("%d is more than %d", c.Exec.MaxOutput, maxExecOutput))
	}
	atLeast("log.maxContainerLogLineSize", c.Log.MaxContainerLogLineSize, 128)
	for key, value := range map[string]time.Duration{
		"image.pullProgressTimeout": c.Image.PullProgressTimeout,
		"exec.drainTimeout":         c.Exec.DrainTimeout,
		"nri.registrationTimeout":   c.NRI.RegistrationTimeout,
		"nri.requestTimeout":        c.NRI.RequestTimeout,
		"streaming.idleTimeout":     c.Streaming.IdleTimeout,
	} {
		if value <= 0 {
			fault(key, value.String()+" is not longer than nothing")
		}
	}
	c.checkHandlers(fault)
	c.checkKubelet(fault)
}

// nodeName is a DNS subdomain.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func (c *Config) checkKubelet(fault func(key, words string)) {
	k := &c.Kubelet
	if k.NodeName != "" && (!nodeName.MatchString(k.NodeName) || len(k.NodeName) > 253) {
		fault("kubelet.nodeName", fmt.Sprintf("%q is not a name of lower case letters, digits, - and .", k.NodeName))
	}
	for key, list := range map[string][]string{"kubelet.nodeIPs": k.NodeIPs, "kubelet.clusterDNS": k.ClusterDNS} {
		for i, value := range list {
			if _, err := netip.ParseAddr(value); err != nil {
				fault(fmt.Sprintf("%s[%d]", key, i), fmt.Sprintf("%q is not an IP address", value))
			}
		}
	}
	if len(k.NodeIPs) > 2 {
		fault("kubelet.nodeIPs", "a node has one address of each family at most")
	}
	for key, b := range map[string]BackOff{"kubelet.crashLoopBackOff": k.CrashLoopBackOff, "kubelet.imagePullBackOff": k.ImagePullBackOff} {
		if b.Initial <= 0 || b.Max < b.Initial {
			fault(key, fmt.Sprintf("%s up to %s is no pause that grows", b.Initial, b.Max))
		}
	}
	if c.ManifestsRescan < 0 {
		fault("manifestsRescan", c.ManifestsRescan.String()+" is less than nothing")
	}
	if k.ImageGCHigh < 0 || k.ImageGCHigh > 100 || k.ImageGCLow < 0 || k.ImageGCLow > k.ImageGCHigh {
		fault("kubelet.imageGCHighThresholdPercent", fmt.Sprintf("from %d down to imageGCLowThresholdPercent, %d, is not between 100 and 0", k.ImageGCHigh, k.ImageGCLow))
	}
	for key, d := range map[string]time.Duration{
		"evictionPressureTransitionPeriod": k.EvictionTransition, "imageMinimumGCAge": k.ImageMinAge, "imageMaximumGCAge": k.ImageMaxAge,
	} {
		if d < 0 {
			fault("kubelet."+key, d.String()+" is less than nothing")
		}
	}
	if k.EvictionMaxGrace < 0 {
		fault("kubelet.evictionMaxPodGracePeriod", fmt.Sprintf("%d is less than nothing", k.EvictionMaxGrace))
	}
	for i, g := range k.ShutdownByPriority {
		key := fmt.Sprintf("kubelet.shutdownGracePeriodByPodPriority[%d].", i)
		if i > 0 && g.Priority <= k.ShutdownByPriority[i-1].Priority || g.Priority != int(int32(g.Priority)) {
			fault(key+"priority", fmt.Sprintf("%d is not more than the one before it, or no priority", g.Priority))
		}
		if g.Seconds < 0 {
			fault(key+"shutdownGracePeriodSeconds", fmt.Sprintf("%d is less than nothing", g.Seconds))
		}
	}
	if k.LogMaxFiles < 2 {
		fault("kubelet.containerLogMaxFiles", fmt.Sprintf("%d is less than two: the one that is written, and the one before it", k.LogMaxFiles))
	}
	if k.LogInterval <= 0 {
		fault("kubelet.containerLogMonitorInterval", k.LogInterval.String()+" is no interval")
	}
	if k.MaxPods < 1 {
		fault("kubelet.maxPods", fmt.Sprintf("%d is less than one", k.MaxPods))
	}
	if k.PodPidsLimit < 0 {
		fault("kubelet.podPidsLimit", fmt.Sprintf("%d is less than nothing", k.PodPidsLimit))
	}
}

func (c *Config) checkHandlers(fault func(key, words string)) {
	for name, h := range c.RuntimeHandlers {
		key := "runtimeHandlers." + name
		if !handlerName.MatchString(name) {
			fault(key, "a handler's name has lower case letters, digits and -, at most 63")
		}
		for i, device := range h.CDIDevices {
			if !parser.IsQualifiedName(device) {
				fault(fmt.Sprintf("%s.cdiDevices[%d]", key, i), fmt.Sprintf("%q is not of the form vendor.com/class=name", device))
			}
		}
	}
}

func (c *Config) checkPaths(fault func(key, words string)) {
	path := func(key, value string, mayBeEmpty bool) {
		switch {
		case value == "" && mayBeEmpty:
		case !filepath.IsAbs(value):
			fault(key, fmt.Sprintf("%q is not an absolute path", value))
		}
	}
	path("rootDir", c.RootDir, false)
	path("runDir", c.RunDir, false)
	path("criSocket", c.CRISocket, true)
	if c.Keeper != KeeperExternal {
		path("keeper", c.Keeper, true)
	}
	path("launch", c.Launch, true)
	path("manifests", c.Manifests, true)
	path("kubelet.resolvConf", c.Kubelet.ResolvConf, true)
	path("kubelet.podLogsDir", c.Kubelet.PodLogsDir, false)
	if c.Kubelet.LogLinksDir != LogLinksOff {
		path("kubelet.containerLogsDir", c.Kubelet.LogLinksDir, true)
	}
	path("kubelet.seccompDir", c.Kubelet.SeccompDir, true)
	path("kubelet.imageCredentialProviderConfig", c.Kubelet.CredentialConfig, true)
	path("kubelet.imageCredentialProviderBinDir", c.Kubelet.CredentialBinDir, false)
	path("network.cniConfDir", c.Network.CNIConfDir, false)
	path("network.cniConfTemplate", c.Network.CNIConfTemplate, true)
	path("container.seccompProfile", c.Container.SeccompProfile, true)
	path("nri.socketPath", c.NRI.SocketPath, true)
	path("nri.pluginPath", c.NRI.PluginPath, false)
	path("nri.pluginConfigPath", c.NRI.PluginConfigPath, false)
	for key, list := range map[string][]string{
		"network.cniBinDirs":      c.Network.CNIBinDirs,
		"image.registryHostsDirs": c.Image.RegistryHostsDirs,
		"container.cdiSpecDirs":   c.Container.CDISpecDirs,
	} {
		for i, value := range list {
			path(fmt.Sprintf("%s[%d]", key, i), value, false)
		}
	}
	if c.RootDir == c.RunDir {
		fault("runDir", "is rootDir, but what is in it must not survive a reboot")
	}
}

func (c *Config) checkNetwork(fault func(key, words string)) {
	n := c.Network
	if n.Mode != NetworkBuiltin && n.Mode != NetworkCNI {
		fault("network.mode", fmt.Sprintf("%q is neither builtin nor cni", n.Mode))
	}
	if n.Mode == NetworkCNI && len(n.CNIBinDirs) == 0 {
		fault("network.cniBinDirs", "is empty, but the network needs plugins")
	}
	b := n.Builtin
	if len(b.Bridge) > 12 || strings.ContainsAny(b.Bridge, "/: \t\n") || b.Bridge == "." || b.Bridge == ".." {
		fault("network.builtin.bridge", fmt.Sprintf("%q cannot name a bridge: at most 12 bytes, no slash, colon or space", b.Bridge))
	}
	if p, err := netip.ParsePrefix(b.IPv4Pool); b.IPv4Pool != "" && (err != nil || !p.Addr().Is4() || p.Bits() < 16 || p.Bits() > 28) {
		fault("network.builtin.ipv4Pool", fmt.Sprintf("%q is no IPv4 range of /16 to /28", b.IPv4Pool))
	}
	if p, err := netip.ParsePrefix(b.IPv6Prefix); b.IPv6Prefix != "" && (err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() > 108) {
		fault("network.builtin.ipv6Prefix", fmt.Sprintf("%q is no IPv6 range of /108 or larger", b.IPv6Prefix))
	}
	if b.MTU != 0 && (b.MTU < 1280 || b.MTU > 65535) { // IPv6 needs 1280
		fault("network.builtin.mtu", fmt.Sprintf("%d is not between 1280 and 65535", b.MTU))
	}
	if _, err := netip.ParseAddr(c.Streaming.Address); err != nil {
		fault("streaming.address", fmt.Sprintf("%q is no IP address", c.Streaming.Address))
	}
	if c.Streaming.Port < 0 || c.Streaming.Port > 65535 {
		fault("streaming.port", fmt.Sprintf("%d is no TCP port", c.Streaming.Port))
	}
	for _, a := range []struct{ key, address string }{{"kubelet.apiAddress", c.Kubelet.APIAddress}, {"kubelet.address", c.Kubelet.Address}} {
		if _, err := netip.ParseAddrPort(a.address); a.address != "" && a.address != MetricsOff && err != nil {
			fault(a.key, fmt.Sprintf("%q is no address with a port, as 127.0.0.1:10260 or [::]:10250", a.address))
		}
	}
	if words := metricsFault(c.Metrics.Address); words != "" {
		fault("metrics.address", words)
	}
}

// metricsFault says why metrics cannot be served at an address, "" if they can.
func metricsFault(address string) string {
	if address == "" || address == MetricsOff || filepath.IsAbs(address) {
		return ""
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Sprintf("%q is neither an absolute path nor an address with a port", address)
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return fmt.Sprintf("%q is not on the loopback, and there is no access control", address)
	}
	return ""
}

// libexec is where packages put the programs that nobody calls by hand.
const libexec = "/usr/libexec/berth"

// maxSocketPath is what the kernel's sun_path holds, less the zero at its end.
const maxSocketPath = 107

// Resolve fills in what follows from other values: the sockets, which are in the run dir so that nodes with different ones
// do not meet, and the programs, which are looked for beside exe, the path of the berth that runs. Call it when file and
// flags are merged. A program that is nowhere is an ErrNotFound, a value that cannot be meant an ErrInvalidArgument.
func (c *Config) Resolve(exe string) error {
	if err := c.Check(); err != nil {
		return err
	}
	in := func(target *string, path string) {
		if *target == "" {
			*target = path
		}
	}
	in(&c.CRISocket, filepath.Join(c.RunDir, "berth.sock"))
	in(&c.Metrics.Address, filepath.Join(c.RunDir, "metrics.sock"))
	in(&c.Kubelet.SeccompDir, filepath.Join(c.RootDir, "kubelet", "seccomp"))
	if host, err := os.Hostname(); err == nil {
		in(&c.Kubelet.NodeName, strings.ToLower(host))
	}
	if filepath.Clean(c.RunDir) == DefaultRunDir {
		in(&c.NRI.SocketPath, "/var/run/nri/nri.sock")
	}
	in(&c.NRI.SocketPath, filepath.Join(c.RunDir, "nri.sock"))
	for key, path := range map[string]string{
		"criSocket": c.CRISocket, "nri.socketPath": c.NRI.SocketPath, "metrics.address": c.Metrics.Address,
	} {
		if len(path) > maxSocketPath {
			return fmt.Errorf("%s: %q is longer than the %d bytes of a socket's path: %w", key, path, maxSocketPath, errdefs.ErrInvalidArgument)
		}
	}
	var err error
	if c.Keeper != KeeperExternal {
		err = findProgram(&c.Keeper, exe, "berth-keeper")
	}
	return errors.Join(err, findProgram(&c.Launch, exe, "berth-launch"))
}

// FindKeeper returns the path of the installed berth-keeper, for a configuration that does not say. exe is that of berth.
func FindKeeper(exe string) (path string, err error) {
	err = findProgram(&path, exe, "berth-keeper")
	return path, err
}

func findProgram(path *string, exe, name string) error {
	if *path != "" {
		if _, err := os.Stat(*path); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	for _, dir := range []string{filepath.Dir(exe), libexec} {
		candidate := filepath.Join(dir, name)
		if st, err := os.Stat(candidate); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			*path = candidate
			return nil
		}
	}
	return fmt.Errorf("program %s is neither in %s nor in %s: %w", name, filepath.Dir(exe), libexec, errdefs.ErrNotFound)
}
