package network

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/berth-node/berth/network/netns"
)

// dialLimit is long for a connection within one machine, and short enough to see that one never comes.
const dialLimit = 3 * time.Second

// in runs fn in the namespace at path; on the host where path is empty.
func in(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	return netns.Do(path, fn)
}

// serve answers connections to addr in the namespace at path with the address that they come from.
func serve(t testing.TB, path, addr string) {
	t.Helper()
	var l net.Listener
	err := in(path, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.RemoteAddr().String())
			_ = c.Close()
		}
	}()
}

// ask connects from the namespace at path and returns the address that the server saw.
func ask(path, addr string) (netip.Addr, error) {
	var seen []byte
	err := in(path, func() error {
		c, err := net.DialTimeout("tcp", addr, dialLimit)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(dialLimit)); err != nil {
			return err
		}
		seen, err = io.ReadAll(c)
		return err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	from, err := netip.ParseAddrPort(string(seen))
	return from.Addr().Unmap(), err
}

// hostWorld is the host of the tests with a link to a machine outside, which knows no route to pods.
type hostWorld struct{ outside string }

const (
	hostIP4, outsideIP4 = "192.0.2.1", "192.0.2.9"
	hostIP6, outsideIP6 = "2001:db8::1", "2001:db8::9"
)

func newWorld(t testing.TB) hostWorld {
	t.Helper()
	needHost(t)
	w := hostWorld{outside: "/run/netns/outside"}
	if err := netns.New(w.outside); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = run("ip", "link", "del", "uplink")
		if err := netns.Remove(w.outside); err != nil {
			t.Error(err)
		}
	})
	mustRun(t, "ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", "outside")
	mustRun(t, "ip", "addr", "add", hostIP4+"/24", "dev", "uplink")
	mustRun(t, "ip", "addr", "add", hostIP6+"/64", "dev", "uplink", "nodad")
	mustRun(t, "ip", "link", "set", "uplink", "up")
	mustRun(t, "ip", "-n", "outside", "addr", "add", outsideIP4+"/24", "dev", "eth0")
	mustRun(t, "ip", "-n", "outside", "addr", "add", outsideIP6+"/64", "dev", "eth0", "nodad")
	mustRun(t, "ip", "-n", "outside", "link", "set", "eth0", "up")
	return w
}

// pod makes a namespace and attaches it.
func pod(t testing.TB, a Attacher, req Request) (Request, Result) {
	t.Helper()
	req.NetNS = "/run/netns/" + req.SandboxID
	if err := netns.New(req.NetNS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(req.NetNS); err != nil {
			t.Error(err)
		}
	})
	res, err := a.Attach(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return req, res
}
