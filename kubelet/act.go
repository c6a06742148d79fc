package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/event"
	"github.com/berth-node/berth/kubelet/manifest"
	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/kubelet/pull"
	"github.com/berth-node/berth/kubelet/resource"
	"github.com/berth-node/berth/kubelet/volume"
	"github.com/berth-node/berth/runtime"
)

// Cgroups has a cgroup for each pod.
type Cgroups interface {
	// EnsurePod makes it, with all limits but that of CPU time, which would slow the start of what is in it.
	EnsurePod(ctx context.Context, pod *v1.Pod) error
	// SetPod sets all limits.
	SetPod(ctx context.Context, pod *v1.Pod) error
	// Resize brings a pod that runs, and its containers, to what it says now.
	Resize(ctx context.Context, pod *v1.Pod, parts []resource.Part, do resource.Resizer) error
	// Actual are the limits in force.
	Actual(pod *v1.Pod) (*specs.LinuxResources, error)
	RemovePod(ctx context.Context, uid types.UID) error
	// Adopt tells of pods that have theirs from before.
	Adopt(pods ...*v1.Pod)
}

// Users has a range of IDs for each pod with a user namespace.
type Users interface {
	Get(pod *v1.Pod) (*cri.UserNamespace, error)
	Adopt(pod types.UID, sandbox *cri.PodSandboxConfig)
	Release(pod types.UID)
}

// An operation is an action that is being carried out.
type operation struct {
	action plan.Action
	cancel context.CancelFunc
}

// A result is how it went. apply takes over what it made, on the worker's goroutine.
type result struct {
	plan.Result
	op    *operation
	apply func(*incarnation)
}

// do begins an action. Its result wakes the worker; one whose context has ended with the daemon's has none, and the next daemon
// does it again.
func (w *worker) do(ctx context.Context, a plan.Action) {
	p := w.pod
	within, cancel := context.WithCancel(ctx)
	op := &operation{a, cancel}
	if p.busy == nil {
		p.busy = map[string]*operation{}
	}
	p.busy[a.Key()] = op
	carryOut := w.action(a)
	w.k.running.Go(func() {
		defer cancel()
		r := guarded(within, carryOut)
		if ctx.Err() != nil {
			return
		}
		r.op = op
		w.mu.Lock()
		w.results = append(w.results, r)
		w.mu.Unlock()
		w.rouse()
	})
}

// guarded makes a panic the error of the action alone.
func guarded(ctx context.Context, carryOut func(context.Context) result) (r result) {
	var err error
	defer func() {
		if err != nil {
			r = failed(err)
		}
	}()
	defer errdefs.Recover(&err)
	return carryOut(ctx)
}

func failed(err error) result {
	return result{Result: plan.Result{Err: err, Reason: "CreateContainerError", Message: fmt.Sprint(err)}}
}

