// Package kubelet is the node's own will: it runs the pods that its sources declare, each by one goroutine that observes,
// asks package plan what to do next, and does it. It calls the runtime directly, and wakes up by events alone.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/feed"
	"github.com/berth-node/berth/kubelet/hook"
	"github.com/berth-node/berth/kubelet/manifest"
	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/kubelet/probe"
	"github.com/berth-node/berth/kubelet/pull"
	"github.com/berth-node/berth/kubelet/source"
	"github.com/berth-node/berth/kubelet/volume"
	"github.com/berth-node/berth/runtime"
)

// A Recorder takes the events of pods. Its words are the API's: eventType is Normal or Warning.
type Recorder interface {
	Eventf(about *v1.ObjectReference, eventType, reason, format string, args ...any)
}

// Config is what a Kubelet needs. All fields but those that say so are required.
type Config struct {
	// Dir is where the kubelet keeps what survives a reboot: pods/ with a folder per pod.
	Dir string
	// NodeName is the name of the node in pods and events.
	NodeName string
	Runtime  Runtime
	// Source is what is declared. Its Run is the caller's.
	Source *source.Store
	// Spec says what a container is told of the node.
	Spec    *podspec.Node
	Images  *pull.Puller
	Volumes *volume.Manager
	Cgroups Cgroups
	Users   Users
	Events  Recorder
	// Admit refuses a pod that is not to run beside the others; it may be asked again whenever one of them has ended. Nil
	// admits all.
	Admit func(pod *v1.Pod, others []*v1.Pod) *Refusal
	// Resize refuses a pod that runs other resources than it has; it may be asked again as Admit is. The reason is that of the
	// condition PodResizePending if it is v1.PodReasonInfeasible. Nil gives all.
	Resize func(have, want *v1.Pod, others []*v1.Pod) *Refusal
	// DrainGroups is the order of a drain, by priority, the lowest first; none is DefaultDrainGroups.
	DrainGroups []DrainGroup
	// Limits are those of package plan; its zero value is plan.DefaultLimits.
	Limits plan.Limits
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// A Refusal is why a pod cannot run here: the reason and the message of its status.
type Refusal struct{ Reason, Message string }

// A Kubelet runs the pods that are declared. Its methods may be called concurrently, also before Run.
//
//	New → Run, which recovers what was there and returns when its context ends; pods run on
type Kubelet struct {
	cfg    Config
	log    *slog.Logger
	pods   *feed.Feed[*v1.Pod]
	probes *probe.Manager
	hooks  *hook.Runner
	store  store

	mu      sync.Mutex
	workers map[types.NamespacedName]*worker
	uids    map[types.UID]*worker
	drain   *drain // nil before one
	// running counts workers and what they do; empty is signalled when there is no worker any more.
	running sync.WaitGroup
	empty   *sync.Cond
	// ctx is that of Run.
	ctx context.Context
	// admission is held from the question whether a pod may run until it counts.
	admission sync.Mutex
	// refused are pods that were not admitted, or were evicted: they are looked at again when another one ends.
	refused map[*worker]bool
	// bids are those for other resources, by the pods' UIDs; deferred are the workers that have to wait for theirs.
	bids     map[types.UID]*bid
	deferred map[*worker]bool
}

// history is how many changes of pods a watcher may be behind.
const history = 256

// New prepares a Kubelet. Nothing happens before Run, but the pods of before are there to be seen.
func New(cfg Config) (*Kubelet, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Limits == (plan.Limits{}) {
		cfg.Limits = plan.DefaultLimits
	}
	if len(cfg.DrainGroups) == 0 {
		cfg.DrainGroups = DefaultDrainGroups
	}
	k := &Kubelet{
		cfg: cfg, log: cfg.Log, pods: feed.New[*v1.Pod](uint64(cfg.Now().UnixMicro()), history),
		workers: map[types.NamespacedName]*worker{}, uids: map[types.UID]*worker{}, refused: map[*worker]bool{},
		bids: map[types.UID]*bid{}, deferred: map[*worker]bool{},
	}
	k.empty = sync.NewCond(&k.mu)
	k.probes = probe.New(probe.Config{
		Exec: k.execute, Changed: k.wakeUID, Log: cfg.Log,
		Event: func(pod *v1.Pod, c *v1.Container, typ, reason, message string) {
			k.containerEvent(pod, c.Name, typ, reason, message)
		},
	})
	k.hooks = hook.New(hook.Config{
		Exec: func(ctx context.Context, id string, command []string) ([]byte, int32, error) {
			return k.execute(ctx, id, command, 0)
		},
		Event: k.podEvent,
	})
	var err error
	if k.store, err = openStore(cfg.Dir, cfg.Log); err != nil {
		return nil, err
	}
	return k, k.load()
}

// Pods are all pods with their status.
func (k *Kubelet) Pods() *feed.Feed[*v1.Pod] { return k.pods }

// Probes runs the probes; it has their metrics.
func (k *Kubelet) Probes() *probe.Manager { return k.probes }

func (k *Kubelet) pod(namespace, name string) (*v1.Pod, error) {
	if p, ok := k.pods.Get(namespace, name); ok {
		return p, nil
	}
	return nil, notFound(name)
}

func notFound(pod string) error { return fmt.Errorf("pods %q not found: %w", pod, errdefs.ErrNotFound) }

// DeleteOptions say how a pod is to go.
type DeleteOptions struct {
	// Grace is the time in seconds that its containers get; nil is what the pod says. It only ever makes it shorter.
	Grace *int64
	// UID, if not empty, is the only one that may be deleted: another one is errdefs.ErrFailedPrecondition.
	UID types.UID
}

// DeletePod begins the end of a pod and returns it as it was; that it is gone is seen by a watch of Pods. A pod that was
// applied is not declared any more; one that a file declares comes again, with another UID.
func (k *Kubelet) DeletePod(_ context.Context, namespace, name string, o DeleteOptions) (*v1.Pod, error) {
	pod, err := k.pod(namespace, name)
	if err != nil {
		return nil, err
	}
	if o.UID != "" && o.UID != pod.UID {
		return nil, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s): %w", o.UID, pod.UID, errdefs.ErrFailedPrecondition)
	}
	w := k.workerOf(pod.UID)
	if w == nil {
		return nil, notFound(name)
	}
	w.word.Lock()
	defer w.word.Unlock()
	key := manifest.Key{Kind: manifest.Pod, Namespace: namespace, Name: name}
	if e, ok := k.cfg.Source.Get(key); ok && e.Origin.File == "" {
		if err := k.cfg.Source.Delete(key); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return nil, err
		}
	}
	w.request(pod.UID, func(m *plan.Memory, now time.Time) { m.Finish(plan.End{Since: now, Grace: o.Grace, Remove: true}) })
	return pod, nil
}

