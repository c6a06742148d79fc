package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/berth-node/berth/internal/errdefs"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Every key has a comment of its own, and what WriteDefault writes is what Default returns.
func TestDefaultIsDocumented(t *testing.T) {
	var out bytes.Buffer
	if err := WriteDefault(&out); err != nil {
		t.Fatal(err)
	}
	got, err := Load(write(t, out.String()))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, Default()) {
		t.Errorf("the written default loads as\n%+v\nwant\n%+v", got, Default())
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	documented(t, doc.Content[0], reflect.TypeFor[Config](), "")
	for _, key := range keysOf(reflect.TypeFor[Handler]()) {
		if !strings.Contains(out.String(), key+":") {
			t.Errorf("runtimeHandlers.<name>.%s is not there", key)
		}
	}
}

func documented(t *testing.T, n *yaml.Node, typ reflect.Type, prefix string) {
	t.Helper()
	sections := map[string]bool{"network.": true, "cgroup.": true, "image.": true, "container.": true, "exec.": true, "log.": true, "metrics.": true}
	for i := range typ.NumField() {
		field := typ.Field(i)
		key := field.Tag.Get("yaml")
		found := false
		for j := 0; j+1 < len(n.Content); j += 2 {
			if n.Content[j].Value != key {
				continue
			}
			found = true
			if n.Content[j].HeadComment == "" && !sections[prefix+key+"."] {
				t.Errorf("%s%s has no comment", prefix, key)
			}
			if field.Type.Kind() == reflect.Struct {
				documented(t, n.Content[j+1], field.Type, prefix+key+".")
			}
		}
		if !found {
			t.Errorf("%s%s is not in the default", prefix, key)
		}
	}
}

// Other parts and other programs rely on these.
func TestDefaultValues(t *testing.T) {
	c := Default()
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	if c.RunDir != DefaultRunDir || c.RootDir != "/var/lib/berth" || c.Network.Mode != NetworkBuiltin || c.Cgroup.Driver != CgroupAuto ||
		c.Exec.MaxOutput != 16<<20 || c.Exec.DrainTimeout != 5*time.Second || c.Log.MaxContainerLogLineSize != 16384 ||
		!c.NRI.Enable || !c.Container.EnableUnprivilegedPorts || len(c.Image.RegistryHostsDirs) != 3 {
		t.Errorf("got %+v", c)
	}
	if _, ok := c.RuntimeHandlers["runc"]; !ok {
		t.Error("no handler runc, which clusters have RuntimeClasses for")
	}
}