// action prepares what an action needs of the worker's state, and returns the action itself, which touches none of it.
func (w *worker) action(a plan.Action) func(context.Context) result {
	k, pod := w.k, w.pod.pod
	simple := func(f func(context.Context) error) func(context.Context) result {
		return func(ctx context.Context) result { return result{Result: plan.Result{Err: f(ctx)}} }
	}
	switch a.Kind {
	case plan.Prepare:
		runs, settled := w.runs(), w.settled()
		return func(ctx context.Context) result { return k.prepare(ctx, pod, runs, settled) }
	case plan.Mount:
		in, changes := w.inputs(), w.pod.changes
		return func(ctx context.Context) result { return k.mount(ctx, pod, in, changes) }
	case plan.Refresh:
		in, changes := w.inputs(), w.pod.changes
		return func(context.Context) result { return k.refresh(pod, in, changes) }
	case plan.Pull:
		return func(ctx context.Context) result { return k.pull(ctx, pod, a.Container) }
	case plan.MakeSandbox:
		users := w.pod.users
		return simple(func(ctx context.Context) error { return k.makeSandbox(ctx, pod, a.Attempt, users) })
	case plan.Start:
		return w.start(a)
	case plan.Resize:
		sandbox, containers := w.sandboxes()[0].ID, w.living()
		return simple(func(ctx context.Context) error { return k.resizePod(ctx, pod, sandbox, containers) })
	case plan.PostStart:
		ip := w.pod.status.PodIP
		return func(ctx context.Context) result { return k.postStart(ctx, pod, a, ip) }
	case plan.PreStop:
		ip := w.pod.status.PodIP
		return simple(func(ctx context.Context) error { return k.preStop(ctx, pod, a, ip) })
	case plan.Stop:
		return simple(func(ctx context.Context) error { return k.stop(ctx, a) })
	case plan.StopSandbox:
		return simple(func(ctx context.Context) error { return k.stopSandbox(ctx, pod, a.ID) })
	case plan.RemoveContainer:
		return simple(func(ctx context.Context) error { return k.removeContainer(ctx, pod, a.ID, a.KeepLog) })
	case plan.RemoveSandbox:
		return simple(func(ctx context.Context) error { return k.cfg.Runtime.RemoveSandbox(ctx, a.ID) })
	case plan.Teardown:
		return func(ctx context.Context) result { return k.teardown(ctx, pod) }
	case plan.Erase:
		return func(context.Context) result { return k.erase(pod) }
	}
	panic("no such action: " + string(a.Kind))
}

// runs reports whether a container of the pod runs: it was started by an earlier daemon.
func (w *worker) runs() bool {
	for _, s := range w.sandboxes() {
		for _, c := range w.k.cfg.Runtime.SandboxContainers(s.ID) {
			if c.State == runtime.Running {
				return true
			}
		}
	}
	return false
}

// settled reports whether the limits of the pod are what they should be, or may be made so at any time: while a resize is not
// through, they change in its order and no other.
func (w *worker) settled() bool {
	r := w.pod.memory.Resizing
	return r == nil || r.Written
}

// prepare makes what the sandbox and all containers need.
func (k *Kubelet) prepare(ctx context.Context, pod *v1.Pod, runs, settled bool) result {
	users, err := k.cfg.Users.Get(pod)
	if err == nil && (settled || !runs) {
		err = k.cfg.Cgroups.EnsurePod(ctx, pod)
	}
	if err == nil && runs && settled {
		err = k.cfg.Cgroups.SetPod(ctx, pod)
	}
	if err != nil {
		k.podEvent(pod, v1.EventTypeWarning, "FailedCreatePodContainer", fmt.Sprintf("unable to ensure pod container exists: %v", err))
		return result{Result: plan.Result{Err: err}}
	}
	return result{apply: func(p *incarnation) { p.prepared, p.users, p.tornDown = true, users, false }}
}

func (k *Kubelet) mount(ctx context.Context, pod *v1.Pod, in volume.Inputs, changes int) result {
	var err error
	if in.Images, err = k.imageVolumes(ctx, pod); err != nil {
		return result{Result: plan.Result{Err: err}}
	}
	volumes, err := k.cfg.Volumes.Setup(ctx, pod, in)
	if err != nil {
		k.volumeEvents(pod, err)
		return result{Result: plan.Result{Err: err}}
	}
	return result{apply: func(p *incarnation) { p.volumes, p.mounted, p.refreshed = volumes, true, changes }}
}

// imageVolumes pulls the images that are volumes, and returns their IDs.
func (k *Kubelet) imageVolumes(ctx context.Context, pod *v1.Pod) (map[string]string, error) {
	ids := map[string]string{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Image == nil || v.Image.Reference == "" {
			continue
		}
		img, failure := k.cfg.Images.Ensure(ctx, pod, &v1.Container{Image: v.Image.Reference, ImagePullPolicy: v.Image.PullPolicy}, k.pullSecrets(pod))
		if failure != nil {
			return nil, failure
		}
		ids[v.Name] = img.ID
	}
	return ids, nil
}

