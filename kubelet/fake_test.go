package kubelet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/kubelet/resource"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/image"
)

// How long what takes its time takes. No call takes none: so whatever one call follows from has an earlier time in the transcript.
const (
	callTakes    = 1 * time.Second
	sandboxTakes = 2 * time.Second // so that the images are there before
)

// A machine is what outlives daemons: a runtime, the cgroups, the images, all of which do as they are told unless a test says
// otherwise. What was asked of it is its transcript.
type machine struct {
	logs string

	mu         sync.Mutex
	said       map[time.Duration][]string // since began
	began      time.Time
	sandboxes  map[string]*runtime.Sandbox
	containers map[string]*fakeContainer
	images     map[string]bool
	subs       map[*fakeEvents]bool
	ids        int
	// deaf containers do not mind a signal; fail has errors for calls by their kind, for as many times.
	deaf map[string]bool
	fail map[string]*failure
	// hooks says how commands in containers end, by their first word; nil is well, at once.
	hooks map[string]func(ctx context.Context) (int32, error)
	// finishes has calls go on when nobody waits for them any more.
	finishes bool
	// twice is what must never be: two containers of one name that run.
	twice []string
}

type failure struct {
	times int
	with  func() error
}

type fakeContainer struct {
	runtime.Container
	exited chan struct{}
}

func newMachine(logs string) *machine {
	return &machine{
		logs: logs, began: time.Now(), said: map[time.Duration][]string{}, sandboxes: map[string]*runtime.Sandbox{},
		containers: map[string]*fakeContainer{}, images: map[string]bool{}, subs: map[*fakeEvents]bool{},
		deaf: map[string]bool{}, fail: map[string]*failure{}, hooks: map[string]func(context.Context) (int32, error){},
	}
}

func (m *machine) note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := time.Since(m.began)
	m.said[at] = append(m.said[at], fmt.Sprintf(format, args...))
}

// call notes a call and lets it take its time. Its error is that which the test wants, or that of ctx.
func (m *machine) call(ctx context.Context, takes time.Duration, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	m.note("%s", text)
	if m.finishes {
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(takes):
	}
	m.mu.Lock()
	f := m.fail[kindOf(text)]
	if f != nil {
		if f.times--; f.times == 0 {
			delete(m.fail, kindOf(text))
		}
	}
	m.mu.Unlock()
	if f != nil {
		return f.with()
	}
	return nil
}

// kindOf is a call without the time that it has.
func kindOf(call string) string {
	kind, _, _ := strings.Cut(call, " in ")
	return kind
}

// refuse has a call fail so many times.
func (m *machine) refuse(text string, times int) {
	m.fail[text] = &failure{times, func() error { return errors.New("no") }}
}

func (m *machine) id(what string) string {
	m.ids++
	return fmt.Sprintf("%s%d", what, m.ids)
}

// Images.

func (m *machine) getImage(ref string) (image.Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.images[ref] {
		return image.Image{}, errdefs.ErrNotFound
	}
	return image.Image{ID: "sha256:" + ref}, nil
}

func (m *machine) pullImage(ctx context.Context, ref string, _ *image.Auth) (image.Image, error) {
	if err := m.call(ctx, callTakes, "pull %s", ref); err != nil {
		return image.Image{}, err
	}
	m.mu.Lock()
	m.images[ref] = true
	m.mu.Unlock()
	return m.getImage(ref)
}

// Cgroups and Users.

func (m *machine) EnsurePod(ctx context.Context, _ *v1.Pod) error {
	return m.call(ctx, callTakes, "make cgroup")
}
func (m *machine) SetPod(context.Context, *v1.Pod) error { return nil }
func (m *machine) Resize(context.Context, *v1.Pod, []resource.Part, resource.Resizer) error {
	return nil
}
func (m *machine) Actual(*v1.Pod) (*specs.LinuxResources, error) { return nil, errdefs.ErrNotFound }
func (m *machine) RemovePod(ctx context.Context, _ types.UID) error {
	return m.call(ctx, callTakes, "remove cgroup")
}

type noCgroups struct{ *machine }

func (noCgroups) Adopt(...*v1.Pod) {}

type noUsers struct{}

func (noUsers) Get(*v1.Pod) (*cri.UserNamespace, error) { return nil, nil }
func (noUsers) Adopt(types.UID, *cri.PodSandboxConfig)  {}
func (noUsers) Release(types.UID)                       {}

