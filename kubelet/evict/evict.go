// Package evict keeps a node alive when something becomes scarce: it frees what nobody needs, ends the pods that are best ended, one
// at a time, lets no others in meanwhile, and ends pods that take more local storage than they were given. Thresholds, ranking and
// words are upstream's (pkg/kubelet/eviction).
package evict

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"
)

// Interval is how often the node is looked at: nobody tells when a disk fills.
const Interval = 10 * time.Second

// DefaultTransition is how long a condition stays when its cause has gone, so that it does not flap.
const DefaultTransition = 5 * time.Minute

// hardGrace is what a pod gets when there is no time, in seconds.
const hardGrace = 1

// An Order says how a pod is to be evicted: its phase becomes Failed, its reason Evicted.
type Order struct {
	Message string
	Grace   int64 // in seconds
	// Disrupted is whether the pod is to have the condition DisruptionTarget.
	Disrupted bool
}

// Config is what a Manager needs. All but the durations is required.
type Config struct {
	Thresholds []Threshold
	// MaxGrace is how long a pod gets at most at a soft threshold, in seconds.
	MaxGrace int64
	// Transition, see DefaultTransition; 0 is that.
	Transition time.Duration
	// Observe tells what there is. A signal that it leaves out is not looked at.
	Observe func(context.Context) (map[Signal]Observation, error)
	// Pods are those that could be ended: admitted, and not over.
	Pods func() []*v1.Pod
	// Use tells what a pod uses, false if that is not known.
	Use func(context.Context, *v1.Pod) (Use, bool)
	// Reclaim frees what nobody needs of a disk: dead containers and images that no pod uses.
	Reclaim func(context.Context) error
	// Evict ends a pod and returns when its containers have ended.
	Evict func(context.Context, *v1.Pod, Order) error
	// Event tells of the node.
	Event func(eventType, reason, message string)
	// Changed is told that the conditions have changed.
	Changed func()
	Now     func() time.Time
	Log     *slog.Logger
}

// A Manager watches one node.
type Manager struct {
	cfg Config

	mu         sync.Mutex
	conditions []v1.NodeConditionType

	// What follows is Step's alone.
	since    map[Threshold]time.Time            // when it was first met
	observed map[v1.NodeConditionType]time.Time // when it was last caused
	met      []Threshold                        // those that were acted on, until MinReclaim is there as well
}

// New returns a Manager for which all is well.
func New(cfg Config) *Manager {
	if cfg.Transition == 0 {
		cfg.Transition = DefaultTransition
	}
	return &Manager{cfg: cfg, since: map[Threshold]time.Time{}, observed: map[v1.NodeConditionType]time.Time{}}
}

// Run looks at the node until ctx ends, every Interval, and at once again when a pod was ended.
func (m *Manager) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		evicted, err := m.Step(ctx)
		if err != nil && ctx.Err() == nil {
			m.cfg.Log.Warn("the node's resources could not be looked at", "err", err)
		}
		wait := Interval
		if evicted > 0 && err == nil {
			wait = 0
		}
		timer.Reset(wait)
	}
}

// Conditions are those that the node has: NodeMemoryPressure, NodeDiskPressure, NodePIDPressure.
func (m *Manager) Conditions() []v1.NodeConditionType {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.conditions)
}

// Admit says why a pod must not begin now, "" if it may.
func (m *Manager) Admit(pod *v1.Pod) string {
	conditions := m.Conditions()
	if len(conditions) == 0 || priority(pod) >= systemCritical {
		return ""
	}
	if len(conditions) == 1 && conditions[0] == v1.NodeMemoryPressure {
		taint := &v1.Taint{Key: v1.TaintNodeMemoryPressure, Effect: v1.TaintEffectNoSchedule}
		if qos.GetPodQOS(pod) != v1.PodQOSBestEffort || corev1.TolerationsTolerateTaint(klog.Background(), pod.Spec.Tolerations, taint, false) {
			return ""
		}
	}
	return fmt.Sprintf(nodeCondition, conditions)
}

// Step looks once, and does what is to be done. It returns how many pods it has ended.
func (m *Manager) Step(ctx context.Context) (evicted int, err error) {
	observations, err := m.cfg.Observe(ctx)
	if err != nil {
		return 0, err
	}
	due := m.due(observations)
	pods := m.cfg.Pods()
	if n, err := m.enforceLimits(ctx, pods); n > 0 || err != nil {
		return n, err
	}
	if len(due) == 0 {
		return 0, nil
	}
	t := due[0]
	what := about[t.Signal].resource
	m.cfg.Event(v1.EventTypeWarning, "EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", what))
	if about[t.Signal].condition == v1.NodeDiskPressure {
		enough, err := m.reclaim(ctx)
		if enough || err != nil {
			return 0, err
		}
	}
	return m.evictOne(ctx, t, observations[t.Signal], pods)
}