// Evict ends a pod with the phase Failed, and if disruption is not empty with that as the message of the condition
// DisruptionTarget. It stays to be seen so until it may run again.
func (k *Kubelet) Evict(uid types.UID, reason, message, disruption string, grace *int64) error {
	k.mu.Lock()
	w := k.uids[uid]
	if w != nil {
		k.refused[w] = true
	}
	k.mu.Unlock()
	if w == nil {
		return fmt.Errorf("pod with UID %s: %w", uid, errdefs.ErrNotFound)
	}
	w.request(uid, func(m *plan.Memory, now time.Time) {
		m.Finish(plan.End{Since: now, Grace: grace, Phase: v1.PodFailed, Reason: reason, Message: message, Disruption: disruption})
	})
	return nil
}

// Reconsider looks again at pods that were refused or evicted, and at those that wait for resources.
func (k *Kubelet) Reconsider() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for w := range k.refused {
		w.rouse()
	}
	for w := range k.deferred {
		w.rouse()
	}
}

// wakeWithRoom enters among refused or deferred whether the worker is to be woken by Reconsider.
func (k *Kubelet) wakeWithRoom(waiting map[*worker]bool, w *worker, wake bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if wake {
		waiting[w] = true
	} else {
		delete(waiting, w)
	}
}

// Restart ends a pod in order and begins it anew, with another UID; its declaration stays. With a container it is that
// container alone that is stopped with its grace and started again, whatever its restart policy.
func (k *Kubelet) Restart(_ context.Context, namespace, name, container string, grace *int64) error {
	pod, err := k.pod(namespace, name)
	if err != nil {
		return err
	}
	if container == "" {
		return k.ask(pod, func(m *plan.Memory, now time.Time) { m.Finish(plan.End{Since: now, Grace: grace, Remove: true}) })
	}
	if !hasContainer(&pod.Spec, container) {
		return fmt.Errorf("container %s is not valid for pod %s: %w", container, name, errdefs.ErrNotFound)
	}
	id, err := containerID(pod, container, false)
	if err != nil {
		return err
	}
	return k.ask(pod, func(m *plan.Memory, _ time.Time) { m.Restart(container, id, grace) })
}

// ask has the worker of a pod change what it remembers.
func (k *Kubelet) ask(pod *v1.Pod, change func(*plan.Memory, time.Time)) error {
	w := k.workerOf(pod.UID)
	if w == nil {
		return notFound(pod.Name)
	}
	w.request(pod.UID, change)
	return nil
}

// workerOf is the worker that looks after a pod, nil if the pod is gone.
func (k *Kubelet) workerOf(uid types.UID) *worker {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.uids[uid]
}

// ContainerID is the runtime's ID of a pod's container, of whatever kind, or of its predecessor: for logs, exec and attach.
// errdefs.ErrNotFound says that the pod has no such container; errdefs.ErrFailedPrecondition that it is there, but was not
// started yet, or has no predecessor.
func (k *Kubelet) ContainerID(namespace, pod, container string, previous bool) (string, error) {
	p, err := k.pod(namespace, pod)
	if err != nil {
		return "", err
	}
	return containerID(p, container, previous)
}

// SandboxID is the runtime's ID of a pod's ready sandbox; errdefs.ErrFailedPrecondition if it has none.
func (k *Kubelet) SandboxID(namespace, pod string) (string, error) {
	p, err := k.pod(namespace, pod)
	if err != nil {
		return "", err
	}
	for _, s := range k.sandboxes(p.UID) {
		if s.Ready {
			return s.ID, nil
		}
	}
	return "", fmt.Errorf("pod %s/%s has no sandbox at the moment: %w", namespace, pod, errdefs.ErrFailedPrecondition)
}

// sandboxes are those of a pod, in no order.
func (k *Kubelet) sandboxes(uid types.UID) []runtime.Sandbox {
	var own []runtime.Sandbox
	for _, s := range k.cfg.Runtime.Sandboxes(runtime.SandboxFilter{Labels: map[string]string{podspec.PodUIDLabel: string(uid)}}) {
		if s.Owner == runtime.OwnerKubelet {
			own = append(own, s)
		}
	}
	return own
}
