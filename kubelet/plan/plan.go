// Package plan decides what becomes of one pod next. Next is pure: what is wanted and what is there go in, with the time; what
// to do comes out, when to look again, and how the pod is to be shown. Whoever carries it out says by Memory.Done how it went,
// and asks again. The same question gives the same answer, so that nothing is lost when the daemon ends in between.
//
// What it decides is upstream's (pkg/kubelet/kuberuntime), and so is every reason and message.
package plan

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// State is where a container is in its life.
type State string

// The states of a container.
const (
	Created State = "created"
	Running State = "running"
	Exited  State = "exited"
	Unknown State = "unknown"
)

// A Sandbox is one attempt at a pod's sandbox.
type Sandbox struct {
	ID      string
	Attempt uint32
	Ready   bool
	// IPs in the order in which the pod shows them; nil with host networking.
	IPs []string
}

// A Container is one attempt at a container of the pod.
type Container struct {
	Name, ID, SandboxID string
	State               State
	// Restarts is how many of its name were there before, Hash that of its definition.
	Restarts                         int
	Hash                             string
	CreatedAt, StartedAt, FinishedAt time.Time
	ExitCode                         int32
	Reason, Message                  string
	Image, ImageID                   string
	User                             *v1.ContainerUser
	StopSignal                       *v1.Signal
	Probes                           Probes
	// Actual are the resources of one that runs.
	Actual Actual
}

// Actual are resources in force; nil is what is not set, or not known.
type Actual struct{ CPURequest, CPULimit, MemoryLimit *resource.Quantity }

// Probes are what the probes of a running container say. Of one without probes it is Started and Ready.
type Probes struct {
	Started, Ready bool
	// FailedStartup and FailedLiveness mean that the container has to end.
	FailedStartup, FailedLiveness bool
}

// Observed is what is there at one moment.
type Observed struct {
	// Sandboxes of the pod, the newest first.
	Sandboxes []Sandbox
	// Containers of all sandboxes, the newest first.
	Containers []Container
	// Prepared says that the pod has its folder and its cgroup, Mounted that its volumes are set up, TornDown that neither
	// is there any more, Erased that nothing else is.
	Prepared, Mounted, TornDown, Erased bool
	// Stale says that something has changed that volumes show.
	Stale bool
	// Busy is what is being done, by the keys of the actions.
	Busy map[string]Action
	// HostIPs of the node, the primary one first.
	HostIPs []string
	// Hash returns the hash of a container's definition.
	Hash func(*v1.Container) string
	// Limits are the node's.
	Limits Limits
	// Actual are the resources of the pod's own cgroup.
	Actual Actual
	// Previous is the status as it was shown before.
	Previous v1.PodStatus
	Memory   Memory
}

// Limits are how patient a node is.
type Limits struct {
	// Backoff is how long a container that ended is not started again, after its second start; it doubles up to MaxBackoff,
	// and begins anew when the container has run for twice MaxBackoff.
	Backoff, MaxBackoff time.Duration
	// PullBackoff is the same for pulls that fail.
	PullBackoff, MaxPullBackoff time.Duration
	// Retry is when what failed otherwise is tried again.
	Retry time.Duration
}

// DefaultLimits are upstream's.
var DefaultLimits = Limits{
	Backoff: 10 * time.Second, MaxBackoff: 5 * time.Minute,
	PullBackoff: 10 * time.Second, MaxPullBackoff: 5 * time.Minute,
	Retry: 10 * time.Second,
}

// A Kind is what an Action does.
type Kind string

// The kinds of actions.
const (
	Prepare         Kind = "prepare"          // make the pod's folder and cgroup
	Mount           Kind = "mount"            // set up its volumes
	Refresh         Kind = "refresh"          // bring their content up to date
	Pull            Kind = "pull"             // see to it that the image of a container is there
	MakeSandbox     Kind = "make sandbox"     // Attempt
	Start           Kind = "start"            // create and start a container
	Resize          Kind = "resize"           // give the pod and the containers that run their resources
	PostStart       Kind = "post-start"       // run the hook
	PreStop         Kind = "pre-stop"         // run the hook, until By
	Stop            Kind = "stop"             // stop a container, by force at By
	StopSandbox     Kind = "stop sandbox"     // with whatever runs in it
	RemoveContainer Kind = "remove container" // and its log
	RemoveSandbox   Kind = "remove sandbox"   // with its containers
	Teardown        Kind = "tear down"        // volumes and cgroup
	Erase           Kind = "erase"            // folder and logs
)

// An Action is one thing to do. Its caller starts it and does not wait for it.
type Action struct {
	Kind Kind
	// Container is a container's name.
	Container string
	// ID is that of a container or a sandbox.
	ID string
	// Attempt counts sandboxes; for a Start it is the restart count, -1 if nobody knows it.
	Attempt int
	By      time.Time
	// KeepLog has a RemoveContainer leave the log.
	KeepLog bool
}

