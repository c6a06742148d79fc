//go:build integration

package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/leaks"
)

const (
	nodeName = "test-node"
	readOnly = "http://127.0.0.1:12155"
	// cgroupRoot keeps the kubelet of the test away from another one's pods. For systemd it is a slice, and - would mean
	// that it lies in another one.
	cgroupRoot = "berthkubelettest"
)

// kubelet is a running kubelet.
type kubelet struct {
	dir, manifests string
	cmd            *exec.Cmd
}

// ownFolders are folders that the kubelet makes whatever its configuration says.
var ownFolders = []string{"/var/lib/kubelet", "/var/log/containers", "/var/log/pods"}

func startKubelet(t *testing.T, n *harness.Node, criStats bool) *kubelet {
	t.Helper()
	k := &kubelet{dir: t.TempDir()}
	k.manifests = filepath.Join(k.dir, "manifests")
	if err := os.Mkdir(k.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	removeFolders(t)
	makeCgroups(t, n)
	config := filepath.Join(k.dir, "config.yaml")
	if err := os.WriteFile(config, []byte(k.config(n, criStats)), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(harness.Root(), "out", "kubelet.log"))
	if err != nil {
		t.Fatal(err)
	}
	k.cmd = exec.Command(harness.Tool("kubelet"), "--config", config, "--root-dir", filepath.Join(k.dir, "root"), "--cert-dir", filepath.Join(k.dir, "pki"),
		"--hostname-override", nodeName, "--v", "2")
	k.cmd.Stdout, k.cmd.Stderr = log, log
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.end(t, log) })
	return k
}

func (k *kubelet) config(n *harness.Node, criStats bool) string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%s
staticPodPath: %s
podLogsDir: %s
volumePluginDir: %s
address: 127.0.0.1
port: 12150
readOnlyPort: 12155
healthzPort: 12148
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
failSwapOn: false
cgroupRoot: /%s
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "1Mi"}
featureGates: {PodAndContainerStatsFromCRI: %t}
`, n.Socket, k.manifests, filepath.Join(k.dir, "logs"), filepath.Join(k.dir, "volume-plugins"), cgroupRoot, criStats)
}

// end ends the kubelet. What it leaves by design is cleared away, so that the rest can be compared.
func (k *kubelet) end(t *testing.T, log *os.File) {
	_ = k.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = k.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(harness.Patience(30 * time.Second)):
		_ = k.cmd.Process.Kill()
		<-done
		t.Error("the kubelet did not end by itself")
	}
	if t.Failed() {
		data, _ := os.ReadFile(log.Name()) // best effort: the test has failed already
		t.Logf("the kubelet's log ends with:\n%s", data[max(0, len(data)-16<<10):])
	}
	_ = log.Close()
	points, err := leaks.MountsBelow(k.dir)
	if err != nil {
		t.Error(err)
	}
	for _, point := range points {
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
			t.Errorf("%s: %v", point, err)
		}
	}
}

// removeFolders removes at the end of the test what was not there before it.
func removeFolders(t *testing.T) {
	t.Helper()
	for _, dir := range ownFolders {
		if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
			t.Cleanup(func() {
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// makeCgroups makes the kubelet's cgroup root in every hierarchy, as the kubelet wants it, and removes it with all that
// the kubelet made below.
func makeCgroups(t *testing.T, n *harness.Node) {
	t.Helper()
	config, err := n.Runtime.RuntimeConfig(harness.Ctx(t), &cri.RuntimeConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if config.GetLinux().GetCgroupDriver() == cri.CgroupDriver_SYSTEMD {
		makeSlice(t, cgroupRoot+".slice")
		return
	}
	roots := []string{"/sys/fs/cgroup"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		if roots, err = filepath.Glob("/sys/fs/cgroup/*"); err != nil {
			t.Fatal(err)
		}
	}
	for _, root := range roots {
		if info, err := os.Lstat(root); err != nil || !info.IsDir() {
			continue // a link that joins two controllers
		}
		dir := filepath.Join(root, cgroupRoot)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(root, "/cpuset") { // on cgroup v1 a new one has neither
			for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(root, name))
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, name), value, 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Cleanup(func() { removeCgroup(t, dir) })
	}
}

// makeSlice is makeCgroups where systemd makes the cgroups.
func makeSlice(t *testing.T, slice string) {
	t.Helper()
	systemctl := func(verb string) {
		if out, err := exec.Command("systemctl", verb, slice).CombinedOutput(); err != nil {
			t.Errorf("systemctl %s %s: %v\n%s", verb, slice, err, out)
		}
	}
	systemctl("start")
	t.Cleanup(func() { systemctl("stop") })
	// systemd enables a controller when a unit asks for it; the kubelet wants to find all of them.
	const control = "/sys/fs/cgroup/cgroup.subtree_control"
	for _, controller := range []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"} {
		if err := os.WriteFile(control, []byte("+"+controller), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Logf("controller %s: %v", controller, err)
		}
	}
}

func removeCgroup(t *testing.T, dir string) {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, d := range slices.Backward(dirs) {
		if err := syscall.Rmdir(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("rmdir %s: %v", d, err)
		}
	}
}

// pod is what the tests read of a pod as the kubelet shows it.
type pod struct {
	Metadata struct{ Name string }
	Status   struct {
		Phase             string
		Conditions        []struct{ Type, Status string }
		PodIPs            []struct{ IP string }
		ContainerStatuses []struct {
			Name, ContainerID string
			Ready             bool
			RestartCount      int
			State             struct {
				Terminated struct {
					ExitCode        int
					Reason, Message string
				}
			}
		}
	}
}

func (p pod) condition(kind string) string {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}

func (k *kubelet) get(path string) (string, error) {
	client := http.Client{Timeout: harness.Patience(20 * time.Second)}
	resp, err := client.Get(readOnly + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return string(body), err
}

// eventually waits until the pod is as it should be.
func (k *kubelet) eventually(t *testing.T, what, name string, ok func(pod) error) {
	t.Helper()
	harness.Eventually(t, 2*time.Minute, what, func() error {
		text, err := k.get("/pods")
		if err != nil {
			return err
		}
		var list struct{ Items []pod }
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return err
		}
		for _, p := range list.Items {
			if p.Metadata.Name == name+"-"+nodeName {
				return ok(p)
			}
		}
		return fmt.Errorf("the kubelet knows no pod %s", name)
	})
}