// Eventf is what an event of the API is in the transcript. What only says what is seen anyway is left out.
func (m *machine) Eventf(about *v1.ObjectReference, _, reason, format string, args ...any) {
	if slices.Contains([]string{"Pulling", "Pulled", "Created", "Started"}, reason) {
		return
	}
	m.note("(%s %s)", reason, withoutUID(fmt.Sprintf(format, args...), string(about.UID)))
}

// The runtime.

func (m *machine) Sandboxes(f runtime.SandboxFilter) (all []runtime.Sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(m.sandboxes)) {
		s, fits := m.sandboxes[id], true
		for key, value := range f.Labels {
			fits = fits && s.Config.Labels[key] == value
		}
		if fits {
			all = append(all, *s)
		}
	}
	return all
}

func (m *machine) RunSandbox(ctx context.Context, config *cri.PodSandboxConfig, _, owner string) (string, error) {
	if err := m.call(ctx, sandboxTakes, "run sandbox #%d", config.Metadata.Attempt); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &runtime.Sandbox{
		ID: m.id("s"), Config: config, Owner: owner, CreatedAt: time.Now(), Ready: true,
		IPs: []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00::9")},
	}
	m.sandboxes[s.ID] = s
	m.tell(s.ID, runtime.EventCreated)
	return s.ID, nil
}

func (m *machine) UpdateSandboxResources(context.Context, string, *cri.LinuxContainerResources, *cri.LinuxContainerResources) error {
	return nil
}

func (m *machine) StopSandbox(ctx context.Context, id string) error {
	if err := m.call(ctx, callTakes, "stop sandbox"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.sandboxes[id]; s != nil {
		s.Ready = false
		for _, c := range m.containers {
			if c.SandboxID == id {
				m.end(c, 137)
			}
		}
		m.tell(id, runtime.EventStopped)
	}
	return nil
}

func (m *machine) RemoveSandbox(ctx context.Context, id string) error {
	if err := m.call(ctx, callTakes, "remove sandbox"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sandboxes, id)
	maps.DeleteFunc(m.containers, func(_ string, c *fakeContainer) bool { return c.SandboxID == id })
	m.tell(id, runtime.EventDeleted)
	return nil
}

func (m *machine) SandboxContainers(sandbox string) (all []runtime.Container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(m.containers)) {
		if c := m.containers[id]; c.SandboxID == sandbox {
			all = append(all, c.Container)
		}
	}
	return all
}

func (m *machine) Container(_ context.Context, id string) (runtime.Container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.containers[id]; c != nil {
		return c.Container, nil
	}
	return runtime.Container{}, errdefs.ErrNotFound
}

// CreateContainer gives who asks again what there is.
func (m *machine) CreateContainer(ctx context.Context, sandbox string, config *cri.ContainerConfig, pod *cri.PodSandboxConfig) (string, error) {
	if err := m.call(ctx, callTakes, "create %s #%d", config.Metadata.Name, config.Metadata.Attempt); err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, c := range m.containers {
		if c.SandboxID == sandbox && c.Config.Metadata.Name == config.Metadata.Name && c.Config.Metadata.Attempt == config.Metadata.Attempt {
			return id, nil
		}
	}
	c := &fakeContainer{exited: make(chan struct{})}
	c.Container = runtime.Container{
		ID: m.id("c"), SandboxID: sandbox, Config: config, CreatedAt: time.Now(), LogPath: filepath.Join(pod.LogDirectory, config.LogPath),
		Image: runtime.ContainerImage{Ref: config.Image.Image, UserSpecified: config.Image.UserSpecifiedImage},
	}
	m.containers[c.ID] = c
	m.tell(sandbox, runtime.EventCreated)
	if err := os.MkdirAll(filepath.Dir(c.LogPath), 0o755); err != nil {
		return "", err
	}
	return c.ID, os.WriteFile(c.LogPath, nil, 0o644)
}

