//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// What plugins may rely on, each with a plugin of its own that talks to the same node.
func TestNRI(t *testing.T) {
	n := nriNode(t)
	for name, test := range map[string]func(*testing.T, *harness.Node){
		"life of a pod":                       testPluginHearsOfPod,
		"life of a container":                 testPluginHearsOfContainer,
		"container that fails":                testPluginHearsOfFailure,
		"container that cannot start":         testPluginHearsOfStartError,
		"sandbox hidden while it is run":      testSandboxHiddenWhileRun,
		"no workload while a sandbox is run":  testNoWorkloadWhileRun,
		"sandbox refused":                     testSandboxRefused,
		"containers stopped before a sandbox": testStoppedBeforeSandbox,
		"sandbox stopped once":                testSandboxStoppedOnce,
		"container hidden while created":      testContainerHiddenWhileCreated,
		"container refused":                   testContainerRefused,
		"start refused":                       testStartRefused,
		"synchronized with what is there":     testSynchronized,
		"created while synchronizing":         testCreatedWhileSynchronizing,
		"created around synchronizing":        testCreatedAroundSynchronizing,
		"resized pod":                         testPluginHearsOfResizedPod,
		"plugin that dies":                    testPluginDies,
	} {
		t.Run(name, func(t *testing.T) { test(t, n) })
	}
}

// nriNode starts a node with plugins.
func nriNode(t *testing.T) *harness.Node {
	return ownNode(t, func(o *harness.Options) { o.Config = "nri: {" + patientWithPlugins() + "}\n" })
}

// patientWithPlugins is configuration of a node that does not cut off plugins that a test holds.
func patientWithPlugins() string {
	return fmt.Sprintf("requestTimeout: %s, registrationTimeout: %[1]s", harness.Patience(30*time.Second))
}

func testPluginHearsOfPod(t *testing.T, n *harness.Node) {
	p := &plugin{}
	p.connect(t, n, "10")
	pod := n.RunPod(t, "plugged", func(c *cri.PodSandboxConfig) {
		c.Annotations = map[string]string{"note": "for plugins"}
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 512}
	})
	wantStory(t, p, pod.ID, "RunPodSandbox")
	pod.Remove(t)
	wantStory(t, p, pod.ID, "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox")

	run := p.find(t, pod.ID, "RunPodSandbox").pod
	want := pod.Config
	if run.Name != want.Metadata.Name || run.Namespace != "test" || run.Uid != want.Metadata.Uid ||
		run.Labels["test"] != "plugged" || run.Annotations["note"] != "for plugins" || len(run.Ips) != 2 {
		t.Errorf("told of %v", run)
	}
	if got := run.GetLinux().GetPodResources().GetCpu().GetShares().GetValue(); got != 512 {
		t.Errorf("told of %d CPU shares", got)
	}
	if path := netns(run); !strings.HasPrefix(path, "/run/netns/") {
		t.Errorf("told of network namespace %q", path)
	}
	for _, step := range []string{"StopPodSandbox", "RemovePodSandbox"} {
		if got := p.find(t, pod.ID, step).pod; got.Uid != want.Metadata.Uid {
			t.Errorf("%s: told of %v", step, got)
		}
	}
}

// netns is the path of a pod's network namespace, as plugins are told.
func netns(pod *api.PodSandbox) string {
	for _, ns := range pod.GetLinux().GetNamespaces() {
		if ns.GetType() == "network" {
			return ns.GetPath()
		}
	}
	return ""
}