func (k *Kubelet) refresh(pod *v1.Pod, in volume.Inputs, changes int) result {
	if err := k.cfg.Volumes.Refresh(pod, in); err != nil {
		k.volumeEvents(pod, err)
		return result{Result: plan.Result{Err: err}}
	}
	return result{apply: func(p *incarnation) { p.refreshed = changes }}
}

func (k *Kubelet) volumeEvents(pod *v1.Pod, err error) {
	failures := volume.Errors(err)
	for _, e := range failures {
		k.podEvent(pod, v1.EventTypeWarning, "FailedMount", e.Error())
	}
	if len(failures) == 0 {
		k.podEvent(pod, v1.EventTypeWarning, "FailedMount", err.Error())
	}
}

// inputs are what the pod's volumes and variables are made of.
func (w *worker) inputs() volume.Inputs {
	in := w.k.objects(w.name.Namespace)
	if all := w.sandboxes(); len(all) > 0 {
		in.IPs = all[0].IPs
	}
	return in
}

// objects are what a namespace has.
func (k *Kubelet) objects(namespace string) volume.Inputs {
	get := func(kind manifest.Kind, name string) manifest.Object {
		e, _ := k.cfg.Source.Get(manifest.Key{Kind: kind, Namespace: namespace, Name: name})
		return e.Object
	}
	return volume.Inputs{
		ConfigMap: func(name string) *v1.ConfigMap { return get(manifest.ConfigMap, name).ConfigMap },
		Secret:    func(name string) *v1.Secret { return get(manifest.Secret, name).Secret },
		Claim:     func(name string) *v1.PersistentVolumeClaim { return get(manifest.Claim, name).Claim },
	}
}

