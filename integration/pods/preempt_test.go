//go:build integration

package pods

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// TestPreemption fills a node's memory with what nobody uses, and has a pod come that is more important than some of those there.
func TestPreemption(t *testing.T) {
	n, d := start(t, "  maxPods: 4\n"), newDiary(t)
	all := n.allocatable(t)
	part := func(name string, priority int, fifths int64) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  priority: %d\n  terminationGracePeriodSeconds: 20\n", name, priority) +
			d.volume() + "  containers:\n" + noted(name, fmt.Sprintf("    resources: {requests: {memory: '%d'}}\n", all/5*fifths))
	}
	n.write("low.yaml", part("low", 1, 2))
	low := n.awaitReady("low")
	d.await(t, "low")
	n.write("high.yaml", part("high", 1000, 2))
	high := n.awaitReady("high")
	d.await(t, "low high")

	// Who is not more important waits.
	n.write("equal.yaml", part("equal", 1, 2))
	equal := n.awaitPhase("equal", v1.PodFailed)
	if equal.Status.Reason != "OutOfmemory" {
		t.Errorf("equal is out for %s: %s", equal.Status.Reason, equal.Status.Message)
	}
	n.remove("equal.yaml")
	n.awaitGone("equal")

	// Who is takes the place of the least important, once that has ended in order.
	n.write("mid.yaml", part("mid", 500, 2))
	n.awaitReady("mid")
	d.await(t, "low high low-end mid")
	victim := n.awaitPhase("low", v1.PodFailed)
	if victim.Status.Reason != "Preempting" || victim.Status.Message != "Preempted in order to admit critical pod" {
		t.Errorf("low is out for %s: %s", victim.Status.Reason, victim.Status.Message)
	}
	if got := disruption(victim); got != "TerminationByKubelet: Pod was preempted by Kubelet to accommodate a critical pod." || victim.UID != low.UID {
		t.Errorf("DisruptionTarget is %q", got)
	}
	n.berth().lines(t, "events", "-w", "--for", "pod/low")("Warning +Preempting +Pod/low +Preempted in order to admit critical pod")
	if p := n.awaitReady("high"); p.UID != high.UID || status(p, "high").RestartCount != 0 {
		t.Error("the most important was disturbed")
	}

	// The victim comes back when there is room.
	n.remove("mid.yaml")
	n.awaitGone("mid")
	n.awaitReady("low")
	d.await(t, "low high low-end mid mid-end low")
}

// allocatable is the node's memory that pods may request.
func (n *node) allocatable(t *testing.T) int64 {
	t.Helper()
	text := n.berth().ok(t, "get", "node", "self", "-o", "jsonpath={.status.allocatable.memory}")
	memory, err := resource.ParseQuantity(text)
	if err != nil {
		t.Fatal(err)
	}
	return memory.Value()
}
