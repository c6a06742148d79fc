package plan

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// A world is a node with one pod on which everything that a plan wants happens at once, unless the test says otherwise. What
// happened is its transcript.
type world struct {
	t    *testing.T
	pod  *v1.Pod
	o    Observed
	now  time.Time
	log  []string
	last Plan
	// slow are actions that take until finish, by the beginning of their text.
	slow []string
	// fail gives the results of actions that do not succeed, by their text.
	fail map[string]Result
	ids  int
}

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld(t *testing.T, pod *v1.Pod) *world {
	t.Helper()
	if pod.Spec.RestartPolicy == "" {
		pod.Spec.RestartPolicy = v1.RestartPolicyAlways
	}
	pod.Name, pod.Namespace, pod.UID, pod.Generation = "p", "default", "uid", 1
	w := &world{t: t, pod: pod, now: epoch, fail: map[string]Result{}}
	start := seconds(epoch)
	w.o = Observed{
		Busy: map[string]Action{}, Limits: DefaultLimits, HostIPs: []string{"192.0.2.1", "2001:db8::1"},
		Hash:     func(c *v1.Container) string { return c.Name + c.Image },
		Previous: v1.PodStatus{Phase: v1.PodPending, StartTime: &start},
	}
	return w
}

func (w *world) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

// settle lets everything happen that happens without time.
func (w *world) settle() *world {
	w.t.Helper()
	for range 100 {
		memory := w.o.Memory.clone()
		p := Next(w.pod, w.o, w.now)
		if !reflect.DeepEqual(memory, w.o.Memory.clone()) {
			w.t.Fatal("Next changed what it was given")
		}
		w.last = p
		kept, err := json.Marshal(p.Memory)
		if err != nil {
			w.t.Fatal(err)
		}
		var again Memory
		if err := json.Unmarshal(kept, &again); err != nil {
			w.t.Fatal(err)
		}
		again.Images, again.Retries = p.Memory.Images, p.Memory.Retries
		w.o.Memory, w.o.Previous = again, p.Status
		for _, e := range p.Events {
			w.note("(%s %s)", e.Reason, e.Message)
		}
		for _, key := range p.Cancel {
			if a, busy := w.o.Busy[key]; busy {
				w.note("cancel %s", a)
				w.done(a, Result{Err: errors.New("cancelled"), Reason: "cancelled"})
			}
		}
		if len(p.Do) == 0 {
			return w
		}
		for _, a := range p.Do {
			w.note("%s", a)
			w.o.Busy[a.Key()] = a
		}
		for _, a := range p.Do {
			if !slices.ContainsFunc(w.slow, func(s string) bool { return strings.HasPrefix(a.String(), s) }) {
				w.carryOut(a)
			}
		}
	}
	w.t.Fatalf("no end:\n%s", w.transcript())
	return nil
}

// finish lets a slow action end.
func (w *world) finish(text string) *world {
	w.t.Helper()
	for _, a := range w.o.Busy {
		if a.String() == text {
			w.carryOut(a)
			return w.settle()
		}
	}
	w.t.Fatalf("%q is not being done; %v", text, w.o.Busy)
	return nil
}

func (w *world) done(a Action, r Result) {
	delete(w.o.Busy, a.Key())
	image := ""
	for c := range podutil.ContainerIter(&w.pod.Spec, podutil.AllContainers) {
		if c.Name == a.Container {
			image = c.Image
		}
	}
	w.o.Memory = w.o.Memory.Done(a, image, r, w.o.Limits, w.now)
}

func (w *world) carryOut(a Action) {
	r, failed := w.fail[a.String()]
	if !failed {
		w.happen(a)
	}
	w.done(a, r)
}

func (w *world) happen(a Action) {
	w.ids++
	switch a.Kind {
	case Prepare:
		w.o.Prepared = true
	case Mount:
		w.o.Mounted = true
	case MakeSandbox:
		s := Sandbox{ID: fmt.Sprintf("s%d", a.Attempt), Attempt: uint32(a.Attempt), Ready: true, IPs: []string{"10.0.0.9", "fd00::9"}}
		w.o.Sandboxes = slices.Insert(w.o.Sandboxes, 0, s)
	case Start:
		c := Container{
			Name: a.Container, ID: fmt.Sprintf("%s%d", a.Container, max(a.Attempt, 0)), SandboxID: w.o.Sandboxes[0].ID, State: Running,
			Restarts: max(a.Attempt, 0), CreatedAt: w.now, StartedAt: w.now, Probes: Probes{Started: true, Ready: true},
		}
		for s := range podutil.ContainerIter(&w.pod.Spec, podutil.AllContainers) {
			if s.Name == a.Container {
				c.Image, c.Hash = s.Image, w.o.Hash(s)
				c.Probes.Started = s.StartupProbe == nil
				c.Probes.Ready = c.Probes.Started && s.ReadinessProbe == nil
			}
		}
		w.o.Containers = slices.Insert(w.o.Containers, 0, c)
	case Stop:
		w.end(a.ID, 143)
	case StopSandbox:
		for i := range w.o.Sandboxes {
			if w.o.Sandboxes[i].ID == a.ID {
				w.o.Sandboxes[i].Ready = false
			}
		}
	case RemoveContainer:
		w.o.Containers = slices.DeleteFunc(w.o.Containers, func(c Container) bool { return c.ID == a.ID })
	case RemoveSandbox:
		w.o.Sandboxes = slices.DeleteFunc(w.o.Sandboxes, func(s Sandbox) bool { return s.ID == a.ID })
		w.o.Containers = slices.DeleteFunc(w.o.Containers, func(c Container) bool { return c.SandboxID == a.ID })
	case Teardown:
		w.o.TornDown = true
	case Erase:
		w.o.Erased = true
	}
}

