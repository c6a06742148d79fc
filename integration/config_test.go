//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// serveFails runs a daemon that must not come up, with folders of its own unless the arguments name others, and returns
// what it says.
func serveFails(t *testing.T, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(20*time.Second))
	defer cancel()
	bin := filepath.Join(harness.Root(), "bin")
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "berth"), append([]string{
		"serve", "--root-dir", filepath.Join(dir, "root"), "--run-dir", filepath.Join(dir, "run"),
		"--keeper", filepath.Join(bin, "berth-keeper"), "--launch", filepath.Join(bin, "berth-launch"),
	}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // a daemon that did come up goes in order
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || ctx.Err() != nil {
		t.Errorf("berth serve %q: %v", args, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "run", "keeper.sock")); err == nil {
		t.Error("a keeper was started")
	}
	return string(out)
}

// A fault in the configuration is one that its author can find.
func TestConfigFaultsAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"unknown key":        {"# mine\nimage:\n  maxParalelLayers: 3\n", []string{":3: image.maxParalelLayers: unknown key"}},
		"unknown at the top": {"\n\nrootdir: /srv\n", []string{":3: rootdir: unknown key"}},
		"bad value":          {"exec:\n  drainTimeout: soon\n", []string{":2: exec.drainTimeout:", "soon"}},
		"wrong kind":         {"nri:\n  enable: 3\n", []string{":2: nri.enable: want true or false"}},
		"handler":            {"runtimeHandlers:\n  nvidia:\n    cdi: [a.b/c=d]\n", []string{":3: runtimeHandlers.nvidia.cdi: unknown key"}},
		"two at once":        {"log:\n  level: loud\nstreaming:\n  port: 70000\n", []string{":2: log.level:", ":4: streaming.port:"}},
		"no YAML":            {"log: [\n", []string{"line 1"}},
		"of pods": {"kubelet:\n  kubeReserved: {disk: 1Gi}\n  evictionHard: {memory.free: 1Mi}\n  allowedUnsafeSysctls: [net.*.x]\n  containerLogMaxSize: big\n",
			[]string{"kubelet.kubeReserved: disk:", "kubelet.evictionHard: memory.free:", `kubelet.allowedUnsafeSysctls: sysctl "net.*.x"`, "kubelet.containerLogMaxSize: want"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "node.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			check, err := exec.Command(filepath.Join(harness.Root(), "bin", "berth"), "config", "check", file).CombinedOutput()
			if err == nil {
				t.Error("berth config check finds nothing")
			}
			for who, said := range map[string]string{"serve": serveFails(t, "--config", file), "check": string(check)} {
				for _, want := range append(c.want, file) {
					if err := wantIn(said, want); err != nil {
						t.Errorf("%s: %v", who, err)
					}
				}
			}
		})
	}
	if said := serveFails(t, "--config", "/no/such/file.yaml"); !strings.Contains(said, "/no/such/file.yaml") {
		t.Errorf("without its file: %s", said)
	}
}

// The default configuration, which documents every key, is one that can be used.
func TestDefaultConfigIsOne(t *testing.T) {
	berth := filepath.Join(harness.Root(), "bin", "berth")
	text, err := exec.Command(berth, "config", "default").Output()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "default.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(berth, "config", "check", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// handlers are the runtime handlers that the node says it has.
func handlers(n *harness.Node) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(10*time.Second))
	defer cancel()
	resp, err := n.Runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, h := range resp.RuntimeHandlers {
		names = append(names, h.Name)
	}
	slices.Sort(names)
	return names, nil
}

