package plan

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// tally counts containers by how they are.
type tally struct {
	pending, failed, failedForGood     int // init containers; sidecars that are not up count as pending until the pod has run
	pendingSidecars                    int
	unknown, running, waiting          int
	stopped, stoppedForGood, succeeded int // main containers; the last are those that ended without an error
}

// phase says in a word where the pod is.
func (n *next) phase(s *v1.PodStatus) v1.PodPhase {
	t := tally{}
	for i := range n.pod.Spec.InitContainers {
		c := &n.pod.Spec.InitContainers[i]
		if podutil.IsRestartableInitContainer(c) {
			t.sidecar(find(s.InitContainerStatuses, c.Name))
		} else {
			t.initContainer(n, c, find(s.InitContainerStatuses, c.Name))
		}
	}
	for i := range n.pod.Spec.Containers {
		t.mainContainer(n, &n.pod.Spec.Containers[i], find(s.ContainerStatuses, n.pod.Spec.Containers[i].Name))
	}
	over := n.over()
	switch {
	case t.failedForGood > 0:
		return v1.PodFailed
	case over && (t.stopped == 0 || t.waiting > 0 || t.unknown > 0 || t.running > 0 || t.pending > 0):
		return v1.PodFailed // it has ended before it was all there
	case t.pending > 0, t.pendingSidecars > 0 && !n.mainStarted(), t.waiting > 0:
		return v1.PodPending
	case t.running > 0 && t.unknown == 0:
		return v1.PodRunning
	case t.stopped > 0 && t.unknown == 0:
		if !over && t.stopped != t.stoppedForGood {
			return v1.PodRunning // some are being restarted
		}
		if t.stopped == t.succeeded {
			return v1.PodSucceeded
		}
		return v1.PodFailed
	}
	return v1.PodPending
}

// ended is how a container has ended that does not run, nil if it has not.
func ended(s *v1.ContainerStatus) *v1.ContainerStateTerminated {
	if s.State.Terminated != nil {
		return s.State.Terminated
	}
	if s.State.Waiting != nil {
		return s.LastTerminationState.Terminated
	}
	return nil
}

// forGood reports whether a container that has ended this way does not start again.
func (n *next) forGood(c *v1.Container, t *v1.ContainerStateTerminated) bool {
	return !podutil.ContainerShouldRestart(*c, n.pod.Spec, t.ExitCode) && t.Reason != reasonRestarted && !n.wanted(&Container{Name: c.Name, ID: strings.TrimPrefix(t.ContainerID, idScheme)})
}

func (t *tally) initContainer(n *next, c *v1.Container, s *v1.ContainerStatus) {
	e := ended(s)
	switch {
	case e == nil:
		t.pending++
	case e.ExitCode != 0:
		t.failed++
		if n.forGood(c, e) {
			t.failedForGood++
		}
	}
}

func (t *tally) sidecar(s *v1.ContainerStatus) {
	switch {
	case s.State.Running != nil:
		t.running++
		if !*s.Started {
			t.pendingSidecars++
		}
	case ended(s) == nil:
		t.pendingSidecars++
		t.waiting++
	}
}

func (t *tally) mainContainer(n *next, c *v1.Container, s *v1.ContainerStatus) {
	e := ended(s)
	switch {
	case s.State.Running != nil:
		t.running++
	case e != nil:
		t.stopped++
		if n.forGood(c, e) {
			t.stoppedForGood++
		}
		// One that waits to be started again has not succeeded.
		if s.State.Terminated != nil && e.ExitCode == 0 {
			t.succeeded++
		}
	default:
		t.waiting++
	}
}

// mainStarted reports whether a main container was created in the sandbox that is there.
func (n *next) mainStarted() bool {
	return slices.ContainsFunc(n.pod.Spec.Containers, func(c v1.Container) bool { return n.current(c.Name) != nil })
}

// owned are the conditions that are ours; all others stay as they are.
var owned = []v1.PodConditionType{
	v1.PodReadyToStartContainers, v1.PodInitialized, v1.PodReady, v1.ContainersReady, v1.PodScheduled, v1.AllContainersRestarting,
	v1.PodResizePending, v1.PodResizeInProgress,
}

func otherConditions(old []v1.PodCondition) []v1.PodCondition {
	return slices.DeleteFunc(slices.Clone(old), func(c v1.PodCondition) bool { return slices.Contains(owned, c.Type) })
}

// conditions adds those that are ours.
func (n *next) conditions(s *v1.PodStatus) {
	if !isTerminal(s.Phase) {
		n.resizeConditions(s)
	}
	if e := n.m.End; e != nil && e.Disruption != "" {
		n.condition(s, v1.DisruptionTarget, v1.ConditionTrue, v1.PodReasonTerminationByKubelet, e.Disruption)
	}
	readyToStart := v1.ConditionFalse
	if sb := n.sandbox(); sb != nil && sb.Ready && (n.pod.Spec.HostNetwork || len(sb.IPs) > 0) {
		readyToStart = v1.ConditionTrue
	}
	n.condition(s, v1.PodReadyToStartContainers, readyToStart, "", "")
	n.initializedCondition(s)
	status, reason, message := n.containersReady(s)
	n.readyCondition(s, status, reason, message)
	n.condition(s, v1.ContainersReady, status, reason, message)
	n.condition(s, v1.PodScheduled, v1.ConditionTrue, "", "")
	if podutil.AllContainersCouldRestart(&n.pod.Spec) {
		n.restartingCondition(s)
	}
}

