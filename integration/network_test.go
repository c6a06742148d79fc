//go:build integration

package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

func TestDualStackBuiltin(t *testing.T) { dualStack(t, sharedNode(t)) }

func TestDualStackCNI(t *testing.T) { dualStack(t, cniNode(t)) }

// cniNode starts a node that runs the reference plugins.
func cniNode(t *testing.T) *harness.Node {
	t.Helper()
	network, err := harness.NewCNI(t.TempDir(), "berthtest0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the node's own end
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	return ownNode(t, func(o *harness.Options) { o.CNI = network })
}

func web(listen string) *cri.ContainerConfig {
	return harness.ContainerConfig("web", images.Tools, "web", "-listen", listen)
}

// dualStack shows each way into, out of and between pods on IPv4 and IPv6.
func dualStack(t *testing.T, n *harness.Node) {
	const hostPort = 12077
	server := n.RunPod(t, "server", func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: hostPort}}
	})
	server.Run(t, web(":80"))
	client := n.RunPod(t, "client").Idle(t, "sh")

	ips := server.IPs(t)
	if len(ips) != 2 {
		t.Fatalf("want two addresses, got %v", ips)
	}
	if a, b := netip.MustParseAddr(ips[0]), netip.MustParseAddr(ips[1]); a.Is4() == b.Is4() {
		t.Fatalf("want one address of each family, got %v", ips)
	}
	for _, ip := range ips {
		family := "IPv4"
		if netip.MustParseAddr(ip).Is6() {
			family = "IPv6"
		}
		address := net.JoinHostPort(ip, "80")
		t.Run(family+"/host to pod", func(t *testing.T) { wantServer(t, get(t, address), ips) })
		t.Run(family+"/pod to pod", func(t *testing.T) { wantServer(t, client.Exec(t, "wget", "-qO-", "http://"+address), ips) })
		t.Run(family+"/pod to itself by its address", func(t *testing.T) {
			own := server.Sh(t, "own-"+family, "sleep 1000")
			wantServer(t, own.Exec(t, "wget", "-qO-", "http://"+address), ips)
		})
		t.Run(family+"/pod to host", func(t *testing.T) { podToHost(t, client, family == "IPv6") })
		host := hostAddress(t, family == "IPv6")
		t.Run(family+"/host port from the host", func(t *testing.T) {
			wantServer(t, get(t, net.JoinHostPort(host.String(), strconv.Itoa(hostPort))), ips)
		})
		t.Run(family+"/host port from a pod", func(t *testing.T) {
			wantServer(t, client.Exec(t, "wget", "-qO-", "http://"+net.JoinHostPort(host.String(), strconv.Itoa(hostPort))), ips)
		})
	}
	t.Run("host port on 127.0.0.1", func(t *testing.T) { wantServer(t, get(t, fmt.Sprintf("127.0.0.1:%d", hostPort)), ips) })
	t.Run("host port is free again", func(t *testing.T) {
		server.Remove(t)
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", hostPort), time.Second)
		if err == nil {
			c.Close()
			t.Error("something still answers on the host port")
		}
	})
}

func wantServer(t *testing.T, answer string, ips []string) {
	t.Helper()
	if !strings.Contains(answer, "Hello from pod server") {
		t.Errorf("the answer is not the server's: %q", answer)
	}
	for _, ip := range ips {
		if err := wantIn(answer, "address "+ip); err != nil {
			t.Error(err)
		}
	}
}

// get asks the web server, again while it starts.
func get(t *testing.T, address string) string {
	t.Helper()
	client := &http.Client{Timeout: harness.Patience(5 * time.Second), Transport: &http.Transport{DisableKeepAlives: true}}
	var body string
	harness.Eventually(t, 15*time.Second, "answer from "+address, func() error {
		resp, err := client.Get("http://" + address)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		body = string(data)
		return err
	})
	return body
}