func testPluginHearsOfContainer(t *testing.T, n *harness.Node) {
	p := &plugin{}
	p.connect(t, n, "10")
	pod := n.RunPod(t, "plugged")
	app := pod.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Labels = map[string]string{"l": "1"}
		c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("b")}}
		c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	})
	app.Stop(t, 0)
	if _, err := n.Runtime.RemoveContainer(harness.Ctx(t), &cri.RemoveContainerRequest{ContainerId: app.ID}); err != nil {
		t.Fatal(err)
	}
	wantStory(t, p, pod.ID, "RunPodSandbox", "CreateContainer app", "PostCreateContainer app", "StartContainer app", "PostStartContainer app",
		"StopContainer app", "RemoveContainer app")

	created := p.find(t, pod.ID, "CreateContainer app").container
	if created.Id != app.ID || created.PodSandboxId != pod.ID || created.Labels["l"] != "1" || !slices.Contains(created.Env, "A=b") ||
		created.Image.GetName() != images.Tools || created.State != api.ContainerState_CONTAINER_CREATED {
		t.Errorf("told of %v", created)
	}
	if got := created.GetLinux().GetSeccompProfile(); got == nil || got.GetProfileType() != api.SecurityProfile_RUNTIME_DEFAULT {
		t.Errorf("told of the seccomp profile %v", got)
	}
	if started := p.find(t, pod.ID, "PostStartContainer app").container; started.State != api.ContainerState_CONTAINER_RUNNING ||
		started.Pid == 0 || started.StartedAt == 0 {
		t.Errorf("after the start told of %v", started)
	}
	if stopped := p.find(t, pod.ID, "StopContainer app").container; stopped.State != api.ContainerState_CONTAINER_STOPPED ||
		stopped.FinishedAt == 0 || stopped.ExitCode != 137 {
		t.Errorf("after the stop told of %v", stopped)
	}
}

// A container that ends by itself is told to be stopped, without anybody stopping or removing it.
func testPluginHearsOfFailure(t *testing.T, n *harness.Node) {
	p := &plugin{}
	p.connect(t, n, "10")
	pod := n.RunPod(t, "plugged")
	app := pod.Sh(t, "app", "exit 3")
	if s := app.WaitExit(t); s.ExitCode != 3 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	harness.Eventually(t, 10*time.Second, "the plugin to hear of the end", func() error {
		if story := p.story(pod.ID); !slices.Contains(story, "StopContainer app") {
			return fmt.Errorf("%q", story)
		}
		return nil
	})
	// However short its life: plugins hear of its start before they hear of its end.
	wantStory(t, p, pod.ID, "RunPodSandbox", "CreateContainer app", "PostCreateContainer app", "StartContainer app", "PostStartContainer app",
		"StopContainer app")
	if stopped := p.find(t, pod.ID, "StopContainer app").container; stopped.ExitCode != 3 || stopped.StatusReason != "Error" {
		t.Errorf("told of %v", stopped)
	}
	if _, err := n.Runtime.RemoveContainer(harness.Ctx(t), &cri.RemoveContainerRequest{ContainerId: app.ID}); err != nil {
		t.Fatal(err)
	}
	if story := p.story(pod.ID); len(story) != 7 || story[6] != "RemoveContainer app" {
		t.Errorf("in the end told %q", story)
	}
}

func testPluginHearsOfStartError(t *testing.T, n *harness.Node) {
	p := &plugin{}
	p.connect(t, n, "10")
	pod := n.RunPod(t, "plugged")
	app := pod.Create(t, harness.ContainerConfig("app", images.Tools, "/no/such/program"))
	if _, err := n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: app.ID}); err == nil {
		t.Error("it was started")
	}
	pod.Remove(t)
	wantStory(t, p, pod.ID, "RunPodSandbox", "CreateContainer app", "PostCreateContainer app", "StartContainer app",
		"StopContainer app", "StopPodSandbox", "RemoveContainer app", "RemovePodSandbox")
}

// runHeld asks for a sandbox, and returns the pod that a plugin is told of while it is held in that step.
func runHeld(t *testing.T, n *harness.Node) (config *cri.PodSandboxConfig, seen *api.PodSandbox, finish func() *harness.Pod) {
	t.Helper()
	_, g := connectHolding(t, n, "RunPodSandbox")
	config = n.PodConfig("held")
	type result struct {
		resp *cri.RunPodSandboxResponse
		err  error
	}
	done := make(chan result, 1)
	ctx := harness.Ctx(t)
	go func() {
		resp, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
		done <- result{resp, err}
	}()
	return config, g.wait(t).pod, func() *harness.Pod {
		t.Helper()
		g.open()
		r := <-done
		if r.err != nil {
			t.Fatal(r.err)
		}
		pod := &harness.Pod{Node: n, ID: r.resp.PodSandboxId, Config: config}
		t.Cleanup(func() { pod.Remove(t) })
		return pod
	}
}

