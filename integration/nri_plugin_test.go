//go:build integration

package integration

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"github.com/berth-node/berth/integration/harness"
)

// A plugin is an NRI plugin on a node's socket. It writes down what it is told and, by the functions that are set before
// it connects, does what a test wants.
type plugin struct {
	stub stub.Stub
	// pods and containers are what it was synchronized with.
	pods       []*api.PodSandbox
	containers []*api.Container

	mu     sync.Mutex
	events []event

	// on is called for each event, whose step its error refuses.
	on func(ctx context.Context, e event) error
	// onSync is called when pods and containers are there.
	onSync func(context.Context) []*api.ContainerUpdate
	// adjust says how a container should be made, and which others should change.
	adjust func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate)
	// update says which containers should change when one gets new resources.
	update func(*api.Container, *api.LinuxResources) []*api.ContainerUpdate
}

// An event is a step that a plugin is told of. container is nil in steps of pods.
type event struct {
	step      string
	pod       *api.PodSandbox
	container *api.Container
}

// String is the step with the name of the container.
func (e event) String() string {
	if e.container == nil {
		return e.step
	}
	return e.step + " " + e.container.GetName()
}

// connect runs the plugin until the end of the test, and returns when it is synchronized.
func (p *plugin) connect(t *testing.T, n *harness.Node, index string) {
	t.Helper()
	synced, ended := p.begin(t, n, index)
	select {
	case <-synced:
	case <-ended:
		t.Fatal("the node does not want the plugin")
	case <-harness.Ctx(t).Done():
		t.Fatal("the plugin was not synchronized")
	}
}

// begin connects the plugin. synced is closed at the end of its synchronization, ended when the node has cut it off.
func (p *plugin) begin(t *testing.T, n *harness.Node, index string) (synced, ended <-chan struct{}) {
	t.Helper()
	synced, ended, err := p.try(t, n, index)
	if err != nil {
		t.Fatal(err)
	}
	return synced, ended
}

// try is begin for a node that may not be there.
func (p *plugin) try(t *testing.T, n *harness.Node, index string) (synced, ended <-chan struct{}, err error) {
	t.Helper()
	in, out := make(chan struct{}), make(chan struct{})
	p.stub, err = stub.New(&listener{plugin: p, synced: sync.OnceFunc(func() { close(in) })},
		stub.WithPluginName("test"), stub.WithPluginIdx(index), stub.WithSocketPath(filepath.Join(n.RunDir, "nri.sock")),
		stub.WithLogger(mute{}), stub.WithOnClose(sync.OnceFunc(func() { close(out) })))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.stub.Start(t.Context()); err != nil {
		return nil, nil, err
	}
	t.Cleanup(p.stub.Stop)
	return in, out, nil
}

// story is what the plugin was told of one pod.
func (p *plugin) story(podID string) []string {
	var steps []string
	for _, e := range p.told() {
		if e.pod.GetId() == podID {
			steps = append(steps, e.String())
		}
	}
	return steps
}

// find returns the first event of that name about a pod.
func (p *plugin) find(t *testing.T, podID, name string) event {
	t.Helper()
	for _, e := range p.told() {
		if e.pod.GetId() == podID && e.String() == name {
			return e
		}
	}
	t.Fatalf("the plugin did not hear of %q, but of %q", name, p.story(podID))
	return event{}
}

// timesSeen counts how often the plugin learned that the container is there.
func (p *plugin) timesSeen(containerID string) int {
	seen := 0
	for _, c := range p.containers {
		if c.GetId() == containerID {
			seen++
		}
	}
	for _, e := range p.told() {
		if e.step == "CreateContainer" && e.container.GetId() == containerID {
			seen++
		}
	}
	return seen
}

func (p *plugin) told() []event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func (p *plugin) tell(ctx context.Context, step string, pod *api.PodSandbox, container *api.Container) error {
	e := event{step, pod, container}
	p.mu.Lock()
	p.events = append(p.events, e)
	p.mu.Unlock()
	if p.on == nil {
		return nil
	}
	return p.on(ctx, e)
}

