package plan

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	helper "k8s.io/component-helpers/resource"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// A Wish is a change of the pod's resources that the node has not given it, and why.
type Wish struct {
	// Generation is that of the pod that wishes it.
	Generation int64 `json:"generation"`
	// Reason and Message are of the condition PodResizePending.
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

// Resizing is a change of the pod's resources that is being carried out.
type Resizing struct {
	// Generation is that of the pod that asked for it.
	Generation int64 `json:"generation"`
	// From are the containers that are not changed yet, by ID.
	From map[string]Outgrown `json:"from,omitempty"`
	// Written says that the limits are what they should be; what is in From is being restarted.
	Written bool `json:"written,omitempty"`
	// Error is why it could not be carried out last, Told the one that there was an event for.
	Error string `json:"error,omitempty"`
	Told  string `json:"told,omitempty"`
}

// Outgrown is a container whose resources are not the pod's any more.
type Outgrown struct {
	Has v1.ResourceRequirements `json:"has"`
	// Restart says that its policy wants it to be restarted.
	Restart bool `json:"restart,omitempty"`
}

// The events of a resize, by upstream's names.
const (
	resizeStarted    = "ResizeStarted"
	resizeCompleted  = "ResizeCompleted"
	resizeError      = "ResizeError"
	resizeDeferred   = "ResizeDeferred"
	resizeInfeasible = "ResizeInfeasible"
)

// Wait enters that the pod does not get the resources that it wishes, and returns the event for that; nil if it was told so
// before. pod is as it wishes to be, reason that of the obstacle.
func (m *Memory) Wait(pod *v1.Pod, reason, message string) *Event {
	wish := &Wish{Generation: pod.Generation, Reason: v1.PodReasonDeferred, Message: message}
	name := resizeDeferred
	if reason == v1.PodReasonInfeasible {
		wish.Reason, name = reason, resizeInfeasible
	}
	before := m.Wish
	m.Wish = wish
	if before != nil && before.Reason == wish.Reason && before.Generation == wish.Generation {
		return nil
	}
	return &Event{Type: v1.EventTypeWarning, Reason: name, Message: resizeMessage(pod, "Pod resize "+reason, pod.Generation, message)}
}

// Resized enters that the pod has got the resources that it has now, and returns the event for that. from are the containers
// that were made with others.
func (m *Memory) Resized(pod *v1.Pod, from map[string]Outgrown) *Event {
	m.Wish = nil
	m.Resizing = &Resizing{Generation: pod.Generation, From: from}
	m.Retries = maps.Clone(m.Retries)
	delete(m.Retries, Action{Kind: Resize}.Key())
	return &Event{Type: v1.EventTypeNormal, Reason: resizeStarted, Message: resizeMessage(pod, "Pod resize started", pod.Generation, "")}
}

// resized enters how a Resize went. All that ran then is as it should be; what is left does not run.
func (m *Memory) resized(err error) {
	r := m.Resizing
	switch {
	case r == nil:
	case err != nil:
		r.Error = err.Error()
	default:
		r.Written, r.Error, r.Told = true, "", ""
		maps.DeleteFunc(r.From, func(_ string, o Outgrown) bool { return !o.Restart })
	}
}

// resize brings a change of resources on: containers whose policy says so end, then the limits of the pod and of all others
// change, then those are started again.
func (n *next) resize() {
	r := n.m.Resizing
	if r == nil {
		return
	}
	ending := false
	for id, o := range r.From {
		s := n.byID(id)
		if s == nil || n.last(s.Name).ID != id || s.State == Exited && !n.wanted(s) {
			delete(r.From, id)
			continue
		}
		if o.Restart && s.State == Running {
			ending = true
			if !n.wanted(s) {
				set(&n.m.Restarts, s.Name, Restart{ID: id, Resize: true})
			}
		}
	}
	if r.Error != r.Told {
		n.event("", v1.EventTypeWarning, resizeError, resizeMessage(n.pod, "Pod resize error", r.Generation, r.Error))
		r.Told = r.Error
	}
	switch {
	case !r.Written && !ending && !n.busy(Prepare, Start):
		n.do(Action{Kind: Resize})
	case r.Written && len(r.From) == 0:
		n.event("", v1.EventTypeNormal, resizeCompleted, resizeMessage(n.pod, "Pod resize completed", r.Generation, ""))
		n.m.Resizing = nil
	}
}

// resizes reports whether limits are being changed, or are about to be: no container is started meanwhile. One that cannot
// be carried out at present holds up nobody.
func (n *next) resizes() bool {
	key := Action{Kind: Resize}.Key()
	_, busy := n.o.Busy[key]
	return busy || slices.ContainsFunc(n.out.Do, func(a Action) bool { return a.Key() == key })
}

func (n *next) byID(id string) *Container {
	for i := range n.o.Containers {
		if n.o.Containers[i].ID == id {
			return &n.o.Containers[i]
		}
	}
	return nil
}

// resizeConditions adds those of a change of resources. Their time is that of the change of their reason.
func (n *next) resizeConditions(s *v1.PodStatus) {
	add := func(typ v1.PodConditionType, reason, message string, generation int64) {
		c := v1.PodCondition{
			Type: typ, Status: v1.ConditionTrue, Reason: reason, Message: message,
			ObservedGeneration: generation, LastTransitionTime: seconds(n.now),
		}
		if _, old := podutil.GetPodConditionFromList(n.o.Previous.Conditions, typ); old != nil && old.Reason == reason {
			c.LastTransitionTime = old.LastTransitionTime
		}
		s.Conditions = append(s.Conditions, c)
	}
	if w := n.m.Wish; w != nil {
		add(v1.PodResizePending, w.Reason, w.Message, w.Generation)
	}
	if r := n.m.Resizing; r != nil {
		reason := ""
		if r.Error != "" {
			reason = v1.PodReasonError
		}
		add(v1.PodResizeInProgress, reason, r.Error, r.Generation)
	}
}

// resizeMessage is that of an event: with the resources of all containers, as upstream writes them.
func resizeMessage(pod *v1.Pod, what string, generation int64, fault string) string {
	type allocation struct {
		Name      string                  `json:"name"`
		Resources v1.ResourceRequirements `json:"resources"`
	}
	summary := struct {
		InitContainers []allocation `json:"initContainers,omitempty"`
		Containers     []allocation `json:"containers,omitempty"`
		Generation     int64        `json:"generation"`
		Error          string       `json:"error,omitempty"`
	}{Generation: generation, Error: fault}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		summary.InitContainers = append(summary.InitContainers, allocation{c.Name, c.Resources})
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		summary.Containers = append(summary.Containers, allocation{c.Name, c.Resources})
	}
	text, err := json.Marshal(summary)
	if err != nil {
		return what
	}
	return fmt.Sprintf("%s: %s", what, text)
}

