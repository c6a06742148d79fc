//go:build integration

package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// noise is what may be found in the place of a configuration file, made by path.
var noise = map[string]func(path string) error{
	"zeros":     text(strings.Repeat("\x00", 1024)),
	"random":    text(randomText(64 << 10)),
	"large":     text(strings.Repeat("x", 5<<20)), // more than most may have; CDI's library reads it
	"deep":      text(strings.Repeat("[", 200_000)),
	"cut off":   text(`{"cniVersion": "1.0.0", "name": "x", "kind": "berth.test/gadget", "plugins": [{"ty`),
	"number":    text("7"),
	"list":      text("[1, {}]"),
	"laughs":    text("a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f]\n"),
	"folder":    func(path string) error { return os.Mkdir(path, 0o755) },
	"fifo":      func(path string) error { return unix.Mkfifo(path, 0o644) },
	"loop":      func(path string) error { return os.Symlink(filepath.Base(path), path) },
	"device":    func(path string) error { return os.Symlink("/dev/zero", path) },
	"leads off": func(path string) error { return os.Symlink("/no/such/file", path) },
}

func text(s string) func(path string) error {
	return func(path string) error { return os.WriteFile(path, []byte(s), 0o644) }
}

func randomText(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// A configuration that is noise is refused at the start, by the name of its file.
func TestConfigOfNoise(t *testing.T) {
	for name, write := range noise {
		if name == "fifo" || name == "device" {
			continue // whoever says so may hand over the configuration that way; one without an end is refused too: see "large"
		}
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "node.yaml")
			if err := write(file); err != nil {
				t.Fatal(err)
			}
			check, err := exec.Command(filepath.Join(harness.Root(), "bin", "berth"), "config", "check", file).CombinedOutput()
			if err == nil {
				t.Error("berth config check finds nothing")
			}
			for who, said := range map[string]string{"serve": serveFails(t, "--config", file), "check": string(check)} {
				if !strings.Contains(said, file) || len(said) > 16<<10 {
					t.Errorf("%s says in %d bytes: %.400s", who, len(said), said)
				}
			}
		})
	}
}

// Noise where CNI's configuration is sought costs new pods their network, in words that name the file, and nothing else: pods
// that run keep theirs, pods in the host's network start, and with the file gone all is as before.
func TestCNIConfOfNoise(t *testing.T) {
	dir := t.TempDir()
	network, err := harness.NewCNI(dir, "berthtest2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	n := ownNode(t, func(o *harness.Options) { o.CNI = network })
	before := n.RunPod(t, "before")
	app := before.Run(t, web(":8080"))
	waitForListener(t, app, 8080)
	networkReady := func() (bool, string) {
		resp, err := n.Runtime.Status(harness.Ctx(t), &cri.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range resp.Status.Conditions {
			if c.Type == cri.NetworkReady {
				return c.Status, c.Message
			}
		}
		return false, "no condition"
	}
	for name, write := range noise {
		t.Run(name, func(t *testing.T) {
			first, last := filepath.Join(network.ConfDir, "00-noise.conflist"), filepath.Join(network.ConfDir, "99-noise.conf")
			for _, file := range []string{first, last} {
				if err := write(file); err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(file)
			}
			if name == "folder" {
				n.RunPod(t, "beside-a-folder") // no file, no configuration
				return
			}
			harness.Eventually(t, 20*time.Second, "the network to be reported", func() error {
				if ready, why := networkReady(); ready || !strings.Contains(why, first) || len(why) > 4096 {
					return fmt.Errorf("ready %v, in %d bytes: %.400s", ready, len(why), why)
				}
				return nil
			})
			config := n.PodConfig("unlucky")
			_, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config})
			if err == nil || !strings.Contains(err.Error(), first) {
				t.Errorf("a pod starts: %.400v", err)
			}
			n.RunPod(t, "hostnet", func(c *cri.PodSandboxConfig) {
				c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
			}).Idle(t, "app").Exec(t, "true")
			if got := app.Exec(t, "wget", "-qO-", "http://127.0.0.1:8080/"); !strings.Contains(got, "Hello") {
				t.Errorf("the pod that runs: %q", got)
			}
			if err := errors.Join(os.RemoveAll(first), os.RemoveAll(last)); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, 20*time.Second, "the network", func() error {
				if ready, why := networkReady(); !ready {
					return errors.New(why)
				}
				return nil
			})
		})
	}
	n.RunPod(t, "after").Idle(t, "app").Exec(t, "true")
}

