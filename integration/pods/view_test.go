//go:build integration

package pods

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// viewPod is one of several that differ.
func viewPod(namespace, name, labels string, priority int, memory string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {%s}}
spec:
  priority: %d
  terminationGracePeriodSeconds: 30
  containers:
  - name: main
    image: %s
    command: [sh, -c, %q]
    resources: {limits: {memory: %s}}
---
`, name, namespace, labels, priority, images.Tools, sleeper, memory)
}

// TestSelectAndSort asks in the ways that people who know kubectl do, by kubectl and by berth: the answers are the same.
func TestSelectAndSort(t *testing.T) {
	n := start(t)
	berth, kubectl := n.berth(), n.kubectl()
	n.write("pods.yaml", viewPod("default", "a", "app: web, tier: front", 30, "1Gi")+viewPod("default", "b", "app: web, tier: back", 10, "512Mi")+
		viewPod("default", "c", "app: db", 20, "64Mi")+viewPod("other", "d", "app: db", 5, "32Mi"))
	wants(t, "wait", kubectl.ok(t, "wait", "pods", "--all", "-A", "--for=condition=Ready", "--timeout=60s"), `(?s)pod/a .*pod/d condition met`)

	age := regexp.MustCompile(`(?m)(^| +)[0-9]+[ms][0-9a-z]*\b *`)
	const names = "custom-columns=NAME:.metadata.name"
	for _, tt := range []struct {
		args string
		want string // of the output; "" is that both are the same
	}{
		{"get pods --no-headers -o " + names, "a\nb\nc\n"},
		{"get pods --no-headers --sort-by=.spec.priority -o " + names, "b\nc\na\n"},
		{"get pods --no-headers --sort-by={.spec.priority} -o name", "pod/b\npod/c\npod/a\n"},
		{"get pods --sort-by=.spec.containers[0].resources.limits.memory -o jsonpath={.items[*].metadata.name}", "c b a"},
		{"get pods -A --sort-by=.spec.priority --no-headers -o " + names, "d\nb\nc\na\n"},
		{"get pods --sort-by=metadata.labels.tier --no-headers -o " + names, "c\nb\na\n"},
		{"get pods --sort-by=.spec.priority", ""},
		{"get pods --sort-by=.metadata.creationTimestamp", ""},
		{"get pods -L app,tier", ""},
		{"get pods -l app=web -o name", "pod/a\npod/b\n"},
		{"get pods -l app!=web -o name", "pod/c\n"},
		{"get pods -l tier -o name", "pod/a\npod/b\n"},
		{"get pods -l !tier -o name", "pod/c\n"},
		{"get pods -A --no-headers -l app=db -o " + names, "c\nd\n"},
		{"get pods --field-selector metadata.name=b -o name", "pod/b\n"},
		{"get pods --field-selector metadata.name!=b,status.phase=Running -o name", "pod/a\npod/c\n"},
		{"get pods -A --no-headers --field-selector metadata.namespace!=default -o " + names, "d\n"},
		{"get pods --field-selector spec.nodeName=self,spec.restartPolicy=Always -o name", "pod/a\npod/b\npod/c\n"},
		{"get pods -o jsonpath={range.items[*]}{.metadata.name}={.spec.priority};{end}", "a=30;b=10;c=20;"},
		{"get pods -o jsonpath={.items[?(@.spec.priority>15)].metadata.name}", "a c"},
		{"get pods -o go-template={{range.items}}{{.metadata.name}};{{end}}", "a;b;c;"},
		{"get pods a b -o custom-columns=NAME:.metadata.name,NONE:.spec.none,FIRST:.spec.containers[0].name", "NAME   NONE     FIRST\na      <none>   main\nb      <none>   main\n"},
		{"get pods -n other -o name", "pod/d\n"},
		{"get pods -n none", ""},
		{"get events --field-selector reason=Started,involvedObject.name=a --no-headers -o custom-columns=R:.reason,O:.involvedObject.name", "Started   a\n"},
		{"get events --field-selector type=Warning", ""},
		{"get events --sort-by=.lastTimestamp -o custom-columns=M:.message", ""},
		{"get events -A", ""},
		{"events --types=Normal --for pod/b", ""},
		{"get pod/a pod/none -o name", ""},
		{"get pods,configmaps --sort-by=.metadata.name -o name", ""},
	} {
		// Between two answers something may happen.
		harness.Eventually(t, 10*time.Second, tt.args, func() error {
			args := strings.Fields(tt.args)
			ours, oursErr, oursCode := berth.run(t, "", args...)
			theirs, theirsErr, theirsCode := kubectl.run(t, "", args...)
			squeeze := func(s string) string { return age.ReplaceAllString(s, " AGE") }
			if squeeze(ours+oursErr) != squeeze(theirs+theirsErr) || oursCode != theirsCode {
				return fmt.Errorf("berth says (%d)\n%s%skubectl says (%d)\n%s%s", oursCode, ours, oursErr, theirsCode, theirs, theirsErr)
			}
			if tt.want != "" && ours != tt.want {
				return fmt.Errorf("got %q, want %q", ours, tt.want)
			}
			return nil
		})
	}
	for _, u := range []tool{berth, kubectl} {
		wants(t, u.name+" top", u.ok(t, "top", "pod", "-A", "--sort-by=memory"), `(?m)^NAMESPACE +NAME +CPU\(cores\) +MEMORY\(bytes\)`, `other +d +[0-9]+m +[0-9]+Mi`)
		wants(t, u.name+" top -l", u.ok(t, "top", "pod", "-l", "app=db", "--no-headers"), `^c +[0-9]+m +[0-9]+Mi *\n$`)
		watch := u.lines(t, "get", "pods", "-l", "tier=back", "-w", "--no-headers")
		watch(`^b +1/1`)
		u.ok(t, "delete", "pod", "b", "--grace-period=1", "--wait=false")
		watch(`^b +1/1 +Terminating`)
		watch(`^b +1/1 +Running +0`) // its file wants it still
	}
	wants(t, "wait", kubectl.ok(t, "wait", "pod/c", "--for=jsonpath={.status.phase}=Running"), `pod/c condition met`)
}

// TestAWatchKnowsTheDaemon has clients come back to another daemon with a version of the one before: they are told to begin
// again, and are not told half of what happened.
func TestAWatchKnowsTheDaemon(t *testing.T) {
	port := freePort(t)
	n := start(t, fmt.Sprintf("  apiAddress: 127.0.0.1:%d\n", port))
	n.write("p.yaml", podText("p", sleeper))
	n.awaitReady("p")
	kubectl := n.kubectl()
	version := kubectl.ok(t, "get", "--raw", "/api/v1/pods")
	version = regexp.MustCompile(`"metadata":\{"resourceVersion":"(\d+)"`).FindStringSubmatch(version)[1]
	raw := func() string {
		return kubectl.ok(t, "get", "--raw", "/api/v1/pods?watch=true&timeoutSeconds=1&resourceVersion="+version)
	}
	if got := raw(); strings.Contains(got, "ERROR") {
		t.Fatalf("of the same daemon: %s", got)
	}
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	n.awaitReady("p")
	_, errOut, code := kubectl.run(t, "", "get", "--raw", "/api/v1/pods?watch=true&timeoutSeconds=1&resourceVersion="+version)
	if code == 0 || !strings.Contains(errOut, "too old resource version") {
		t.Errorf("of the next daemon: %d %s", code, errOut)
	}
	if p := n.pod("p"); p == nil || p.Status.Phase != v1.PodRunning {
		t.Errorf("the pod is %+v", p)
	}
}