// condition sets one. Its time is that of the change of its status.
func (n *next) condition(s *v1.PodStatus, typ v1.PodConditionType, status v1.ConditionStatus, reason, message string) {
	c := v1.PodCondition{
		Type: typ, Status: status, Reason: reason, Message: message,
		ObservedGeneration: n.pod.Generation, LastTransitionTime: seconds(n.now),
	}
	if _, old := podutil.GetPodConditionFromList(n.o.Previous.Conditions, typ); old != nil && old.Status == status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	if i, there := podutil.GetPodConditionFromList(s.Conditions, typ); there != nil {
		s.Conditions[i] = c
		return
	}
	s.Conditions = append(s.Conditions, c)
}

// unready is the message for containers that are not as they should be.
func unready(what string, names []string) (message string) {
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("containers with %s status: %s", what, names)
}

func (n *next) containersReady(s *v1.PodStatus) (status v1.ConditionStatus, reason, message string) {
	switch s.Phase {
	case v1.PodSucceeded:
		return v1.ConditionFalse, "PodCompleted", ""
	case v1.PodFailed:
		return v1.ConditionFalse, "PodFailed", ""
	}
	var not []string
	for i := range n.pod.Spec.InitContainers {
		c := &n.pod.Spec.InitContainers[i]
		if podutil.IsRestartableInitContainer(c) && !find(s.InitContainerStatuses, c.Name).Ready {
			not = append(not, c.Name)
		}
	}
	for i := range n.pod.Spec.Containers {
		if c := &n.pod.Spec.Containers[i]; !find(s.ContainerStatuses, c.Name).Ready {
			not = append(not, c.Name)
		}
	}
	if len(not) > 0 {
		return v1.ConditionFalse, "ContainersNotReady", unready("unready", not)
	}
	return v1.ConditionTrue, "", ""
}

func (n *next) readyCondition(s *v1.PodStatus, status v1.ConditionStatus, reason, message string) {
	if status == v1.ConditionTrue {
		var not []string
		for _, gate := range n.pod.Spec.ReadinessGates {
			_, c := podutil.GetPodConditionFromList(s.Conditions, gate.ConditionType)
			if c == nil {
				not = append(not, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
			} else if c.Status != v1.ConditionTrue {
				not = append(not, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, c.Status))
			}
		}
		if len(not) > 0 {
			status, reason, message = v1.ConditionFalse, "ReadinessGatesNotReady", strings.Join(not, ", ")
		}
	}
	n.condition(s, v1.PodReady, status, reason, message)
}

func (n *next) initializedCondition(s *v1.PodStatus) {
	if s.Phase == v1.PodSucceeded {
		n.condition(s, v1.PodInitialized, v1.ConditionTrue, "PodCompleted", "")
		return
	}
	started := slices.ContainsFunc(s.ContainerStatuses, func(c v1.ContainerStatus) bool {
		return c.State.Running != nil || c.State.Terminated != nil
	})
	var not []string
	for i := range n.pod.Spec.InitContainers {
		c := &n.pod.Spec.InitContainers[i]
		cs := find(s.InitContainerStatuses, c.Name)
		done := cs.Ready
		if podutil.IsRestartableInitContainer(c) {
			done = *cs.Started
		}
		if !done {
			not = append(not, c.Name)
		}
	}
	// Once all has begun to begin anew, the pod stays initialized.
	_, old := podutil.GetPodConditionFromList(n.o.Previous.Conditions, v1.PodInitialized)
	was := old != nil && old.Status == v1.ConditionTrue
	if len(not) == 0 || started || was {
		n.condition(s, v1.PodInitialized, v1.ConditionTrue, "", "")
		return
	}
	n.condition(s, v1.PodInitialized, v1.ConditionFalse, "ContainersNotInitialized", unready("incomplete", not))
}

func (n *next) restartingCondition(s *v1.PodStatus) {
	switch {
	case s.Phase == v1.PodSucceeded:
		n.condition(s, v1.AllContainersRestarting, v1.ConditionFalse, "PodCompleted", "")
	case s.Phase == v1.PodFailed:
		n.condition(s, v1.AllContainersRestarting, v1.ConditionFalse, "PodFailed", "")
	case n.m.RestartAll:
		n.condition(s, v1.AllContainersRestarting, v1.ConditionTrue, "RestartAllContainersStarted", "container exited with restart policy rule")
	default:
		n.condition(s, v1.AllContainersRestarting, v1.ConditionFalse, "", "")
	}
}
