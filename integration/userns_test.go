//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// inUserNamespace maps the ids of a pod to those from first on.
func inUserNamespace(first uint32) *cri.NamespaceOption {
	ids := []*cri.IDMapping{{HostId: first, Length: 65536}}
	return &cri.NamespaceOption{
		Pid:           cri.NamespaceMode_CONTAINER,
		UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
	}
}

func needFeature(t *testing.T, n *harness.Node, what string, has func(*cri.RuntimeHandlerFeatures) bool) {
	t.Helper()
	resp, err := n.Runtime.Status(harness.Ctx(t), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range resp.RuntimeHandlers {
		if h.Name == "" && has(h.GetFeatures()) {
			return
		}
	}
	t.Skipf("the node says that it does not have %s", what)
}

func TestUserNamespace(t *testing.T) {
	const first = 1_000_000
	n := sharedNode(t)
	needFeature(t, n, "user namespaces", (*cri.RuntimeHandlerFeatures).GetUserNamespaces)
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "theirs"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// The test's own folders are closed to others.
	for dir := volume; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ns := inUserNamespace(first)
	pod := n.RunPod(t, "userns", func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = ns
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	})
	app := pod.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = ns
		c.Mounts = []*cri.Mount{{
			ContainerPath: "/volume", HostPath: volume,
			UidMappings: ns.UsernsOptions.Uids, GidMappings: ns.UsernsOptions.Gids,
		}}
	})
	if got := strings.Fields(app.Exec(t, "cat", "/proc/self/uid_map")); len(got) != 3 || got[0] != "0" || got[1] != "1000000" || got[2] != "65536" {
		t.Errorf("uid_map: %v", got)
	}
	if got := app.Exec(t, "stat", "-c", "%u:%g", "/bin/busybox", "/etc/passwd", "/volume/theirs"); got != "0:0\n0:0\n0:0" {
		t.Errorf("owners of the image's and the volume's files: %q", got)
	}
	app.Exec(t, "sh", "-c", "echo x > /volume/mine; chown www-data /volume/mine; echo y > /tmp/own")
	info, err := os.Stat(filepath.Join(volume, "mine"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 33 {
		t.Errorf("on the host the file belongs to %d, want 33: the mount is not idmapped", uid)
	}
	if got := app.Exec(t, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"); got != "0" {
		t.Errorf("sysctl: %s", got)
	}
	if ips := pod.IPs(t); len(ips) != 2 {
		t.Errorf("addresses: %v", ips)
	}
	harness.Eventually(t, 10*time.Second, "the workload seen from the node", func() error {
		for _, dir := range processesWith("sleep\x001000") {
			var st syscall.Stat_t
			if err := syscall.Stat(dir, &st); err == nil && st.Uid == first {
				return nil
			}
		}
		return fmt.Errorf("no process of user %d", first)
	})
}

func TestTwoContainersShareAUserNamespace(t *testing.T) {
	n := sharedNode(t)
	needFeature(t, n, "user namespaces", (*cri.RuntimeHandlerFeatures).GetUserNamespaces)
	ns := inUserNamespace(2_000_000)
	pod := n.RunPod(t, "userns-two", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = ns })
	inNS := func(c *cri.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions = ns }
	one, two := pod.Idle(t, "one", inNS), pod.Idle(t, "two", inNS)
	for _, kind := range []string{"user", "net", "ipc", "uts"} {
		link := "/proc/self/ns/" + kind
		if a, b := one.Exec(t, "readlink", link), two.Exec(t, "readlink", link); a != b {
			t.Errorf("%s: %s and %s", kind, a, b)
		}
	}
}
