package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A node is an NRI with what a runtime has: pods, containers, and the updates that plugins asked for.
type node struct {
	*NRI
	socket string

	mu         sync.Mutex
	pods       []Pod
	containers []Container
	updates    []Update
	fail       func(Update) bool
}

// newNode opens NRI on a socket of its own, and closes it with the test.
func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{socket: filepath.Join(t.TempDir(), "nri.sock")}
	var err error
	n.NRI, err = Open(Config{
		Name: "berth", Version: "1.2", SocketPath: n.socket, PluginPath: t.TempDir(), PluginConfigPath: t.TempDir(),
		Log: slog.New(slog.DiscardHandler),
		InjectCDI: func(s *specs.Spec, devices []string) error {
			s.Process.Env = append(s.Process.Env, "CDI="+devices[0])
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// start lets plugins in.
func (n *node) start(t *testing.T) *node {
	t.Helper()
	if err := n.Start(Callbacks{List: n.list, Update: n.apply}); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) list() ([]Pod, []Container) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.pods), slices.Clone(n.containers)
}

func (n *node) apply(_ context.Context, updates []Update) (failed []Update, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.updates = append(n.updates, updates...)
	for _, u := range updates {
		if n.fail != nil && n.fail(u) {
			failed = append(failed, u)
		}
	}
	return failed, nil
}

// A plugin writes down what it is told, and answers as the test wants.
type plugin struct {
	stub stub.Stub
	// synced gets the names of what there was.
	synced chan []string

	mu     sync.Mutex
	events []string

	onSync   func() []*api.ContainerUpdate
	onCreate func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	onUpdate func(*api.LinuxResources) []*api.ContainerUpdate
	onStop   func() []*api.ContainerUpdate
	// refuse is the event that fails.
	refuse string
}

// connect runs a plugin until the test ends, and returns when it is in.
func (n *node) connect(t *testing.T, p *plugin) []string {
	t.Helper()
	p.synced = make(chan []string, 1)
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName("test"), stub.WithPluginIdx("10"), stub.WithSocketPath(n.socket),
		stub.WithLogger(quiet{}), stub.WithOnClose(func() {}))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.stub.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stub.Stop)
	select {
	case names := <-p.synced:
		// The library adds the plugin before it lets a block begin.
		n.Block()()
		return names
	case <-t.Context().Done():
		t.Fatal("the plugin was not synchronized")
		return nil
	}
}

// saw are the events so far.
func (p *plugin) saw() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func (p *plugin) note(event, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, event+" "+id)
	if event == p.refuse {
		return errors.New("not on my watch")
	}
	return nil
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	names := []string{}
	for _, pod := range pods {
		names = append(names, pod.Id)
	}
	for _, c := range containers {
		names = append(names, c.Id)
	}
	p.synced <- names
	if p.onSync != nil {
		return p.onSync(), nil
	}
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("run", pod.Id)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	return p.note("updatepod", fmt.Sprintf("%s %d %d", pod.Id, overhead.GetCpu().GetShares().GetValue(),
		resources.GetMemory().GetLimit().GetValue()))
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("updatedpod", pod.Id)
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("stoppod", pod.Id)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("removepod", pod.Id)
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (
	*api.ContainerAdjustment, []*api.ContainerUpdate, error,
) {
	if err := p.note("create", c.Id); err != nil {
		return nil, nil, err
	}
	if p.onCreate != nil {
		return p.onCreate(pod, c)
	}
	return nil, nil, nil
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("created", c.Id)
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("start", c.Id)
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("started", c.Id)
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) (
	[]*api.ContainerUpdate, error,
) {
	if err := p.note("update", c.Id); err != nil {
		return nil, err
	}
	if p.onUpdate != nil {
		return p.onUpdate(r), nil
	}
	return nil, nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("updated", c.Id)
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	if err := p.note("stop", c.Id); err != nil {
		return nil, err
	}
	if p.onStop != nil {
		return p.onStop(), nil
	}
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("remove", c.Id)
}

// quiet is the stub's logger.
type quiet struct{ nrilog.Logger }

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