func testSandboxHiddenWhileRun(t *testing.T, n *harness.Node) {
	_, seen, finish := runHeld(t, n)
	if list := podsListed(t, n); slices.Contains(list, seen.Id) {
		t.Error("the sandbox is listed")
	}
	if _, err := n.Runtime.PodSandboxStatus(harness.Ctx(t), &cri.PodSandboxStatusRequest{PodSandboxId: seen.Id}); status.Code(err) != codes.NotFound {
		t.Errorf("status of the sandbox: %v", err)
	}
	pod := finish()
	if pod.ID != seen.Id {
		t.Errorf("the plugin was told of %s, the caller of %s", seen.Id, pod.ID)
	}
	if s := pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("after the hook it is %s", s.State)
	}
}

func testNoWorkloadWhileRun(t *testing.T, n *harness.Node) {
	n.NeedImage(t, images.Tools)
	config, seen, finish := runHeld(t, n)
	_, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{
		PodSandboxId: seen.Id, Config: harness.ContainerConfig("early", images.Tools, "true"), SandboxConfig: config,
	})
	if err == nil {
		t.Error("a container was created in a sandbox that no plugin has agreed to")
	}
	if got := finish().Idle(t, "app").Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
}

func testSandboxRefused(t *testing.T, n *harness.Node) {
	var refused atomic.Pointer[api.PodSandbox]
	p := &plugin{on: func(_ context.Context, e event) error {
		if e.step == "RunPodSandbox" && refused.CompareAndSwap(nil, e.pod) {
			return errors.New("not on my watch")
		}
		return nil
	}}
	p.connect(t, n, "10")
	config := n.PodConfig("refused")
	_, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config})
	if err == nil || !strings.Contains(err.Error(), "not on my watch") {
		t.Errorf("error is %v", err)
	}
	gone := refused.Load()
	if slices.Contains(podsListed(t, n), gone.GetId()) {
		t.Error("it is listed")
	}
	wantNothingOf(t, n, gone.GetId(), netns(gone))
	wantStory(t, p, gone.GetId(), "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox")

	resp, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("second try: %v", err)
	}
	pod := &harness.Pod{Node: n, ID: resp.PodSandboxId, Config: config}
	t.Cleanup(func() { pod.Remove(t) })
	if s := pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY || pod.ID == gone.GetId() {
		t.Errorf("second try: %v", s)
	}
}

// wantNothingOf looks for what is left of a sandbox or a container: the paths, and files named after it.
func wantNothingOf(t *testing.T, n *harness.Node, id string, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	for _, dir := range []string{n.RootDir, n.RunDir} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it has just gone
			}
			if err == nil && strings.Contains(d.Name(), id) {
				t.Errorf("left behind: %s", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func testStoppedBeforeSandbox(t *testing.T, n *harness.Node) {
	p, g := connectHolding(t, n, "StopPodSandbox")
	pod := n.RunPod(t, "stopping")
	app := pod.Idle(t, "app")
	stopped := make(chan error, 1)
	ctx := harness.Ctx(t)
	go func() {
		_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.ID})
		stopped <- err
	}()
	g.wait(t)
	if s := app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("while its sandbox is being stopped the container is %s", s.State)
	}
	if s := pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("while it is being stopped the sandbox is %s", s.State)
	}
	if path := netns(p.find(t, pod.ID, "StopPodSandbox").pod); path == "" {
		t.Error("the plugin is not told of the network namespace")
	} else if _, err := os.Stat(path); err != nil {
		t.Errorf("the network is gone before the plugin has seen the end: %v", err)
	}
	g.open()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	wantStory(t, p, pod.ID, "RunPodSandbox", "CreateContainer app", "PostCreateContainer app", "StartContainer app", "PostStartContainer app",
		"StopContainer app", "StopPodSandbox")
}