// pullSecrets are the pod's, as far as there are any of their names.
func (k *Kubelet) pullSecrets(pod *v1.Pod) (secrets []*v1.Secret) {
	objects := k.objects(pod.Namespace)
	for _, ref := range pod.Spec.ImagePullSecrets {
		if s := objects.Secret(ref.Name); s != nil {
			secrets = append(secrets, s)
			continue
		}
		k.podEvent(pod, v1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
			fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", ref.Name))
	}
	return secrets
}

func (k *Kubelet) pull(ctx context.Context, pod *v1.Pod, container string) result {
	img, failure := k.cfg.Images.Ensure(ctx, pod, findContainer(&pod.Spec, container), k.pullSecrets(pod))
	if failure != nil {
		return result{Result: plan.Result{Err: failure, Reason: failure.Reason, Message: failure.Message}}
	}
	return result{Result: plan.Result{Ref: img.ID}, apply: func(p *incarnation) {
		if p.images == nil {
			p.images = map[string]pull.Image{}
		}
		p.images[container] = img
	}}
}

func (k *Kubelet) makeSandbox(ctx context.Context, pod *v1.Pod, attempt int, users *cri.UserNamespace) error {
	config, err := k.cfg.Spec.Sandbox(pod, podspec.SandboxInputs{Attempt: uint32(attempt), UserNS: users})
	if err == nil {
		err = os.MkdirAll(config.LogDirectory, 0o755)
	}
	handler := ""
	if pod.Spec.RuntimeClassName != nil {
		handler = *pod.Spec.RuntimeClassName
	}
	if err == nil {
		_, err = k.cfg.Runtime.RunSandbox(ctx, config, handler, runtime.OwnerKubelet)
	}
	if err != nil {
		k.podEvent(pod, v1.EventTypeWarning, "FailedCreatePodSandBox", fmt.Sprintf("Failed to create pod sandbox: %v", err))
	}
	return err
}

// start creates and starts a container.
func (w *worker) start(a plan.Action) func(context.Context) result {
	k, pod := w.k, w.pod.pod
	c := findContainer(&pod.Spec, a.Container)
	img, volumes, users := w.pod.images[a.Container], w.pod.volumes, w.pod.users
	sandbox := w.sandboxes()[0]
	in := w.inputs()
	target, settled := w.target(a.Container), w.settled()
	return func(ctx context.Context) result {
		fail := func(reason string, err error) result {
			k.containerEvent(pod, c.Name, v1.EventTypeWarning, "Failed", fmt.Sprintf("Error: %v", err))
			return result{Result: plan.Result{Err: err, Reason: reason, Message: err.Error()}}
		}
		restarts := a.Attempt
		if restarts < 0 {
			restarts = podspec.NextRestartCount(k.cfg.Spec.ContainerLogDir(pod, c.Name))
		}
		files, err := k.cfg.Spec.MakeFiles(k.store.podDir(pod.UID), pod, c, sandbox.IPs)
		if err != nil {
			return fail("CreateContainerConfigError", err)
		}
		config, err := k.cfg.Spec.Container(pod, c, podspec.ContainerInputs{
			RestartCount: restarts, Image: podspec.Image{Ref: img.ID, UID: img.UID, Username: img.Username}, IPs: sandbox.IPs, UserNS: users,
			Volumes: volumes, ConfigMap: in.ConfigMap, Secret: in.Secret, Files: files, TargetID: target,
			SubPath: func(c *v1.Container, mount int, path string) (string, error) {
				return k.cfg.Volumes.SubPath(pod, volumes, c, mount, path)
			},
		})
		if err != nil {
			return fail("CreateContainerConfigError", err)
		}
		id, err := k.cfg.Runtime.CreateContainer(ctx, sandbox.ID, config, sandbox.Config)
		if err != nil {
			return fail("CreateContainerError", err)
		}
		k.containerEvent(pod, c.Name, v1.EventTypeNormal, "Created", "Container created")
		if err := k.cfg.Runtime.StartContainer(ctx, id); err != nil {
			// Without its ID, which is another one each time: so that the same failure is the same event.
			return fail("RunContainerError", errors.New(strings.ReplaceAll(err.Error(), id, c.Name)))
		}
		if err := k.cfg.Spec.LinkLog(pod, c.Name, id, restarts); err != nil {
			k.log.Warn("collectors will not find the log of a container, ignoring", "pod", podName(pod), "container", c.Name, "err", err)
		}
		k.containerEvent(pod, c.Name, v1.EventTypeNormal, "Started", "Container started")
		if !settled {
			return result{}
		}
		if err := k.cfg.Cgroups.SetPod(ctx, pod); err != nil {
			k.log.Error("the limits of a pod could not be set", "pod", podName(pod), "err", err)
		}
		return result{}
	}
}

// target is the container whose processes an ephemeral container wants to see.
func (w *worker) target(name string) string {
	for i := range w.pod.pod.Spec.EphemeralContainers {
		e := &w.pod.pod.Spec.EphemeralContainers[i]
		if e.Name == name && e.TargetContainerName != "" {
			if s := statusOf(&w.pod.status, e.TargetContainerName); s != nil && s.State.Running != nil {
				id, _ := containerID(&v1.Pod{Spec: w.pod.pod.Spec, Status: w.pod.status}, e.TargetContainerName, false)
				return id
			}
		}
	}
	return ""
}

func (k *Kubelet) postStart(ctx context.Context, pod *v1.Pod, a plan.Action, ip string) result {
	c := findContainer(&pod.Spec, a.Container)
	err := k.hooks.Run(ctx, c.Lifecycle.PostStart, pod, c, a.ID, ip)
	if err != nil {
		// The message may have secrets in it: it is the status's, not the event's.
		k.containerEvent(pod, c.Name, v1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
		return result{Result: plan.Result{Err: err, Reason: "PostStartHookError", Message: err.Error()}}
	}
	return result{}
}

// preStop gives the hook until the end of the grace. Whether it succeeds is for the log: the container stops either way.
func (k *Kubelet) preStop(ctx context.Context, pod *v1.Pod, a plan.Action, ip string) error {
	ctx, cancel := context.WithDeadline(ctx, a.By)
	defer cancel()
	c := findContainer(&pod.Spec, a.Container)
	if err := k.hooks.Run(ctx, c.Lifecycle.PreStop, pod, c, a.ID, ip); err != nil {
		k.log.Warn("a preStop hook failed", "pod", podName(pod), "container", c.Name, "err", err)
		k.containerEvent(pod, c.Name, v1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
	}
	return nil
}

// leastGrace is what every container gets between signal and kill.
const leastGrace = 2 * time.Second

func (k *Kubelet) stop(ctx context.Context, a plan.Action) error {
	c, err := k.cfg.Runtime.Container(ctx, a.ID)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err == nil && c.State == runtime.Unknown {
		return k.cfg.Runtime.RemoveContainer(ctx, a.ID) // which kills whatever is in its cgroup
	}
	return k.cfg.Runtime.StopContainer(ctx, a.ID, max(leastGrace, a.By.Sub(k.cfg.Now())))
}

func (k *Kubelet) stopSandbox(ctx context.Context, pod *v1.Pod, id string) error {
	err := k.cfg.Runtime.StopSandbox(ctx, id)
	if err != nil {
		k.podEvent(pod, v1.EventTypeWarning, "FailedKillPod", fmt.Sprintf("error killing pod: %v", err))
	}
	return err
}

// removeContainer removes a container that has ended, with its log.
func (k *Kubelet) removeContainer(ctx context.Context, pod *v1.Pod, id string, keepLog bool) error {
	c, err := k.cfg.Runtime.Container(ctx, id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !keepLog {
		if err := k.cfg.Spec.UnlinkLog(pod, c.Config.GetMetadata().GetName(), id); err != nil {
			return err
		}
	}
	if err := k.cfg.Runtime.RemoveContainer(ctx, id); err != nil || keepLog || c.LogPath == "" {
		return err
	}
	rotated, err := filepath.Glob(c.LogPath + ".*")
	for _, path := range append(rotated, c.LogPath) {
		if rm := os.Remove(path); !errors.Is(rm, fs.ErrNotExist) {
			err = errors.Join(err, rm)
		}
	}
	return err
}

// teardown takes away what prepare and mount have made.
func (k *Kubelet) teardown(ctx context.Context, pod *v1.Pod) result {
	if err := k.cfg.Volumes.Teardown(pod.UID); err != nil {
		k.podEvent(pod, v1.EventTypeWarning, "FailedUnMount", err.Error())
		return result{Result: plan.Result{Err: err}}
	}
	if err := k.cfg.Cgroups.RemovePod(ctx, pod.UID); err != nil {
		return result{Result: plan.Result{Err: err}}
	}
	k.cfg.Users.Release(pod.UID)
	return result{apply: func(p *incarnation) { p.tornDown, p.prepared, p.mounted, p.freed = true, false, false, true }}
}

// erase removes the last of a pod: its logs, and its folder.
func (k *Kubelet) erase(pod *v1.Pod) result {
	err := errors.Join(k.cfg.Spec.UnlinkLogs(pod), os.RemoveAll(k.cfg.Spec.PodLogDir(pod)))
	if err == nil {
		err = k.store.erase(pod.UID)
	}
	if err != nil {
		return result{Result: plan.Result{Err: err}}
	}
	return result{apply: func(p *incarnation) { p.erased = true }}
}

// execute runs a command in a container for a probe, or a hook.
func (k *Kubelet) execute(ctx context.Context, id string, command []string, timeout time.Duration) ([]byte, int32, error) {
	r, err := k.cfg.Runtime.ExecSync(ctx, id, command, timeout)
	return append(r.Stdout, r.Stderr...), r.ExitCode, err
}

func (k *Kubelet) podEvent(pod *v1.Pod, typ, reason, message string) {
	k.cfg.Events.Eventf(event.About(pod), typ, reason, "%s", message)
}

// containerEvent is about a container, or about the pod if that has no name.
func (k *Kubelet) containerEvent(pod *v1.Pod, container, typ, reason, message string) {
	if container == "" {
		k.podEvent(pod, typ, reason, message)
		return
	}
	k.cfg.Events.Eventf(event.AboutContainer(pod, container), typ, reason, "%s", message)
}

func podName(p *v1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}