// Key tells actions apart: of those with the same key one is done at a time.
func (a Action) Key() string { return string(a.Kind) + " " + a.Container + a.ID }

// String is for a transcript.
func (a Action) String() string {
	s := string(a.Kind)
	for _, what := range []string{a.Container, a.ID} {
		if what != "" {
			s += " " + what
		}
	}
	if a.Kind == MakeSandbox || a.Kind == Start {
		s += " #" + strconv.Itoa(a.Attempt)
	}
	return s
}

// An Event is one for the API.
type Event struct {
	Type, Reason, Message string
	// Container is the one that it is about; empty for the pod.
	Container string
}

// A Plan is what comes next.
type Plan struct {
	Do []Action
	// Cancel are keys of what is being done and is of no use any more.
	Cancel []string
	// Again is when to ask again at the latest; zero if nothing but an event can change anything.
	Again  time.Time
	Status v1.PodStatus
	Events []Event
	// Memory is to be kept before any of Do is begun.
	Memory Memory
	// Gone says that nothing is left of the pod.
	Gone bool
}

// Memory is what cannot be seen and has to be known next time. What has no JSON name is not worth keeping.
type Memory struct {
	// By the containers' names: their back-off, why they do not start, and the state of their postStart hooks.
	Backoff  map[string]Backoff  `json:"backoff,omitempty"`
	Failures map[string]Failure  `json:"failures,omitempty"`
	Hooks    map[string]HookWord `json:"hooks,omitempty"`
	// Stops are the containers that are being stopped, by ID.
	Stops map[string]Stopping `json:"stops,omitempty"`
	End   *End                `json:"end,omitempty"`
	// Restarts are the containers that somebody wants to begin anew, by name: the ID of the one that is to end.
	Restarts map[string]Restart `json:"restarts,omitempty"`
	// RestartAll says that a container's exit asked for all of them to begin anew.
	RestartAll bool `json:"restartAll,omitempty"`
	// Wish is a change of the pod's resources that it was not given yet, Resizing one that it was given.
	Wish     *Wish     `json:"wish,omitempty"`
	Resizing *Resizing `json:"resizing,omitempty"`

	// Images by the containers' names; Retries by the keys of actions.
	Images  map[string]Image `json:"-"`
	Retries map[string]Retry `json:"-"`
}

// A Restart is the wish that a container begins anew, whatever its restart policy.
type Restart struct {
	ID    string `json:"id"`
	Grace *int64 `json:"grace,omitempty"`
	// Resize says that it is for other resources.
	Resize bool `json:"resize,omitempty"`
}

// Restart has a container begin anew; nil is the pod's grace.
func (m *Memory) Restart(container, id string, grace *int64) {
	m.Restarts = maps.Clone(m.Restarts)
	set(&m.Restarts, container, Restart{ID: id, Grace: grace})
}

// Finish ends the pod, or has an end that has begun come earlier, or leave nothing.
func (m *Memory) Finish(e End) {
	if m.End == nil {
		m.End = &e
		return
	}
	end := *m.End
	end.Remove = end.Remove || e.Remove
	if e.Grace != nil {
		if grace := *e.Grace + int64(e.Since.Sub(end.Since)/time.Second); end.Grace == nil || grace < *end.Grace {
			end.Grace = &grace
		}
	}
	m.End = &end
}

// A Backoff is a pause before the next start.
type Backoff struct {
	Hash  string        `json:"hash"`
	Delay time.Duration `json:"delay"`
	// Since is when the container was last started in spite of it.
	Since time.Time `json:"since"`
}

// A Failure is why a container does not start.
type Failure struct {
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
	// Until is when to try again; zero if that is not a matter of time.
	Until time.Time `json:"until,omitzero"`
}

// HookWord is how far a hook is.
type HookWord string

// A hook that is not to be run, or has succeeded, has no word.
const (
	HookDue    HookWord = "due"
	HookDone   HookWord = "done"
	HookFailed HookWord = "failed"
)

// Stopping is a container on its way out.
type Stopping struct {
	// By is when its grace ends. It only ever becomes earlier.
	By   time.Time `json:"by"`
	Hook HookWord  `json:"hook,omitempty"`
}

// An End is why and how a pod ends.
type End struct {
	Since time.Time `json:"since"`
	// Grace is what its containers get, in seconds; nil is what the pod says.
	Grace *int64 `json:"grace,omitempty"`
	// Remove says that nothing is to be left: the pod is deleted or replaced. Else its last status is.
	Remove bool `json:"remove,omitempty"`
	// Phase, if not empty, is the pod's from now on, with the words that go with it.
	Phase   v1.PodPhase `json:"phase,omitempty"`
	Reason  string      `json:"reason,omitempty"`
	Message string      `json:"message,omitempty"`
	// Disruption, if not empty, is the message of the condition DisruptionTarget.
	Disruption string `json:"disruptionMessage,omitempty"`
}

