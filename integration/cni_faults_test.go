//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// chainedFault is a plugin that stands behind the reference plugins of a network. What it does is what a file says, by
// command and pod: it may hang, fail, print rubbish, or die half-way.
const chainedFault = `#!/bin/sh
conf=$(cat)
pod=$(echo "$CNI_ARGS" | sed -n 's/.*K8S_POD_NAME=\([^;]*\).*/\1/p')
echo "$CNI_COMMAND $pod" >>%[1]s/calls
what=$(sed -n "s/^$CNI_COMMAND ${pod%%-*} //p" %[1]s/do 2>/dev/null)
case $what in
hang) exec sleep 3456 ;;
fail) echo "said to stderr" >&2; echo '{"cniVersion":"1.0.0","code":11,"msg":"the back end is down"}'; exit 1 ;;
rubbish) echo "Segmentation fault (core dumped)"; exit 0 ;;
die) echo '{"cniVersion":"1.0.0","ips":[{"addr'; kill -KILL $$ ;;
esac
case $CNI_COMMAND in
ADD) echo "$conf" | sed -n 's/.*"prevResult":\({.*}\),"type".*/\1/p' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
esac
`

// faultyCNI is a node with the reference plugins bridge, portmap and bandwidth, and a faulty plugin behind them.
type faultyCNI struct {
	node *harness.Node
	dir  string // of the faulty plugin's files
}