func testSandboxStoppedOnce(t *testing.T, n *harness.Node) {
	p := &plugin{}
	p.connect(t, n, "10")
	n.NeedImage(t, images.Tools)
	pod := n.RunPod(t, "once")
	for range 2 {
		if _, err := n.Runtime.StopPodSandbox(harness.Ctx(t), &cri.StopPodSandboxRequest{PodSandboxId: pod.ID}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{
		PodSandboxId: pod.ID, Config: harness.ContainerConfig("late", images.Tools, "true"), SandboxConfig: pod.Config,
	})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("container in a stopped sandbox: %v", err)
	}
	wantStory(t, p, pod.ID, "RunPodSandbox", "StopPodSandbox")
}

func testContainerHiddenWhileCreated(t *testing.T, n *harness.Node) {
	_, g := connectHolding(t, n, "CreateContainer")
	n.NeedImage(t, images.Tools)
	pod := n.RunPod(t, "creating")
	created := make(chan string, 1)
	ctx := harness.Ctx(t)
	go func() {
		resp, err := n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
			PodSandboxId: pod.ID, Config: harness.ContainerConfig("app", images.Tools, "true"), SandboxConfig: pod.Config,
		})
		if err != nil {
			t.Error(err)
		}
		created <- resp.GetContainerId()
	}()
	seen := g.wait(t).container
	if list := containersListed(t, pod); len(list) != 0 {
		t.Errorf("listed while it is created: %q", list)
	}
	if _, err := n.Runtime.ContainerStatus(harness.Ctx(t), &cri.ContainerStatusRequest{ContainerId: seen.Id}); status.Code(err) != codes.NotFound {
		t.Errorf("status while it is created: %v", err)
	}
	g.open()
	if id := <-created; id != seen.Id {
		t.Errorf("the plugin was told of %s, the caller of %s", seen.Id, id)
	}
	app := &harness.Container{Pod: pod, ID: seen.Id}
	if s := app.Status(t); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("after the hook it is %s", s.State)
	}
}

func testContainerRefused(t *testing.T, n *harness.Node) {
	var refused atomic.Pointer[api.Container]
	p := &plugin{on: func(_ context.Context, e event) error {
		if e.step == "CreateContainer" && refused.CompareAndSwap(nil, e.container) {
			return errors.New("not on my watch")
		}
		return nil
	}}
	p.connect(t, n, "10")
	n.NeedImage(t, images.Tools)
	pod := n.RunPod(t, "refused")
	config := harness.ContainerConfig("app", images.Tools, "sleep", "1000")
	_, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
	if err == nil || !strings.Contains(err.Error(), "not on my watch") {
		t.Errorf("error is %v", err)
	}
	if list := containersListed(t, pod); len(list) != 0 {
		t.Errorf("listed: %q", list)
	}
	wantNothingOf(t, n, refused.Load().GetId())
	wantStory(t, p, pod.ID, "RunPodSandbox", "CreateContainer app", "StopContainer app", "RemoveContainer app")

	if got := pod.Run(t, config).Exec(t, "echo", "well"); got != "well" {
		t.Errorf("second try: %q", got)
	}
}

// A start that is refused ends the container, as any failed start does.
func testStartRefused(t *testing.T, n *harness.Node) {
	p := &plugin{on: func(_ context.Context, e event) error {
		if e.step == "StartContainer" {
			return errors.New("not on my watch")
		}
		return nil
	}}
	p.connect(t, n, "10")
	pod := n.RunPod(t, "refused")
	app := pod.Create(t, harness.ContainerConfig("app", images.Tools, "sleep", "1000"))
	_, err := n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: app.ID})
	if err == nil || !strings.Contains(err.Error(), "not on my watch") {
		t.Errorf("error is %v", err)
	}
	if s := app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" {
		t.Errorf("it is %s, %s", s.State, s.Reason)
	}
	pod.Remove(t)
	wantStory(t, p, pod.ID, "RunPodSandbox", "CreateContainer app", "PostCreateContainer app", "StartContainer app",
		"StopContainer app", "StopPodSandbox", "RemoveContainer app", "RemovePodSandbox")
}