// Evicted is the reason of an end by which the node helped itself, Preempting that of one for a more important pod; Rejected begins
// the message of one before the beginning.
const (
	Evicted    = "Evicted"
	Preempting = "Preempting"
	Rejected   = "Pod was rejected: "
)

// ComesBack reports whether the pod ended only because of the state of the node, and is to run again when that allows it.
func (e *End) ComesBack() bool {
	return e != nil && e.Phase == v1.PodFailed && (e.Reason == Evicted || e.Reason == Preempting || strings.HasPrefix(e.Message, Rejected))
}

// An Image is how it stands with a container's image.
type Image struct {
	Name  string // as the container has it
	Ready bool
	// Ref is what a container is made from.
	Ref string
	// Reason and Message say what went wrong. It is tried again at Until; At is when it was.
	Reason, Message string
	At, Until       time.Time
	Delay           time.Duration
	told            bool
}

// A Retry is an action that failed, and when it is due again.
type Retry struct {
	Count int
	Until time.Time
}

func (m Memory) clone() Memory {
	m.Backoff, m.Failures, m.Hooks, m.Stops = maps.Clone(m.Backoff), maps.Clone(m.Failures), maps.Clone(m.Hooks), maps.Clone(m.Stops)
	m.Restarts, m.Images, m.Retries = maps.Clone(m.Restarts), maps.Clone(m.Images), maps.Clone(m.Retries)
	if m.End != nil {
		end := *m.End
		m.End = &end
	}
	if m.Resizing != nil {
		r := *m.Resizing
		r.From = maps.Clone(r.From)
		m.Resizing = &r
	}
	return m
}

func set[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = value
}

// A Result is how an action went.
type Result struct {
	Err error
	// Reason and Message say so in the API's words, for Pull, Start and PostStart.
	Reason, Message string
	// Ref is the image of a Pull.
	Ref string
}

// Done enters how an action went, and returns the new Memory; the old one stays as it is.
func (m Memory) Done(a Action, image string, r Result, limits Limits, now time.Time) Memory {
	m = m.clone()
	key := a.Key()
	switch a.Kind {
	case Pull:
		m.pulled(a.Container, image, r, limits, now)
	case Start:
		delete(m.Images, a.Container)
		if r.Err == nil {
			if m.Hooks[a.Container] == "" { // else it is to succeed first
				delete(m.Failures, a.Container)
			}
		} else {
			set(&m.Failures, a.Container, Failure{Reason: r.Reason, Message: r.Message, Until: now.Add(limits.Retry)})
		}
	case PostStart:
		if r.Err == nil {
			delete(m.Hooks, a.Container)
			delete(m.Failures, a.Container)
		} else {
			set(&m.Hooks, a.Container, HookFailed)
			set(&m.Failures, a.Container, Failure{Reason: r.Reason, Message: r.Message})
		}
	case PreStop:
		if s, ok := m.Stops[a.ID]; ok {
			s.Hook = HookDone
			m.Stops[a.ID] = s
		}
	default:
		if a.Kind == Resize {
			m.resized(r.Err)
		}
		if r.Err == nil {
			delete(m.Retries, key)
		} else {
			n := m.Retries[key].Count
			set(&m.Retries, key, Retry{n + 1, now.Add(min(limits.Retry, time.Second<<min(n, 10)/2))})
		}
	}
	return m
}

// pulled keeps what came of a pull. Only what a registry may yet give is worth a growing patience.
func (m *Memory) pulled(name, image string, r Result, limits Limits, now time.Time) {
	if r.Err == nil {
		set(&m.Images, name, Image{Name: image, Ready: true, Ref: r.Ref})
		return
	}
	img := Image{Name: image, Reason: r.Reason, Message: r.Message, At: now, Until: now.Add(limits.Retry)}
	if isPullError(r.Reason) {
		img.Delay = limits.PullBackoff
		if before := m.Images[name]; before.Name == image && before.Delay > 0 {
			img.Delay = min(before.Delay*2, limits.MaxPullBackoff)
		}
		img.Until = now.Add(img.Delay)
	}
	set(&m.Images, name, img)
}

// isPullError tells failures of a pull from those before it.
func isPullError(reason string) bool {
	return !slices.Contains([]string{"ErrImageNeverPull", "InvalidImageName", "ImageInspectError"}, reason)
}

// Hurry forgets how long to wait with what depends on other objects than the pod, since they have changed.
func (m Memory) Hurry() Memory {
	m = m.clone()
	clear(m.Retries)
	for name, f := range m.Failures {
		if f.Reason == "CreateContainerConfigError" {
			f.Until = time.Time{}
			m.Failures[name] = f
		}
	}
	return m
}
