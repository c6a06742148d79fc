package network

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/containernetworking/cni/pkg/version"
)

// A plugin prints what it likes: it is a result with an address of the pod, or an error.
func FuzzCNIResult(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","interfaces":[null],"ips":[null],"routes":[null]}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","ips":[{"interface":-1,"address":"::1/1"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := (&version.ConfigDecoder{}).Decode(data)
		if err != nil {
			return
		}
		said, err := create.Create(v, data)
		if err != nil {
			return
		}
		res, err := resultOf(said)
		if err != nil {
			return
		}
		if len(res.IPs) == 0 || !json.Valid(res.Raw) {
			t.Errorf("%s is %+v", data, res)
		}
		for _, ip := range res.IPs {
			if !ip.IsValid() {
				t.Errorf("%s gives %v", data, res.IPs)
			}
		}
	})
}

// A folder of configurations of noise: a network that can be called, or an error that names the file.
func FuzzCNIConf(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}`), true)
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[null,{}]}`), true)
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"../x","type":"bridge"}`), false)
	f.Fuzz(func(t *testing.T, data []byte, list bool) {
		dir := t.TempDir()
		path := filepath.Join(dir, "10-x.conf")
		if list {
			path += "list"
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		conf, err := loadConf(dir)
		if err != nil {
			if !strings.Contains(err.Error(), path) {
				t.Errorf("the error does not name %s: %v", path, err)
			}
			return
		}
		if conf.Name == "" {
			t.Errorf("%s has no name", data)
		}
		for _, p := range conf.Plugins {
			if p == nil || p.Network == nil {
				t.Errorf("%s has a plugin of nothing", data)
			}
		}
	})
}

func FuzzRate(f *testing.F) {
	for _, s := range []string{"10M", "1e3", "NaN", "Inf", "-1k", "0x1p20", "1_000k"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if rate, err := parseRate(s); err == nil && (rate < 1e3 || rate > 1e15) {
			t.Errorf("%q is %d", s, rate)
		}
	})
}

func FuzzPodCIDRs(f *testing.F) {
	f.Add("10.0.0.0/24,fd00::/64")
	f.Add(" ,")
	f.Fuzz(func(t *testing.T, s string) {
		prefixes, err := parsePodCIDRs(s)
		for _, p := range prefixes {
			if err == nil && (!p.IsValid() || p.Masked() != p) {
				t.Errorf("%q gives %v", s, p)
			}
		}
	})
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 10.0.0.1\nnameserver fe80::1%eth0\n#x\nnameserver x\n"))
	path := filepath.Join(f.TempDir(), "resolv.conf")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, p := range nameServers(path) {
			if !p.IsValid() || p.Addr().IsLoopback() || p.Addr().Zone() != "" {
				t.Errorf("%q gives %v", data, p)
			}
		}
	})
}

func FuzzChains(f *testing.F) {
	f.Add([]byte(`{"nftables":[{"chain":{"family":"ip","table":"filter","name":"FORWARD","hook":"forward","policy":"drop"}},null,{"chain":null}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, w := range droppingChains(data) {
			if w == "" {
				t.Error("an empty warning")
			}
		}
	})
}

// A lease of noise frees its address, one that can be read holds it; either way the folder opens.
func FuzzLease(f *testing.F) {
	f.Add("10.9.0.2", []byte(`{"sandboxID":"s"}`))
	f.Add("10.9.0.255", []byte(`{}`))
	f.Add("::1", []byte(`null`))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > 200 {
			return
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := openLeases(dir, []subnet{{IPv4: netip.MustParsePrefix("10.9.0.0/24"), IPv6: netip.MustParsePrefix("fd00::/64")}}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for id, got := range l.bySandbox {
			if id == "" || got.host < 2 {
				t.Errorf("%q with %q is %+v", name, data, got)
			}
		}
	})
}

func FuzzAttachment(f *testing.F) {
	f.Add([]byte(`{"request":{"sandboxID":"s"}}`))
	f.Add([]byte(`{"request":{"sandboxID":"../x"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := attachments{t.TempDir(), slog.New(slog.DiscardHandler)}
		path, err := s.path("s")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := s.load("s")
		if err == nil && a.Request.SandboxID != "s" {
			t.Errorf("%q is an attachment of %q", data, a.Request.SandboxID)
		}
		if _, there := os.Stat(path); (err == nil) != (there == nil) {
			t.Errorf("error %v, and the file: %v", err, there)
		}
	})
}