func TestRuntimeHandlers(t *testing.T) {
	n := ownNode(t, func(o *harness.Options) {
		o.Config = "runtimeHandlers:\n  runc: {}\n  closed: {privilegedWithoutHostDevices: true}\n"
	})
	if got, err := handlers(n); err != nil || !slices.Equal(got, []string{"", "closed", "runc"}) {
		t.Errorf("the node has %q, %v", got, err)
	}
	run := func(handler string) (*harness.Pod, error) {
		config := n.PodConfig("handled")
		config.Linux.SecurityContext.Privileged = true
		resp, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
		if err != nil {
			return nil, err
		}
		pod := &harness.Pod{Node: n, ID: resp.PodSandboxId, Config: config}
		t.Cleanup(func() { pod.Remove(t) })
		return pod, nil
	}
	// Handlers differ in what they add: here, what a privileged container finds in /dev.
	hosts := hostDevice(t, fmt.Sprintf("/dev/berth-test-%d", os.Getpid()), 1)
	t.Cleanup(func() { _ = os.Remove(hosts) })
	for handler, want := range map[string]string{"": "yes", "runc": "yes", "closed": "no"} {
		pod, err := run(handler)
		if err != nil {
			t.Fatal(err)
		}
		if got := pod.Status(t).RuntimeHandler; got != handler {
			t.Errorf("handler of the sandbox: %q, want %q", got, handler)
		}
		app := pod.Idle(t, "app", func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
		if got := app.Exec(t, "sh", "-c", "test -c "+hosts+" && echo yes || echo no"); got != want {
			t.Errorf("handler %q: devices of the host: %s", handler, got)
		}
	}
	if _, err := run("kata"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `"kata"`) {
		t.Errorf("an unknown handler: %v", err)
	}
	if list := podsListed(t, n); len(list) != 3 {
		t.Errorf("%d sandboxes", len(list))
	}
}

// A changed configuration holds after SIGHUP, and the pods do not notice.
func TestReload(t *testing.T) {
	n := ownNode(t, func(o *harness.Options) { o.Config = "runtimeHandlers: {before: {}}\n" })
	app := n.RunPod(t, "reloaded").Idle(t, "app")
	started := app.Status(t).StartedAt
	file := filepath.Join(n.Dir, "config.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	reload := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(n.Pid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	wantHandlers := func(want ...string) {
		t.Helper()
		harness.Eventually(t, 30*time.Second, fmt.Sprintf("handlers %q", want), func() error {
			got, err := handlers(n)
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("it has %q", got)
			}
			return err
		})
	}
	wantHandlers("", "before")
	reload(strings.Replace(string(text), "before", "after", 1))
	wantHandlers("", "after")
	if s := app.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt != started {
		t.Errorf("the container is %s", s.State)
	}
	if got := app.Exec(t, "echo", "alive"); got != "alive" {
		t.Errorf("got %q", got)
	}

	// A fault that came into the file does not take the node down.
	reload(string(text) + "nonsense: 1\n")
	harness.Eventually(t, 30*time.Second, "a word about the fault", func() error {
		log, err := os.ReadFile(filepath.Join(n.Dir, "berth.log"))
		if err != nil {
			return err
		}
		return wantIn(string(log), "nonsense")
	})
	if !n.Running() {
		t.Fatal("the daemon has ended")
	}
	wantHandlers("", "after")
	reload(string(text))
	wantHandlers("", "before")
}

// Folders are one node's alone.
func TestSecondDaemonInTheSameFolders(t *testing.T) {
	n := ownNode(t)
	app := n.RunPod(t, "alone").Idle(t, "app")
	other := t.TempDir()
	for name, args := range map[string][]string{
		"both":     {"--root-dir", n.RootDir, "--run-dir", n.RunDir},
		"root dir": {"--root-dir", n.RootDir, "--run-dir", filepath.Join(other, "run")},
		"run dir":  {"--root-dir", filepath.Join(other, "root"), "--run-dir", n.RunDir},
	} {
		if said := serveFails(t, args...); !strings.Contains(said, n.RootDir) && !strings.Contains(said, n.RunDir) {
			t.Errorf("%s: %s", name, said)
		}
	}
	if got := app.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("the first: %q", got)
	}
}

func TestWithoutNRI(t *testing.T) {
	n := ownNode(t, func(o *harness.Options) { o.Config = "nri: {enable: false}\n" })
	if _, err := os.Stat(filepath.Join(n.RunDir, "nri.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket for plugins: %v", err)
	}
	if got := n.RunPod(t, "plain").Idle(t, "app").Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
}

// Flags rule over the file.
func TestFlagsOverFile(t *testing.T) {
	plugins := filepath.Join(t.TempDir(), "plugins.sock")
	n := ownNode(t, func(o *harness.Options) {
		o.Config = "nri: {socketPath: /no/such/folder/nri.sock}\nlog: {format: text}\n"
		o.Flags = []string{"--nri-socket", plugins, "--log-format", "json"}
	})
	if _, err := os.Stat(plugins); err != nil {
		t.Error(err)
	}
	log, err := os.ReadFile(filepath.Join(n.Dir, "berth.log"))
	if err != nil || !strings.HasPrefix(string(log), "{") {
		t.Errorf("the log is %.200s, %v", log, err)
	}
}