// due takes observations in and returns the thresholds that something has to be done about, in order.
func (m *Manager) due(observations map[Signal]Observation) []Threshold {
	now := m.cfg.Now()
	met := below(m.cfg.Thresholds, observations, false)
	for _, t := range below(m.met, observations, true) {
		if !slices.Contains(met, t) {
			met = append(met, t)
		}
	}
	since := map[Threshold]time.Time{}
	for _, t := range met {
		since[t] = now
		if at, ok := m.since[t]; ok {
			since[t] = at
		}
		m.observed[about[t.Signal].condition] = now
	}
	m.since = since
	m.setConditions(now)
	m.met = nil
	for _, t := range m.cfg.Thresholds { // their order
		if at, ok := since[t]; ok && now.Sub(at) >= t.Grace {
			m.met = append(m.met, t)
		}
	}
	return m.met
}

// below returns the thresholds that are met.
func below(thresholds []Threshold, observations map[Signal]Observation, reclaimed bool) []Threshold {
	var met []Threshold
	for _, t := range thresholds {
		o, ok := observations[t.Signal]
		least := t.Least.of(o.Capacity)
		if reclaimed {
			least += t.MinReclaim.of(o.Capacity)
		}
		if ok && o.Available < least {
			met = append(met, t)
		}
	}
	return met
}

func (m *Manager) setConditions(now time.Time) {
	var conditions []v1.NodeConditionType
	for _, c := range []v1.NodeConditionType{v1.NodeMemoryPressure, v1.NodeDiskPressure, v1.NodePIDPressure} {
		if at, ok := m.observed[c]; ok && now.Sub(at) < m.cfg.Transition {
			conditions = append(conditions, c)
		}
	}
	m.mu.Lock()
	changed := !slices.Equal(m.conditions, conditions)
	m.conditions = conditions
	m.mu.Unlock()
	if changed {
		m.cfg.Log.Info("pressure on the node", "conditions", conditions)
		m.cfg.Changed()
	}
}

// enforceLimits ends the pods that take more local storage than they were given.
func (m *Manager) enforceLimits(ctx context.Context, pods []*v1.Pod) (evicted int, err error) {
	for _, pod := range pods {
		if !limitsStorage(pod) || priority(pod) >= systemCritical {
			continue
		}
		use, ok := m.cfg.Use(ctx, pod)
		if !ok {
			continue
		}
		if message := overLimit(pod, use); message != "" {
			if err := m.evict(ctx, pod, Order{Message: message, Grace: hardGrace}); err != nil {
				return evicted, err
			}
			evicted++
		}
	}
	return evicted, nil
}

// limitsStorage reports whether there is anything to be measured for: to walk through files is not cheap.
func limitsStorage(pod *v1.Pod) bool {
	for _, v := range pod.Spec.Volumes {
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil && v.EmptyDir.SizeLimit.Sign() > 0 {
			return true
		}
	}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		if !c.Resources.Limits.StorageEphemeral().IsZero() {
			return true
		}
	}
	return false
}

// reclaim frees what nobody needs, and reports whether that was enough.
func (m *Manager) reclaim(ctx context.Context) (enough bool, err error) {
	if err := m.cfg.Reclaim(ctx); err != nil {
		m.cfg.Log.Warn("what nobody needs could not be removed", "err", err)
	}
	observations, err := m.cfg.Observe(ctx)
	if err != nil {
		return false, err
	}
	return len(below(m.cfg.Thresholds, observations, true)) == 0, nil
}

// evictOne ends the pod that is best ended: no more than one, for what that frees is seen only afterwards.
func (m *Manager) evictOne(ctx context.Context, t Threshold, o Observation, pods []*v1.Pod) (evicted int, err error) {
	use := map[*v1.Pod]Use{}
	for _, pod := range pods {
		if u, ok := m.cfg.Use(ctx, pod); ok {
			use[pod] = u
		}
	}
	pods = slices.Clone(pods)
	order(pods, about[t.Signal].resource, func(pod *v1.Pod) (Use, bool) {
		u, ok := use[pod]
		return u, ok
	})
	for _, pod := range pods {
		if priority(pod) >= systemCritical {
			continue
		}
		grace := int64(hardGrace)
		if t.Grace > 0 {
			grace = m.cfg.MaxGrace
			if own := pod.Spec.TerminationGracePeriodSeconds; own != nil {
				grace = min(grace, *own)
			}
		}
		u, found := use[pod]
		return 1, m.evict(ctx, pod, Order{Message: say(t, o, pod, u, found), Grace: grace, Disrupted: true})
	}
	m.cfg.Log.Warn("no pod is left that could be ended", "for", t.Signal)
	return 0, nil
}

func (m *Manager) evict(ctx context.Context, pod *v1.Pod, o Order) error {
	m.cfg.Log.Warn("pod is evicted", "pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID, "why", o.Message)
	if err := m.cfg.Evict(ctx, pod, o); err != nil {
		return fmt.Errorf("evicting pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
