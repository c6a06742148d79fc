//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// CVE-2024-21626, CVE-2016-9962: no descriptor of the runtime's is in a container, and no working folder leads out of it.
func TestCVEDescriptors(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "cve-fds")
	app := pod.Sh(t, "app", `ls -l /proc/self/fd > /tmp/fds; trap "exit 0" TERM; while :; do sleep 1000 & wait; done`)
	inside := func(where, listing string) {
		t.Helper()
		for line := range strings.Lines(listing) {
			_, to, isLink := strings.Cut(strings.TrimSpace(line), " -> ")
			if !isLink || strings.HasPrefix(to, "pipe:") || strings.HasPrefix(to, "/dev/") || to == "/tmp/fds" || strings.HasPrefix(to, "/proc/") || strings.Contains(to, "/stdin") || strings.Contains(to, "/stdout") || strings.Contains(to, "/stderr") {
				continue
			}
			t.Errorf("%s has %s", where, line)
		}
	}
	harness.Eventually(t, 20*time.Second, "the list of descriptors", func() error {
		return wantIn(app.Exec(t, "sh", "-c", "cat /tmp/fds 2>/dev/null || true"), "->")
	})
	inside("a container", app.Exec(t, "cat", "/tmp/fds"))
	inside("an exec", app.Exec(t, "ls", "-l", "/proc/self/fd"))
	for fd := 3; fd < 16; fd++ {
		dir := fmt.Sprintf("/proc/self/fd/%d", fd)
		config := harness.ContainerConfig(fmt.Sprintf("fd%d", fd), images.Tools, "sh", "-c", "ls ../../../../../../..; pwd")
		config.WorkingDir = dir
		resp, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
		if err != nil {
			continue // refused, as it should be
		}
		_, err = n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: resp.ContainerId})
		if err == nil {
			c := &harness.Container{Pod: pod, ID: resp.ContainerId, Config: config}
			c.WaitExit(t)
			lines, err := harness.ReadLog(c.LogPath())
			if err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(harness.Texts(lines, "stdout"), "\n"); strings.Contains(text, filepath.Base(n.Dir)) || strings.Contains(text, "berth-test") {
				t.Errorf("%s is outside of the container: %s", dir, text)
			}
		}
	}
}

// CVE-2023-25173, CVE-2022-29162: the supplementary groups are the image's and the request's, and capabilities are not inheritable.
func TestCVEGroupsAndCapabilities(t *testing.T) {
	app := sharedNode(t).RunPod(t, "cve-caps").Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
		c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 1001}
		c.Linux.SecurityContext.SupplementalGroups = []int64{1002}
	})
	if got := app.Exec(t, "id", "-G"); got != "1001 1002" {
		t.Errorf("groups %q", got)
	}
	for _, who := range []string{"1", "self"} {
		if got := app.Exec(t, "sh", "-c", "grep CapInh /proc/"+who+"/status"); !strings.HasSuffix(got, "0000000000000000") {
			t.Errorf("process %s: %s", who, got)
		}
	}
}

// CVE-2022-0811: a sysctl's value adds no other sysctl, and one of the node's is refused.
func TestCVESysctl(t *testing.T) {
	n := sharedNode(t)
	before, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/bin/false", "kernel.core_pattern": "|/bin/false", "net/../kernel/core_pattern": "|/bin/false",
	} {
		config := n.PodConfig("cve-sysctl")
		config.Linux.Sysctls = map[string]string{name: value}
		resp, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config})
		if err == nil {
			t.Errorf("%s=%s was accepted", name, value)
			_, _ = n.Runtime.RemovePodSandbox(harness.Ctx(t), &cri.RemovePodSandboxRequest{PodSandboxId: resp.PodSandboxId})
		}
	}
	if after, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err != nil || string(after) != string(before) {
		t.Errorf("core_pattern is %q, %v", after, err)
	}
}

// CVE-2024-40635: a user that is too large a number is nobody, and above all not root.
func TestCVEUser(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "cve-user")
	for _, uid := range []int64{1 << 31, 1 << 32, 1<<32 + 1, -1} {
		config := harness.ContainerConfig("app", images.Tools, "id")
		config.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: uid}
		_, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("user %d: %v", uid, err)
		}
	}
}

// CVE-2022-1708, CVE-2022-31030: what an exec prints does not fill the daemon's memory.
func TestCVEExecOutput(t *testing.T) {
	n := ownNode(t)
	app := n.RunPod(t, "cve-exec").Idle(t, "app")
	before := memoryOf(t, n)
	resp, err := app.ExecSync(harness.Ctx(t), 30*time.Second, "sh", "-c", "head -c 300000000 /dev/zero")
	if err == nil && len(resp.Stdout) > 16<<20 {
		t.Errorf("%d bytes of output", len(resp.Stdout))
	}
	if after := memoryOf(t, n); after > before+memoryFor(200<<20) {
		t.Errorf("the daemon has %d MiB after it, and had %d before", after>>20, before>>20)
	}
	if got := app.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
}

// A log whose place a pod has taken with a link (it may write to the folder of logs, as collectors do) is not written to.
func TestCVELogLink(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "cve-log")
	app := pod.Sh(t, "app", `while :; do echo line; sleep 0.05; done`)
	waitForText(t, app, "stdout", "line")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(app.LogPath(), app.LogPath()+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, app.LogPath()); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Runtime.ReopenContainerLog(harness.Ctx(t), &cri.ReopenContainerLogRequest{ContainerId: app.ID}); err == nil {
		t.Error("the log was opened through a link")
	}
	time.Sleep(200 * time.Millisecond) // lines come meanwhile
	if got, err := os.ReadFile(secret); err != nil || string(got) != "secret" {
		t.Errorf("%.100q, %v", got, err)
	}
}
