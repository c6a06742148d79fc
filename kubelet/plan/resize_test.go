package plan

import (
	"errors"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

func limited(name, cpu string) v1.Container {
	c := container(name)
	c.Resources.Limits = v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}
	c.Resources.Requests = c.Resources.Limits
	return c
}

// resized has the pod get what it has now; restart are the IDs of containers whose policy wants them to be restarted.
func (w *world) resized(restart ...string) *world {
	w.t.Helper()
	w.note("-- resized")
	from := map[string]Outgrown{}
	for _, c := range w.o.Containers {
		if c.State == Running {
			from[c.ID] = Outgrown{}
		}
	}
	for _, id := range restart {
		from[id] = Outgrown{Restart: true}
	}
	m := w.o.Memory.clone()
	e := m.Resized(w.pod, from)
	w.o.Memory = m
	w.note("(%s)", e.Reason)
	w.settle()
	for i, line := range w.log { // the events' messages have their own test
		if rest, ok := strings.CutPrefix(line, "(Resize"); ok {
			w.log[i] = "(Resize" + strings.TrimSuffix(strings.Fields(rest)[0], ")") + ")"
		}
	}
	return w
}

func (w *world) resizeCondition(typ v1.PodConditionType) string {
	_, c := podutil.GetPodConditionFromList(w.last.Status.Conditions, typ)
	if c == nil {
		return ""
	}
	return string(c.Status) + " " + c.Reason + ": " + c.Message
}

func TestResourcesChangeInPlace(t *testing.T) {
	w := newWorld(t, pod(limited("a", "1"), limited("b", "1"))).settle()
	w.log = nil
	w.slow = []string{"resize"}
	w.resized().said("-- resized\n(ResizeStarted)\nresize")
	if got := w.resizeCondition(v1.PodResizeInProgress); got != "True : " {
		t.Errorf("%q", got)
	}
	w.slow = nil
	w.finish("resize")
	if got := w.transcript(); !strings.HasPrefix(got, "(ResizeCompleted Pod resize completed: {") || w.resizeCondition(v1.PodResizeInProgress) != "" {
		t.Errorf("%s; %s", got, w.resizeCondition(v1.PodResizeInProgress))
	}
	w.log = nil
	w.shows("Running; a running ready; b running ready").settle().said("")
}

// Who has to be restarted ends before the limits change, and starts after it.
func TestAResizeRestartsWhoAsksForIt(t *testing.T) {
	w := newWorld(t, pod(limited("a", "1"), limited("b", "1"))).settle()
	w.pod.Spec.RestartPolicy = v1.RestartPolicyOnFailure
	w.log = nil
	w.slow = []string{"stop a0"}
	w.resized("a0").said("-- resized\n(ResizeStarted)\n(Killing Container a resize requires restart)\nstop a0")
	w.slow = []string{"resize"}
	w.finish("stop a0").said("resize")
	w.slow = nil
	w.finish("resize")
	if got := w.transcript(); !strings.HasPrefix(got, "pull a\nstart a #1\n(ResizeCompleted ") {
		t.Error(got)
	}
	w.shows("Running; a running ready #1 last Error 143; b running ready")
}

// What cannot be changed at present is tried again, and holds up nobody.
func TestAResizeThatFails(t *testing.T) {
	w := newWorld(t, pod(limited("a", "1"), limited("b", "1"))).settle()
	w.log = nil
	w.fail["resize"] = Result{Err: errors.New("in use")}
	w.resized().said("-- resized\n(ResizeStarted)\nresize\n(ResizeError)")
	if got := w.resizeCondition(v1.PodResizeInProgress); got != "True Error: in use" {
		t.Errorf("%q", got)
	}
	w.exit("b", 1).said("-- b0 exits with 1\npull b\nstart b #1")
	delete(w.fail, "resize")
	w.after()
	if got := w.transcript(); !strings.Contains(got, "resize\n(ResizeCompleted ") || w.resizeCondition(v1.PodResizeInProgress) != "" {
		t.Errorf("%s; %q", got, w.resizeCondition(v1.PodResizeInProgress))
	}
}

func TestWaitingForResources(t *testing.T) {
	p := pod(limited("a", "2"))
	p.Generation = 3
	var m Memory
	e := m.Wait(p, "OutOfcpu", "too little")
	const want = `Pod resize OutOfcpu: {"containers":[{"name":"a","resources":{"limits":{"cpu":"2"},"requests":{"cpu":"2"}}}],"generation":3,"error":"too little"}`
	if e == nil || e.Type != v1.EventTypeWarning || e.Reason != "ResizeDeferred" || e.Message != want {
		t.Errorf("%+v", e)
	}
	if m.Wish.Reason != v1.PodReasonDeferred || m.Wish.Message != "too little" || m.Wish.Generation != 3 {
		t.Errorf("%+v", m.Wish)
	}
	if e := m.Wait(p, "OutOfmemory", "less still"); e != nil || m.Wish.Message != "less still" {
		t.Errorf("told again: %+v, %+v", e, m.Wish)
	}
	if e := m.Wait(p, v1.PodReasonInfeasible, "never"); e == nil || e.Reason != "ResizeInfeasible" || m.Wish.Reason != v1.PodReasonInfeasible {
		t.Errorf("%+v, %+v", e, m.Wish)
	}
	w := newWorld(t, p)
	w.o.Memory = m
	w.settle()
	if got := w.resizeCondition(v1.PodResizePending); got != "True Infeasible: never" {
		t.Errorf("%q", got)
	}
	if e := m.Resized(p, nil); e.Reason != "ResizeStarted" || m.Wish != nil {
		t.Errorf("%+v, %+v", e, m.Wish)
	}
}

func TestResourcesAreShownAsTheyAre(t *testing.T) {
	w := newWorld(t, pod(limited("a", "1"), limited("b", "5m"))).settle()
	q := func(text string) *resource.Quantity { v := resource.MustParse(text); return &v }
	w.o.Actual = Actual{CPURequest: q("700m"), CPULimit: q("800m")}
	w.change("b", func(c *Container) { c.Actual = Actual{CPURequest: q("5m"), CPULimit: q("10m")} })
	w.change("a", func(c *Container) {
		c.Actual = Actual{CPURequest: q("500m"), CPULimit: q("600m"), MemoryLimit: q("1Gi")}
	})
	shown := func(r *v1.ResourceRequirements) string {
		return r.Requests.Cpu().String() + " " + r.Limits.Cpu().String() + " " + r.Limits.Memory().String()
	}
	s := &w.last.Status
	a, b := find(s.ContainerStatuses, "a"), find(s.ContainerStatuses, "b")
	if got := shown(a.Resources); got != "500m 600m 1Gi" || a.AllocatedResources.Cpu().String() != "1" {
		t.Errorf("a: %s, given %v", got, a.AllocatedResources)
	}
	// What the kernel cannot tell apart is shown as it was given.
	if got := shown(b.Resources); got != "5m 5m 0" {
		t.Errorf("b: %s", got)
	}
	if got := shown(s.Resources); got != "700m 800m 0" || s.AllocatedResources.Cpu().String() != "1005m" {
		t.Errorf("the pod: %s, given %v", got, s.AllocatedResources)
	}
	w.exit("a", 0)
	w.slow = []string{"start"}
	w.exit("a", 0)
	if got := shown(find(w.last.Status.ContainerStatuses, "a").Resources); got != "1 1 0" {
		t.Errorf("a that has ended: %s", got)
	}
}