// What is too little for the kernel to tell apart: shares, and a limit, in thousandths of a CPU.
const (
	leastRequest = 2
	leastLimit   = 10
)

// containerResources are those that a container is shown to have: what is in force if it runs, else what it would get.
func containerResources(c *v1.Container, a *Container) *v1.ResourceRequirements {
	r := c.Resources.DeepCopy()
	if a.State != Running {
		return r
	}
	if r.Limits != nil {
		actual(r.Limits, v1.ResourceCPU, a.Actual.CPULimit, leastLimit)
		actual(r.Limits, v1.ResourceMemory, a.Actual.MemoryLimit, 0)
	}
	if r.Requests != nil {
		actual(r.Requests, v1.ResourceCPU, a.Actual.CPURequest, leastRequest)
	}
	return r
}

// actual enters what is in force. Of what is too little to be told apart, what was given is shown.
func actual(list v1.ResourceList, name v1.ResourceName, q *resource.Quantity, least int64) {
	if q == nil {
		return
	}
	was := list[name]
	if q.MilliValue() > least || was.MilliValue() > least {
		list[name] = q.DeepCopy()
	}
}

// podResources are those that the pod is shown to have as a whole.
func (n *next) podResources() *v1.ResourceRequirements {
	r := n.pod.Spec.Resources.DeepCopy()
	if r == nil {
		r = &v1.ResourceRequirements{}
	}
	requests := helper.PodRequests(n.pod, helper.PodResourcesOptions{})
	if n.o.Previous.Phase != v1.PodRunning {
		r.Requests, r.Limits = requests, helper.PodLimits(n.pod, helper.PodResourcesOptions{})
		return r
	}
	if r.Requests == nil {
		r.Requests = v1.ResourceList{}
	}
	if r.Limits == nil {
		r.Limits = v1.ResourceList{}
	}
	actual(r.Requests, v1.ResourceCPU, n.o.Actual.CPURequest, leastRequest)
	if _, own := r.Requests[v1.ResourceMemory]; !own {
		if q, ok := requests[v1.ResourceMemory]; ok {
			r.Requests[v1.ResourceMemory] = q
		}
	}
	actual(r.Limits, v1.ResourceCPU, n.o.Actual.CPULimit, leastLimit)
	actual(r.Limits, v1.ResourceMemory, n.o.Actual.MemoryLimit, 0)
	return r
}
