// Package probe asks containers how they are: by their startup, readiness and liveness probes.
//
// A worker per probe of each running container runs it and counts; a result that changes something is told to whoever looks
// after the pod. What counts how is upstream's (pkg/kubelet/prober), and so are the words of events. Two things differ. A worker
// lives as long as one container, not as long as a pod. And times are reckoned from the container, where upstream's are from ticks
// that began with the pod: the first liveness probe comes after the initial delay and, as it mostly does there, not before one
// period; the first startup probe comes at once, and its failure does not count, so that nobody has less time than there.
package probe

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A Kind is what a probe is for.
type Kind int

// Kinds of probes. The zero Kind is none.
const (
	Startup Kind = iota + 1
	Readiness
	Liveness
)

// String returns the kind as events say it.
func (k Kind) String() string {
	return [...]string{"no", "Startup", "Readiness", "Liveness"}[k]
}

// of returns the container's probe of this kind, nil if it has none.
func (k Kind) of(c *v1.Container) *v1.Probe {
	switch k {
	case Startup:
		return c.StartupProbe
	case Readiness:
		return c.ReadinessProbe
	case Liveness:
		return c.LivenessProbe
	}
	return nil
}

// A Target is a container that runs. Pod and Container are not changed by anybody.
type Target struct {
	Pod       *v1.Pod
	Container *v1.Container
	ID        string // the runtime's
	StartedAt time.Time
	PodIP     string
}

// A Result is what the probes of one container say.
type Result struct {
	// Started is whether the startup probe, if there is one, has succeeded.
	Started bool
	// Ready is whether it is started, and the last word of its readiness probe, if there is one, was success.
	Ready bool
	// Failed is the probe, liveness or startup, for whose failure the container has to end; else zero. It does not change any more.
	Failed Kind
}

// An Exec runs a command in a container and returns what it printed, and its exit status.
type Exec func(ctx context.Context, id string, command []string, timeout time.Duration) (output []byte, status int32, err error)

// Config is what a Manager needs. All of it is called without locks, from many goroutines.
type Config struct {
	// Exec runs a command in a container, kills it after the timeout, and returns then context.DeadlineExceeded.
	Exec Exec
	// Changed is told that a Result of the pod has become another. It does not wait for anything.
	Changed func(types.UID)
	// Event reports what a person should know of a container's probe.
	Event func(pod *v1.Pod, container *v1.Container, eventType, reason, message string)
	Log   *slog.Logger
}

// A Manager runs the probes of all pods. Its methods do not wait for a probe.
type Manager struct {
	cfg     Config
	run     runner
	metrics metrics

	mu    sync.Mutex
	pods  map[types.UID]map[string]*container // by the container's ID
	seeds map[string]Result
}

// container is one that is probed.
type container struct {
	Target
	result  Result
	seeded  bool // it is known from before a restart of the daemon
	workers map[Kind]context.CancelFunc
}

// New returns a Manager without pods.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, run: newRunner(cfg.Exec), metrics: newMetrics(), pods: map[types.UID]map[string]*container{}, seeds: map[string]Result{}}
}

// Seed says what is known of a container from before a restart of the daemon, before its first Set: it stays so until its
// probes say otherwise.
func (m *Manager) Seed(id string, r Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seeds[id] = r
}

// Set tells which containers of a pod run. New ones are probed from now on, those that are gone are forgotten. Once the pod is
// terminating, only readiness is asked for.
func (m *Manager) Set(uid types.UID, terminating bool, targets ...Target) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pod := m.pods[uid]
	if pod == nil {
		if len(targets) == 0 {
			return
		}
		pod = map[string]*container{}
		m.pods[uid] = pod
	}
	run := map[string]bool{}
	for _, t := range targets {
		run[t.ID] = true
		if pod[t.ID] == nil {
			pod[t.ID] = m.add(t, terminating)
		}
	}
	for id, c := range pod {
		switch {
		case !run[id]:
			c.stop(Startup, Readiness, Liveness)
			delete(pod, id)
		case terminating:
			c.stop(Startup, Liveness)
		}
	}
	if len(pod) == 0 {
		delete(m.pods, uid)
	}
}

// Result returns what is known of a container of the pod: of one that is not among those that run, what was said of it from before.
func (m *Manager) Result(uid types.UID, id string) (Result, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.pods[uid][id]; c != nil {
		return c.result, true
	}
	r, ok := m.seeds[id]
	return r, ok
}

// Forget ends the probing of a pod that is over, and drops its metrics.
func (m *Manager) Forget(pod *v1.Pod) {
	m.Set(pod.UID, true)
	m.metrics.forget(pod)
}

// Close ends all probing. Probes that are under way end by themselves, and tell nobody.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, pod := range m.pods {
		for _, c := range pod {
			c.stop(Startup, Readiness, Liveness)
		}
		delete(m.pods, uid)
	}
}

// add begins with a container. The lock is held.
func (m *Manager) add(t Target, terminating bool) *container {
	c := &container{Target: t, workers: map[Kind]context.CancelFunc{}}
	c.result, c.seeded = m.seeds[t.ID]
	delete(m.seeds, t.ID)
	if t.Container.StartupProbe == nil || c.result.Started {
		m.started(c, terminating)
	} else if !terminating {
		m.begin(c, Startup)
	}
	return c
}

// started begins with what waits for the start. The lock is held.
func (m *Manager) started(c *container, terminating bool) {
	c.result.Started = true
	if c.Container.ReadinessProbe == nil {
		c.result.Ready = true
	} else {
		m.begin(c, Readiness)
	}
	if c.Container.LivenessProbe != nil && !terminating {
		m.begin(c, Liveness)
	}
}

// begin starts a worker. The lock is held.
func (m *Manager) begin(c *container, kind Kind) {
	ctx, cancel := context.WithCancel(context.Background())
	c.workers[kind] = cancel
	w := &worker{manager: m, container: c, kind: kind, spec: kind.of(c.Container)}
	if w.spec.PeriodSeconds < 1 {
		w.period = 10 * time.Second // what the API's default is
	} else {
		w.period = time.Duration(w.spec.PeriodSeconds) * time.Second
	}
	go w.loop(ctx, w.first(time.Now()))
}

func (c *container) stop(kinds ...Kind) {
	for _, kind := range kinds {
		if cancel := c.workers[kind]; cancel != nil {
			cancel()
			delete(c.workers, kind)
		}
	}
}

// first returns when the first probe is due.
func (w *worker) first(now time.Time) time.Time {
	if w.container.seeded {
		// Many at once have just come back.
		return now.Add(rand.N(w.period))
	}
	at := w.container.StartedAt.Add(time.Duration(w.spec.InitialDelaySeconds) * time.Second)
	earliest := now
	if w.kind == Liveness {
		earliest = now.Add(w.period)
	}
	if at.Before(earliest) {
		return earliest
	}
	return at
}