func (m *machine) StartContainer(ctx context.Context, id string) error {
	m.mu.Lock()
	c := m.containers[id]
	m.mu.Unlock()
	if c == nil {
		return errdefs.ErrNotFound
	}
	if err := m.call(ctx, callTakes, "start %s #%d", name(c), c.Config.Metadata.Attempt); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, other := range m.containers {
		if other != c && other.State == runtime.Running && name(other) == name(c) && podOfSandbox(m.sandboxes[other.SandboxID]) == podOfSandbox(m.sandboxes[c.SandboxID]) {
			m.twice = append(m.twice, name(c))
		}
	}
	c.State, c.StartedAt = runtime.Running, time.Now()
	m.tell(c.SandboxID, runtime.EventStarted)
	return nil
}

func name(c *fakeContainer) string { return c.Config.Metadata.Name }

func podOfSandbox(s *runtime.Sandbox) string {
	return s.Config.Metadata.Namespace + "/" + s.Config.Metadata.Name
}

func (m *machine) UpdateContainerResources(context.Context, string, *cri.LinuxContainerResources, map[string]string) error {
	return nil
}

// StopContainer waits for the end of the container as long as its caller does; the runtime does not forget the stop meanwhile, but
// this one does: who comes again is to say so again.
func (m *machine) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	m.mu.Lock()
	c := m.containers[id]
	m.mu.Unlock()
	if c == nil {
		return nil
	}
	takes, code := callTakes, int32(143)
	if m.deaf[name(c)] {
		takes, code = grace, 137
	}
	err := m.call(ctx, 0, "stop %s in %s", name(c), grace)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.exited:
		return nil
	case <-time.After(takes):
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end(c, code)
	return nil
}

// end ends a container; m.mu is held.
func (m *machine) end(c *fakeContainer, code int32) {
	if c.State != runtime.Running && c.State != runtime.Unknown {
		return
	}
	close(c.exited)
	c.State, c.FinishedAt, c.ExitCode, c.Reason = runtime.Exited, time.Now(), code, "Error"
	if code == 0 {
		c.Reason = "Completed"
	}
	m.tell(c.SandboxID, runtime.EventStopped)
}

func (m *machine) RemoveContainer(ctx context.Context, id string) error {
	m.mu.Lock()
	c := m.containers[id]
	m.mu.Unlock()
	if c == nil {
		return nil
	}
	if err := m.call(ctx, callTakes, "remove %s #%d", name(c), c.Config.Metadata.Attempt); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end(c, 137)
	delete(m.containers, id)
	m.tell(c.SandboxID, runtime.EventDeleted)
	return nil
}

func (m *machine) ExecSync(ctx context.Context, _ string, command []string, _ time.Duration) (runtime.ExecResult, error) {
	run := m.hooks[command[0]]
	if run == nil {
		return runtime.ExecResult{}, nil
	}
	code, err := run(ctx)
	return runtime.ExecResult{ExitCode: code}, err
}

// A fakeEvents is a subscription. It loses what it is told to.
type fakeEvents struct {
	m    *machine
	next chan runtime.Event
	lose bool
}

func (m *machine) Subscribe() Events {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := &fakeEvents{m: m, next: make(chan runtime.Event, 1000)}
	m.subs[e] = true
	return e
}

// tell has subscribers hear of a change in a sandbox; m.mu is held.
func (m *machine) tell(sandbox string, typ runtime.EventType) {
	ev := runtime.Event{Type: typ, At: time.Now(), SandboxID: sandbox}
	if s := m.sandboxes[sandbox]; s != nil {
		view := *s
		ev.Sandbox = &view
	}
	for e := range m.subs {
		if e.lose {
			close(e.next)
			delete(m.subs, e)
			continue
		}
		e.next <- ev
	}
}

func (e *fakeEvents) Next(ctx context.Context) (runtime.Event, error) {
	select {
	case ev, ok := <-e.next:
		if !ok {
			return ev, errdefs.ErrResourceExhausted
		}
		return ev, nil
	case <-ctx.Done():
		return runtime.Event{}, ctx.Err()
	}
}

func (e *fakeEvents) Close() {
	e.m.mu.Lock()
	defer e.m.mu.Unlock()
	delete(e.m.subs, e)
}

// specOf is what pods are told of the machine.
func (m *machine) specOf() *podspec.Node {
	return &podspec.Node{
		IPs: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}, LogDir: m.logs, LinkDir: m.logs + "-links",
		Resources:    &resource.Node{MemoryCapacity: 8 << 30},
		CgroupParent: func(pod *v1.Pod) string { return resource.Tree{}.Pod(pod.UID, resource.Class(pod)) },
	}
}
