package plan

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// formatPod is how upstream's messages name a pod.
func formatPod(p *v1.Pod) string { return fmt.Sprintf("%s_%s(%s)", p.Name, p.Namespace, p.UID) }

// initialize reports whether the main containers may start, and brings the init containers on. They count if they are of
// this sandbox: after a reboot all of them run again.
func (n *next) initialize() bool {
	inits := n.pod.Spec.InitContainers
	// Later ones that were started say that the earlier ones had come so far, whatever became of them since.
	through := -1
	for i := range inits {
		if n.current(inits[i].Name) != nil {
			through = i
		}
	}
	for i := range n.pod.Spec.Containers {
		if n.current(n.pod.Spec.Containers[i].Name) != nil {
			through = len(inits)
		}
	}
	for i := range inits {
		c, once := &inits[i], i < through
		switch {
		case podutil.IsRestartableInitContainer(c):
			if !n.sidecar(c) && !once {
				return false
			}
		case !once && !n.initContainer(c):
			return false
		}
	}
	return true
}

// initContainer reports whether one has succeeded, and brings it on.
func (n *next) initContainer(c *v1.Container) bool {
	s := n.current(c.Name)
	switch {
	case s == nil || s.State == Created:
		n.start(c)
	case s.State == Unknown:
		n.replaceUnknown(c, s, "Init container")
	case s.State == Exited && s.ExitCode == 0:
		return true
	case s.State == Exited && n.mayRestart(c, s):
		n.start(c)
	}
	return false
}

// sidecar reports whether one has started, and keeps it going.
func (n *next) sidecar(c *v1.Container) bool {
	s := n.current(c.Name)
	switch {
	case s == nil || s.State == Created || s.State == Exited:
		n.start(c)
		return false
	case s.State == Unknown:
		n.replaceUnknown(c, s, "Init container")
		return false
	case n.wanted(s):
		n.stopWanted(s)
		return false
	case s.Probes.FailedStartup:
		n.stopFor(c, s, c.StartupProbe, fmt.Sprintf("Init container %s failed startup probe", c.Name))
		return false
	case n.stale(c, s):
		n.stopFor(c, s, nil, fmt.Sprintf("Init container %s definition changed", c.Name))
	case s.Probes.FailedLiveness:
		n.stopFor(c, s, c.LivenessProbe, fmt.Sprintf("Init container %s failed liveness probe", c.Name))
	}
	return s.Probes.Started && !n.hooked(s)
}

// mains keeps the main containers going. They start one after the other; one that cannot holds up nobody.
func (n *next) mains() {
	waiting := false
	for i := range n.pod.Spec.Containers {
		c := &n.pod.Spec.Containers[i]
		s := n.current(c.Name)
		if s == nil {
			s = n.last(c.Name) // one that had ended with an earlier sandbox
		}
		if s != nil && s.State == Running {
			n.keep(c, s)
			waiting = waiting || n.hooked(s)
			continue
		}
		if s != nil && s.State == Unknown {
			n.replaceUnknown(c, s, "Container")
			continue
		}
		if waiting || s != nil && s.State == Exited && !n.mayRestart(c, s) {
			continue
		}
		waiting = n.start(c)
	}
}

// keep looks whether a container that runs may go on.
func (n *next) keep(c *v1.Container, s *Container) {
	restart := n.pod.Spec.RestartPolicy != v1.RestartPolicyNever
	if c.RestartPolicy != nil {
		restart = *c.RestartPolicy != v1.ContainerRestartPolicyNever
	}
	var probe *v1.Probe
	message := ""
	switch {
	case n.wanted(s):
		n.stopWanted(s)
		return
	case n.stale(c, s):
		message, restart = fmt.Sprintf("Container %s definition changed", c.Name), true
	case s.Probes.FailedLiveness:
		message, probe = fmt.Sprintf("Container %s failed liveness probe", c.Name), c.LivenessProbe
	case s.Probes.FailedStartup:
		message, probe = fmt.Sprintf("Container %s failed startup probe", c.Name), c.StartupProbe
	default:
		return
	}
	if restart {
		message += ", will be restarted"
	}
	n.stopFor(c, s, probe, message)
}

// stale reports whether a container was made by a definition that has changed.
func (n *next) stale(c *v1.Container, s *Container) bool {
	return s.Hash != "" && s.Hash != n.o.Hash(c)
}

// replaceUnknown ends a container of which nobody knows whether it runs: else there might be two.
func (n *next) replaceUnknown(c *v1.Container, s *Container, what string) {
	n.stopFor(c, s, nil, fmt.Sprintf("%s is in %q state, try killing it before restart", what, s.State))
}

// mayRestart reports whether a container that has ended may be started again.
func (n *next) mayRestart(c *v1.Container, s *Container) bool {
	return podutil.ContainerShouldRestart(*c, n.pod.Spec, s.ExitCode) || n.wanted(s)
}

// wanted reports whether somebody wants this container to begin anew.
func (n *next) wanted(s *Container) bool { return n.m.Restarts[s.Name].ID == s.ID && s.ID != "" }

// stopWanted stops a container that is to begin anew.
func (n *next) stopWanted(s *Container) {
	grace := n.grace()
	if g := n.m.Restarts[s.Name].Grace; g != nil {
		grace = time.Duration(*g) * time.Second
	}
	message := fmt.Sprintf("Container %s is restarted as requested", s.Name)
	if n.m.Restarts[s.Name].Resize {
		message = fmt.Sprintf("Container %s resize requires restart", s.Name)
	}
	n.stopping(s, n.now.Add(grace), message)
	n.goOnStopping(n.spec(s.Name), s, true)
}

