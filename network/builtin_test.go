package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/network/netns"
)

func newBuiltin(t testing.TB, dir string) *Builtin {
	t.Helper()
	b, err := NewBuiltin(BuiltinConfig{StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// hostState is all that the network may leave behind, as text.
func hostState(t testing.TB) string {
	t.Helper()
	// Links of namespaces just dropped go in the background: `ip` waits for nothing, so only bridges and ifbs count.
	state := mustRun(t, "ip", "-br", "link", "show", "type", "bridge") + mustRun(t, "ip", "-br", "link", "show", "type", "ifb")
	state += mustRun(t, "nft", "list", "ruleset")
	for _, path := range []string{forwarding4, forwarding6, "/proc/sys/net/ipv6/conf/uplink/accept_ra"} {
		value, err := readSysctl(path)
		if err != nil {
			t.Fatal(err)
		}
		state += path + "=" + value + "\n"
	}
	return state
}

// setBridgeCalls switches br_netfilter for the test, and skips where it cannot.
func setBridgeCalls(t *testing.T, value string) {
	t.Helper()
	for _, path := range []string{bridgeCalls6, "/proc/sys/net/bridge/bridge-nf-call-iptables"} {
		was, err := readSysctl(path)
		if os.IsNotExist(err) && value == "0" {
			continue
		}
		if err != nil {
			t.Skip("br_netfilter is not there")
		}
		if err := writeSysctl(path, value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = writeSysctl(path, was) })
	}
}

func TestBuiltinConnects(t *testing.T) {
	for _, calls := range []string{"0", "1"} {
		t.Run("bridge-nf-call="+calls, func(t *testing.T) {
			w := newWorld(t)
			setBridgeCalls(t, calls)
			before := hostState(t)
			b := newBuiltin(t, t.TempDir())
			testConnections(t, w, b, calls == "0")
			if err := b.Teardown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := hostState(t); after != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

func testConnections(t *testing.T, w hostWorld, b *Builtin, localhost6 bool) {
	web, webRes := pod(t, b, Request{SandboxID: "web", PortMappings: []PortMapping{
		{HostPort: 8080, ContainerPort: 80}, {HostIP: "127.0.0.1", HostPort: 8081, ContainerPort: 80},
	}})
	client, clientRes := pod(t, b, Request{SandboxID: "client"})
	serve(t, web.NetNS, ":80")
	serve(t, w.outside, ":80")
	serve(t, "", ":9000")
	gw4, gw6 := b.subnets[0].addr4(1).String(), b.subnets[0].addr6(1).String()
	pod4, pod6 := webRes.IPs[0].String(), webRes.IPs[1].String()
	c4, c6 := clientRes.IPs[0].String(), clientRes.IPs[1].String()

	cases := []struct {
		name, from, host, port string
		seen                   string // the address that the server sees; empty: any
		fails                  bool
	}{
		{name: "pod to pod", from: client.NetNS, host: pod4, port: "80", seen: c4},
		{name: "pod to pod, IPv6", from: client.NetNS, host: pod6, port: "80", seen: c6},
		{name: "host to pod", host: pod4, port: "80", seen: gw4},
		{name: "host to pod, IPv6", host: pod6, port: "80", seen: gw6},
		{name: "pod to host", from: client.NetNS, host: hostIP4, port: "9000", seen: c4},
		{name: "pod to host, IPv6", from: client.NetNS, host: hostIP6, port: "9000", seen: c6},
		{name: "pod to the world", from: client.NetNS, host: outsideIP4, port: "80", seen: hostIP4},
		{name: "pod to the world, IPv6", from: client.NetNS, host: outsideIP6, port: "80", seen: hostIP6},
		{name: "host port from outside", from: w.outside, host: hostIP4, port: "8080", seen: outsideIP4},
		{name: "host port from outside, IPv6", from: w.outside, host: hostIP6, port: "8080", seen: outsideIP6},
		{name: "host port on 127.0.0.1", host: "127.0.0.1", port: "8080"},
		{name: "host port on ::1", host: "::1", port: "8080", fails: !localhost6},
		{name: "host port on the host's address", host: hostIP4, port: "8080"},
		{name: "host port on the host's address, IPv6", host: hostIP6, port: "8080"},
		{name: "host port from a pod", from: client.NetNS, host: hostIP4, port: "8080"},
		{name: "host port from a pod, IPv6", from: client.NetNS, host: hostIP6, port: "8080"},
		{name: "host port from its own pod", from: web.NetNS, host: hostIP4, port: "8080"},
		{name: "host port from its own pod, IPv6", from: web.NetNS, host: hostIP6, port: "8080"},
		{name: "host port of one address, there", host: "127.0.0.1", port: "8081"},
		{name: "host port of one address, elsewhere", host: hostIP4, port: "8081", fails: true},
		{name: "host port of one address, from outside", from: w.outside, host: hostIP4, port: "8081", fails: true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			seen, err := ask(c.from, net.JoinHostPort(c.host, c.port))
			if c.fails {
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("got %v, %v; want it refused", seen, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.seen != "" && seen.String() != c.seen {
				t.Errorf("the server saw %s, want %s", seen, c.seen)
			}
		})
	}
	for _, req := range []Request{web, client} {
		for range 2 { // Detach can be repeated
			if err := b.Detach(t.Context(), req); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := ask("", "127.0.0.1:8080"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("host port after Detach: %v, want it refused", err)
	}
}

func TestBuiltinGuardsLocalhost(t *testing.T) {
	newWorld(t)
	b := newBuiltin(t, t.TempDir())
	client, _ := pod(t, b, Request{SandboxID: "client"})
	serve(t, "", "127.0.0.1:9000")
	// A pod with NET_ADMIN can send packets for 127.0.0.1 to the host, whose bridge has route_localnet.
	gw := b.subnets[0].addr4(1).String()
	mustRun(t, "ip", "-n", "client", "addr", "del", "127.0.0.1/8", "dev", "lo")
	mustRun(t, "ip", "-n", "client", "route", "add", "127.0.0.1", "via", gw)
	mustRun(t, "ip", "netns", "exec", "client", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet")
	if seen, err := ask(client.NetNS, "127.0.0.1:9000"); err == nil {
		t.Errorf("a pod reached the host's 127.0.0.1 as %s", seen)
	}
	detachAll(t, b, client)
}

// detachAll ends a test on b.
func detachAll(t testing.TB, b *Builtin, reqs ...Request) {
	t.Helper()
	for _, req := range reqs {
		if err := b.Detach(context.Background(), req); err != nil {
			t.Error(err)
		}
	}
	if err := b.Teardown(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestBuiltinHostPortTaken(t *testing.T) {
	newWorld(t)
	b := newBuiltin(t, t.TempDir())
	first, _ := pod(t, b, Request{SandboxID: "first", PortMappings: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	rules := mustRun(t, "nft", "list", "ruleset")

	second := Request{SandboxID: "second", NetNS: "/run/netns/second"}
	second.PortMappings = []PortMapping{{HostPort: 8443, ContainerPort: 443}, {HostIP: "127.0.0.1", HostPort: 8080, ContainerPort: 80}}
	if err := netns.New(second.NetNS); err != nil {
		t.Fatal(err)
	}
	defer netns.Remove(second.NetNS)
	_, err := b.Attach(t.Context(), second)
	if !errors.Is(err, errdefs.ErrAlreadyExists) || !strings.Contains(err.Error(), "first") {
		t.Errorf("got %v, want ErrAlreadyExists that names the holder", err)
	}
	if now := mustRun(t, "nft", "list", "ruleset"); now != rules {
		t.Errorf("the rules have changed:\n%s", now)
	}
	if out := mustRun(t, "ip", "-n", "second", "-br", "link"); strings.Contains(out, "eth0") {
		t.Errorf("the failed sandbox has a link:\n%s", out)
	}
	second.PortMappings = second.PortMappings[:1]
	if _, err := b.Attach(t.Context(), second); err != nil {
		t.Errorf("attach again without the taken port: %v", err)
	}
	detachAll(t, b, first, second)
}

func TestBuiltinUDPHostPort(t *testing.T) {
	w := newWorld(t)
	b := newBuiltin(t, t.TempDir())
	dns := Request{SandboxID: "dns", PortMappings: []PortMapping{{HostPort: 5353, ContainerPort: 53, Protocol: "UDP"}}}
	// The client keeps sending from one port, before the pod is there.
	var client net.Conn
	err := in(w.outside, func() (err error) {
		client, err = net.Dial("udp", hostIP4+":5353")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, _ = client.Write([]byte("early"))
	dns, _ = pod(t, b, dns)
	var server net.PacketConn
	err = in(dns.NetNS, func() (err error) {
		server, err = net.ListenPacket("udp", ":53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_ = server.SetReadDeadline(time.Now().Add(dialLimit))
	_, _ = client.Read(make([]byte, 1)) // the answer to the early packet: port unreachable
	if _, err := client.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, _, err := server.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "late" {
		t.Errorf("got %q, %v; want the flow to follow the new host port", buf[:n], err)
	}
	detachAll(t, b, dns)
}

func TestBuiltinRestart(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	b := newBuiltin(t, dir)
	web, res := pod(t, b, Request{SandboxID: "web", PortMappings: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	dead, deadRes := pod(t, b, Request{SandboxID: "dead", Annotations: map[string]string{egressAnnotation: "10M"},
		PortMappings: []PortMapping{{HostPort: 8081, ContainerPort: 80}}})
	serve(t, web.NetNS, ":80")
	mustReach := func(when string) {
		t.Helper()
		for _, to := range []string{hostIP4 + ":8080", "[" + hostIP6 + "]:8080"} {
			if _, err := ask(w.outside, to); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	mustReach("at first")

	restart := func() {
		t.Helper()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		b = newBuiltin(t, dir)
	}
	restart()
	mustRun(t, "nft", "flush", "ruleset")
	if err := b.Restore(t.Context(), []Request{web}); err != nil {
		t.Fatal(err)
	}
	mustReach("after a restart and flushed rules")
	if _, leased := b.leases.of(dead.SandboxID); leased {
		t.Error("the lease of a sandbox that is gone was kept")
	}
	if out := mustRun(t, "ip", "-br", "link", "show", "type", "ifb"); strings.Contains(out, ifbLink(dead.SandboxID)) {
		t.Errorf("its ifb was kept:\n%s", out)
	}
	next, nextRes := pod(t, b, Request{SandboxID: "next"})
	if nextRes.IPs[0] == res.IPs[0] || nextRes.IPs[0] == deadRes.IPs[0] {
		t.Errorf("the next sandbox got %v, which was just in use", nextRes.IPs[0])
	}

	mustRun(t, "nft", "flush", "ruleset")
	mustRun(t, "ip", "link", "del", b.subnets[0].Bridge)
	if err := b.Status(); err != nil {
		t.Fatal(err)
	}
	mustReach("after Status mended rules and bridge")
	for _, damage := range [][]string{{"flush", "ruleset"}, {"flush", "table", "inet", b.firewall.table}, {"delete", "table", "inet", b.firewall.table}} {
		mustRun(t, "nft", damage...)
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if whole, err := b.firewall.whole(); whole || time.Now().After(deadline) {
				if err != nil || !whole {
					t.Fatalf("after nft %v nobody mended the rules: %v", damage, err)
				}
				break
			}
		}
		mustReach(fmt.Sprintf("after nft %v", damage))
	}

	if err := os.RemoveAll(b.leases.dir); err != nil {
		t.Fatal(err)
	}
	restart()
	if err := b.Restore(t.Context(), []Request{web, next}); err != nil {
		t.Fatal(err)
	}
	if ls, ok := b.leases.of("web"); !ok || b.leases.addrs(ls)[0] != res.IPs[0] {
		t.Error("a lost lease was not taken from the sandbox itself")
	}
	mustReach("after the leases were lost")
	mustRun(t, "ip", "addr", "add", "10.1.2.3/24", "dev", b.subnets[0].Bridge)
	if err := b.mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, "ip", "-4", "-br", "addr", "show", "dev", b.subnets[0].Bridge); strings.Contains(out, "10.1.2.3") {
		t.Errorf("the bridge kept an address of earlier ranges: %s", out)
	}
	mustReach("after the bridge was mended")
	if err := b.Teardown(t.Context()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Teardown with sandboxes attached: %v", err)
	}
	detachAll(t, b, web, next)
}

func TestBuiltinNodesSideBySide(t *testing.T) {
	newWorld(t)
	before := hostState(t)
	a, b := newBuiltin(t, t.TempDir()), newBuiltin(t, t.TempDir())
	onA, _ := pod(t, a, Request{SandboxID: "a"})
	onB, resB := pod(t, b, Request{SandboxID: "b"})
	serve(t, onB.NetNS, ":80")
	if a.ranges.IPv4.Overlaps(b.ranges.IPv4) {
		t.Errorf("both nodes use %v", a.ranges.IPv4)
	}
	detachAll(t, a, onA)
	if value, _ := readSysctl(forwarding4); value != "1" {
		t.Error("the first node that left took the forwarding with it")
	}
	if _, err := ask("", netip.AddrPortFrom(resB.IPs[0], 80).String()); err != nil {
		t.Error(err)
	}
	detachAll(t, b, onB)
	if after := hostState(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestBuiltinSeveralBridges(t *testing.T) {
	newWorld(t)
	b := newBuiltin(t, t.TempDir())
	first, firstRes := pod(t, b, Request{SandboxID: "first"})
	for i := range maxPods - 1 {
		if _, err := b.leases.acquire(fmt.Sprint("filler", i), false); err != nil {
			t.Fatal(err)
		}
	}
	second, secondRes := pod(t, b, Request{SandboxID: "second", PortMappings: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	serve(t, second.NetNS, ":80")
	for i, ip := range secondRes.IPs {
		seen, err := ask(first.NetNS, netip.AddrPortFrom(ip, 80).String())
		if err != nil || seen != firstRes.IPs[i] {
			t.Errorf("from bridge to bridge: seen as %v, %v, want %v", seen, err, firstRes.IPs[i])
		}
	}
	for _, to := range []string{"127.0.0.1:8080", hostIP4 + ":8080", "[" + hostIP6 + "]:8080"} {
		if _, err := ask("", to); err != nil {
			t.Errorf("host port on the second bridge: %v", err)
		}
	}
	for i := range maxPods - 1 {
		if err := b.leases.release(fmt.Sprint("filler", i)); err != nil {
			t.Fatal(err)
		}
	}
	detachAll(t, b, first, second)
	if out := mustRun(t, "ip", "-br", "link", "show", "type", "bridge"); out != "" {
		t.Errorf("bridges left:\n%s", out)
	}
}

func TestBuiltinConcurrentPods(t *testing.T) {
	newWorld(t)
	b := newBuiltin(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			id := fmt.Sprint("p", i)
			req := Request{SandboxID: id, NetNS: "/run/netns/" + id, PortMappings: []PortMapping{{HostPort: int32(8000 + i), ContainerPort: 80}}}
			if err := netns.New(req.NetNS); err != nil {
				t.Error(err)
				return
			}
			defer netns.Remove(req.NetNS)
			res, err := b.Attach(context.Background(), req)
			if err != nil {
				t.Error(err)
				return
			}
			if i%4 == 0 {
				// Status mends while others attach and detach.
				if _, err := run("nft", "flush", "ruleset"); err != nil {
					t.Error(err)
				}
				if err := b.Status(); err != nil {
					t.Error(err)
				}
			}
			if len(res.IPs) != 2 {
				t.Errorf("addresses %v", res.IPs)
			}
			if err := b.Detach(context.Background(), req); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ports := b.ports.all(); len(ports) > 0 {
		t.Errorf("ports left: %v", ports)
	}
	if err := b.mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	detachAll(t, b)
}

// A daemon that was killed while it made its bridge has left one without its mark. The next one goes on with it.
func TestBuiltinCompletesItsBridge(t *testing.T) {
	newWorld(t)
	dir := t.TempDir()
	killed := newBuiltin(t, dir)
	if _, err := killed.makeBridge(killed.subnets[0]); err != nil {
		t.Fatal(err)
	}
	b := newBuiltin(t, dir)
	req, _ := pod(t, b, Request{SandboxID: "x"})
	detachAll(t, b, req)

	if _, err := killed.makeBridge(killed.subnets[0]); err != nil {
		t.Fatal(err)
	}
	if err := newBuiltin(t, dir).Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, "ip", "-br", "link", "show", "type", "bridge"); out != "" {
		t.Errorf("a bridge is left:\n%s", out)
	}
}

// Each queue is a folder in /sys that is made with the link, and the kernel would make one for each processor.
func TestBuiltinLinksHaveOneQueue(t *testing.T) {
	newWorld(t)
	b := newBuiltin(t, t.TempDir())
	req, _ := pod(t, b, Request{SandboxID: "x"})
	for path, name := range map[string]string{"": hostLink(req.SandboxID), req.NetNS: InterfaceName} {
		err := in(path, func() error {
			link, err := netlink.LinkByName(name)
			if err == nil && (link.Attrs().NumTxQueues != 1 || link.Attrs().NumRxQueues != 1) {
				t.Errorf("%s has %d and %d queues", name, link.Attrs().NumTxQueues, link.Attrs().NumRxQueues)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := b.Detach(t.Context(), req); err != nil {
		t.Error(err)
	}
	detachAll(t, b)
}

func TestBuiltinFailedAttachLeavesNothing(t *testing.T) {
	newWorld(t)
	b := newBuiltin(t, t.TempDir())
	req := Request{SandboxID: "x", NetNS: "/run/netns/x", PortMappings: []PortMapping{{HostPort: 8080, ContainerPort: 80}}}
	if err := netns.New(req.NetNS); err != nil {
		t.Fatal(err)
	}
	defer netns.Remove(req.NetNS)
	mustRun(t, "ip", "-n", "x", "link", "add", InterfaceName, "type", "bridge")
	if _, err := b.Attach(t.Context(), req); err == nil {
		t.Fatal("attached to a namespace that has an eth0")
	}
	if out := mustRun(t, "ip", "-br", "link", "show", "type", "veth"); strings.Contains(out, hostLink("x")) {
		t.Errorf("a link is left:\n%s", out)
	}
	if len(b.leases.all()) > 0 || len(b.ports.all()) > 0 {
		t.Error("a lease or a host port is left")
	}
	detachAll(t, b)
}

func TestBuiltinShapes(t *testing.T) {
	newWorld(t)
	b := newBuiltin(t, t.TempDir())
	req, res := pod(t, b, Request{SandboxID: "slow", Annotations: map[string]string{ingressAnnotation: "8M", egressAnnotation: "16M"}})
	serve(t, req.NetNS, ":80")
	serve(t, "", ":9000")
	for link, rate := range map[string]string{hostLink("slow"): "rate 8Mbit", ifbLink("slow"): "rate 16Mbit"} {
		if out := mustRun(t, "tc", "qdisc", "show", "dev", link); !strings.Contains(out, "tbf") || !strings.Contains(out, rate) {
			t.Errorf("queue of %s: %s", link, out)
		}
	}
	if _, err := ask("", netip.AddrPortFrom(res.IPs[0], 80).String()); err != nil {
		t.Error(err)
	}
	if _, err := ask(req.NetNS, hostIP4+":9000"); err != nil {
		t.Error(err)
	}
	if out := mustRun(t, "tc", "-s", "qdisc", "show", "dev", ifbLink("slow")); strings.Contains(out, "Sent 0 bytes") {
		t.Errorf("what the pod sends passes its limit by: %s", out)
	}
	detachAll(t, b, req)
	if out := mustRun(t, "ip", "-br", "link", "show", "type", "ifb"); strings.Contains(out, ifbLink("slow")) {
		t.Errorf("the ifb is left: %s", out)
	}
}

func BenchmarkBuiltinAttach(b *testing.B) {
	newWorld(b)
	n := newBuiltin(b, b.TempDir())
	warm, _ := pod(b, n, Request{SandboxID: "warm"})
	var reqs []Request
	for b.Loop() {
		b.StopTimer()
		req := Request{SandboxID: "bench" + string(rune('a'+len(reqs)%26)) + shortHash(time.Now().String())}
		req.NetNS = "/run/netns/" + req.SandboxID
		if err := netns.New(req.NetNS); err != nil {
			b.Fatal(err)
		}
		reqs = append(reqs, req)
		b.StartTimer()
		if _, err := n.Attach(context.Background(), req); err != nil {
			b.Fatal(err)
		}
		if len(reqs) == 200 {
			b.StopTimer()
			for _, r := range reqs {
				_, _ = n.Detach(context.Background(), r), netns.Remove(r.NetNS)
			}
			reqs = nil
			b.StartTimer()
		}
	}
	for _, r := range reqs {
		_, _ = n.Detach(context.Background(), r), netns.Remove(r.NetNS)
	}
	detachAll(b, n, warm)
}
