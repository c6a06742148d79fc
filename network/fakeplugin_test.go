package network

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakeName is the name of a plugin that is this test program. What it does stands in its configuration.
const fakeName = "berth-fake"

// fakeConf is its configuration.
type fakeConf struct {
	// Do is, by command, how it behaves: empty (well), fail, fail once, hang, orphan (hang in a child that holds the
	// output), slow (until its log has a sibling with the name go; says what it has inherited), rubbish or flood.
	Do map[string]string `json:"do"`
	// Log is a file that gets a line for each call.
	Log           string          `json:"log"`
	RuntimeConfig json.RawMessage `json:"runtimeConfig"`
}

func fakePlugin() int {
	var conf fakeConf
	input, _ := io.ReadAll(os.Stdin)
	if err := json.Unmarshal(input, &conf); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	command := os.Getenv("CNI_COMMAND")
	log, err := os.OpenFile(conf.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintf(log, "%s id=%s netns=%s if=%s args=%s conf=%s\n", command, os.Getenv("CNI_CONTAINERID"),
		os.Getenv("CNI_NETNS"), os.Getenv("CNI_IFNAME"), os.Getenv("CNI_ARGS"), conf.RuntimeConfig)
	do := conf.Do[command]
	if do == "fail once" {
		if os.Mkdir(conf.Log+"-"+command, 0o700) == nil {
			do = "fail"
		}
	}
	switch do {
	case "fail":
		fmt.Fprintln(os.Stderr, "last words")
		fmt.Println(`{"cniVersion":"1.1.0","code":11,"msg":"no more addresses"}`)
		return 1
	case "hang":
		select {}
	case "slow":
		inherited, _ := os.Readlink("/proc/self/fd/3")
		for _, err := os.Stat(conf.Log + "-go"); err != nil; _, err = os.Stat(conf.Log + "-go") {
			time.Sleep(time.Millisecond)
		}
		fmt.Fprintln(log, "ended", inherited)
	case "orphan":
		child := exec.Command("sleep", "1000")
		child.Stdout = os.Stdout
		if err := child.Start(); err != nil {
			return 1
		}
		select {}
	case "rubbish":
		fmt.Println("Segmentation fault")
		return 0
	case "flood":
		fmt.Println(strings.Repeat("x", 2*maxPluginOutput))
		return 0
	}
	if command == "ADD" {
		fmt.Printf(`{"cniVersion":"1.1.0","interfaces":[{"name":"host0"},{"name":"eth0","sandbox":%q}],"ips":[
			{"address":"fd00::5/64","interface":1},{"address":"10.1.0.5/24","interface":1},{"address":"10.9.9.9/24","interface":0}]}`,
			os.Getenv("CNI_NETNS"))
	}
	return 0
}

// A fakeNetwork is a configuration folder with the fake plugin as its network.
type fakeNetwork struct {
	t            *testing.T
	dir, log     string
	confDir, bin string
}

func newFakeNetwork(t *testing.T) fakeNetwork {
	t.Helper()
	dir := t.TempDir()
	f := fakeNetwork{t, dir, filepath.Join(dir, "log"), filepath.Join(dir, "etc", "cni", "net.d"), filepath.Join(dir, "bin")}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(f.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(f.bin, fakeName)); err != nil {
		t.Fatal(err)
	}
	return f
}

// write puts a configuration into the folder, which is made when missing.
func (f fakeNetwork) write(file string, do map[string]string) {
	f.t.Helper()
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "net-" + strings.TrimSuffix(file, ".conflist"),
		"plugins": []any{map[string]any{
			"type": fakeName, "do": do, "log": f.log,
			"capabilities": map[string]bool{"portMappings": true, "bandwidth": true, "dns": true, "ipRanges": true,
				"aliases": true, "io.kubernetes.cri.pod-annotations": true, "cgroupPath": true},
		}},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.writeText(file, string(conf))
}

func (f fakeNetwork) writeText(file, text string) {
	f.t.Helper()
	if err := os.MkdirAll(f.confDir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.confDir, file), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// calls returns what the plugin logged since the last time.
func (f fakeNetwork) calls() []string {
	f.t.Helper()
	data, err := os.ReadFile(f.log)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.Remove(f.log); err != nil {
		f.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func (f fakeNetwork) open() *CNI {
	f.t.Helper()
	c, err := NewCNI(CNIConfig{ConfDir: f.confDir, BinDirs: []string{f.bin}, CacheDir: filepath.Join(f.dir, "cache")})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}
