//go:build integration

package integration

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

func TestSandboxLife(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "life", func(c *cri.PodSandboxConfig) {
		c.Annotations = map[string]string{"note": "kept ünaltered"}
	})

	got := pod.Status(t)
	if got.State != cri.PodSandboxState_SANDBOX_READY || got.CreatedAt == 0 {
		t.Errorf("state %s, created at %d", got.State, got.CreatedAt)
	}
	if got.Metadata.Uid != pod.Config.Metadata.Uid || got.Labels["test"] != "life" || got.Annotations["note"] != "kept ünaltered" {
		t.Errorf("not what was asked for: %v", got)
	}
	if len(got.Network.AdditionalIps) != 1 {
		t.Errorf("want two addresses, got %v", got.Network)
	}
	listed := func(filter *cri.PodSandboxFilter) int {
		resp, err := n.Runtime.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		return len(resp.Items)
	}
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	if listed(&cri.PodSandboxFilter{Id: pod.ID[:12], State: ready}) != 1 {
		t.Error("not found by the beginning of its ID")
	}
	if listed(&cri.PodSandboxFilter{LabelSelector: map[string]string{"test": "life", "no": "such"}}) != 0 {
		t.Error("found by a label that it does not have")
	}

	for range 2 { // stopping is idempotent
		if _, err := n.Runtime.StopPodSandbox(harness.Ctx(t), &cri.StopPodSandboxRequest{PodSandboxId: pod.ID}); err != nil {
			t.Fatal(err)
		}
	}
	if got := pod.Status(t); got.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("after the stop it is %s", got.State)
	}
	if listed(&cri.PodSandboxFilter{Id: pod.ID, State: ready}) != 0 {
		t.Error("a stopped sandbox is listed as ready")
	}
	for range 2 { // and so is removing
		if _, err := n.Runtime.RemovePodSandbox(harness.Ctx(t), &cri.RemovePodSandboxRequest{PodSandboxId: pod.ID}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Runtime.PodSandboxStatus(harness.Ctx(t), &cri.PodSandboxStatusRequest{PodSandboxId: pod.ID}); status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed sandbox: %v", err)
	}
}

func TestContainerLife(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "containers")
	c := pod.Create(t, harness.ContainerConfig("app", images.Tools, "sh", "-c", `trap "exit 7" TERM; echo out; echo err >&2; sleep 1000 & wait`))

	if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_CREATED || s.CreatedAt == 0 || s.StartedAt != 0 {
		t.Errorf("after the creation: %v", s)
	}
	c.Start(t)
	if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt == 0 {
		t.Errorf("after the start: %v", s)
	}
	if _, err := n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: c.ID}); err == nil {
		t.Error("a running container was started again")
	}
	// The start is answered when init was let go, which is shortly before it becomes the workload.
	harness.Eventually(t, 10*time.Second, "an exec that sees the workload", func() error {
		if got := c.Exec(t, "sh", "-c", "hostname; cat /proc/1/comm"); got != "containers\nsh" {
			return fmt.Errorf("exec: %q", got)
		}
		return nil
	})
	waitForText(t, c, "stdout", "out")
	for range 2 {
		c.Stop(t, harness.Patience(10e9))
	}
	s := c.Status(t)
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 7 || s.Reason != "Error" || s.FinishedAt < s.StartedAt {
		t.Errorf("after the stop: %v", s)
	}
	lines := c.Log(t)
	if !slices.Equal(harness.Texts(lines, "stdout"), []string{"out"}) || !slices.Equal(harness.Texts(lines, "stderr"), []string{"err"}) {
		t.Errorf("log: %v", lines)
	}
	for range 2 {
		if _, err := n.Runtime.RemoveContainer(harness.Ctx(t), &cri.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Runtime.ContainerStatus(harness.Ctx(t), &cri.ContainerStatusRequest{ContainerId: c.ID}); status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed container: %v", err)
	}
	if _, err := os.Stat(c.LogPath()); err != nil {
		t.Errorf("the log belongs to the client, and is gone: %v", err)
	}
}