func TestLoadOverDefaults(t *testing.T) {
	got, err := Load(write(t, `
runDir: /run/two
network: {mode: cni, cniBinDirs: [/a]}
runtimeHandlers:
  nvidia:
    cdiDevices: [nvidia.com/gpu=all]
  kata: {}
image:
  pullProgressTimeout: 90s
  pinned: []
nri: {enable: false}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.RunDir = "/run/two"
	want.Network.Mode, want.Network.CNIBinDirs = NetworkCNI, []string{"/a"}
	want.RuntimeHandlers = map[string]Handler{"nvidia": {CDIDevices: []string{"nvidia.com/gpu=all"}}, "kata": {}}
	want.Image.PullProgressTimeout = 90 * time.Second
	want.NRI.Enable = false
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	for _, empty := range []string{"", "# nothing\n", "{}\n"} {
		if got, err := Load(write(t, empty)); err != nil || !reflect.DeepEqual(got, Default()) {
			t.Errorf("%q: %+v, %v", empty, got, err)
		}
	}
}

func TestLoadNamesFaults(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string // each after the file's name
	}{
		{"unknown key", "rootDir: /a\nrotDir: /b\n", []string{":2: rotDir: unknown key"}},
		{"unknown key inside", "log:\n  level: info\n  levle: debug\n", []string{":3: log.levle: unknown key; there are level, format"}},
		{"key twice", "runDir: /a\nrunDir: /b\n", []string{":2: runDir: is there twice"}},
		{"no YAML", "a: [\n", []string{": line 1:"}},
		{"not keys", "- a\n", []string{":1: want keys with values, not a list"}},
		{"section without keys", "log: debug\n", []string{`:1: log: want keys with values, not "debug"`}},
		{"empty section", "log:\n", []string{":1: log: want keys with values, not nothing"}},
		{"number for a string", "rootDir: 7\n", []string{`:1: rootDir: want a string, not "7"`}},
		{"string for a number", "\nstreaming: {port: http}\n", []string{`:2: streaming.port: want a whole number, not "http"`}},
		{"fraction", "streaming: {port: 1.5}\n", []string{`:1: streaming.port: want a whole number`}},
		{"number too large", "streaming: {port: 99999999999999999999}\n", []string{`:1: streaming.port: want a whole number`}},
		{"yes", "nri: {enable: \"yes\"}\n", []string{`:1: nri.enable: want true or false`}},
		{"time without unit", "exec:\n  drainTimeout: 5\n", []string{`:2: exec.drainTimeout: want a time with a unit`}},
		{"string for a list", "image: {pinned: a}\n", []string{`:1: image.pinned: want a list`}},
		{"two documents", "{}\n---\n{}\n", []string{": more than one YAML document"}},
		{"bad mode", "network:\n  mode: calico\n", []string{`:2: network.mode: "calico" is neither`}},
		{"logs", "kubelet:\n  containerLogMaxFiles: 1\n  containerLogMonitorInterval: 0s\n", []string{
			`:2: kubelet.containerLogMaxFiles: 1 is less than two`, `:3: kubelet.containerLogMonitorInterval: 0s is no interval`,
		}},
		{"priorities in no order", "kubelet:\n  shutdownGracePeriodByPodPriority:\n  - {priority: 5, shutdownGracePeriodSeconds: 10}\n  - {priority: 5, shutdownGracePeriodSeconds: -1}\n", []string{
			`:4: kubelet.shutdownGracePeriodByPodPriority[1].priority: 5 is not more than`, `:4: kubelet.shutdownGracePeriodByPodPriority[1].shutdownGracePeriodSeconds: -1 is less than nothing`,
		}},
		{"relative path in a list", "network:\n  cniBinDirs:\n  - /a\n  - b\n", []string{`:4: network.cniBinDirs[1]: "b" is not an absolute path`}},
		{"bad driver", "cgroup: {driver: openrc}\n", []string{`:1: cgroup.driver: "openrc" is none of`}},
		{"bad level", "log: {level: loud}\n", []string{`:1: log.level: "loud"`}},
		{"IPv6 as IPv4", "network: {builtin: {ipv4Pool: \"fd00::/20\"}}\n", []string{":1: network.builtin.ipv4Pool:"}},
		{"range too small", "network: {builtin: {ipv6Prefix: \"fd00::/120\"}}\n", []string{":1: network.builtin.ipv6Prefix:"}},
		{"long bridge", "network: {builtin: {bridge: a-very-long-name}}\n", []string{":1: network.builtin.bridge:"}},
		{"mtu", "network: {builtin: {mtu: 100}}\n", []string{":1: network.builtin.mtu: 100 is not between"}},
		{"open metrics", "metrics: {address: \"0.0.0.0:9000\"}\n", []string{`:1: metrics.address: "0.0.0.0:9000" is not on the loopback`}},
		{"metrics without port", "metrics: {address: localhost}\n", []string{`:1: metrics.address: "localhost" is neither`}},
		{"no time at all", "nri: {requestTimeout: 0s}\n", []string{":1: nri.requestTimeout: 0s is not longer"}},
		{"handler name", "runtimeHandlers:\n  Kata_1: {}\n", []string{":2: runtimeHandlers.Kata_1: a handler's name"}},
		{"handler key", "runtimeHandlers:\n  kata:\n    path: /a\n", []string{":3: runtimeHandlers.kata.path: unknown key"}},
		{"CDI device", "runtimeHandlers:\n  gpu:\n    cdiDevices: [gpu0]\n", []string{":3: runtimeHandlers.gpu.cdiDevices[0]: "}},
		{"one folder for both", "rootDir: /run/berth\n", []string{": runDir: is rootDir"}},
		{"several, in order", "log:\n  level: loud\n  format: xml\ncriSocketGroup: -1\n", []string{":2: log.level", ":3: log.format", ":4: criSocketGroup"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := write(t, tc.text)
			_, err := Load(path)
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Fatalf("got %v, want an invalid argument", err)
			}
			rest := err.Error()
			for _, want := range tc.want {
				_, after, found := strings.Cut(rest, path+want)
				if !found {
					t.Fatalf("got %q, want %q in it, in order", err, path+want)
				}
				rest = after
			}
		})
	}
	if _, err := Load("/nowhere/config.yaml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestResolve(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"berth", "berth-keeper", "berth-launch"} {
		if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(bin, "berth")
	for _, tc := range []struct {
		name              string
		change            func(*Config)
		cri, nri, metrics string
	}{
		{"default", func(*Config) {}, "/run/berth/berth.sock", "/var/run/nri/nri.sock", "/run/berth/metrics.sock"},
		{"a second node", func(c *Config) { c.RunDir = "/run/two" }, "/run/two/berth.sock", "/run/two/nri.sock", "/run/two/metrics.sock"},
		{"sockets given", func(c *Config) {
			c.RunDir, c.CRISocket, c.NRI.SocketPath, c.Metrics.Address = "/run/two", "/a", "/b", "localhost:1"
		}, "/a", "/b", "localhost:1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Default()
			tc.change(&c)
			if err := c.Resolve(exe); err != nil {
				t.Fatal(err)
			}
			if c.CRISocket != tc.cri || c.NRI.SocketPath != tc.nri || c.Metrics.Address != tc.metrics {
				t.Errorf("got %q, %q, %q", c.CRISocket, c.NRI.SocketPath, c.Metrics.Address)
			}
			if c.Keeper != bin+"/berth-keeper" || c.Launch != bin+"/berth-launch" {
				t.Errorf("programs %q, %q", c.Keeper, c.Launch)
			}
		})
	}
	for _, tc := range []struct {
		name   string
		change func(*Config)
		exe    string
		want   error
	}{
		{"long socket path", func(c *Config) { c.RunDir = "/" + strings.Repeat("r", 100) }, exe, errdefs.ErrInvalidArgument},
		{"bad flag", func(c *Config) { c.Network.Mode = "x" }, exe, errdefs.ErrInvalidArgument},
		{"no launcher", func(c *Config) { c.Keeper = KeeperExternal }, "/nowhere/berth", errdefs.ErrNotFound},
		{"keeper is not where it is said to be", func(c *Config) { c.Keeper = "/nowhere/keeper" }, exe, os.ErrNotExist},
	} {
		c := Default()
		tc.change(&c)
		if err := c.Resolve(tc.exe); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	c := Default()
	c.Keeper = KeeperExternal
	if err := c.Resolve(exe); err != nil || c.Keeper != KeeperExternal {
		t.Errorf("external keeper: %q, %v", c.Keeper, err)
	}
}
