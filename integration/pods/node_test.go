//go:build integration

package pods

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// A node runs the pods of a folder.
type node struct {
	*harness.Node
	t         testing.TB
	manifests string
	foreign   []string // namespaces of other nodes' pods, by their mount points
}

// start starts a node with an empty folder. config is added to its configuration.
func start(t testing.TB, config ...string) *node {
	t.Helper()
	return startOn(t, nil, config...)
}

// startOn is start with file systems of its own.
func startOn(t testing.TB, tmpfs []harness.Tmpfs, config ...string) *node {
	t.Helper()
	return startServed(t, hostsDir, tmpfs, config...)
}

// startServed is startOn with registries of its own.
func startServed(t testing.TB, hosts string, tmpfs []harness.Tmpfs, config ...string) *node {
	t.Helper()
	if text := strings.Join(config, ""); !strings.Contains(text, "evictionHard") {
		// The machine's disk may be fuller than is good for a node. It comes first: what follows may be of another section.
		config = append([]string{"  evictionHard: {memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}\n"}, config...)
	}
	dir := t.TempDir()
	n := &node{t: t, manifests: filepath.Join(dir, "manifests"), foreign: mountsBelow(t, "/run/netns")}
	if err := os.Mkdir(n.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	n.Node = harness.StartNode(t, harness.Options{
		Tmpfs: tmpfs, HostsDir: hosts, Flags: []string{"--manifests", n.manifests},
		Config: n.config(strings.Join(config, "")),
	})
	return n
}

// config is a configuration with these lines about pods. Logs never lie on the machine's own /var/log.
func (n *node) config(lines string) string {
	return fmt.Sprintf("kubelet:\n  nodeName: self\n  podLogsDir: %s\n%s", filepath.Join(filepath.Dir(n.manifests), "logs"), lines)
}

// write declares what the text says in a file of its own, as a program does that writes in one go.
func (n *node) write(file, text string) {
	n.t.Helper()
	path := filepath.Join(n.manifests, file)
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) remove(file string) {
	n.t.Helper()
	if err := os.Remove(filepath.Join(n.manifests, file)); err != nil {
		n.t.Fatal(err)
	}
}

// podText is the manifest of a pod with one container, which runs a script. spec and more are lines of the pod's and of the container's
// spec.
func podText(name, script string, more ...string) string {
	text := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: %s
    command: [sh, -c, %q]
`, name, images.Tools, script)
	return text + strings.Join(more, "")
}

// sleeper runs until it is told to end, and does so at once.
const sleeper = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"

// pods are those that the node shows to its users, waiting for a node that is just starting.
func (n *node) pods() []*v1.Pod {
	n.t.Helper()
	var list struct{ Items []*v1.Pod }
	harness.Eventually(n.t, 20*time.Second, "the node shows its pods", func() error {
		resp, err := n.api().Get("http://node/api/v1/pods")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", resp.Status)
		}
		return json.NewDecoder(resp.Body).Decode(&list)
	})
	return list.Items
}

// api speaks to the node through the door of its own commands.
func (n *node) api() *http.Client {
	return &http.Client{Timeout: harness.Patience(10 * time.Second), Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(n.RunDir, "api.sock"))
		},
	}}
}

// pod is the pod of a name, nil if there is none.
func (n *node) pod(name string) *v1.Pod {
	for _, p := range n.pods() {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// await waits until the pod of a name is as ok wants it, and returns it.
func (n *node) await(name, what string, ok func(*v1.Pod) bool) (p *v1.Pod) {
	n.t.Helper()
	harness.Eventually(n.t, 40*time.Second, fmt.Sprintf("%s is %s", name, what), func() error {
		if p = n.pod(name); p == nil {
			return fmt.Errorf("there is no such pod")
		}
		if !ok(p) {
			text, _ := json.Marshal(p.Status)
			return fmt.Errorf("its status is %s", text)
		}
		return nil
	})
	return p
}

func condition(p *v1.Pod, typ v1.PodConditionType) v1.ConditionStatus {
	for _, c := range p.Status.Conditions {
		if c.Type == typ {
			return c.Status
		}
	}
	return ""
}

func isReady(p *v1.Pod) bool { return condition(p, v1.PodReady) == v1.ConditionTrue }

func (n *node) awaitReady(name string) *v1.Pod {
	n.t.Helper()
	return n.await(name, "ready", isReady)
}

func (n *node) awaitPhase(name string, phase v1.PodPhase) *v1.Pod {
	n.t.Helper()
	return n.await(name, string(phase), func(p *v1.Pod) bool { return p.Status.Phase == phase })
}

// awaitGone waits until nothing of a pod is left.
func (n *node) awaitGone(name string) {
	n.t.Helper()
	harness.Eventually(n.t, 40*time.Second, name+" is gone", func() error {
		if p := n.pod(name); p != nil {
			text, _ := json.Marshal(p.Status)
			return fmt.Errorf("it is there: %s", text)
		}
		if all := n.containers(name); len(all) > 0 {
			return fmt.Errorf("%d containers are left", len(all))
		}
		return nil
	})
}

// deadline of a single request. It is not of the test's context, which has ended in a clean-up.
func deadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), harness.Patience(time.Minute))
}

// containers of a pod as the runtime has them, the newest first.
func (n *node) containers(pod string) []*cri.Container {
	n.t.Helper()
	ctx, cancel := deadline()
	defer cancel()
	resp, err := n.Runtime.ListContainers(ctx, &cri.ListContainersRequest{
		Filter: &cri.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": pod}},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.Containers
}

// status of a container in the pod's status.
func status(p *v1.Pod, name string) *v1.ContainerStatus {
	for _, all := range [][]v1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range all {
			if all[i].Name == name {
				return &all[i]
			}
		}
	}
	return &v1.ContainerStatus{}
}
