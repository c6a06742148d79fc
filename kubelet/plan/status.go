package plan

import (
	"cmp"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	helper "k8s.io/component-helpers/resource"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"
)

// What a container is shown as that is not there though it should.
const (
	reasonUnknown   = "ContainerStatusUnknown"
	codeUnknown     = 137
	reasonRestarted = "RestartingAllContainers"
)

// seconds is a time as the API writes it. Statuses are compared, so nothing finer must get into them.
func seconds(t time.Time) metav1.Time {
	if t.IsZero() {
		return metav1.Time{}
	}
	return metav1.NewTime(t.Truncate(time.Second))
}

// status is how the pod is shown.
func (n *next) status() v1.PodStatus {
	old := &n.o.Previous
	s := v1.PodStatus{
		ObservedGeneration: n.pod.Generation,
		QOSClass:           qos.GetPodQOS(n.pod),
		StartTime:          old.StartTime,
		Conditions:         otherConditions(old.Conditions),
	}
	n.addresses(&s)
	if e := n.m.End; e != nil && strings.HasPrefix(e.Message, Rejected) {
		s.Phase, s.Reason, s.Message = e.Phase, e.Reason, e.Message // nothing of it has ever been there
		return s
	}
	s.ContainerStatuses = n.statuses(n.pod.Spec.Containers, old.ContainerStatuses, false)
	slices.SortFunc(s.ContainerStatuses, func(a, b v1.ContainerStatus) int { return cmp.Compare(a.Name, b.Name) })
	s.InitContainerStatuses = n.statuses(n.pod.Spec.InitContainers, old.InitContainerStatuses, true)
	var ephemeral []v1.Container
	for i := range n.pod.Spec.EphemeralContainers {
		ephemeral = append(ephemeral, v1.Container(n.pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	s.EphemeralContainerStatuses = n.statuses(ephemeral, old.EphemeralContainerStatuses, false)
	s.AllocatedResources = helper.PodRequests(n.pod, helper.PodResourcesOptions{})
	s.Resources = n.podResources()
	if n.over() {
		n.settle(&s)
	}
	s.Phase = n.phase(&s)
	if isTerminal(old.Phase) {
		s.Phase = old.Phase // there is no way back
	}
	if s.Phase == old.Phase {
		s.Reason, s.Message = old.Reason, old.Message
	}
	if e := n.m.End; e != nil && e.Phase != "" {
		s.Phase, s.Reason, s.Message = e.Phase, e.Reason, e.Message
	}
	n.conditions(&s)
	return s
}

func isTerminal(p v1.PodPhase) bool { return p == v1.PodSucceeded || p == v1.PodFailed }

// over reports whether the pod has ended and nothing of it runs.
func (n *next) over() bool {
	return n.m.End != nil && !n.busy(Start, MakeSandbox) &&
		!slices.ContainsFunc(n.o.Containers, func(c Container) bool { return c.State == Running || c.State == Unknown }) &&
		!slices.ContainsFunc(n.o.Sandboxes, func(s Sandbox) bool { return s.Ready })
}

// addresses are those of the ready sandbox; without one, those that the pod had last.
func (n *next) addresses(s *v1.PodStatus) {
	old := &n.o.Previous
	s.PodIP, s.PodIPs = old.PodIP, old.PodIPs
	for i, ip := range n.o.HostIPs {
		if i == 0 {
			s.HostIP = ip
		}
		s.HostIPs = append(s.HostIPs, v1.HostIP{IP: ip})
	}
	var ips []string
	if sb := n.sandbox(); sb != nil && sb.Ready {
		ips = sb.IPs
		if n.pod.Spec.HostNetwork {
			ips = n.o.HostIPs
		}
	}
	if len(ips) == 0 || n.pod.Spec.HostNetwork && len(s.PodIPs) == len(ips) {
		return
	}
	s.PodIP, s.PodIPs = ips[0], nil
	for _, ip := range ips {
		s.PodIPs = append(s.PodIPs, v1.PodIP{IP: ip})
	}
}

// statuses are those of containers of one kind, in the order of the pod.
func (n *next) statuses(containers []v1.Container, old []v1.ContainerStatus, init bool) []v1.ContainerStatus {
	all := make([]v1.ContainerStatus, 0, len(containers))
	for i := range containers {
		c := &containers[i]
		s := n.containerStatus(c, find(old, c.Name), init)
		n.readiness(c, &s, init)
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil
	}
	return all
}

func find(all []v1.ContainerStatus, name string) *v1.ContainerStatus {
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}

// containerStatus is how a container is shown: as its newest attempt is, with the one before as its last state. One that is to
// be started and was not able to is shown waiting, with the reason.
func (n *next) containerStatus(c *v1.Container, old *v1.ContainerStatus, init bool) v1.ContainerStatus {
	s := v1.ContainerStatus{Name: c.Name, Image: c.Image, VolumeMounts: volumeMounts(c)}
	attempts := n.attempts(c.Name)
	if len(attempts) == 0 {
		n.missing(c, &s, old, init)
	} else {
		n.convert(c, &s, &attempts[0])
		if attempts[0].State == Unknown {
			lostSight(&s, old)
		}
		if len(attempts) > 1 {
			before := v1.ContainerStatus{}
			n.convert(c, &before, &attempts[1])
			s.LastTerminationState = before.State
		} else if old != nil && old.ContainerID != s.ContainerID && old.State.Terminated != nil {
			s.LastTerminationState = old.State // one that was removed
		} else if old != nil {
			s.LastTerminationState = old.LastTerminationState
		}
		if old != nil {
			s.RestartCount = max(s.RestartCount, old.RestartCount)
		}
		if last := s.LastTerminationState.Terminated; last != nil && last.ContainerID != "" && last.ContainerID == s.ContainerID {
			s.LastTerminationState.Terminated = nil // it was shown waiting meanwhile
		}
	}
	n.waiting(c, &s, init)
	return s
}

// attempts are those at a container, the newest first. One that is just being started, or whose postStart hook is still running,
// does not count yet: the container is shown as before, until it and the hook have succeeded.
func (n *next) attempts(name string) []Container {
	var all []Container
	for i := range n.o.Containers {
		c := &n.o.Containers[i]
		if c.Name != name || n.starting(c) || c.State == Running && n.hooked(c) && n.m.Hooks[name] != HookFailed {
			continue
		}
		all = append(all, *c)
	}
	return all
}

// starting reports whether this attempt is the one that is being started.
func (n *next) starting(c *Container) bool {
	a, busy := n.o.Busy[Action{Kind: Start, Container: c.Name}.Key()]
	return busy && (a.Attempt < 0 || a.Attempt == c.Restarts)
}

// convert shows one attempt.
func (n *next) convert(c *v1.Container, s *v1.ContainerStatus, a *Container) {
	s.RestartCount = int32(a.Restarts)
	s.Image, s.ImageID, s.ContainerID = a.Image, a.ImageID, idScheme+a.ID
	s.User, s.StopSignal = a.User, a.StopSignal
	s.Resources, s.AllocatedResources = containerResources(c, a), c.Resources.Requests
	switch a.State {
	case Running:
		s.State.Running = &v1.ContainerStateRunning{StartedAt: seconds(a.StartedAt)}
	case Exited:
		s.State.Terminated = &v1.ContainerStateTerminated{
			ExitCode: a.ExitCode, Reason: a.Reason, Message: a.Message,
			StartedAt: seconds(a.StartedAt), FinishedAt: seconds(a.FinishedAt), ContainerID: idScheme + a.ID,
		}
	default:
		s.State.Waiting = &v1.ContainerStateWaiting{}
	}
}

// lostSight shows a container that ran, and of which nobody knows any more whether it does, as one that has failed: it is not to
// run twice in a pod that never restarts.
func lostSight(s, old *v1.ContainerStatus) {
	switch {
	case old == nil:
	case old.State.Running != nil:
		s.State = lost()
		s.RestartCount = old.RestartCount + 1
	case old.State.Terminated != nil && old.ContainerID == s.ContainerID:
		s.State = old.State
	}
}

// idScheme is what stands before the ID of a container in a status.
const idScheme = "berth://"

// missing shows a container of which there is no attempt: it was not started yet, or it was removed.
func (n *next) missing(c *v1.Container, s *v1.ContainerStatus, old *v1.ContainerStatus, init bool) {
	s.State.Waiting = &v1.ContainerStateWaiting{Reason: "ContainerCreating"}
	if len(n.pod.Spec.InitContainers) > 0 {
		s.State.Waiting.Reason = "PodInitializing"
	}
	if old != nil {
		s.RestartCount, s.LastTerminationState = old.RestartCount, old.LastTerminationState
	}
	switch {
	case n.o.Memory.RestartAll || old != nil && old.State.Waiting != nil && old.State.Waiting.Reason == reasonRestarted && n.m.End == nil:
		const message = "The container is removed because RestartAllContainers in place"
		if old != nil && old.State.Waiting == nil {
			s.RestartCount++
		}
		s.State.Waiting = &v1.ContainerStateWaiting{Reason: reasonRestarted, Message: message}
		s.LastTerminationState.Terminated = &v1.ContainerStateTerminated{Reason: reasonRestarted, Message: message, ExitCode: codeUnknown}
	case old != nil && old.State.Terminated != nil:
		*s = *old
	case old != nil && old.State.Running != nil && s.LastTerminationState.Terminated == nil:
		s.LastTerminationState.Terminated = &v1.ContainerStateTerminated{
			Reason: reasonUnknown, ExitCode: codeUnknown,
			Message: "The container could not be located when the pod was deleted.  The container used to be Running",
		}
		if n.m.End == nil {
			s.RestartCount++
		}
	case init && !podutil.IsRestartableInitContainer(c) && n.mainCreated():
		s.State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
			Reason:  "Completed",
			Message: "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally",
		}}
	}
}

// mainCreated reports whether any main container was created: the pod was initialized then.
func (n *next) mainCreated() bool {
	return slices.ContainsFunc(n.pod.Spec.Containers, func(c v1.Container) bool {
		s := n.last(c.Name)
		return s != nil && s.State != Unknown
	})
}

// waiting shows a container that should run and was not able to.
func (n *next) waiting(c *v1.Container, s *v1.ContainerStatus, init bool) {
	f, failed := n.m.Failures[c.Name]
	if !failed || n.m.End != nil {
		return
	}
	if last := n.last(c.Name); last != nil {
		if last.State == Running && !n.hooked(last) || last.State == Exited && (init && last.ExitCode == 0 || !n.mayRestart(c, last)) {
			return
		}
	}
	if s.State.Terminated != nil {
		s.LastTerminationState = s.State
	}
	s.State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: f.Reason, Message: f.Message}}
}