func newFaultyCNI(t *testing.T) *faultyCNI {
	t.Helper()
	dir := t.TempDir()
	network, err := harness.NewCNI(dir, "berthtest1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the node's own end
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	f := &faultyCNI{dir: dir}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	plugins, err := os.ReadDir(network.BinDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range plugins {
		if err := os.Symlink(filepath.Join(network.BinDir, p.Name()), filepath.Join(bin, p.Name())); err != nil {
			t.Fatal(err)
		}
	}
	network.BinDir = bin
	if err := os.WriteFile(filepath.Join(bin, "faulty"), fmt.Appendf(nil, chainedFault, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	f.chain(t, filepath.Join(network.ConfDir, "10-test.conflist"))
	f.node = ownNode(t, func(o *harness.Options) { o.CNI = network })
	return f
}

// chain adds bandwidth and the faulty plugin to a configuration.
func (f *faultyCNI) chain(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	var conf map[string]any
	if err == nil {
		err = json.Unmarshal(data, &conf)
	}
	if err != nil {
		t.Fatal(err)
	}
	conf["plugins"] = append(conf["plugins"].([]any),
		map[string]any{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}}, map[string]any{"type": "faulty"})
	if data, err = json.Marshal(conf); err == nil {
		err = os.WriteFile(file, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// behave says what the plugin does: lines of command, pod (its name up to the first dash) and fault.
func (f *faultyCNI) behave(t *testing.T, lines ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, "do"), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// leases are the addresses that the IPAM plugin has given away.
func (f *faultyCNI) leases(t *testing.T) (found []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(f.dir, "ipam"), func(path string, d os.DirEntry, err error) error {
		if err == nil && net.ParseIP(d.Name()) != nil {
			found = append(found, d.Name())
		}
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

const faultyPort = 12078

func withPortAndBandwidth(c *cri.PodSandboxConfig) {
	c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: faultyPort}}
	c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "10M"}
}

// An ADD that comes to nothing names the plugin, gives back what the plugins before it took, and holds up nobody else.
func TestCNIPluginFailsToAdd(t *testing.T) {
	f := newFaultyCNI(t)
	n := f.node
	for fault, words := range map[string]string{
		"fail": "the back end is down", "rubbish": "Segmentation fault", "die": "killed", "hang": "killed",
	} {
		t.Run(fault, func(t *testing.T) {
			f.behave(t, "ADD bad "+fault)
			config := n.PodConfig("bad")
			withPortAndBandwidth(config)
			ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(time.Minute))
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				_, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
				failed <- err
			}()
			if fault == "hang" {
				// Others go on meanwhile, more of them than plugins may run at once.
				harness.Eventually(t, 10*time.Second, "the plugin to hang", func() error {
					if len(processesWith("sleep\x003456")) == 0 {
						return fmt.Errorf("it does not")
					}
					return nil
				})
				for range 5 {
					n.RunPod(t, "good").Remove(t)
				}
				cancel()
				<-failed
				// The caller is gone, its call goes on. The operator ends the plugin, and the next call hears of it.
				endAll(t, "sleep\x003456")
				f.behave(t)
				harness.Eventually(t, 20*time.Second, "its addresses to be free", func() error {
					if l := f.leases(t); len(l) > 0 {
						return fmt.Errorf("taken: %v", l)
					}
					return nil
				})
				return
			}
			err := <-failed
			if err == nil || !strings.Contains(err.Error(), "faulty") || !strings.Contains(err.Error(), words) {
				t.Errorf("got %v, want the plugin's name and %q", err, words)
			}
			if l := f.leases(t); len(l) > 0 {
				t.Errorf("addresses are taken: %v", l)
			}
			f.behave(t)
			pod := n.RunPod(t, "bad", withPortAndBandwidth)
			pod.Run(t, web(":80"))
			wantServerName(t, get(t, fmt.Sprintf("127.0.0.1:%d", faultyPort)), "bad")
			pod.Remove(t)
		})
	}
}

// endAll kills the processes with a command, which a test has had made.
func endAll(t *testing.T, command string) {
	t.Helper()
	for _, dir := range processesWith(command) {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil {
			err = unix.Kill(pid, unix.SIGKILL)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func wantServerName(t *testing.T, answer, name string) {
	t.Helper()
	if !strings.Contains(answer, "Hello from pod "+name) {
		t.Errorf("the answer is not the pod's: %q", answer)
	}
}

// A DEL that fails names the plugin, and what the others took is free all the same: the address and the host port go to
// the next pod. The stop that is tried again asks all plugins again and comes to its end.
func TestCNIPluginFailsToDelete(t *testing.T) {
	f := newFaultyCNI(t)
	n := f.node
	for fault, words := range map[string]string{"fail": "the back end is down", "die": "killed", "hang": "killed", "rubbish": ""} {
		t.Run(fault, func(t *testing.T) {
			f.behave(t)
			bad := n.RunPod(t, "bad", withPortAndBandwidth)
			bad.Run(t, web(":80"))
			get(t, fmt.Sprintf("127.0.0.1:%d", faultyPort))
			f.behave(t, "DEL bad "+fault)
			_, err := n.Runtime.StopPodSandbox(harness.Ctx(t), &cri.StopPodSandboxRequest{PodSandboxId: bad.ID})
			if err == nil || !strings.Contains(err.Error(), "faulty") || !strings.Contains(err.Error(), words) {
				t.Errorf("got %v, want the plugin's name and %q", err, words)
			}
			if l := f.leases(t); len(l) > 0 {
				t.Errorf("addresses are taken: %v", l)
			}
			next := n.RunPod(t, "next", withPortAndBandwidth)
			next.Run(t, web(":80"))
			wantServerName(t, get(t, fmt.Sprintf("127.0.0.1:%d", faultyPort)), "next")
			next.Remove(t)
			f.behave(t)
			bad.Remove(t)
			if calls, err := os.ReadFile(filepath.Join(f.dir, "calls")); err != nil || strings.Count(string(calls), "DEL "+bad.Config.Metadata.Name) < 2 {
				t.Errorf("DEL was not tried again: %v, %s", err, calls)
			}
		})
	}
	// The daemon that is started anew goes on with what is left.
	bad := n.RunPod(t, "bad", withPortAndBandwidth)
	f.behave(t, "DEL bad fail")
	if _, err := n.Runtime.StopPodSandbox(harness.Ctx(t), &cri.StopPodSandboxRequest{PodSandboxId: bad.ID}); err == nil {
		t.Error("no error")
	}
	n.Restart(t)
	f.behave(t)
	bad.Remove(t)
	if l := f.leases(t); len(l) > 0 {
		t.Errorf("addresses are taken: %v", l)
	}
}
