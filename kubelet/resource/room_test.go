package resource

import (
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
)

func prior(name string, priority int32, phase v1.PodPhase) *v1.Pod {
	p := &v1.Pod{Spec: v1.PodSpec{Priority: &priority}, Status: v1.PodStatus{Phase: phase}}
	p.Name, p.UID = name, types.UID(name)
	return p
}

// What lesser pods leave to a more important one is not theirs again before it has come.
func TestRoom(t *testing.T) {
	var ended []string
	waits := true
	r := NewRoom(v1.ResourceList{v1.ResourcePods: apiresource.MustParse("2")}, func(v *v1.Pod) { ended = append(ended, v.Name) },
		func(types.NamespacedName) bool { return waits })
	a, b, c, d := prior("a", 0, v1.PodRunning), prior("b", 5, v1.PodRunning), prior("c", 0, v1.PodPending), prior("d", 10, v1.PodFailed)
	ask := func(pod *v1.Pod, others ...*v1.Pod) bool {
		return r.Ask(pod, others) == nil
	}

	if ask(c, a, b) || len(ended) != 0 {
		t.Fatalf("c got in, ended %v", ended)
	}
	for range 2 { // asked again, it ends nobody more
		if ask(d, a, b) || !slices.Equal(ended, []string{"a"}) {
			t.Fatalf("d got in, ended %v", ended)
		}
	}
	if ask(c, b) {
		t.Error("c takes what was left for d")
	}
	if !ask(d, b) {
		t.Error("d does not get in")
	}
	running := prior("d", 10, v1.PodRunning)
	if ask(c, b, running) || !ask(c, running) {
		t.Error("d counts twice, or not at all")
	}
	// One that waits no more keeps nothing.
	if ask(d, a, b) || len(ended) != 2 {
		t.Fatalf("ended %v", ended)
	}
	waits = false
	if !ask(c, b) {
		t.Error("what d waited for is still kept")
	}
}
