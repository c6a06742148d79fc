//go:build integration

package pods

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/integration/images"
)

// All of /proc is for those alone who are root of a user namespace of their own.
func TestProcMount(t *testing.T) {
	n := start(t)
	unmasked := "    securityContext: {procMount: Unmasked}\n"
	n.write("masked.yaml", spec("masked", "  hostUsers: false\n", ""))
	n.write("unmasked.yaml", spec("unmasked", "  hostUsers: false\n", unmasked))
	for pod, want := range map[string]string{"masked": "masked", "unmasked": "0"} {
		n.awaitReady(pod)
		got := n.sh(pod, "main", "grep -c ' /proc/[^ ]' /proc/self/mounts || true")
		if (got == "0") != (want == "0") {
			t.Errorf("in %s %s paths of /proc are mounted over", pod, got)
		}
	}
	out, errOut, code := n.berth().run(t, spec("host", "", unmasked), "apply", "-f", "-")
	if code == 0 || !strings.Contains(errOut, "securityContext.procMount") || !strings.Contains(errOut, "`hostUsers` must be false to use `Unmasked`") {
		t.Errorf("with the host's users: %d %s%s", code, out, errOut)
	}
}

// A profile of type Localhost is a file of the node's, by its name below the folder of profiles.
func TestSeccompLocalhost(t *testing.T) {
	n := start(t)
	file := filepath.Join(n.RootDir, "kubelet/seccomp/profiles/no-folders.json")
	profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`
	localhost := func(name string) string {
		return "  securityContext: {seccompProfile: {type: Localhost, localhostProfile: " + name + "}}\n"
	}
	n.write("early.yaml", spec("early", localhost("profiles/no-folders.json"), ""))
	if message := n.awaitWaiting("early", "CreateContainerError"); !strings.Contains(message, file) {
		t.Errorf("without its profile it waits: %s", message)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(profile), 0o644)); err != nil {
		t.Fatal(err)
	}
	n.awaitReady("early")
	// A container's own comes before the pod's.
	n.write("free.yaml", spec("free", localhost("profiles/no-folders.json"), "    securityContext: {seccompProfile: {type: Unconfined}}\n"))
	n.awaitReady("free")
	for pod, want := range map[string]string{"early": "2 no", "free": "0 yes"} {
		if got := n.sh(pod, "main", "echo $(grep Seccomp: /proc/self/status | cut -f2) $(mkdir /tmp-x 2>/dev/null && echo yes || echo no)"); got != want {
			t.Errorf("%s: %s, want %s", pod, got, want)
		}
	}
}

// The image's own groups of the user are the container's, unless the policy is Strict; the status tells which they are.
func TestSupplementalGroupsPolicy(t *testing.T) {
	const image = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest"
	n := start(t)
	for policy, want := range map[string][]int64{"Merge": {1000, 4567, 50000}, "Strict": {1000, 4567}} {
		name := strings.ToLower(policy)
		n.write(name+".yaml", strings.Replace(spec(name, "  securityContext: {runAsUser: 1000, runAsGroup: 1000, supplementalGroups: [4567], supplementalGroupsPolicy: "+policy+"}\n", ""), images.Tools, image, 1))
		p := n.awaitReady(name)
		if got := n.sh(name, "main", "id -G | tr ' ' '\\n' | sort -n"); got != strings.Join(strings.Fields(strings.Trim(fmt.Sprint(want), "[]")), "\n") {
			t.Errorf("%s: %q, want %v", policy, got, want)
		}
		user := status(p, "main").User
		if user == nil || user.Linux == nil || user.Linux.UID != 1000 || user.Linux.GID != 1000 {
			t.Fatalf("%s: the status tells of %+v", policy, user)
		}
		if groups := slices.Sorted(slices.Values(user.Linux.SupplementalGroups)); !slices.Equal(groups, want) {
			t.Errorf("%s: the status tells of %v, want %v", policy, groups, want)
		}
	}
}

// What the host mounts later is seen by those who asked for it, and what a privileged container mounts by the host.
func TestMountPropagation(t *testing.T) {
	n := start(t)
	host := sharedFolder(t)
	pod := func(name, container, mount string) {
		n.write(name+".yaml", spec(name, "  volumes: [{name: host, hostPath: {path: "+host+"}}]\n", container+"    volumeMounts: [{name: host, mountPath: /host"+mount+"}]\n"))
	}
	privileged := "    securityContext: {privileged: true}\n"
	pod("none", "", "")
	pod("slave", "", ", mountPropagation: HostToContainer")
	pod("shared", privileged, ", mountPropagation: Bidirectional")
	for _, name := range []string{"none", "slave", "shared"} {
		n.awaitReady(name)
	}
	mountTmpfs(t, filepath.Join(host, "late"))
	n.sh("shared", "main", "mkdir -p /host/inner && mount -t tmpfs tmpfs /host/inner && touch /host/inner/file")
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(host, "inner"), 0) })
	for name, want := range map[string]string{"none": "0 0", "slave": "1 1", "shared": "1 1"} {
		if got := n.sh(name, "main", "echo $(grep -c ' /host/late ' /proc/self/mounts) $(grep -c ' /host/inner ' /proc/self/mounts)"); got != want {
			t.Errorf("%s sees %s, want %s", name, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(host, "inner/file")); err != nil {
		t.Errorf("the host does not see what the container mounted: %v", err)
	}
	if err := unix.Unmount(filepath.Join(host, "inner"), 0); err != nil {
		t.Error(err)
	}
	out, errOut, code := n.berth().run(t, spec("bold", "  volumes: [{name: host, hostPath: {path: "+host+"}}]\n",
		"    volumeMounts: [{name: host, mountPath: /host, mountPropagation: Bidirectional}]\n"), "apply", "-f", "-")
	if code == 0 || !strings.Contains(errOut, "Bidirectional mount propagation is available only to privileged containers") {
		t.Errorf("not privileged: %d %s%s", code, out, errOut)
	}
}

// sharedFolder is a mount whose changes go to those who have it mounted too.
func sharedFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	mountTmpfs(t, dir)
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(dir, 0o755), unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// A sysctl that is not safe is set where the node allows it.
func TestUnsafeSysctlThatIsAllowed(t *testing.T) {
	n := start(t, "  allowedUnsafeSysctls: [kernel.msg*]\n")
	n.write("p.yaml", spec("p", "  securityContext: {sysctls: [{name: kernel.msgmax, value: '1000'}]}\n", ""))
	n.write("q.yaml", spec("q", "  securityContext: {sysctls: [{name: kernel.shmmax, value: '1000'}]}\n", ""))
	n.awaitReady("p")
	if got := n.sh("p", "main", "cat /proc/sys/kernel/msgmax"); got != "1000" {
		t.Errorf("kernel.msgmax is %s", got)
	}
	n.await("q", "refused", failed("SysctlForbidden", `Pod was rejected: forbidden sysctl: "kernel.shmmax" not allowlisted`))
}
