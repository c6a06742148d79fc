package plan

import (
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// next is one question on its way to its answer.
type next struct {
	pod *v1.Pod
	o   Observed
	now time.Time
	m   Memory
	out Plan
}

// Next says what to do for a pod.
func Next(pod *v1.Pod, o Observed, now time.Time) Plan {
	n := &next{pod: pod, o: o, now: now, m: o.Memory.clone()}
	n.forget()
	n.decideEnd()
	if n.m.End != nil {
		if n.m.End.Grace == nil { // as much as the pod says, so that what is said later is compared with that
			n.m.End.Grace = new(int64(n.grace() / time.Second))
		}
		n.end()
	} else {
		n.live()
	}
	n.out.Status = n.status()
	n.out.Memory = n.m
	return n.out
}

// do puts an action on the plan unless it is being done, or has failed just now.
func (n *next) do(a Action) {
	if b, busy := n.o.Busy[a.Key()]; busy && !a.By.Before(b.By) {
		return
	}
	if r := n.m.Retries[a.Key()]; n.now.Before(r.Until) {
		n.again(r.Until)
		return
	}
	if !slices.ContainsFunc(n.out.Do, func(b Action) bool { return a.Key() == b.Key() }) {
		n.out.Do = append(n.out.Do, a)
	}
}

// again has the pod looked at again at a time, if not earlier.
func (n *next) again(at time.Time) {
	if n.out.Again.IsZero() || at.Before(n.out.Again) {
		n.out.Again = at
	}
}

func (n *next) event(container, typ, reason, message string) {
	n.out.Events = append(n.out.Events, Event{Type: typ, Reason: reason, Message: message, Container: container})
}

// busy reports whether one of these kinds is being done, for whatever.
func (n *next) busy(kinds ...Kind) bool {
	for _, a := range n.o.Busy {
		if slices.Contains(kinds, a.Kind) {
			return true
		}
	}
	return false
}

func (n *next) busyWith(kind Kind, container string) bool {
	_, ok := n.o.Busy[Action{Kind: kind, Container: container}.Key()]
	return ok
}

// sandbox is the newest one, nil if there is none.
func (n *next) sandbox() *Sandbox {
	if len(n.o.Sandboxes) == 0 {
		return nil
	}
	return &n.o.Sandboxes[0]
}

// last is the newest container of a name.
func (n *next) last(name string) *Container {
	for i := range n.o.Containers {
		if n.o.Containers[i].Name == name {
			return &n.o.Containers[i]
		}
	}
	return nil
}

// current is the newest container of a name if it is in the newest sandbox.
func (n *next) current(name string) *Container {
	c, sb := n.last(name), n.sandbox()
	if c == nil || sb == nil || c.SandboxID != sb.ID {
		return nil
	}
	return c
}

// forget drops what was remembered of what is no more.
func (n *next) forget() {
	for id := range n.m.Stops {
		if !slices.ContainsFunc(n.o.Containers, func(c Container) bool { return c.ID == id && c.State != Exited }) {
			delete(n.m.Stops, id)
		}
	}
	for name, r := range n.m.Restarts {
		if c := n.last(name); c == nil || c.ID != r.ID {
			delete(n.m.Restarts, name)
		}
	}
	for name := range n.m.Hooks {
		c := n.last(name)
		if !n.busyWith(Start, name) && (c == nil || c.State == Exited) {
			delete(n.m.Hooks, name)
		}
	}
}

// decideEnd ends the pod if its time is over, or its containers have ended for good.
func (n *next) decideEnd() {
	if n.m.End != nil {
		return
	}
	if s, d := n.o.Previous.StartTime, n.pod.Spec.ActiveDeadlineSeconds; s != nil && d != nil {
		deadline := s.Add(time.Duration(*d) * time.Second)
		if !n.now.Before(deadline) {
			const message = "Pod was active on the node longer than the specified deadline"
			n.m.End = &End{Since: n.now, Phase: v1.PodFailed, Reason: "DeadlineExceeded", Message: message}
			n.event("", v1.EventTypeNormal, "DeadlineExceeded", message)
			return
		}
		n.again(deadline)
	}
	if n.busy(Start, PostStart) || n.restartsAll() {
		return
	}
	if s := n.status(); isTerminal(s.Phase) || n.mainsAreDone() {
		n.m.End = &End{Since: n.now}
	}
}

// mainsAreDone reports whether no main container runs or will run again: sidecars do not keep a pod alive.
func (n *next) mainsAreDone() bool {
	for i := range n.pod.Spec.Containers {
		c := &n.pod.Spec.Containers[i]
		if s := n.last(c.Name); s == nil || s.State != Exited || n.mayRestart(c, s) {
			return false
		}
	}
	return true
}

// live brings the pod to where it should be.
func (n *next) live() {
	if n.restartAll() {
		return
	}
	n.collect()
	if !n.o.Prepared {
		n.do(Action{Kind: Prepare})
		return
	}
	if !n.o.Mounted {
		n.do(Action{Kind: Mount})
	} else if n.o.Stale {
		n.do(Action{Kind: Refresh})
	}
	n.pullAhead()
	if !n.haveSandbox() {
		return
	}
	n.hooks()
	n.resize()
	for i := range n.pod.Spec.EphemeralContainers {
		c := (*v1.Container)(&n.pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		if n.last(c.Name) == nil {
			n.start(c)
		}
	}
	if n.initialize() {
		n.mains()
	}
}

// haveSandbox reports whether there is a sandbox to start containers in, and sees to it that there will be one. What is left
// of another one goes first: there are never two copies of a container.
func (n *next) haveSandbox() bool {
	sb, ready := n.sandbox(), 0
	for _, s := range n.o.Sandboxes {
		if s.Ready {
			ready++
		}
	}
	if sb != nil && sb.Ready && ready == 1 && (n.pod.Spec.HostNetwork || len(sb.IPs) > 0) {
		return true
	}
	if sb != nil && n.pod.Spec.RestartPolicy == v1.RestartPolicyNever && len(n.o.Containers) > 0 {
		n.m.End = &End{Since: n.now} // what ran in it is not to run again
		n.end()
		return false
	}
	if !n.stopAll(time.Time{}) || !n.stopSandboxes() {
		return false
	}
	attempt := 0
	if sb != nil {
		attempt = int(sb.Attempt) + 1
	}
	if !n.busy(MakeSandbox) {
		n.do(Action{Kind: MakeSandbox, Attempt: attempt})
	}
	return false
}

// stopSandboxes reports whether none is ready any more.
func (n *next) stopSandboxes() bool {
	none := true
	for _, s := range n.o.Sandboxes {
		if s.Ready {
			none = false
			n.do(Action{Kind: StopSandbox, ID: s.ID})
		}
	}
	return none
}

// collect removes what nobody asks for any more: of the ended containers of each name all but the last and the one before
// it, which is its last state, and sandboxes before the newest without containers.
func (n *next) collect() {
	seen := map[string]int{}
	used := map[string]bool{}
	for _, c := range n.o.Containers {
		seen[c.Name]++
		used[c.SandboxID] = true
		if seen[c.Name] > 2 && c.State == Exited {
			n.do(Action{Kind: RemoveContainer, ID: c.ID})
		}
	}
	for i, s := range n.o.Sandboxes {
		if i > 0 && !s.Ready && !used[s.ID] {
			n.do(Action{Kind: RemoveSandbox, ID: s.ID})
		}
	}
}

// end brings the pod to where nothing of it runs, and where that is wanted, to where nothing is left.
func (n *next) end() {
	for key, a := range n.o.Busy {
		if slices.Contains([]Kind{Pull, Mount, Refresh, PostStart}, a.Kind) {
			n.out.Cancel = append(n.out.Cancel, key)
		}
	}
	slices.Sort(n.out.Cancel)
	var by time.Time
	if n.m.End.Grace != nil {
		by = n.m.End.Since.Add(time.Duration(*n.m.End.Grace) * time.Second)
	}
	if !n.stopAll(by) || n.busy(Start, MakeSandbox, PostStart, Prepare, Mount, Refresh, Pull) || !n.stopSandboxes() {
		return
	}
	if !n.o.TornDown {
		n.do(Action{Kind: Teardown})
		return
	}
	if !n.m.End.Remove {
		n.collect()
		return
	}
	for _, s := range n.o.Sandboxes {
		n.do(Action{Kind: RemoveSandbox, ID: s.ID})
	}
	if len(n.o.Sandboxes) > 0 {
		return
	}
	if !n.o.Erased {
		n.do(Action{Kind: Erase})
		return
	}
	n.out.Gone = true
}

// restartsAll reports whether a container has ended in a way by which all are to begin anew.
func (n *next) restartsAll() bool {
	if n.m.RestartAll {
		return true
	}
	for c := range podutil.ContainerIter(&n.pod.Spec, podutil.InitContainers|podutil.Containers) {
		s := n.current(c.Name)
		if s == nil || s.State != Exited {
			continue
		}
		rule, ok := podutil.FindMatchingContainerRestartRule(*c, s.ExitCode)
		if ok && rule.Action == v1.ContainerRestartRuleActionRestartAllContainers {
			return true
		}
	}
	return false
}

// restartAll ends and removes all containers, and reports whether that is under way. The sandbox stays.
func (n *next) restartAll() bool {
	if !n.restartsAll() {
		return false
	}
	n.m.RestartAll = true
	if !n.stopAll(time.Time{}) || n.busy(Start) {
		return true
	}
	left := false
	for c := range podutil.ContainerIter(&n.pod.Spec, podutil.InitContainers|podutil.Containers) {
		for _, s := range n.o.Containers {
			if s.Name == c.Name {
				left = true
				n.do(Action{Kind: RemoveContainer, ID: s.ID, KeepLog: true})
			}
		}
	}
	if left {
		return true
	}
	n.m.RestartAll = false
	return false
}
