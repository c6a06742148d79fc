package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/network"
)

// programs makes a folder with the three programs and returns the path of berth.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"berth", "berth-keeper", "berth-launch"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "berth")
}

func parse(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	set := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	serveFlags(set)
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return set
}

func TestConfigure(t *testing.T) {
	exe := programs(t)
	dir := filepath.Dir(exe)
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := "rootDir: /file/root\nrunDir: /file/run\nlog: {level: warn}\nnetwork: {cniBinDirs: [/file/bin], mode: cni}\nmetrics: {pprof: true}\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		want func(*config.Config) // over the default, before it is resolved
	}{
		{"file alone", nil, func(*config.Config) {}},
		{"sockets follow the run dir", []string{"--run-dir=/flag/run"}, func(c *config.Config) { c.RunDir = "/flag/run" }},
		{"every flag", []string{
			"--root-dir=/a", "--run-dir=/b", "--cri-socket=/c", "--network=builtin", "--cni-conf-dir=/d", "--cni-bin-dir=/e,1",
			"--cni-bin-dir", "/f", "--registry-hosts-dir=/g", "--keeper=external", "--launch", exe, "--cgroup-driver=systemd",
			"--pprof=false", "--log-level=debug", "--log-format=json", "--nri-socket=/h",
		}, func(c *config.Config) {
			c.RootDir, c.RunDir, c.CRISocket, c.Network.Mode, c.Network.CNIConfDir = "/a", "/b", "/c", "builtin", "/d"
			c.Network.CNIBinDirs, c.Image.RegistryHostsDirs = []string{"/e,1", "/f"}, []string{"/g"}
			c.Keeper, c.Launch, c.Cgroup.Driver, c.Metrics.Pprof = config.KeeperExternal, exe, "systemd", false
			c.Log.Level, c.Log.Format, c.NRI.SocketPath = "debug", "json", "/h"
		}},
		{"relative paths", []string{"--root-dir=x/y", "--cni-bin-dir=z"}, func(c *config.Config) {
			c.RootDir, c.Network.CNIBinDirs = filepath.Join(cwd, "x/y"), []string{filepath.Join(cwd, "z")}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := configure(parse(t, append(tc.args, "--config", file)...), exe)
			if err != nil {
				t.Fatal(err)
			}
			want := config.Default()
			want.RootDir, want.RunDir, want.Log.Level, want.Metrics.Pprof = "/file/root", "/file/run", "warn", true
			want.Network.Mode, want.Network.CNIBinDirs = "cni", []string{"/file/bin"}
			tc.want(&want)
			if err := want.Resolve(exe); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got\n%+v\nwant\n%+v", got, want)
			}
			if tc.args == nil && (got.CRISocket != "/file/run/berth.sock" || got.Keeper != dir+"/berth-keeper") {
				t.Errorf("socket %q, keeper %q", got.CRISocket, got.Keeper)
			}
		})
	}
}

func TestConfigureErrors(t *testing.T) {
	exe := programs(t)
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("log:\n  levle: info\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		want error
		text string
	}{
		{"a file that is named must be there", []string{"--config=/nowhere"}, fs.ErrNotExist, "/nowhere"},
		{"bad file", []string{"--config=" + bad}, errdefs.ErrInvalidArgument, bad + ":2: log.levle"},
		{"bad flag", []string{"--network=calico"}, errdefs.ErrInvalidArgument, "network.mode"},
		{"no program", []string{"--launch=/nowhere"}, fs.ErrNotExist, "berth-launch"},
	} {
		_, err := configure(parse(t, tc.args...), exe)
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %v with %q", tc.name, err, tc.want, tc.text)
		}
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	log, err := logger(config.Log{Level: "warn", Format: "json"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("quiet")
	log.Warn("loud")
	if got := out.String(); strings.Contains(got, "quiet") || !strings.HasPrefix(got, "{") || !strings.Contains(got, `"msg":"loud"`) {
		t.Errorf("got %q", got)
	}
	if _, err := logger(config.Log{Level: "loud"}, &out); err == nil {
		t.Error("a level that is none is taken")
	}
}

// systemd wants the time of a reload in its own words.
func TestReloading(t *testing.T) {
	if s := reloading(); !strings.HasPrefix(s, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("told systemd %q", s)
	}
}

// The commands are those that the documentation names.
func TestCommands(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string // part of the output
		fail bool
	}{
		{args: []string{"version"}, want: "berth " + version},
		{args: []string{"config", "default"}, want: "rootDir: /var/lib/berth"},
		{args: []string{"config", "check", "/nowhere"}, fail: true},
		{args: []string{"serve", "extra"}, fail: true},
		{args: []string{"serve", "--help"}, want: "--registry-hosts-dir"},
		{args: []string{"upgrade", "--help"}, want: "--program"},
	} {
		var out bytes.Buffer
		root := rootCommand()
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(tc.args)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := root.ExecuteContext(ctx)
		cancel()
		if (err != nil) != tc.fail || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%v: %v, output %q", tc.args, err, out.String())
		}
	}
}

// The names of the bridge and of the nftables table that the documentation has are those of the default folders.
func TestDefaultNetworkHasPlainNames(t *testing.T) {
	if got := filepath.Join(config.Default().RootDir, "network"); got != network.DefaultStateDir {
		t.Errorf("the network's state is in %s, and its names are plain in %s", got, network.DefaultStateDir)
	}
}