// Noise among CDI's files costs nobody whose device is in another; who asks for what is in none gets a refusal.
func TestCDIOfNoise(t *testing.T) {
	specs := t.TempDir()
	n := ownNode(t, func(o *harness.Options) { o.Config = fmt.Sprintf("container:\n  cdiSpecDirs: [%s]\n", specs) })
	node := hostDevice(t, filepath.Join(t.TempDir(), "node"), 7)
	pod := n.RunPod(t, "cdi-noise")
	n.NeedImage(t, images.Tools)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("file of a gadget\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cdiSpec{"cdiVersion": "0.6.0", "kind": "berth.test/gadget", "devices": []any{gadget(node, file, "first")}}.write(t, filepath.Join(specs, "50-gadget.json"))
	for name, write := range noise {
		t.Run(name, func(t *testing.T) {
			for _, file := range []string{"00-noise.json", "99-noise.yaml"} {
				if err := write(filepath.Join(specs, file)); err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(filepath.Join(specs, file))
			}
			if name == "fifo" || name == "device" {
				// To the library these are files, and it would read them: those with devices wait for somebody to look.
				wantRefused(t, pod, codes.FailedPrecondition, filepath.Join(specs, "00-noise.json"), func(c *cri.ContainerConfig) {
					c.CDIDevices = []*cri.CDIDevice{{Name: "berth.test/gadget=first"}}
				})
				pod.Idle(t, name).Exec(t, "true")
				return
			}
			app := pod.Idle(t, "app-"+strings.ReplaceAll(name, " ", "-"), func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: "berth.test/gadget=first"}} })
			if !hasGadget(t, app, "first") {
				t.Error("no gadget")
			}
			wantRefused(t, pod, codes.InvalidArgument, "berth.test/gadget=second", func(c *cri.ContainerConfig) {
				c.CDIDevices = []*cri.CDIDevice{{Name: "berth.test/gadget=second"}}
			})
		})
	}
}

// Noise in a registry's folder costs that registry's images at the most, in words that name the file (of a text that is none, in
// the log: containerd's users know that it is passed over), and no other's.
func TestRegistryHostsOfNoise(t *testing.T) {
	hosts := filepath.Join(t.TempDir(), "certs.d")
	if err := os.CopyFS(hosts, os.DirFS(world.hostsDir)); err != nil {
		t.Fatal(err)
	}
	n := ownNode(t, func(o *harness.Options) { o.HostsDir = hosts })
	const nobody = "127.0.0.1:9"
	noisy := filepath.Join(hosts, nobody)
	for name, write := range noise {
		t.Run(name, func(t *testing.T) {
			if err := os.Mkdir(noisy, 0o755); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(noisy)
			file := filepath.Join(noisy, "hosts.toml")
			if err := write(file); err != nil {
				t.Fatal(err)
			}
			logged := sizeOf(t, filepath.Join(n.Dir, "berth.log"))
			_, err := pull(t, n, nobody+"/image:1", nil)
			if err == nil || len(err.Error()) > 4096 {
				t.Fatalf("in %d bytes: %.400v", len(fmt.Sprint(err)), err)
			}
			log, readErr := os.ReadFile(filepath.Join(n.Dir, "berth.log"))
			if readErr != nil {
				t.Fatal(readErr)
			}
			said := err.Error() + string(log[logged:])
			if name != "leads off" && !strings.Contains(said, file) { // there is no file
				t.Errorf("neither error nor log names the file: %.1000s", said)
			}
			if _, err := pull(t, n, images.Tools, nil); err != nil {
				t.Errorf("another registry: %v", err)
			}
		})
	}
}

// A seccomp profile that is noise costs the container that asks for it.
func TestSeccompOfNoise(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "seccomp-noise")
	for name, write := range noise {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "profile.json")
			if err := write(file); err != nil {
				t.Fatal(err)
			}
			_, err := attempt(t, pod, seccompBy(harness.ContainerConfig("app", images.Tools, "true"), file))
			if err == nil || status.Code(err) == codes.Unknown || status.Code(err) == codes.Internal || !strings.Contains(err.Error(), file) || len(err.Error()) > 4096 {
				t.Errorf("in %d bytes: %.400v", len(fmt.Sprint(err)), err)
			}
		})
	}
	pod.Idle(t, "app").Exec(t, "true")
}

func seccompBy(c *cri.ContainerConfig, profile string) *cri.ContainerConfig {
	c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: profile}
	return c
}

// Noise among NRI's plugins and their configurations costs nobody: what cannot be started is not. What cannot even be read, in the
// place of a configuration, stops the node at its start, by the name of the file.
func TestNRIOfNoise(t *testing.T) {
	dir := t.TempDir()
	plugins, configs := filepath.Join(dir, "plugins"), filepath.Join(dir, "conf.d")
	if err := errors.Join(os.Mkdir(plugins, 0o755), os.Mkdir(configs, 0o755)); err != nil {
		t.Fatal(err)
	}
	nri := func() string {
		// The node waits for each that it could execute.
		return fmt.Sprintf("nri: {pluginPath: %s, pluginConfigPath: %s, registrationTimeout: 1s}\n", plugins, configs)
	}
	i := 10
	for name, write := range noise {
		plugin := fmt.Sprintf("%d-%s", i, strings.ReplaceAll(name, " ", "-"))
		i++
		file, conf := filepath.Join(plugins, plugin), filepath.Join(configs, plugin+".conf")
		if err := errors.Join(write(file), write(conf)); err != nil {
			t.Fatal(err)
		}
		if name != "device" { // its mode is the host's
			_ = os.Chmod(file, 0o755)
		}
		var unreadable []string
		switch name {
		case "fifo", "device":
			unreadable = []string{file, conf}
		case "folder", "loop", "large":
			unreadable = []string{conf}
		}
		for _, file := range unreadable {
			config := filepath.Join(dir, "node.yaml")
			if err := os.WriteFile(config, []byte(nri()), 0o600); err != nil {
				t.Fatal(err)
			}
			if said := serveFails(t, "--config", config); !strings.Contains(said, file) {
				t.Errorf("%s: %.400s", name, said)
			}
			if err := os.RemoveAll(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := ownNode(t, func(o *harness.Options) { o.Config = nri() })
	n.RunPod(t, "served").Idle(t, "app").Exec(t, "true")
}