func testPod() Pod {
	return Pod{
		ID: "p1", Name: "web", UID: "u1", Namespace: "shop", Labels: map[string]string{"l": "1"},
		Annotations: map[string]string{"a": "2"}, RuntimeHandler: "runc", CgroupParent: "/kubepods/p1", NetNS: "/run/netns/x",
		Pid: 42, IPs: []netip.Addr{netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00::5")},
		Overhead: &cri.LinuxContainerResources{CpuShares: 7},
	}
}

func testContainer(id string) Container {
	limit, score := int64(1000), 5
	return Container{
		ID: id, PodID: "p1", Name: "app", State: "created", Labels: map[string]string{"l": "1"},
		Annotations: map[string]string{"a": "2"}, Pid: 43, CreatedAt: time.Unix(5, 6), CDIDevices: []string{"v.com/gpu=1"},
		Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/p"}, Image: "img", ImageID: "sha256:1",
		Spec: &specs.Spec{
			Annotations: map[string]string{"s": "3"},
			Mounts:      []specs.Mount{{Destination: "/data", Source: "/src", Type: "bind", Options: []string{"rbind", "rw"}}},
			Process: &specs.Process{
				Args: []string{"/app"}, Env: []string{"A=1", "B=2"}, User: specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{2, 3}},
				Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 20, Soft: 10}}, OOMScoreAdj: &score,
			},
			Linux: &specs.Linux{
				CgroupsPath: "/kubepods/p1/c1", Namespaces: []specs.LinuxNamespace{{Type: "pid"}},
				Devices:   []specs.LinuxDevice{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}},
				Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
			},
		},
	}
}

