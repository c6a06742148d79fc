//go:build integration

package pods

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/berth-node/berth/integration/images"
)

// webText is a pod that serves HTTP, has a second container, and says something every second.
func webText() string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
  annotations: {note: for the test}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: %s
    command: [sh, -c, "echo hello; echo trouble; sleep 1; mkdir -p /www; echo page > /www/index.html; exec httpd -f -p 8080 -h /www"]
    ports: [{name: http, containerPort: 8080}]
    env: [{name: WHO, value: me}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
    resources: {limits: {memory: 64Mi}, requests: {cpu: 10m}}
    volumeMounts: [{name: conf, mountPath: /conf}]
    readinessProbe: {exec: {command: [test, -e, /www/index.html]}, periodSeconds: 1}
  - name: shell
    image: %s
    stdin: true
    command: [sh, -c, "echo moan >&2; while read line; do echo got $line; done; sleep 1000"]
  volumes:
  - name: conf
    configMap: {name: conf}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {key: value}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {password: secret}
`, images.Tools, images.Tools)
}

// TestCommands uses a node as its user does, once by berth's own commands and once by kubectl.
func TestCommands(t *testing.T) {
	n := start(t)
	berth, kubectl := n.berth(), n.kubectl()

	out, errOut, code := berth.run(t, webText(), "apply", "-f", "-")
	if code != 0 || out != "pod/web created\nconfigmap/conf created\nsecret/hidden created\n" {
		t.Fatalf("apply: %d %s%s", code, out, errOut)
	}
	wants(t, "wait", berth.ok(t, "wait", "pod/web", "--for=condition=Ready"), "^pod/web condition met\n$")
	wants(t, "wait by path", berth.ok(t, "wait", "pod", "web", "--for=jsonpath={.status.phase}=Running"), "^pod/web condition met\n$")

	for _, u := range []tool{berth, kubectl} {
		t.Run(u.name, func(t *testing.T) { seeAndUse(t, u) })
	}
	t.Run("kubectl waits", func(t *testing.T) {
		wants(t, "wait", kubectl.ok(t, "wait", "pod/web", "--for=condition=Ready", "--timeout=20s"), "pod/web condition met")
	})
	t.Run("the same is shown", func(t *testing.T) {
		// But for ages, which go on.
		age := regexp.MustCompile(` +[0-9]+[ms][0-9a-z]*\b`)
		for _, args := range [][]string{
			{"get", "pods", "-o", "wide"}, {"get", "pods,configmaps,secrets"}, {"get", "pod", "web", "-o", "yaml"}, {"get", "pods", "-o", "name"},
			{"get", "pod", "web", "-o", "json"}, {"get", "pods", "-A"}, {"get", "pods", "--show-labels"}, {"get", "configmap", "conf", "-o", "yaml"},
			{"get", "pods", "-o", "jsonpath={.items[*].status.phase}"}, {"get", "pods", "-o", "custom-columns=NAME:.metadata.name,IP:.status.podIP"},
			{"describe", "configmap", "conf"}, {"describe", "secret", "hidden"},
			{"get", "pods", "-l", "app=none"}, {"get", "pod", "none"},
		} {
			ours, oursErr, oursCode := berth.run(t, "", args...)
			theirs, theirsErr, theirsCode := kubectl.run(t, "", args...)
			squeeze := func(s string) string { return age.ReplaceAllString(s, " AGE") }
			if squeeze(ours) != squeeze(theirs) || squeeze(oursErr) != squeeze(theirsErr) || oursCode != theirsCode {
				t.Errorf("%q: berth says (%d)\n%s%skubectl says (%d)\n%s%s", args, oursCode, ours, oursErr, theirsCode, theirs, theirsErr)
			}
		}
		ours, theirs := berth.ok(t, "describe", "pod", "web"), kubectl.ok(t, "describe", "pod", "web")
		squeeze := func(s string) string {
			return regexp.MustCompile(`[0-9]+[ms][0-9a-z]*( \(x[0-9]+ over [0-9a-z]+\))?| +`).ReplaceAllString(s, " ")
		}
		if squeeze(ours) != squeeze(theirs) {
			t.Errorf("berth describes\n%s\nkubectl\n%s", ours, theirs)
		}
	})
	t.Run("changes are followed", func(t *testing.T) {
		byBerth, byKubectl := berth.lines(t, "get", "pods", "-w"), kubectl.lines(t, "get", "pods", "-w")
		events := berth.lines(t, "events", "-w")
		logs := berth.lines(t, "logs", "-f", "web", "-c", "main")
		logs("^hello$")
		for _, next := range []func(string) string{byBerth, byKubectl} {
			next(`^NAME +READY +STATUS +RESTARTS +AGE$`)
			next(`^web +2/2 +Running +0 `)
		}
		wants(t, "restart", berth.ok(t, "restart", "web", "-c", "main"), "^pod/web restarted\n$")
		for _, next := range []func(string) string{byBerth, byKubectl} {
			next(`^web +1/2 `)
			next(`^web +2/2 +Running +1 \(.*ago\)`)
		}
		events(`Normal +Killing +Pod/web`)
		wants(t, "logs -p", berth.ok(t, "logs", "-p", "web", "-c", "main"), "^hello\ntrouble\n$")
		wants(t, "kubectl logs -p", kubectl.ok(t, "logs", "-p", "web", "-c", "main"), "^hello\ntrouble\n$")
	})
	t.Run("the pod goes", func(t *testing.T) {
		byKubectl := kubectl.lines(t, "get", "pods", "-w", "--no-headers", "--output-watch-events")
		byKubectl(`ADDED +web`)
		wants(t, "delete", kubectl.ok(t, "delete", "pod", "web"), `^pod "web" deleted`)
		byKubectl(`DELETED +web`)
		if p := n.pod("web"); p != nil {
			t.Errorf("it is there: %+v", p.Status)
		}
		wants(t, "delete", berth.ok(t, "delete", "configmap/conf", "secret/hidden"), `^configmap "conf" deleted from default namespace\nsecret "hidden" deleted from default namespace\n$`)
		_, errOut, code := berth.run(t, "", "get", "pods,cm,secrets")
		if code != 0 || errOut != "No resources found in default namespace.\n" {
			t.Errorf("%d %s", code, errOut)
		}
	})
}

func seeAndUse(t *testing.T, u tool) {
	wants(t, "get", u.ok(t, "get", "pods"), `^NAME +READY +STATUS +RESTARTS +AGE\nweb +2/2 +Running +0 +[0-9a-z]+\n$`)
	wants(t, "get -o wide", u.ok(t, "get", "po", "-o", "wide"), `web .* self +<none> +<none>\n$`)
	wants(t, "get -o name", u.ok(t, "get", "pods", "-o", "name"), `^pod/web\n$`)
	wants(t, "get nodes", u.ok(t, "get", "nodes"), `self +Ready +<none> .* v1.36.3`)
	wants(t, "get ns", u.ok(t, "get", "namespaces"), `default +Active`)
	wants(t, "get events", u.ok(t, "get", "events"), `Normal +Started +pod/web`)
	wants(t, "events", u.ok(t, "events", "--for", "pod/web"), `^LAST SEEN +TYPE +REASON +OBJECT +MESSAGE\n`, `Normal +Created +Pod/web`)
	wants(t, "describe", u.ok(t, "describe", "pod", "web"), `Name: +web\n`, `Readiness: +exec \[test -e /www/index.html\]`, `Annotations: +note: for the test`, `Normal +Pulled|Normal +Created`)
	wants(t, "top pod", u.ok(t, "top", "pod", "web", "--containers"), `web +main +[0-9]+m +[0-9]+Mi`)
	wants(t, "top node", u.ok(t, "top", "node"), `self +[0-9]+m +[0-9]+% +[0-9]+Mi +[0-9]+%`)

	wants(t, "logs", u.ok(t, "logs", "web", "-c", "main"), `^hello\ntrouble\n$`)
	wants(t, "logs --tail", u.ok(t, "logs", "web", "-c", "main", "--tail=1", "--timestamps"), `^2\S+Z trouble\n$`)
	wants(t, "logs of stderr", u.ok(t, "logs", "web", "-c", "shell", "--tail=-1"), `^moan\n`)
	wants(t, "logs -l", u.ok(t, "logs", "-l", "app=web", "--all-containers", "--prefix"), `\[pod/web/main\] hello\n`)

	wants(t, "exec", u.ok(t, "exec", "web", "-c", "main", "--", "sh", "-c", "echo $WHO; cat /conf/key"), `^me\nvalue$`)
	out, errOut, code := u.run(t, "", "exec", "web", "-c", "main", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
	if out != "out\n" || code != 7 || errOut != "err\ncommand terminated with exit code 7\n" {
		t.Errorf("exec that fails: %d %q %q", code, out, errOut)
	}
	out, _, code = u.run(t, strings.Repeat("line\n", 100_000), "exec", "-i", "web", "-c", "main", "--", "wc", "-l")
	if strings.TrimSpace(out) != "100000" || code != 0 {
		t.Errorf("exec -i: %d %q", code, out)
	}
	_, errOut, _ = u.run(t, "", "exec", "web", "--", "true")
	wants(t, "exec without -c", errOut, `^Defaulted container "main" out of: main, shell\n$`)

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("carried"), 0o640); err != nil {
		t.Fatal(err)
	}
	u.ok(t, "cp", dir, "web:/tmp/"+u.name, "-c", "main")
	wants(t, "cp there", u.ok(t, "exec", "web", "-c", "main", "--", "cat", "/tmp/"+u.name+"/f"), `^carried$`)
	u.ok(t, "cp", "web:/tmp/"+u.name+"/f", filepath.Join(dir, "back"), "-c", "main")
	if back, err := os.ReadFile(filepath.Join(dir, "back")); err != nil || string(back) != "carried" {
		t.Errorf("cp back: %q, %v", back, err)
	}

	forwarded := u.lines(t, "port-forward", "pod/web", ":http")
	address := regexp.MustCompile(`127.0.0.1:\d+`).FindString(forwarded(`^Forwarding from 127.0.0.1:\d+ -> 8080$`))
	for range 3 {
		resp, err := http.Get("http://" + address)
		if err != nil {
			t.Fatal(err)
		}
		page, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(page) != "page\n" {
			t.Errorf("forwarded: %q, %v", page, err)
		}
	}
	attachTo(t, u)
}

// TestWhatIsWrongIsSaid has bad input, in the words of kubectl, and nothing changes by it.
func TestWhatIsWrongIsSaid(t *testing.T) {
	n := start(t)
	n.write("mine.yaml", podText("mine", sleeper))
	n.awaitReady("mine")
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"apply", "-f", file("typo.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containerz: []\n")}, `(?s)BadRequest.*typo\.yaml:5.*containerz`},
		{[]string{"apply", "-f", file("half.yaml", podText("first", sleeper)+"---\napiVersion: v1\nkind: Pod\nmetadata: {name: second}\nspec: {containers: []}\n")}, `half\.yaml:`},
		{[]string{"apply", "-f", file("other.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n")}, `Deployment`},
		{[]string{"apply", "-f", file("mine.yaml", podText("mine", sleeper))}, `Conflict.*mine is declared by the file .*mine\.yaml`},
		{[]string{"apply", "-f", filepath.Join(dir, "none.yaml")}, `the path ".*none.yaml" does not exist`},
		{[]string{"apply"}, `must specify one of -f`},
		{[]string{"get", "deployments"}, `the server doesn't have a resource type "deployments"`},
		{[]string{"get", "pod", "none"}, `^Error from server \(NotFound\): pods "none" not found\n$`},
		{[]string{"get", "pods", "-o", "colours"}, `unable to match a printer`},
		{[]string{"get", "pods", "--field-selector", "spec.colour=red"}, `field label not supported: spec.colour`},
		{[]string{"get", "pods", "--sort-by", ".spec.none", "-o", "name"}, `couldn't find any field with path "{.spec.none}"`},
		{[]string{"delete", "pods"}, `no name was specified`},
		{[]string{"delete", "pod", "none"}, `pods "none" not found`},
		{[]string{"logs", "none"}, `pods "none" not found`},
		{[]string{"logs", "mine", "-c", "none"}, `container none is not valid for pod mine`},
		{[]string{"logs", "-p", "mine"}, `previous terminated container "main" in pod "mine" not found`},
		{[]string{"exec", "mine"}, `at least one command`},
		{[]string{"exec", "none", "--", "true"}, `pods "none" not found`},
		{[]string{"exec", "mine", "-c", "none", "--", "true"}, `container none not found in pod mine`},
		{[]string{"port-forward", "mine", "http"}, `does not have a named port 'http'`},
		{[]string{"port-forward", "mine", "0:99999"}, `99999|range|parsing`},
		{[]string{"cp", "a", "b"}, `must be a remote file`},
		{[]string{"wait", "pod/mine", "--for=colour"}, `unrecognized condition`},
		{[]string{"wait", "pod/mine", "--for=condition=Red", "--timeout=1s"}, `timed out waiting for the condition on pods/mine`},
		{[]string{"wait", "pod/none", "--for=condition=Ready"}, `pods "none" not found`},
		{[]string{"restart", "none"}, `pods "none" not found`},
		{[]string{"top", "pod", "none"}, `not found`},
		{[]string{"describe", "pod", "none"}, `pods "none" not found`},
	} {
		out, errOut, code := n.berth().run(t, "", tt.args...)
		if code != 1 || !regexp.MustCompile(tt.want).MatchString(errOut) {
			t.Errorf("%q: %d %s%s, want %q", tt.args, code, out, errOut, tt.want)
		}
	}
	if all := n.pods(); len(all) != 1 {
		t.Errorf("%d pods are there", len(all))
	}
	// One that a file declares begins anew.
	was := n.pod("mine").UID
	out := n.berth().ok(t, "delete", "pod", "mine", "--now")
	wants(t, "delete", out, `^pod "mine" deleted from default namespace\n$`)
	if p := n.awaitReady("mine"); p.UID == was {
		t.Error("it is the same one")
	}
}