// podToHost listens on the host's end of the pod's default route, where a pod finds the node.
func podToHost(t *testing.T, client *harness.Container, v6 bool) {
	flag := "-4"
	if v6 {
		flag = "-6"
	}
	route := strings.Fields(client.Exec(t, "ip", flag, "route", "show", "default"))
	i := slices.Index(route, "via")
	if i < 0 || i+1 >= len(route) {
		t.Fatalf("no default route by a gateway: %q", route)
	}
	gateway := route[i+1]
	if netip.MustParseAddr(gateway).IsLinkLocalUnicast() {
		t.Skipf("the gateway %s has no address that a URL can hold", gateway)
	}
	var listener net.ListenConfig
	l, err := listener.Listen(context.Background(), "tcp", net.JoinHostPort(gateway, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the host") }))
	}()
	if got := client.Exec(t, "wget", "-qO-", "http://"+l.Addr().String()); got != "the host" {
		t.Errorf("got %q", got)
	}
}

// hostAddress returns an address of the host that is neither loopback nor a pod network's. A host without one gets an
// interface that has it, for this test.
func hostAddress(t *testing.T, v6 bool) netip.Addr {
	t.Helper()
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || strings.HasPrefix(i.Name, "berth") || strings.HasPrefix(i.Name, "veth") {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addresses {
			prefix, err := netip.ParsePrefix(a.String())
			if err == nil && prefix.Addr().Is6() == v6 && prefix.Addr().IsGlobalUnicast() {
				return prefix.Addr()
			}
		}
	}
	name, address := "testhost4", "198.51.100.7/32"
	if v6 {
		name, address = "testhost6", "2001:db8:7::7/128"
	}
	ip := func(args ...string) {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %q: %v: %s", args, err, out)
		}
	}
	ip("link", "add", name, "type", "bridge")
	t.Cleanup(func() { ip("link", "delete", name) })
	ip("link", "set", name, "up")
	add := []string{"address", "add", address, "dev", name}
	if v6 {
		add = append(add, "nodad") // with no neighbour to ask, the question would never end
	}
	ip(add...)
	return netip.MustParsePrefix(address).Addr()
}

func TestHostPortsOfTwoPodsDoNotClash(t *testing.T) {
	n := sharedNode(t)
	mapped := func(host int32) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: host}}
		}
	}
	one, two := n.RunPod(t, "one", mapped(12081)), n.RunPod(t, "two", mapped(12082))
	one.Run(t, web(":80"))
	two.Run(t, web(":80"))
	if err := wantIn(get(t, "127.0.0.1:12081"), "pod one"); err != nil {
		t.Error(err)
	}
	if err := wantIn(get(t, "127.0.0.1:12082"), "pod two"); err != nil {
		t.Error(err)
	}
	config := n.PodConfig("three")
	mapped(12081)(config)
	resp, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config})
	if err == nil {
		_, _ = n.Runtime.RemovePodSandbox(harness.Ctx(t), &cri.RemovePodSandboxRequest{PodSandboxId: resp.PodSandboxId})
		t.Error("two pods got the same host port")
	}
}

func TestUDPHostPort(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "udp", func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_UDP, ContainerPort: 80, HostPort: 12083}}
	})
	pod.Run(t, web(":80"))
	addresses := []string{"127.0.0.1:12083"}
	for _, v6 := range []bool{false, true} {
		addresses = append(addresses, net.JoinHostPort(hostAddress(t, v6).String(), "12083"))
	}
	for _, address := range addresses {
		harness.Eventually(t, 15*time.Second, "datagram from "+address, func() error {
			conn, err := net.Dial("udp", address)
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			if _, err := conn.Write([]byte("ping")); err != nil {
				return err
			}
			answer := make([]byte, 100)
			k, err := conn.Read(answer)
			if err != nil {
				return err
			}
			return wantIn(string(answer[:k]), "udp ping")
		})
	}
}

func TestDNSAndHostname(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "names", func(c *cri.PodSandboxConfig) {
		c.Hostname = "my-host"
		c.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.53", "2001:db8::53"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5"}}
	})
	c := pod.Idle(t, "sh")
	want := "search a.test b.test\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions ndots:5"
	if got := c.Exec(t, "cat", "/etc/resolv.conf"); got != want {
		t.Errorf("resolv.conf: %q", got)
	}
	if got := c.Exec(t, "sh", "-c", "hostname; cat /etc/hostname"); got != "my-host\nmy-host" {
		t.Errorf("hostname: %q", got)
	}
}

func TestHostNetwork(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "hostnet", func(c *cri.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	})
	c := pod.Run(t, web("127.0.0.1:12084"), func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}
	})
	if err := wantIn(get(t, "127.0.0.1:12084"), "client 127.0.0.1"); err != nil {
		t.Error(err)
	}
	if ip := pod.Status(t).GetNetwork().GetIp(); ip != "" {
		t.Errorf("a pod of the host's network has the address %s", ip)
	}
	if got := c.Status(t).State; got != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container is %s", got)
	}
}
