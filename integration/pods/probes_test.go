//go:build integration

package pods

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// patient is of every probe here: it comes often, and a busy machine is no illness.
const patient = "periodSeconds: 1, timeoutSeconds: 20"

// untilItListens is a startup probe: nothing else is asked before the server can answer.
const untilItListens = "    startupProbe: {" + patient + ", failureThreshold: 100, httpGet: {port: web}}\n"

// ways are the handlers by which the server is asked, and what the probes' events say when it is ill.
var ways = []struct{ name, handler, words string }{
	{"http", "httpGet: {port: web, path: /health}", `HTTP probe failed with statuscode: 503`},
	{"https", "httpGet: {port: 8443, scheme: HTTPS, path: /health}", `HTTP probe failed with statuscode: 503`},
	{"tcp", "tcpSocket: {port: door}", `dial tcp [0-9.]+:7070: connect: connection refused`},
	{"grpc", "grpc: {port: 9090}", `service unhealthy \(responded with "NOT_SERVING"\)`},
	{"grpc-service", "grpc: {port: 9090, service: berth}", `service unhealthy \(responded with "NOT_SERVING"\)`},
}

// asked is a pod of the server whose health is asked for. probes are lines of its container.
func asked(name, probes string, args ...string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: %s
    args: [%s]
    ports: [{name: web, containerPort: 8080}, {name: door, containerPort: 7070}]
`, name, images.Health, strings.Join(args, ", ")) + probes
}

// ask asks the server of a pod through its own door, which may be just opening.
func (n *node) ask(pod, path string) (answer string) {
	n.t.Helper()
	harness.Eventually(n.t, 20*time.Second, pod+" answers to "+path, func() (err error) {
		answer, err = n.trySh(pod, "main", fmt.Sprintf("wget -qO- '127.0.0.1:8000%s'", path))
		return err
	})
	return answer
}

// tell has the server of a pod answer with a code from now on.
func (n *node) tell(pod string, code int) {
	n.t.Helper()
	n.ask(pod, fmt.Sprintf("/set?code=%d", code))
}

// tellAll tells the servers of all ways.
func (n *node) tellAll(code int) {
	n.t.Helper()
	for _, w := range ways {
		n.tell(w.name, code)
	}
}

// awaitEvent waits until a pod has an event of these words.
func (n *node) awaitEvent(t *testing.T, pod, kind, words string) {
	t.Helper()
	n.berth().lines(t, "events", "-w", "--for", "pod/"+pod)(kind + " +Pod/" + pod + " +" + words)
}

func (n *node) awaitUnready(name string) *v1.Pod {
	n.t.Helper()
	return n.await(name, "not ready", func(p *v1.Pod) bool {
		s := status(p, "main")
		return condition(p, v1.PodReady) == v1.ConditionFalse && s.State.Running != nil && !s.Ready
	})
}

func TestReadinessOverTheNetwork(t *testing.T) {
	n := start(t)
	for _, w := range ways {
		n.write(w.name+".yaml", asked(w.name, untilItListens+"    readinessProbe: {"+patient+", failureThreshold: 2, "+w.handler+"}\n"))
	}
	for range 2 {
		for _, w := range ways {
			n.awaitReady(w.name)
		}
		n.tellAll(503)
		for _, w := range ways {
			n.awaitUnready(w.name)
		}
		n.tellAll(200)
	}
	for _, w := range ways {
		if s := status(n.awaitReady(w.name), "main"); s.RestartCount != 0 || s.Started == nil || !*s.Started {
			t.Errorf("%s has become %+v", w.name, s)
		}
		n.awaitEvent(t, w.name, "Warning +Unhealthy", "Readiness probe failed: .*"+w.words)
	}
}

func TestLivenessOverTheNetwork(t *testing.T) {
	n := start(t, quick)
	before := map[string]*v1.Pod{}
	for _, w := range ways {
		n.write(w.name+".yaml", asked(w.name, untilItListens+"    livenessProbe: {"+patient+", failureThreshold: 2, "+w.handler+"}\n"))
	}
	for _, w := range ways {
		before[w.name] = n.awaitReady(w.name)
	}
	n.tellAll(503)
	for _, w := range ways {
		was := before[w.name]
		p := n.await(w.name, "restarted", func(p *v1.Pod) bool { return status(p, "main").RestartCount == 1 && isReady(p) })
		last := status(p, "main").LastTerminationState.Terminated
		if last == nil || last.ContainerID != status(was, "main").ContainerID || last.ExitCode != 0 || last.Reason != "Completed" {
			t.Errorf("the last state of %s is %+v", w.name, last)
		}
		if p.UID != was.UID || p.Status.PodIP != was.Status.PodIP {
			t.Errorf("%s is another pod", w.name)
		}
		n.awaitEvent(t, w.name, "Warning +Unhealthy", "Liveness probe failed: .*"+w.words)
		n.awaitEvent(t, w.name, "Normal +Killing", "Container main failed liveness probe, will be restarted")
	}
}

// TestStartupHoldsTheOthersBack has servers that are ill at first, which liveness would not forgive.
func TestStartupHoldsTheOthersBack(t *testing.T) {
	n := start(t, quick)
	for _, w := range ways {
		n.write(w.name+".yaml", asked(w.name, "    startupProbe: {"+patient+", failureThreshold: 100, "+w.handler+"}\n"+
			"    readinessProbe: {"+patient+", httpGet: {port: web, path: /readiness}}\n"+
			"    livenessProbe: {"+patient+", failureThreshold: 1, httpGet: {port: web, path: /liveness}}\n", "-code", "'503'"))
	}
	harness.Eventually(t, 40*time.Second, "one is asked often", func() error {
		if got := n.ask(ways[0].name, "/asked"); strings.Count(got, "GET") < 3 {
			return fmt.Errorf("it was asked\n%s", got)
		}
		return nil
	})
	for _, w := range ways {
		n.awaitEvent(t, w.name, "Warning +Unhealthy", "Startup probe failed: .*"+w.words)
		s := status(n.pod(w.name), "main")
		if s.State.Running == nil || s.Ready || s.Started == nil || *s.Started || s.RestartCount != 0 {
			t.Errorf("before its start %s is %+v", w.name, s)
		}
		if got := n.ask(w.name, "/asked"); strings.Contains(got, "ness") {
			t.Errorf("%s was asked before its start:\n%s", w.name, got)
		}
	}
	n.tellAll(200)
	for _, w := range ways {
		s := status(n.awaitReady(w.name), "main")
		if s.Started == nil || !*s.Started || s.RestartCount != 0 {
			t.Errorf("after its start %s is %+v", w.name, s)
		}
		n.awaitAsked(w.name, " /liveness ")
	}
}

// awaitAsked waits until the server of a pod has had a request of these words.
func (n *node) awaitAsked(pod, words string) {
	n.t.Helper()
	harness.Eventually(n.t, 20*time.Second, pod+" is asked for "+words, func() error {
		if got := n.ask(pod, "/asked"); !strings.Contains("\n"+got+"\n", words) {
			return fmt.Errorf("it was asked\n%s", got)
		}
		return nil
	})
}

// TestAStartThatFails restarts a container that never gets well.
func TestAStartThatFails(t *testing.T) {
	n := start(t, quick)
	n.write("p.yaml", asked("p", "    startupProbe: {"+patient+", failureThreshold: 2, httpGet: {port: web}}\n    readinessProbe: {"+patient+", tcpSocket: {port: door}}\n", "-code", "'503'"))
	p := n.await("p", "restarted", func(p *v1.Pod) bool { return status(p, "main").RestartCount >= 1 })
	if isReady(p) {
		t.Error("it is ready")
	}
	n.awaitEvent(t, "p", "Warning +Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 503")
	n.awaitEvent(t, "p", "Normal +Killing", "Container main failed startup probe, will be restarted")
}

// TestWhatAProbeSays has a server look at the requests that it gets.
func TestWhatAProbeSays(t *testing.T) {
	n := start(t)
	const headers = ", httpHeaders: [{name: Host, value: example.test}, {name: X-Probe, value: a}, {name: x-probe, value: b}]"
	n.write("p.yaml", asked("p", untilItListens+
		"    readinessProbe: {"+patient+", httpGet: {port: 8080, path: '/ready?x=1'"+headers+"}}\n"+
		"    livenessProbe: {"+patient+", failureThreshold: 100, httpGet: {port: 8443, scheme: HTTPS, path: alive, httpHeaders: [{name: User-Agent, value: me}]}}\n"))
	ip := n.awaitReady("p").Status.PodIP
	for _, want := range []string{
		"http GET / host=" + ip + ":8080 agent=kube-probe/1.36 x=",
		"http GET /ready?x=1 host=example.test agent=kube-probe/1.36 x=a,b",
		"https GET /alive host=" + ip + ":8443 agent=me x=",
	} {
		n.awaitAsked("p", "\n"+want+"\n")
	}
}

// TestStatusCodes tells the last code that is a success from the first that is none.
func TestStatusCodes(t *testing.T) {
	n := start(t)
	n.write("p.yaml", asked("p", "    readinessProbe: {"+patient+", failureThreshold: 1, httpGet: {port: web}}\n"))
	n.awaitReady("p")
	for _, good := range []int{399, 200} {
		n.tell("p", 400)
		n.awaitUnready("p")
		n.tell("p", good)
		n.awaitReady("p")
	}
	n.awaitEvent(t, "p", "Warning +Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 400")
}

// TestAProbeThatNobodyAnswers asks where nobody listens, or somebody else.
func TestAProbeThatNobodyAnswers(t *testing.T) {
	n := start(t)
	silent := map[string]struct{ handler, words string }{
		"http":    {"httpGet: {port: 81}", `Get "http://[0-9.]+:81/": dial tcp [0-9.]+:81: connect: connection refused`},
		"https":   {"httpGet: {port: 81, scheme: HTTPS}", `Get "https://[0-9.]+:81/": dial tcp [0-9.]+:81: connect: connection refused`},
		"not-tls": {"httpGet: {port: web, scheme: HTTPS}", `http: server gave HTTP response to HTTPS client`},
		"tcp":     {"tcpSocket: {port: 81}", `dial tcp [0-9.]+:81: connect: connection refused`},
		"grpc":    {"grpc: {port: 81}", `timeout: failed to connect service "[0-9.]+:81" within 1s: context deadline exceeded`},
		"service": {"grpc: {port: 9090, service: nobody}", `rpc error: code = NotFound desc = unknown service`},
	}
	for name, c := range silent {
		n.write(name+".yaml", asked(name, "    readinessProbe: {periodSeconds: 1, timeoutSeconds: 1, "+c.handler+"}\n"))
	}
	for name, c := range silent {
		n.awaitEvent(t, name, "Warning +Unhealthy", "Readiness probe failed: .*"+c.words)
		if p := n.awaitUnready(name); status(p, "main").RestartCount != 0 {
			t.Errorf("%s was restarted", name)
		}
	}
}