// readiness fills in what probes say.
func (n *next) readiness(c *v1.Container, s *v1.ContainerStatus, init bool) {
	var probes Probes
	if last := n.last(c.Name); s.State.Running != nil && last != nil {
		probes = last.Probes
	}
	started := s.State.Running != nil && probes.Started
	s.Started = &started
	if init && !podutil.IsRestartableInitContainer(c) {
		s.Ready = s.State.Terminated != nil && s.State.Terminated.ExitCode == 0
		return
	}
	s.Ready = started && probes.Ready
}

func volumeMounts(c *v1.Container) []v1.VolumeMountStatus {
	var all []v1.VolumeMountStatus
	for _, m := range c.VolumeMounts {
		s := v1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := v1.RecursiveReadOnlyDisabled
			// This node can: IfPossible is possible.
			if r := m.RecursiveReadOnly; r != nil && *r != v1.RecursiveReadOnlyDisabled {
				mode = v1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		all = append(all, s)
	}
	return all
}

// lost is the state of a container whose end nobody has seen.
func lost() v1.ContainerState {
	return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
		Reason: reasonUnknown, Message: "The container could not be located when the pod was terminated", ExitCode: codeUnknown,
	}}
}

// settle gives containers that have not ended as far as anybody knows, though the pod has, an end.
func (n *next) settle(s *v1.PodStatus) {
	if n.initialized(s) {
		for i := range s.ContainerStatuses {
			end(&s.ContainerStatuses[i])
		}
	}
	through := -1
	for i := range s.InitContainerStatuses {
		if c := &s.InitContainerStatuses[i]; c.State.Waiting == nil || c.LastTerminationState.Terminated != nil {
			through = i
		}
	}
	for i := range through + 1 {
		end(&s.InitContainerStatuses[i])
	}
}

func end(s *v1.ContainerStatus) {
	if s.State.Terminated == nil {
		s.State = lost()
	}
}

// initialized reports whether there is a trace of a main container, or of the last init container's success.
func (n *next) initialized(s *v1.PodStatus) bool {
	inits := n.pod.Spec.InitContainers
	if len(inits) == 0 {
		return true
	}
	for i := range s.ContainerStatuses {
		if c := &s.ContainerStatuses[i]; c.LastTerminationState.Terminated != nil || c.State.Waiting == nil {
			return true
		}
	}
	last := &s.InitContainerStatuses[len(inits)-1]
	if podutil.IsRestartableInitContainer(&inits[len(inits)-1]) {
		return last.State.Running != nil && *last.Started
	}
	return last.State.Terminated != nil && last.State.Terminated.ExitCode == 0 ||
		last.LastTerminationState.Terminated != nil && last.LastTerminationState.Terminated.ExitCode == 0
}
