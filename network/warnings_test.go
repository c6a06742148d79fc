package network

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestDroppingChains(t *testing.T) {
	cases := []struct {
		name, out string
		want      []string // what the warnings speak of
	}{
		{"nothing", `{"nftables": [{"metainfo": {"version": "1.0.6"}}]}`, nil},
		{"berth's own", `{"nftables": [{"chain": {"family": "inet", "table": "berth", "name": "prerouting", "handle": 7, "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}}]}`, nil},
		{"Docker", `{"nftables": [
			{"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 1}},
			{"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 2, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}]}`,
			[]string{"ip filter FORWARD"}},
		{"firewalld", `{"nftables": [
			{"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "handle": 2, "type": "filter", "hook": "forward", "prio": 10, "policy": "accept"}},
			{"chain": {"family": "inet", "table": "firewalld", "name": "mangle_FORWARD", "handle": 3, "type": "filter", "hook": "forward", "prio": -140, "policy": "accept"}}]}`,
			[]string{"firewalld"}},
		{"a policy for input", `{"nftables": [{"chain": {"family": "inet", "table": "f", "name": "input", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}}]}`, nil},
		{"no JSON", `Error`, nil},
	}
	for _, c := range cases {
		got := droppingChains([]byte(c.out))
		if len(got) != len(c.want) {
			t.Errorf("%s: got %q", c.name, got)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s: got %q, want it to speak of %s", c.name, got[i], want)
			}
		}
	}
}

func TestNameServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# comment\nsearch a.example\nnameserver 10.64.0.53\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver\noptions ndots:5\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := nameServers(path), prefixes("10.64.0.53/32", "fe80::1/128"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestBuiltinWarnsOfADroppingFirewall(t *testing.T) {
	newWorld(t)
	b := newBuiltin(t, t.TempDir())
	mustRun(t, "nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
	defer run("nft", "delete table ip filter")
	mustRun(t, "ip", "route", "add", b.subnets[0].IPv4.String(), "via", outsideIP4)
	all := strings.Join(b.Warnings(), "\n")
	for _, want := range []string{"ip filter FORWARD", "overlap"} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing about %s in:\n%s", want, all)
		}
	}
}