func wantEvents(t *testing.T, p *plugin, want ...string) {
	t.Helper()
	if got := p.saw(); !slices.Equal(got, want) {
		t.Errorf("the plugin saw\n\t%q, want\n\t%q", got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLifeOfAPod(t *testing.T) {
	n := newNode(t).start(t)
	p := &plugin{}
	n.connect(t, p)
	ctx, pod, c := t.Context(), testPod(), testContainer("c1")

	must(t, n.RunPodSandbox(ctx, pod))
	spec, updates, err := n.CreateContainer(ctx, pod, c)
	must(t, err)
	if spec != c.Spec || updates != nil {
		t.Errorf("nobody wished anything: %v, %v", spec, updates)
	}
	must(t, n.PostCreateContainer(ctx, pod, c))
	must(t, n.StartContainer(ctx, pod, c))
	must(t, n.PostStartContainer(ctx, pod, c))
	resources := &specs.LinuxResources{}
	got, _, err := n.UpdateContainer(ctx, pod, c, resources)
	must(t, err)
	if got != resources {
		t.Errorf("nobody wished other resources: %v", got)
	}
	must(t, n.PostUpdateContainer(ctx, pod, c))
	must(t, n.UpdatePodSandbox(ctx, pod, &cri.LinuxContainerResources{CpuShares: 7}, &cri.LinuxContainerResources{MemoryLimitInBytes: 8}))
	must(t, n.PostUpdatePodSandbox(ctx, pod))
	for range 2 { // each end is told once
		_, err = n.StopContainer(ctx, pod, c)
		must(t, err)
	}
	for range 2 {
		must(t, n.RemoveContainer(ctx, pod, c))
		must(t, n.StopPodSandbox(ctx, pod))
	}
	for range 2 {
		must(t, n.RemovePodSandbox(ctx, pod))
	}
	wantEvents(t, p, "run p1", "create c1", "created c1", "start c1", "started c1", "update c1", "updated c1", "updatepod p1 7 8",
		"updatedpod p1", "stop c1", "remove c1", "stoppod p1", "removepod p1")
	if len(n.told) != 0 {
		t.Errorf("still remembered: %v", n.told)
	}
}

// Removing tells the stop that nobody told.
func TestRemoveWithoutStop(t *testing.T) {
	n := newNode(t).start(t)
	p := &plugin{}
	n.connect(t, p)
	ctx, pod, c := t.Context(), testPod(), testContainer("c1")
	must(t, n.RunPodSandbox(ctx, pod))
	_, _, err := n.CreateContainer(ctx, pod, c)
	must(t, err)
	must(t, n.RemoveContainer(ctx, pod, c))
	must(t, n.RemovePodSandbox(ctx, pod))
	wantEvents(t, p, "run p1", "create c1", "stop c1", "remove c1", "stoppod p1", "removepod p1")
}

func TestVeto(t *testing.T) {
	for event, call := range map[string]func(n *node, ctx context.Context) error{
		"run":        func(n *node, ctx context.Context) error { return n.RunPodSandbox(ctx, testPod()) },
		"updatepod":  func(n *node, ctx context.Context) error { return n.UpdatePodSandbox(ctx, testPod(), nil, nil) },
		"updatedpod": func(n *node, ctx context.Context) error { return n.PostUpdatePodSandbox(ctx, testPod()) },
		"create": func(n *node, ctx context.Context) error {
			_, _, err := n.CreateContainer(ctx, testPod(), testContainer("c1"))
			return err
		},
		"created": func(n *node, ctx context.Context) error {
			return n.PostCreateContainer(ctx, testPod(), testContainer("c1"))
		},
		"start": func(n *node, ctx context.Context) error { return n.StartContainer(ctx, testPod(), testContainer("c1")) },
		"started": func(n *node, ctx context.Context) error {
			return n.PostStartContainer(ctx, testPod(), testContainer("c1"))
		},
		"update": func(n *node, ctx context.Context) error {
			_, _, err := n.UpdateContainer(ctx, testPod(), testContainer("c1"), nil)
			return err
		},
		"updated": func(n *node, ctx context.Context) error {
			return n.PostUpdateContainer(ctx, testPod(), testContainer("c1"))
		},
	} {
		t.Run(event, func(t *testing.T) {
			n := newNode(t).start(t)
			p := &plugin{refuse: event}
			n.connect(t, p)
			err := call(n, t.Context())
			if err == nil || !strings.Contains(err.Error(), "not on my watch") {
				t.Fatalf("error is %v", err)
			}
			// What failed to come to life is told to be gone, so that it can be tried again under the same ID.
			switch event {
			case "run":
				wantEvents(t, p, "run p1", "stoppod p1", "removepod p1")
			case "create":
				wantEvents(t, p, "create c1", "stop c1", "remove c1")
			default:
				if len(p.saw()) != 1 {
					t.Errorf("the plugin saw %q", p.saw())
				}
			}
			if len(n.told) != 0 {
				t.Errorf("still remembered: %v", n.told)
			}
		})
	}
}

func TestPluginThatLeaves(t *testing.T) {
	n := newNode(t).start(t)
	gone, stays := &plugin{}, &plugin{}
	n.connect(t, gone)
	n.connect(t, stays)
	gone.stub.Stop()
	gone.stub.Wait()
	must(t, n.RunPodSandbox(t.Context(), testPod()))
	wantEvents(t, gone)
	wantEvents(t, stays, "run p1")
}

// The end of NRI is heard by plugins, though the process goes on: they are to connect to the next.
func TestCloseCutsOff(t *testing.T) {
	n, other := newNode(t).start(t), newNode(t).start(t)
	first, second, stays := &plugin{}, &plugin{}, &plugin{}
	n.connect(t, first)
	n.connect(t, second)
	other.connect(t, stays)
	n.Close()
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		first.stub.Wait()
		second.stub.Wait()
	}()
	select {
	case <-cut:
	case <-time.After(10 * time.Second):
		t.Fatal("the plugins have not heard of it")
	}
	must(t, other.RunPodSandbox(t.Context(), testPod()))
	wantEvents(t, stays, "run p1")
}

// A caller that is about to give up is no reason to cut a plugin off.
func TestDeadlineOfTheCaller(t *testing.T) {
	n := newNode(t).start(t)
	p := &plugin{}
	n.connect(t, p)
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	must(t, n.RunPodSandbox(ctx, testPod()))
	must(t, n.StopPodSandbox(t.Context(), testPod()))
	wantEvents(t, p, "run p1", "stoppod p1")
}

func TestNilIsOff(t *testing.T) {
	var n *NRI
	ctx, pod, c := t.Context(), testPod(), testContainer("c1")
	must(t, n.Start(Callbacks{}))
	n.Block()()
	must(t, n.RunPodSandbox(ctx, pod))
	must(t, n.UpdatePodSandbox(ctx, pod, nil, nil))
	must(t, n.PostUpdatePodSandbox(ctx, pod))
	if s, _, err := n.CreateContainer(ctx, pod, c); s != c.Spec || err != nil {
		t.Errorf("got %v, %v", s, err)
	}
	must(t, n.PostCreateContainer(ctx, pod, c))
	must(t, n.StartContainer(ctx, pod, c))
	must(t, n.PostStartContainer(ctx, pod, c))
	r := &specs.LinuxResources{}
	if got, _, err := n.UpdateContainer(ctx, pod, c, r); got != r || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	must(t, n.PostUpdateContainer(ctx, pod, c))
	_, err := n.StopContainer(ctx, pod, c)
	must(t, err)
	must(t, n.RemoveContainer(ctx, pod, c))
	must(t, n.StopPodSandbox(ctx, pod))
	must(t, n.RemovePodSandbox(ctx, pod))
	n.Close()
}