func (w *world) end(id string, code int32) {
	for i := range w.o.Containers {
		if c := &w.o.Containers[i]; c.ID == id {
			c.State, c.ExitCode, c.FinishedAt, c.Reason, c.Probes = Exited, code, w.now, "Error", Probes{}
			if code == 0 {
				c.Reason = "Completed"
			}
		}
	}
}

// exit ends the newest container of a name.
func (w *world) exit(name string, code int32) *world {
	w.t.Helper()
	for _, c := range w.o.Containers {
		if c.Name == name && c.State == Running {
			w.note("-- %s exits with %d", c.ID, code)
			w.end(c.ID, code)
			return w.settle()
		}
	}
	w.t.Fatalf("%s does not run:\n%s", name, w.transcript())
	return nil
}

// change lets the test change a container that runs, and looks what comes of it.
func (w *world) change(name string, f func(*Container)) *world {
	w.t.Helper()
	for i := range w.o.Containers {
		if c := &w.o.Containers[i]; c.Name == name {
			f(c)
			return w.settle()
		}
	}
	w.t.Fatalf("there is no %s", name)
	return nil
}

// after lets time go by up to the moment at which the plan wants to look again, and says when that was.
func (w *world) after() *world {
	w.t.Helper()
	if w.last.Again.IsZero() {
		w.t.Fatalf("nothing will happen any more:\n%s", w.transcript())
	}
	w.now = w.last.Again
	w.note("-- %s", w.now.Sub(epoch))
	return w.settle()
}

func (w *world) reboot() *world {
	w.note("-- reboot")
	for i := range w.o.Sandboxes {
		w.o.Sandboxes[i].Ready = false
	}
	for i := range w.o.Containers {
		if c := &w.o.Containers[i]; c.State != Exited {
			w.end(c.ID, 255)
		}
	}
	w.o.Prepared, w.o.Mounted, w.o.Busy = false, false, map[string]Action{}
	w.o.Memory.Images, w.o.Memory.Retries = nil, nil
	return w.settle()
}

func (w *world) delete(grace int64) *world {
	w.note("-- deleted")
	w.o.Memory.End = &End{Since: w.now, Grace: &grace, Remove: true}
	return w.settle()
}

func (w *world) transcript() string { return strings.Join(w.log, "\n") }

// said compares what happened since the last time.
func (w *world) said(want string) *world {
	w.t.Helper()
	lines := strings.Split(strings.TrimSpace(want), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	if got := w.transcript(); got != strings.Join(lines, "\n") {
		w.t.Errorf("what happened:\n%s\n\nwanted:\n%s", got, strings.Join(lines, "\n"))
	}
	w.log = nil
	return w
}

// shows compares the status: the phase with its reason, then each container, then the conditions that are not true.
func (w *world) shows(want string) *world {
	w.t.Helper()
	s := &w.last.Status
	var all []string
	all = append(all, strings.TrimSpace(string(s.Phase)+" "+s.Reason))
	for _, cs := range slices.Concat(s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses) {
		text := cs.Name
		switch {
		case cs.State.Running != nil:
			text += " running"
		case cs.State.Terminated != nil:
			text += fmt.Sprintf(" %s %d", cs.State.Terminated.Reason, cs.State.Terminated.ExitCode)
		case cs.State.Waiting != nil:
			text += " " + cs.State.Waiting.Reason
		}
		if cs.Ready {
			text += " ready"
		}
		if cs.RestartCount > 0 {
			text += fmt.Sprintf(" #%d", cs.RestartCount)
		}
		if l := cs.LastTerminationState.Terminated; l != nil {
			text += fmt.Sprintf(" last %s %d", l.Reason, l.ExitCode)
		}
		all = append(all, text)
	}
	var not []string
	for _, c := range s.Conditions {
		if c.Status != v1.ConditionTrue {
			not = append(not, string(c.Type))
		}
		if c.ObservedGeneration != w.pod.Generation {
			w.t.Errorf("condition %s is of generation %d", c.Type, c.ObservedGeneration)
		}
	}
	if len(not) > 0 {
		all = append(all, "not "+strings.Join(not, " "))
	}
	if got := strings.Join(all, "; "); got != want {
		w.t.Errorf("the status is\n%s\nwanted\n%s", got, want)
	}
	return w
}

func (w *world) message(name, want string) *world {
	w.t.Helper()
	s := find(slices.Concat(w.last.Status.InitContainerStatuses, w.last.Status.ContainerStatuses), name)
	if s == nil || s.State.Waiting == nil || s.State.Waiting.Message != want {
		w.t.Errorf("%s waits: %+v, wanted %q", name, s.State.Waiting, want)
	}
	return w
}

func pod(containers ...v1.Container) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{}, Spec: v1.PodSpec{Containers: containers}}
	grace := int64(30)
	p.Spec.TerminationGracePeriodSeconds = &grace
	return p
}

func container(name string) v1.Container { return v1.Container{Name: name, Image: "image:" + name} }

func sidecar(name string) v1.Container {
	c := container(name)
	always := v1.ContainerRestartPolicyAlways
	c.RestartPolicy = &always
	return c
}

func withInit(p *v1.Pod, inits ...v1.Container) *v1.Pod {
	p.Spec.InitContainers = inits
	return p
}
