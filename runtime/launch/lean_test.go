package launch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/nsfile"
	"github.com/berth-node/berth/runtime/keeper"
)

// tmpfs mounts one at a new folder, with a file that says what it is.
func tmpfs(t *testing.T, path, says string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("test", path, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	write(t, filepath.Join(path, "file"), says)
}

func write(t *testing.T, path, says string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(says+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// carried tells whether a container of the node got its mounts from another namespace.
func (n *node) carried() bool {
	all, _ := os.ReadDir(n.places)
	return len(all) > 0
}

// A container finds the same wherever its launcher was born: mounts in mounts, files, namespaces that are files, its root.
func TestLeanLauncher(t *testing.T) {
	said := map[bool]string{}
	for _, amidst := range []bool{true, false} {
		t.Run(fmt.Sprintf("amidst=%v", amidst), func(t *testing.T) {
			n := newNode(t)
			n.amidst = amidst
			source := filepath.Join(t.TempDir(), "source")
			tmpfs(t, source, "outer")
			tmpfs(t, filepath.Join(source, "inner"), "inner")
			netns := filepath.Join(t.TempDir(), "net")
			if err := nsfile.Bind("/proc/self/ns/net", netns); err != nil { // told from a new one by its number
				t.Fatal(err)
			}
			t.Cleanup(func() { nsfile.Unbind(netns) })
			c := n.bundle([]string{
				"cat", "/deep/file", "cat", "/deep/inner/file", "cat", "/flat/file", "cat", "/flat/inner/file", "cat", "/one",
				"cat", "/here", "link", "/proc/self/ns/net",
			}, func(s *specs.Spec) {
				s.Linux.Namespaces[4].Path = netns
				s.Mounts = append(s.Mounts,
					specs.Mount{Destination: "/deep", Type: "bind", Source: source, Options: []string{"rbind"}},
					specs.Mount{Destination: "/flat", Source: source, Options: []string{"bind", "ro"}},
					specs.Mount{Destination: "/one", Type: "bind", Source: filepath.Join(source, "inner/file"), Options: []string{"bind"}},
					specs.Mount{Destination: "/here", Type: "bind", Source: "config.json.own", Options: []string{"bind"}},
				)
			})
			write(t, filepath.Join(c.bundle, "config.json.own"), "of the bundle")
			root := filepath.Join(c.bundle, "rootfs")
			if err := unix.Mount(root, root, "none", unix.MS_BIND, ""); err != nil { // one that is mounted, as overlays are
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
			said[amidst] = c.create().output()
			if n.carried() == amidst {
				t.Errorf("launcher among the host's mounts: %v, mounts were carried: %v", amidst, n.carried())
			}
			state, err := os.ReadFile(filepath.Join(n.state, c.id, "state.json"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{root, netns} { // criu wants them
				if !strings.Contains(string(state), `"`+path+`"`) {
					t.Errorf("libcontainer does not know of %s", path)
				}
			}
		})
	}
	if said[false] != said[true] || strings.Count(said[false], "outer\n") != 2 || strings.Count(said[false], "inner\n") != 2 {
		t.Errorf("away from the host's mounts it finds\n%s\namong them\n%s", said[false], said[true])
	}
}

// A spec that names a file twice is wrong, and leaves nothing on it.
func TestLeanLauncherMountsNothingTwice(t *testing.T) {
	n := newNode(t)
	netns := filepath.Join(t.TempDir(), "net")
	if err := nsfile.Bind("/proc/self/ns/net", netns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nsfile.Unbind(netns) })
	if err := unix.Mount("", netns, "", unix.MS_SHARED, ""); err != nil { // as all mounts are where systemd runs
		t.Fatal(err)
	}
	c := n.bundle([]string{"exit", "0"}, func(s *specs.Spec) {
		setNamespace(s, specs.NetworkNamespace, netns)
		setNamespace(s, specs.IPCNamespace, netns)
	})
	files := c.streams()
	result, _ := c.run(c.job(keeper.JobCreate), files...)
	closeEach(files)
	if result.Error == "" {
		t.Error("a container has a namespace of processes that is one of networks")
	}
	if n := strings.Count(mountsOf(t, os.Getpid()), " "+netns+" "); n != 1 {
		t.Errorf("%d mounts at %s, want one", n, netns)
	}
}

func TestLeanLauncherSpeaksOfTheHost(t *testing.T) {
	source := t.TempDir()
	for says, m := range map[string]specs.Mount{
		source:               {Destination: "/prog/below", Type: "bind", Source: source, Options: []string{"rbind"}},
		"/no/such/source":    {Destination: "/dst", Type: "bind", Source: "/no/such/source", Options: []string{"rbind"}},
		"/no/such/namespace": {},
	} {
		c := newNode(t).bundle([]string{"pause"}, func(s *specs.Spec) {
			if m.Source != "" {
				s.Mounts = append(s.Mounts, m)
			} else {
				s.Linux.Namespaces[4].Path = says
			}
		})
		files := c.streams()
		result, _ := c.run(c.job(keeper.JobCreate), files...)
		closeEach(files)
		if !strings.Contains(result.Error, says) || strings.Contains(result.Error, c.places) {
			t.Errorf("the error does not speak of %s: %s", says, result.Error)
		}
		c.wantNothingLeft()
	}
}

// Hooks are programs of the host, wherever on it they are.
func TestLeanLauncherFindsHooks(t *testing.T) {
	prog, err := workload()
	if err != nil {
		t.Skip(err)
	}
	n := newNode(t)
	bin := filepath.Join(t.TempDir(), "bin")
	tmpfs(t, bin, "")
	data, err := os.ReadFile(prog)
	if err != nil {
		t.Fatal(err)
	}
	hook := filepath.Join(bin, "hook")
	if err := os.WriteFile(hook, data, 0o755); err != nil {
		t.Fatal(err)
	}
	ran := filepath.Join(bin, "ran")
	n.bundle([]string{"pause"}, func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: hook, Args: []string{hook, "mkdir", ran}}}}
	}).create()
	if _, err := os.Stat(ran); err != nil {
		t.Errorf("the hook has not run: %v", err)
	}
}

// Where the state of containers was mounted anew after the launcher's start, it works on what is there now.
func TestLeanLauncherAfterARemount(t *testing.T) {
	n := newNode(t)
	c := n.bundle([]string{"pause"}, nil)
	w, files := n.launch(), c.streams()
	tmpfs(t, n.state, "")
	result, pidfd := w.do(t, c.job(keeper.JobCreate), files...)
	w.end(t)
	closeEach(files)
	if result.Error != "" {
		t.Fatal(result.Error)
	}
	c.take(result, pidfd)
	if _, err := os.Stat(filepath.Join(n.state, c.id, "state.json")); err != nil {
		t.Error(err)
	}
	c.kill()
	if result, _ := c.run(c.job(keeper.JobDestroy)); result.Error != "" {
		t.Error(result.Error)
	}
}
