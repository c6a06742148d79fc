package plan

import (
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// leastGrace is what a container gets to end by itself, whatever was said.
const leastGrace = 2 * time.Second

// grace is what a container gets if nothing else was said.
func (n *next) grace() time.Duration {
	if s := n.pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return leastGrace
}

// stopFor stops one container that runs in a pod which goes on, with the grace of the probe that failed, if that has one.
func (n *next) stopFor(c *v1.Container, s *Container, probe *v1.Probe, message string) {
	grace := n.grace()
	if probe != nil && probe.TerminationGracePeriodSeconds != nil {
		grace = time.Duration(*probe.TerminationGracePeriodSeconds) * time.Second
	}
	n.stopping(s, n.now.Add(grace), message)
	n.goOnStopping(c, s, true)
}

// stopping enters that a container is to be stopped. The first word counts, but for a shorter grace.
func (n *next) stopping(s *Container, by time.Time, message string) {
	st, ok := n.m.Stops[s.ID]
	if !ok {
		n.event(s.Name, v1.EventTypeNormal, "Killing", message)
		set(&n.m.Stops, s.ID, Stopping{By: by})
		return
	}
	if n.m.End != nil && by.Before(st.By) {
		st.By = by
		n.m.Stops[s.ID] = st
	}
}

// goOnStopping brings a stop on: the hook first, then the signal when it is the container's turn, or its grace is over.
func (n *next) goOnStopping(c *v1.Container, s *Container, turn bool) {
	st := n.m.Stops[s.ID]
	over := !n.now.Before(st.By)
	if !over {
		n.again(st.By)
	}
	hook := c != nil && c.Lifecycle != nil && c.Lifecycle.PreStop != nil && s.State == Running
	if hook && !over && st.Hook != HookDone {
		n.do(Action{Kind: PreStop, Container: s.Name, ID: s.ID, By: st.By})
		return
	}
	if !turn && !over {
		return
	}
	n.do(Action{Kind: Stop, ID: s.ID, By: st.By})
}

// stopAll stops all containers that run, the main ones at once and then the sidecars in the reverse order of their start, and
// reports whether none runs any more. by is when their grace ends; zero is what the pod says, from now on.
func (n *next) stopAll(by time.Time) bool {
	var running []*Container
	for i := range n.o.Containers {
		if s := &n.o.Containers[i]; s.State == Running || s.State == Unknown {
			running = append(running, s)
		}
	}
	if by.IsZero() {
		since := n.now
		if n.m.End != nil {
			since = n.m.End.Since
		}
		by = since.Add(n.grace())
	}
	for _, s := range running {
		n.stopping(s, by, fmt.Sprintf("Stopping container %s", s.Name))
	}
	for _, s := range running {
		n.goOnStopping(n.spec(s.Name), s, n.mayStop(s, running))
	}
	return len(running) == 0
}

// mayStop reports whether it is a container's turn: a sidecar waits for all main containers, and for sidecars after it.
func (n *next) mayStop(s *Container, running []*Container) bool {
	place := n.sidecarPlace(s.Name)
	if place < 0 {
		return true
	}
	return !slices.ContainsFunc(running, func(other *Container) bool {
		main := slices.ContainsFunc(n.pod.Spec.Containers, func(c v1.Container) bool { return c.Name == other.Name })
		return main || n.sidecarPlace(other.Name) > place
	})
}

// sidecarPlace is where among the init containers a sidecar is; -1 for all others.
func (n *next) sidecarPlace(name string) int {
	return slices.IndexFunc(n.pod.Spec.InitContainers, func(c v1.Container) bool {
		return c.Name == name && podutil.IsRestartableInitContainer(&c)
	})
}

// spec is the definition of a container, nil for one that the pod does not have any more.
func (n *next) spec(name string) *v1.Container {
	for c := range podutil.ContainerIter(&n.pod.Spec, podutil.AllContainers) {
		if c.Name == name {
			return c
		}
	}
	return nil
}