func TestContainerGetsWhatImageAndRequestSay(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "config")
	fromImage := pod.Run(t, harness.ContainerConfig("image", images.Entrypoint))
	fromRequest := pod.Run(t, harness.ContainerConfig("request", images.Entrypoint), func(c *cri.ContainerConfig) {
		c.Args = []string{"by", "hand"}
		c.Envs = []*cri.KeyValue{{Key: "BOTH", Value: []byte("request")}}
		c.WorkingDir = "/tmp"
		c.Linux.SecurityContext.RunAsUsername = "nobody"
	})
	for c, want := range map[*harness.Container][]string{
		fromImage:   {"args: from image", "user: www-data", "dir: /var/www", "env: image image"},
		fromRequest: {"args: by hand", "user: nobody", "dir: /tmp", "env: image request"},
	} {
		if s := c.WaitExit(t); s.ExitCode != 0 || s.Reason != "Completed" {
			t.Errorf("%s: %v", c.Config.Metadata.Name, s)
		}
		if got := harness.Texts(c.Log(t), "stdout"); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", c.Config.Metadata.Name, got, want)
		}
	}
}

func TestFailedStartSaysWhy(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "fails")
	c := pod.Create(t, harness.ContainerConfig("app", images.Tools, "/no/such/program"))
	_, err := n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: c.ID})
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start: %v", err)
	}
	if s := c.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 128 || s.Reason != "StartError" || s.Message == "" {
		t.Errorf("status: %v", s)
	}
}

func TestRemovedPodTakesItsContainersAlong(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "together")
	c := pod.Idle(t, "app")
	pod.Remove(t)
	if _, err := n.Runtime.ContainerStatus(harness.Ctx(t), &cri.ContainerStatusRequest{ContainerId: c.ID}); status.Code(err) != codes.NotFound {
		t.Errorf("its container is still there: %v", err)
	}
}

func TestSharedPidNamespaceHasAnInitThatReaps(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "shared-pid", func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	})
	inPod := func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_POD}
	}
	first := pod.Idle(t, "first", inPod)
	second := pod.Idle(t, "second", inPod)
	if a, b := first.Exec(t, "readlink", "/proc/self/ns/pid"), second.Exec(t, "readlink", "/proc/self/ns/pid"); a != b {
		t.Errorf("two pid namespaces: %s %s", a, b)
	}
	// An orphan that ends becomes pid 1's child, and is a zombie until pid 1 asks for it.
	first.Exec(t, "sh", "-c", "(sleep 0.1 &)")
	harness.Eventually(t, 10e9, "the orphan to be reaped", func() error {
		return wantNo(second.Exec(t, "sh", "-c", "cat /proc/[0-9]*/stat"), ") Z ")
	})
}

// The stream RPCs give what the list RPCs give.
func TestStreamsGiveWhatListsGive(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "stream")
	c := pod.Idle(t, "app")
	pods, err := n.Runtime.StreamPodSandboxes(harness.Ctx(t), &cri.StreamPodSandboxesRequest{Filter: &cri.PodSandboxFilter{Id: pod.ID}})
	if err != nil {
		t.Fatal(err)
	}
	var podIDs []string
	var end error
	for end == nil {
		var resp *cri.StreamPodSandboxesResponse
		resp, end = pods.Recv()
		for _, p := range resp.GetPodSandboxes() {
			podIDs = append(podIDs, p.Id)
		}
	}
	if end != io.EOF {
		t.Errorf("end of the pods: %v", end)
	}
	containers, err := n.Runtime.StreamContainers(harness.Ctx(t), &cri.StreamContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod.ID}})
	if err != nil {
		t.Fatal(err)
	}
	var containerIDs []string
	for end = nil; end == nil; {
		var resp *cri.StreamContainersResponse
		resp, end = containers.Recv()
		for _, c := range resp.GetContainers() {
			containerIDs = append(containerIDs, c.Id)
		}
	}
	if end != io.EOF {
		t.Errorf("end of the containers: %v", end)
	}
	if !slices.Equal(podIDs, []string{pod.ID}) || !slices.Equal(containerIDs, []string{c.ID}) {
		t.Errorf("streamed pods %v, containers %v", podIDs, containerIDs)
	}
}
