package network

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-node/berth/network/netns"
)

// pluginsEnv names the folder with the reference plugins (github.com/containernetworking/plugins).
const pluginsEnv = "BERTH_TEST_CNI_BIN"

// bridgeConf is a dual-stack network as administrators write it.
const bridgeConf = `{"cniVersion":"1.0.0","name":"ref","plugins":[
	{"type":"bridge","bridge":"cniref0","isGateway":true,"ipMasq":true,"hairpinMode":true,
	 "ipam":{"type":"host-local","dataDir":"DATA","routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],
	         "ranges":[[{"subnet":"10.222.0.0/24"}],[{"subnet":"fd22::/64"}]]}},
	{"type":"portmap","capabilities":{"portMappings":true}},
	{"type":"bandwidth","capabilities":{"bandwidth":true}},
	{"type":"firewall"}]}`

func TestCNIReferencePlugins(t *testing.T) {
	bin := os.Getenv(pluginsEnv)
	if bin == "" {
		t.Skipf("%s is not set: CNI IS NOT TESTED WITH THE REFERENCE PLUGINS", pluginsEnv)
	}
	w := newWorld(t)
	dir := t.TempDir()
	confDir, data := filepath.Join(dir, "conf"), filepath.Join(dir, "data")
	if err := os.Mkdir(confDir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := strings.ReplaceAll(bridgeConf, "DATA", data)
	if err := os.WriteFile(filepath.Join(confDir, "10-ref.conflist"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := NewCNI(CNIConfig{ConfDir: confDir, BinDirs: []string{"/nowhere", bin}, CacheDir: filepath.Join(dir, "cache")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer run("ip", "link", "del", "cniref0")
	if err := c.Status(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{forwarding4, forwarding6} { // the administrator's work with CNI
		if err := writeSysctl(path, "1"); err != nil {
			t.Fatal(err)
		}
		defer writeSysctl(path, "0")
	}
	web, webRes := pod(t, c, Request{SandboxID: "web", PortMappings: []PortMapping{{HostPort: 8080, ContainerPort: 80}},
		Annotations: map[string]string{ingressAnnotation: "100M", egressAnnotation: "100M"}})
	client, _ := pod(t, c, Request{SandboxID: "client"})
	serve(t, web.NetNS, ":80")
	serve(t, "", ":9000")
	if len(webRes.IPs) != 2 || !webRes.IPs[0].Is4() || !webRes.IPs[1].Is6() {
		t.Fatalf("addresses %v, want IPv4 and IPv6", webRes.IPs)
	}
	if err := c.Check(t.Context(), web); err != nil {
		t.Error(err)
	}
	web4, web6 := webRes.IPs[0].String(), webRes.IPs[1].String()
	for _, a := range []struct{ name, from, host, port string }{
		{"pod to pod", client.NetNS, web4, "80"}, {"pod to pod, IPv6", client.NetNS, web6, "80"},
		{"host to pod", "", web4, "80"}, {"host to pod, IPv6", "", web6, "80"},
		{"pod to host", client.NetNS, hostIP4, "9000"}, {"pod to host, IPv6", client.NetNS, hostIP6, "9000"},
		{"host port", w.outside, hostIP4, "8080"}, {"host port, IPv6", w.outside, hostIP6, "8080"},
		{"host port on 127.0.0.1", "", "127.0.0.1", "8080"},
	} {
		if _, err := ask(a.from, net.JoinHostPort(a.host, a.port)); err != nil {
			t.Errorf("%s: %v", a.name, err)
		}
	}
	// One is detached in order, the other one has lost its namespace.
	if err := netns.Remove(client.NetNS); err != nil {
		t.Fatal(err)
	}
	for _, req := range []Request{web, client} {
		if err := c.Detach(t.Context(), req); err != nil {
			t.Error(err)
		}
	}
	leases, err := filepath.Glob(filepath.Join(data, "ref", "*.*.*"))
	if err != nil || slices.ContainsFunc(leases, func(l string) bool { return !strings.Contains(l, "last_reserved") }) {
		t.Errorf("addresses left: %v, %v", leases, err)
	}
	if rules := mustRun(t, "nft", "list", "ruleset"); strings.Contains(rules, "8080") {
		t.Errorf("host ports left:\n%s", rules)
	}
	wantRecords(t, c)
}