// hooked reports whether a container's postStart hook has not succeeded yet: it counts as starting.
func (n *next) hooked(s *Container) bool {
	_, pending := n.m.Hooks[s.Name]
	last := n.last(s.Name)
	return pending && last != nil && last.ID == s.ID
}

// hooks brings on the postStart hooks of containers that were started.
func (n *next) hooks() {
	for c := range podutil.ContainerIter(&n.pod.Spec, podutil.AllContainers) {
		s := n.current(c.Name)
		if s == nil || s.State != Running || !n.hooked(s) || n.busyWith(Start, c.Name) {
			continue
		}
		if n.m.Hooks[c.Name] == HookFailed {
			n.stopFor(c, s, nil, "FailedPostStartHook")
			continue
		}
		if !n.busy(PostStart) || !n.busyHook(c.Name) {
			n.do(Action{Kind: PostStart, Container: c.Name, ID: s.ID})
		}
	}
}

func (n *next) busyHook(name string) bool {
	for _, a := range n.o.Busy {
		if a.Kind == PostStart && a.Container == name {
			return true
		}
	}
	return false
}

// start brings a container to its start, and reports whether those after it have to wait for that.
func (n *next) start(c *v1.Container) (wait bool) {
	if n.busyWith(Start, c.Name) || n.resizes() {
		return true
	}
	last := n.last(c.Name)
	if last != nil && last.State == Exited && !n.wanted(last) && n.inBackoff(c, last) {
		return false
	}
	if f := n.m.Failures[c.Name]; n.now.Before(f.Until) {
		n.again(f.Until)
		return false
	}
	if !n.o.Mounted {
		return true
	}
	if ready, failed := n.image(c); !ready {
		return !failed
	}
	attempt := -1
	switch {
	case last == nil:
	case last.State == Created: // its start was cut off
		attempt = last.Restarts
	default:
		attempt = last.Restarts + 1
	}
	if last != nil && last.State == Exited {
		n.countBackoff(c, last)
	}
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		set(&n.m.Hooks, c.Name, HookDue)
	}
	n.do(Action{Kind: Start, Container: c.Name, Attempt: attempt})
	return true
}

// backoff is the one that holds for a container that has ended; none if its definition has changed, or it had run for long.
func (n *next) backoff(c *v1.Container, last *Container) (Backoff, bool) {
	b, ok := n.m.Backoff[c.Name]
	if !ok || b.Hash != n.o.Hash(c) || last.FinishedAt.Sub(b.Since) > 2*n.o.Limits.MaxBackoff {
		return Backoff{}, false
	}
	return b, true
}

// inBackoff reports whether a container has to wait for its next start, and says so.
func (n *next) inBackoff(c *v1.Container, last *Container) bool {
	b, ok := n.backoff(c, last)
	until := last.FinishedAt.Add(b.Delay)
	if !ok || !n.now.Before(until) {
		return false
	}
	n.again(until)
	f := Failure{Reason: "CrashLoopBackOff", Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", b.Delay, c.Name, formatPod(n.pod))}
	if n.m.Failures[c.Name] != f {
		n.event(c.Name, v1.EventTypeWarning, "BackOff", fmt.Sprintf("Back-off restarting failed container %s in pod %s", c.Name, formatPod(n.pod)))
		set(&n.m.Failures, c.Name, f)
	}
	return true
}

// countBackoff enters that a container that had ended is started.
func (n *next) countBackoff(c *v1.Container, last *Container) {
	b, ok := n.backoff(c, last)
	if ok {
		b.Delay = min(2*b.Delay, n.o.Limits.MaxBackoff)
	} else {
		b = Backoff{Hash: n.o.Hash(c), Delay: n.o.Limits.Backoff}
	}
	b.Since = n.now
	set(&n.m.Backoff, c.Name, b)
}

// pullAhead has the images of all containers that were not started yet pulled at once, beside everything else.
func (n *next) pullAhead() {
	for c := range podutil.ContainerIter(&n.pod.Spec, podutil.InitContainers|podutil.Containers) {
		s := n.current(c.Name)
		if s == nil && n.last(c.Name) != nil && n.sandbox() != nil && n.sandbox().Ready {
			continue // it ended with an earlier sandbox: whether it starts again is to be seen
		}
		if (s == nil || s.State == Created) && !n.now.Before(n.m.Failures[c.Name].Until) {
			n.image(c)
		}
	}
}

// shown is for how long a failure of a pull is shown as such, before the waiting is.
const shown = time.Second

// image reports how it stands with a container's image, and has it pulled if need be.
func (n *next) image(c *v1.Container) (ready, failed bool) {
	img, ok := n.m.Images[c.Name]
	if ok && img.Name == c.Image {
		if img.Ready {
			return true, false
		}
		if n.now.Before(img.Until) {
			n.pullFailed(c, img)
			return false, true
		}
	}
	if !n.busyWith(Pull, c.Name) {
		n.do(Action{Kind: Pull, Container: c.Name})
	}
	// It goes on being shown why it failed before.
	return false, false
}

func (n *next) pullFailed(c *v1.Container, img Image) {
	n.again(img.Until)
	f := Failure{Reason: img.Reason, Message: img.Message}
	if isPullError(img.Reason) {
		if turn := img.At.Add(shown); n.now.Before(turn) {
			n.again(turn)
		} else {
			wait := fmt.Sprintf("Back-off pulling image %q", c.Image)
			f = Failure{Reason: "ImagePullBackOff", Message: fmt.Sprintf("%s: %s: %s", wait, img.Reason, img.Message)}
			if !img.told {
				img.told = true
				n.m.Images[c.Name] = img
				n.event(c.Name, v1.EventTypeNormal, "BackOff", wait)
				n.event(c.Name, v1.EventTypeWarning, "Failed", "Error: ImagePullBackOff")
			}
		}
	}
	set(&n.m.Failures, c.Name, f)
}