func wantStory(t *testing.T, p *plugin, podID string, want ...string) {
	t.Helper()
	if got := p.story(podID); !slices.Equal(got, want) {
		t.Errorf("the plugin was told\n\t%q, want\n\t%q", got, want)
	}
}

// A gate holds a plugin in a step until the test lets it go on.
type gate struct {
	reached chan event // the first event that was held
	opened  chan struct{}
	open    func()
}

// newGate returns a gate that is open at the end of the test at the latest.
func newGate(t *testing.T) *gate {
	g := &gate{reached: make(chan event, 1), opened: make(chan struct{})}
	g.open = sync.OnceFunc(func() { close(g.opened) })
	t.Cleanup(g.open)
	return g
}

// hold is called in the plugin's step.
func (g *gate) hold(ctx context.Context, e event) {
	select {
	case g.reached <- e:
	default: // the test knows of one already
	}
	select {
	case <-g.opened:
	case <-ctx.Done():
	}
}

// wait waits for the plugin to be in its step, and returns what it was told there.
func (g *gate) wait(t *testing.T) event {
	t.Helper()
	select {
	case e := <-g.reached:
		return e
	case <-harness.Ctx(t).Done():
		t.Fatal("the plugin was not told")
		return event{}
	}
}

// connectHolding connects a plugin that stays in a step until the gate is open.
func connectHolding(t *testing.T, n *harness.Node, step string) (*plugin, *gate) {
	t.Helper()
	g := newGate(t)
	p := &plugin{on: func(ctx context.Context, e event) error {
		if e.step == step {
			g.hold(ctx, e)
		}
		return nil
	}}
	p.connect(t, n, "10")
	return p, g
}

// listener is what the stub looks at for the steps to subscribe to.
type listener struct {
	*plugin
	synced func()
}

func (l *listener) Synchronize(ctx context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	defer l.synced()
	l.pods, l.containers = pods, containers
	if l.onSync == nil {
		return nil, nil
	}
	return l.onSync(ctx), nil
}

func (l *listener) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return l.tell(ctx, "RunPodSandbox", pod, nil)
}

func (l *listener) UpdatePodSandbox(ctx context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return l.tell(ctx, "UpdatePodSandbox", pod, nil)
}

func (l *listener) PostUpdatePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return l.tell(ctx, "PostUpdatePodSandbox", pod, nil)
}

func (l *listener) StopPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return l.tell(ctx, "StopPodSandbox", pod, nil)
}

func (l *listener) RemovePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return l.tell(ctx, "RemovePodSandbox", pod, nil)
}

func (l *listener) CreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := l.tell(ctx, "CreateContainer", pod, c); err != nil || l.adjust == nil {
		return nil, nil, err
	}
	adjustment, updates := l.adjust(c)
	return adjustment, updates, nil
}

func (l *listener) PostCreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return l.tell(ctx, "PostCreateContainer", pod, c)
}

func (l *listener) StartContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return l.tell(ctx, "StartContainer", pod, c)
}

func (l *listener) PostStartContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return l.tell(ctx, "PostStartContainer", pod, c)
}

func (l *listener) UpdateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := l.tell(ctx, "UpdateContainer", pod, c); err != nil || l.update == nil {
		return nil, err
	}
	return l.update(c, r), nil
}

func (l *listener) PostUpdateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return l.tell(ctx, "PostUpdateContainer", pod, c)
}

func (l *listener) StopContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, l.tell(ctx, "StopContainer", pod, c)
}

func (l *listener) RemoveContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	return l.tell(ctx, "RemoveContainer", pod, c)
}

// mute is the stub's log.
type mute struct{}

func (mute) Debugf(context.Context, string, ...any) {}
func (mute) Infof(context.Context, string, ...any)  {}
func (mute) Warnf(context.Context, string, ...any)  {}
func (mute) Errorf(context.Context, string, ...any) {}