func testPluginHearsOfResizedPod(t *testing.T, n *harness.Node) {
	p := &plugin{}
	p.connect(t, n, "10")
	pod := n.RunPod(t, "resized")
	_, err := n.Runtime.UpdatePodSandboxResources(harness.Ctx(t), &cri.UpdatePodSandboxResourcesRequest{
		PodSandboxId: pod.ID, Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 200 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantStory(t, p, pod.ID, "RunPodSandbox", "UpdatePodSandbox", "PostUpdatePodSandbox")
}

// What a plugin was busy with goes on without it.
func testPluginDies(t *testing.T, n *harness.Node) {
	g := newGate(t)
	p := &plugin{on: func(ctx context.Context, e event) error {
		g.hold(ctx, e)
		return nil
	}}
	p.connect(t, n, "10")
	ran := make(chan *harness.Pod, 1)
	go func() {
		defer close(ran)
		ran <- n.RunPod(t, "bereft")
	}()
	g.wait(t)
	p.stub.Stop()
	if pod := <-ran; pod == nil || pod.Status(t).State != cri.PodSandboxState_SANDBOX_READY {
		t.Error("the sandbox is not ready")
	}
}

// A daemon that is killed while a plugin looks at something new leaves nothing of it.
func TestNRIDaemonDies(t *testing.T) {
	n := nriNode(t)
	n.NeedImage(t, images.Tools)
	pod := n.RunPod(t, "stays")
	stays := pod.Idle(t, "app")
	for _, step := range []string{"RunPodSandbox", "CreateContainer"} {
		_, g := connectHolding(t, n, step)
		config, ctx := n.PodConfig("dies"), harness.Ctx(t)
		container := &cri.CreateContainerRequest{
			PodSandboxId: pod.ID, Config: harness.ContainerConfig("dies", images.Tools, "true"), SandboxConfig: pod.Config,
		}
		go func() {
			if step == "RunPodSandbox" {
				_, _ = n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config}) // nobody is there to answer
			} else {
				_, _ = n.Runtime.CreateContainer(ctx, container)
			}
		}()
		held := g.wait(t)
		n.Kill9(t)
		g.open()
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		if step == "RunPodSandbox" {
			wantNothingOf(t, n, held.pod.Id, netns(held.pod))
		} else {
			wantNothingOf(t, n, held.container.Id)
		}
		if pods, containers := podsListed(t, n), containersListed(t, pod); len(pods) != 1 || len(containers) != 1 {
			t.Errorf("%s: listed %q, %q", step, pods, containers)
		}
		after := &plugin{}
		after.connect(t, n, "10")
		if len(after.pods) != 1 || len(after.containers) != 1 {
			t.Errorf("%s: the next plugin is told of %v, %v", step, after.pods, after.containers)
		}
		if got := stays.Exec(t, "echo", "well"); got != "well" {
			t.Errorf("%s: %q", step, got)
		}
		after.stub.Stop()
	}
	n.RunPod(t, "dies").Idle(t, "app")
}

func podsListed(t *testing.T, n *harness.Node) []string {
	t.Helper()
	resp, err := n.Runtime.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, p := range resp.Items {
		ids = append(ids, p.Id)
	}
	return ids
}

func containersListed(t *testing.T, pod *harness.Pod) []string {
	t.Helper()
	resp, err := pod.Node.Runtime.ListContainers(harness.Ctx(t), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod.ID}})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, c := range resp.Containers {
		ids = append(ids, c.Id)
	}
	return ids
}
