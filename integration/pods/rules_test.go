//go:build integration

package pods

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/images"
)

// ending is a container that notes each of its runs and ends with the codes, one after the other, the last of which stays.
func ending(name string, codes []int, more ...string) string {
	script := noting + "note " + name + "; case $(grep -cx " + name + " /diary/notes) in "
	for i, code := range codes[:len(codes)-1] {
		script += fmt.Sprintf("%d) exit %d;; ", i+1, code)
	}
	script += fmt.Sprintf("*) exit %d;; esac", codes[len(codes)-1])
	return fmt.Sprintf("  - name: %s\n    image: %s\n    command: [sh, -c, %q]\n", name, images.Tools, script) + diaryMount + strings.Join(more, "")
}

// rule is a policy of a container that has one rule.
func rule(policy, action, operator string, codes ...int) string {
	list := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(codes)), ", "), "[]")
	return fmt.Sprintf("    restartPolicy: %s\n    restartPolicyRules: [{action: %s, exitCodes: {operator: %s, values: [%s]}}]\n", policy, action, operator, list)
}

// TestRestartRules has containers whose own policy, or a rule of it, says otherwise than their pod.
func TestRestartRules(t *testing.T) {
	n := start(t, quick)
	diaries := map[string]diary{}
	cases := []struct {
		name, pod string
		codes     []int
		policy    string
		phase     v1.PodPhase
		restarts  int32
		code      int32
	}{
		{"in", "Always", []int{42, 42, 3}, rule("Never", "Restart", "In", 41, 42), v1.PodFailed, 2, 3},
		{"not-in", "Never", []int{7, 42}, rule("Never", "Restart", "NotIn", 0, 42), v1.PodFailed, 1, 42},
		{"none", "Always", []int{43}, rule("Never", "Restart", "In", 42), v1.PodFailed, 0, 43},
		{"on-failure", "Never", []int{5, 0}, "    restartPolicy: OnFailure\n", v1.PodSucceeded, 1, 0},
		{"never", "OnFailure", []int{5}, "    restartPolicy: Never\n", v1.PodFailed, 0, 5},
	}
	for _, c := range cases {
		d := newDiary(t)
		diaries[c.name] = d
		n.write(c.name+".yaml", fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  restartPolicy: %s\n", c.name, c.pod)+
			d.volume()+"  containers:\n"+ending("main", c.codes, c.policy))
	}
	for _, c := range cases {
		s := status(n.awaitPhase(c.name, c.phase), "main")
		if e := s.State.Terminated; e == nil || e.ExitCode != c.code || s.RestartCount != c.restarts {
			t.Errorf("after %d restarts %s is %+v", s.RestartCount, c.name, s.State)
		}
		if runs := len(strings.Fields(diaries[c.name].notes(t))); runs != len(c.codes) {
			t.Errorf("%s ran %d times", c.name, runs)
		}
	}
}

// TestAContainerThatIsNotRestartedLeavesTheOthers has a container end for good beside one that runs.
func TestAContainerThatIsNotRestartedLeavesTheOthers(t *testing.T) {
	n, d := start(t, quick), newDiary(t)
	n.write("p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  terminationGracePeriodSeconds: 5\n"+d.volume()+"  containers:\n"+
		ending("once", []int{9}, "    restartPolicy: Never\n")+noted("other"))
	p := n.await("p", "without one of its containers", func(p *v1.Pod) bool {
		return status(p, "once").State.Terminated != nil && status(p, "other").State.Running != nil
	})
	if p.Status.Phase != v1.PodRunning || isReady(p) || status(p, "other").RestartCount != 0 {
		t.Errorf("the pod is %s: %+v", p.Status.Phase, p.Status.ContainerStatuses)
	}
	n.remove("p.yaml")
	n.awaitGone("p")
}

// TestAllContainersRestart has one container's end begin all of them anew, with the init container first.
func TestAllContainersRestart(t *testing.T) {
	n, d := start(t, quick), newDiary(t)
	n.write("p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  terminationGracePeriodSeconds: 5\n  restartPolicy: Never\n"+d.volume()+
		"  initContainers:\n"+ending("init", []int{0})+
		"  containers:\n"+noted("other")+ending("main", []int{88, 0}, rule("Never", "RestartAllContainers", "In", 88)))
	p := n.await("p", "begun anew", func(p *v1.Pod) bool {
		s := status(p, "main")
		return s.State.Terminated != nil && s.State.Terminated.ExitCode == 0
	})
	if s := status(p, "other"); s.State.Running == nil || s.RestartCount != 1 {
		t.Errorf("the other container is %+v after %d restarts", s.State, s.RestartCount)
	}
	if s := status(p, "init"); s.State.Terminated == nil || s.State.Terminated.ExitCode != 0 || s.RestartCount != 1 {
		t.Errorf("the init container is %+v after %d restarts", s.State, s.RestartCount)
	}
	if s := status(p, "main"); s.RestartCount != 1 {
		t.Errorf("the container of the rule was restarted %d times", s.RestartCount)
	}
	if got := d.notes(t); strings.Count(" "+got, " init") != 2 || strings.Count(" "+got, " main") != 2 {
		t.Errorf("they ran as %q", got)
	}
}
