package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/images"
)

// A Pod is a sandbox on a node.
type Pod struct {
	Node   *Node
	ID     string
	Config *cri.PodSandboxConfig
}

// A Container is one of a pod.
type Container struct {
	Pod    *Pod
	ID     string
	Config *cri.ContainerConfig
}

var serial atomic.Int64

// PodConfig returns the configuration of a pod with a name that no other test has.
func (n *Node) PodConfig(name string) *cri.PodSandboxConfig {
	unique := fmt.Sprintf("%s-%d", name, serial.Add(1))
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: unique, Namespace: "test", Uid: "uid-" + unique},
		Hostname:     name,
		LogDirectory: filepath.Join(n.Dir, "logs", unique),
		Labels:       map[string]string{"test": name},
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
	}
}

// RunPod runs a sandbox, which the test removes at its end.
func (n *Node) RunPod(t testing.TB, name string, change ...func(*cri.PodSandboxConfig)) *Pod {
	t.Helper()
	config := n.PodConfig(name)
	for _, f := range change {
		f(config)
	}
	resp, err := n.Runtime.RunPodSandbox(Ctx(t), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("RunPodSandbox %s: %v", name, err)
	}
	p := &Pod{Node: n, ID: resp.PodSandboxId, Config: config}
	t.Cleanup(func() { p.remove(t) })
	return p
}

// Remove removes the pod before the end of the test.
func (p *Pod) Remove(t testing.TB) {
	t.Helper()
	p.remove(t)
}

func (p *Pod) remove(t testing.TB) {
	t.Helper()
	if !p.Node.Running() {
		return // a test of the daemon's death; the node's Close removes what is left
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience(time.Minute)) // t.Context has ended in a clean-up
	defer cancel()
	if _, err := p.Node.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Errorf("StopPodSandbox: %v", err)
	}
	if _, err := p.Node.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Errorf("RemovePodSandbox: %v", err)
	}
}

// Status returns the status of the sandbox.
func (p *Pod) Status(t testing.TB) *cri.PodSandboxStatus {
	t.Helper()
	resp, err := p.Node.Runtime.PodSandboxStatus(Ctx(t), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		t.Fatalf("PodSandboxStatus: %v", err)
	}
	return resp.Status
}

// IPs returns the pod's addresses in order.
func (p *Pod) IPs(t testing.TB) []string {
	t.Helper()
	network := p.Status(t).GetNetwork()
	ips := []string{network.GetIp()}
	for _, more := range network.GetAdditionalIps() {
		ips = append(ips, more.GetIp())
	}
	return ips
}

// ContainerConfig returns the configuration of a container.
func ContainerConfig(name, image string, command ...string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: image},
		Command:  command,
		LogPath:  name + ".log",
		Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{}},
	}
}

// Create creates a container and pulls its image where it is not there.
func (p *Pod) Create(t testing.TB, config *cri.ContainerConfig, change ...func(*cri.ContainerConfig)) *Container {
	t.Helper()
	for _, f := range change {
		f(config)
	}
	p.Node.NeedImage(t, config.Image.Image)
	resp, err := p.Node.Runtime.CreateContainer(Ctx(t), &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	if err != nil {
		t.Fatalf("CreateContainer %s: %v", config.Metadata.Name, err)
	}
	return &Container{Pod: p, ID: resp.ContainerId, Config: config}
}

// Run creates and starts a container.
func (p *Pod) Run(t testing.TB, config *cri.ContainerConfig, change ...func(*cri.ContainerConfig)) *Container {
	t.Helper()
	c := p.Create(t, config, change...)
	c.Start(t)
	return c
}

// Sh runs a container of the tools image with a shell script.
func (p *Pod) Sh(t testing.TB, name, script string, change ...func(*cri.ContainerConfig)) *Container {
	t.Helper()
	return p.Run(t, ContainerConfig(name, images.Tools, "sh", "-c", script), change...)
}

// Idle runs a container that does nothing until it is told to end.
func (p *Pod) Idle(t testing.TB, name string, change ...func(*cri.ContainerConfig)) *Container {
	t.Helper()
	return p.Sh(t, name, `trap "exit 0" TERM; while :; do sleep 1000000 & wait; done`, change...)
}

// Start starts the container.
func (c *Container) Start(t testing.TB) {
	t.Helper()
	if _, err := c.Pod.Node.Runtime.StartContainer(Ctx(t), &cri.StartContainerRequest{ContainerId: c.ID}); err != nil {
		said, _ := os.ReadFile(c.LogPath())
		t.Fatalf("StartContainer %s: %v; it is %v, and its log %q", c.Config.Metadata.Name, err, c.Status(t), said)
	}
}

// Stop stops the container.
func (c *Container) Stop(t testing.TB, grace time.Duration) {
	t.Helper()
	if _, err := c.Pod.Node.Runtime.StopContainer(Ctx(t), &cri.StopContainerRequest{ContainerId: c.ID, Timeout: int64(grace / time.Second)}); err != nil {
		t.Fatalf("StopContainer: %v", err)
	}
}

// Status returns the status of the container.
func (c *Container) Status(t testing.TB) *cri.ContainerStatus {
	t.Helper()
	resp, err := c.Pod.Node.Runtime.ContainerStatus(Ctx(t), &cri.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		t.Fatalf("ContainerStatus: %v", err)
	}
	return resp.Status
}

// WaitExit waits for the container's end and returns its status then.
func (c *Container) WaitExit(t testing.TB) *cri.ContainerStatus {
	t.Helper()
	var status *cri.ContainerStatus
	Eventually(t, 60*time.Second, "end of container "+c.Config.Metadata.Name, func() error {
		status = c.Status(t)
		if status.State != cri.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("it is %s", status.State)
		}
		return nil
	})
	return status
}

// ExecSync runs a command in the container.
func (c *Container) ExecSync(ctx context.Context, timeout time.Duration, command ...string) (*cri.ExecSyncResponse, error) {
	return c.Pod.Node.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: int64(timeout / time.Second)})
}

// Exec runs a command in the container that has to succeed, and returns its standard output without surrounding space.
func (c *Container) Exec(t testing.TB, command ...string) string {
	t.Helper()
	resp, err := c.ExecSync(Ctx(t), Patience(30*time.Second), command...)
	if err != nil {
		t.Fatalf("ExecSync %q: %v", command, err)
	}
	if resp.ExitCode != 0 {
		t.Fatalf("ExecSync %q: exit code %d, stdout %q, stderr %q", command, resp.ExitCode, resp.Stdout, resp.Stderr)
	}
	return strings.TrimSpace(string(resp.Stdout))
}

// NeedImage pulls an image where it is not there.
func (n *Node) NeedImage(t testing.TB, ref string) {
	t.Helper()
	spec := &cri.ImageSpec{Image: ref}
	resp, err := n.Images.ImageStatus(Ctx(t), &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		t.Fatalf("ImageStatus %s: %v", ref, err)
	}
	if resp.Image != nil {
		return
	}
	if _, err := n.Images.PullImage(Ctx(t), &cri.PullImageRequest{Image: spec}); err != nil {
		t.Fatalf("PullImage %s: %v", ref, err)
	}
}

// Ctx returns a context for one call, with the limit that the kubelet has for most.
func Ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), Patience(2*time.Minute))
	t.Cleanup(cancel)
	return ctx
}
