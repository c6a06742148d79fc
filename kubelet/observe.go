package kubelet

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/kubelet/probe"
	"github.com/berth-node/berth/runtime"
)

// sandboxes of the pod, the newest first.
func (w *worker) sandboxes() []runtime.Sandbox {
	all := w.k.sandboxes(w.pod.pod.UID)
	slices.SortFunc(all, func(a, b runtime.Sandbox) int {
		return cmp.Or(cmp.Compare(b.Config.GetMetadata().GetAttempt(), a.Config.GetMetadata().GetAttempt()), b.CreatedAt.Compare(a.CreatedAt))
	})
	return all
}

// observe asks what there is. Nothing of it is remembered: the runtime knows.
func (w *worker) observe() plan.Observed {
	p := w.pod
	o := plan.Observed{
		Prepared: p.prepared, Mounted: p.mounted, TornDown: p.tornDown, Erased: p.erased, Stale: p.changes != p.refreshed,
		Actual: w.actual(), Busy: map[string]plan.Action{}, HostIPs: w.hostIPs(), Hash: hashOf, Limits: w.k.cfg.Limits,
		Previous: p.status, Memory: p.memory,
	}
	for key, op := range p.busy {
		o.Busy[key] = op.action
	}
	for _, s := range w.sandboxes() {
		o.Sandboxes = append(o.Sandboxes, plan.Sandbox{
			ID: s.ID, Attempt: s.Config.GetMetadata().GetAttempt(), Ready: s.Ready, IPs: w.k.cfg.Spec.PodIPs(p.pod, s.IPs),
		})
		for _, c := range w.k.cfg.Runtime.SandboxContainers(s.ID) {
			o.Containers = append(o.Containers, w.container(&c))
		}
	}
	slices.SortStableFunc(o.Containers, func(a, b plan.Container) int { return b.CreatedAt.Compare(a.CreatedAt) })
	w.forgetWords(o.Containers)
	return o
}

// hostIPs are the node's, the primary one first and one of each family.
func (w *worker) hostIPs() []string {
	host := *w.pod.pod
	host.Spec.HostNetwork = true
	return w.k.cfg.Spec.PodIPs(&host, nil)
}

func hashOf(c *v1.Container) string { return strconv.FormatUint(podspec.HashContainer(c), 16) }

var states = map[runtime.State]plan.State{
	runtime.Created: plan.Created, runtime.Running: plan.Running, runtime.Exited: plan.Exited, runtime.Unknown: plan.Unknown,
}

// container is a container as the plan sees it.
func (w *worker) container(c *runtime.Container) plan.Container {
	notes := c.Config.GetAnnotations()
	restarts, err := strconv.Atoi(notes[podspec.RestartCountAnnotation])
	if err != nil {
		restarts = int(c.Config.GetMetadata().GetAttempt())
	}
	seen := plan.Container{
		Name: c.Config.GetMetadata().GetName(), ID: c.ID, SandboxID: c.SandboxID, State: states[c.State],
		Restarts: restarts, Hash: notes[podspec.HashAnnotation],
		CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt,
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message,
		Image: c.Image.UserSpecified, ImageID: c.Image.Ref, User: user(c),
	}
	switch c.State {
	case runtime.Exited:
		seen.Message = w.lastWords(c)
	case runtime.Running:
		seen.Probes, seen.Actual = w.probes(c), actualOf(c.Resources.GetLinux())
	}
	return seen
}

func user(c *runtime.Container) *v1.ContainerUser {
	u := c.User.GetLinux()
	if u == nil {
		return nil
	}
	return &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: u.Uid, GID: u.Gid, SupplementalGroups: u.SupplementalGroups}}
}

// probes are what is known of a container that runs. One that this daemon has not begun to probe yet is as an earlier one has shown it,
// or as its probes begin.
func (w *worker) probes(c *runtime.Container) plan.Probes {
	if r, ok := w.k.probes.Result(w.pod.pod.UID, c.ID); ok {
		return plan.Probes{Started: r.Started, Ready: r.Ready, FailedStartup: r.Failed == probe.Startup, FailedLiveness: r.Failed == probe.Liveness}
	}
	spec := findContainer(&w.pod.pod.Spec, c.Config.GetMetadata().GetName())
	started := spec == nil || spec.StartupProbe == nil
	return plan.Probes{Started: started, Ready: started && (spec == nil || spec.ReadinessProbe == nil)}
}

// seed tells the probes what was known of containers before this daemon: nothing becomes unready because it was replaced.
func (k *Kubelet) seed(p *incarnation) {
	for _, s := range shownRunning(p.pod, &p.status) {
		k.probes.Seed(s.id, probe.Result{Started: s.started, Ready: s.ready})
	}
}

// running is a container as its status shows it.
type running struct {
	id             string
	startedAt      time.Time
	started, ready bool
}

// shownRunning goes through the containers, of all kinds but the ephemeral ones, that a status shows running.
func shownRunning(pod *v1.Pod, status *v1.PodStatus) iter.Seq2[*v1.Container, running] {
	return func(yield func(*v1.Container, running) bool) {
		for _, s := range slices.Concat(status.InitContainerStatuses, status.ContainerStatuses) {
			c := findContainer(&pod.Spec, s.Name)
			if c == nil || s.State.Running == nil {
				continue
			}
			r := running{id: strings.TrimPrefix(s.ContainerID, idScheme), startedAt: s.State.Running.StartedAt.Time, ready: s.Ready}
			r.started = s.Started != nil && *s.Started
			if !yield(c, r) {
				return
			}
		}
	}
}

// forgetWords drops the last words of containers that are no more.
func (w *worker) forgetWords(containers []plan.Container) {
	maps.DeleteFunc(w.pod.messages, func(id, _ string) bool {
		return !slices.ContainsFunc(containers, func(c plan.Container) bool { return c.ID == id })
	})
}
