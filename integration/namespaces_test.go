//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// A container with the PID mode TARGET is among the processes of its target, as kubectl debug --target wants it.
func TestTargetPidNamespace(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "target")
	app, other := pod.Idle(t, "app"), pod.Idle(t, "other")
	debug := pod.Idle(t, "debug", targeting(app.ID))
	namespace := func(c *harness.Container) string { return c.Exec(t, "readlink", "/proc/self/ns/pid") }
	if got, want := namespace(debug), namespace(app); got != want {
		t.Errorf("the container is in %s, its target in %s", got, want)
	}
	if namespace(debug) == namespace(other) {
		t.Error("a container that was not the target shares its processes")
	}
	debug.Stop(t, 0)
	if out := app.Exec(t, "echo", "alive"); out != "alive" {
		t.Errorf("the target after the end of the other: %q", out)
	}
}

func targeting(id string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: id}
	}
}

func TestTargetMustRunInTheSamePod(t *testing.T) {
	n := sharedNode(t)
	pod, elsewhere := n.RunPod(t, "target-here"), n.RunPod(t, "target-elsewhere")
	stopped := pod.Idle(t, "stopped")
	stopped.Stop(t, 0)
	for name, tc := range map[string]struct {
		target string
		want   codes.Code
	}{
		"in another pod": {elsewhere.Idle(t, "app").ID, codes.InvalidArgument},
		"stopped":        {stopped.ID, codes.FailedPrecondition},
		"unknown":        {strings.Repeat("0", 64), codes.NotFound},
		"not named":      {"", codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			config := harness.ContainerConfig("debug", images.Tools, "sleep", "1000")
			targeting(tc.target)(config)
			_, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{
				PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config,
			})
			if status.Code(err) != tc.want {
				t.Errorf("create: %v, want %s", err, tc.want)
			}
		})
	}
}

// The node's processes and its IPC are visible where they are asked for, and nowhere else.
func TestHostNamespaces(t *testing.T) {
	n := sharedNode(t)
	own := func(name string) string {
		link, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	host := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}
	open := n.RunPod(t, "host", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = host })
	inHost := open.Idle(t, "app", func(c *cri.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions = host })
	closed := n.RunPod(t, "closed").Idle(t, "app")
	for _, name := range []string{"pid", "ipc", "net", "uts"} {
		if got := inHost.Exec(t, "readlink", "/proc/self/ns/"+name); got != own(name) {
			t.Errorf("%s: the container that asked for the host's is in %s, the host in %s", name, got, own(name))
		}
		if got := closed.Exec(t, "readlink", "/proc/self/ns/"+name); got == own(name) {
			t.Errorf("%s: a container that did not ask for it is in the host's", name)
		}
	}
}

// Containers of a pod share its IPC and /dev/shm with each other.
func TestSharedMemory(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "shm")
	a, b := pod.Idle(t, "a"), pod.Idle(t, "b")
	a.Exec(t, "sh", "-c", "echo shared > /dev/shm/note")
	if got := b.Exec(t, "cat", "/dev/shm/note"); got != "shared" {
		t.Errorf("the other container reads %q", got)
	}
	if _, err := os.Stat("/dev/shm/note"); err == nil {
		t.Error("the pod's shared memory is the host's")
	}
}

// Sysctls of a pod are set in its namespaces alone.
func TestSysctls(t *testing.T) {
	n := sharedNode(t)
	const name = "/proc/sys/net/ipv4/ip_local_port_range"
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	pod := n.RunPod(t, "sysctl", func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "20000 20100", "kernel.shm_rmid_forced": "1"}
	})
	app := pod.Idle(t, "app")
	if got := strings.Fields(app.Exec(t, "cat", name)); strings.Join(got, " ") != "20000 20100" {
		t.Errorf("in the pod it is %q", got)
	}
	if got := app.Exec(t, "cat", "/proc/sys/kernel/shm_rmid_forced"); got != "1" {
		t.Errorf("kernel.shm_rmid_forced is %q", got)
	}
	if after, err := os.ReadFile(name); err != nil || string(after) != string(before) {
		t.Errorf("on the host it is %q, was %q, %v", after, before, err)
	}
}

// Capabilities: what is added to all that a container has, for a user who is not root only if they are ambient.
func TestCapabilities(t *testing.T) {
	const netAdmin, chown = 1 << 12, 1 << 0
	pod := sharedNode(t).RunPod(t, "capabilities")
	for name, tc := range map[string]struct {
		user         int64
		capabilities *cri.Capability
		set          string
		has, hasNot  uint64
	}{
		"added":            {0, &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}}, "CapEff", netAdmin | chown, 0},
		"dropped":          {0, &cri.Capability{DropCapabilities: []string{"CHOWN"}}, "CapBnd", 0, chown},
		"all dropped":      {0, &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN"}}, "CapBnd", netAdmin, chown},
		"all added":        {0, &cri.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"CHOWN"}}, "CapEff", netAdmin, chown},
		"of a user":        {1000, &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}}, "CapEff", 0, netAdmin},
		"ambient":          {1000, &cri.Capability{AddAmbientCapabilities: []string{"NET_ADMIN"}}, "CapAmb", netAdmin, 0},
		"ambient, in use":  {1000, &cri.Capability{AddAmbientCapabilities: []string{"NET_ADMIN"}}, "CapEff", netAdmin, chown},
		"nothing was said": {0, nil, "CapAmb", 0, ^uint64(0)},
	} {
		t.Run(name, func(t *testing.T) {
			c := pod.Idle(t, "app-"+strings.ReplaceAll(filepath.Base(t.Name()), ",", ""), func(c *cri.ContainerConfig) {
				c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: tc.user}
				c.Linux.SecurityContext.Capabilities = tc.capabilities
			})
			got := capabilitySet(t, c.Exec(t, "cat", "/proc/self/status"), tc.set)
			if got&tc.has != tc.has || got&tc.hasNot != 0 {
				t.Errorf("%s is %#x, want %#x in it and %#x not", tc.set, got, tc.has, tc.hasNot)
			}
		})
	}
}

// capabilitySet reads one of the sets of /proc/self/status (proc_pid_status(5)).
func capabilitySet(t *testing.T, procStatus, set string) uint64 {
	t.Helper()
	for line := range strings.Lines(procStatus) {
		if value, ok := strings.CutPrefix(line, set+":"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return mask
		}
	}
	t.Fatalf("no %s in %q", set, procStatus)
	return 0
}
