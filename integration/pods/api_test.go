//go:build integration

package pods

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// A tool is a program by which a user sees the node: berth, or kubectl with the kubeconfig that berth writes.
type tool struct {
	name string
	path string
	args []string
	env  []string
}

func (n *node) berth() tool {
	return tool{name: "berth", path: filepath.Join(harness.Root(), "bin", "berth"), args: []string{"--run-dir", n.RunDir}}
}

func (n *node) kubectl() tool {
	return tool{name: "kubectl", path: harness.Tool("kubectl"), env: []string{"KUBECONFIG=" + filepath.Join(n.RunDir, "kubeconfig"), "HOME=" + n.t.TempDir(), "KUBECACHEDIR=" + n.t.TempDir()}}
}

// command is a run of the tool. What belongs to a program in a container stands behind "--", and the tool's own before it.
func (u tool) command(ctx context.Context, args ...string) *exec.Cmd {
	own, other := args, []string(nil)
	for i, a := range args {
		if a == "--" {
			own, other = args[:i], args[i:]
		}
	}
	cmd := exec.CommandContext(ctx, u.path, append(append(append([]string{}, own...), u.args...), other...)...)
	cmd.Env = append(os.Environ(), u.env...)
	return cmd
}

// run runs the tool and returns what it printed, and how it ended.
func (u tool) run(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(time.Minute))
	defer cancel()
	cmd := u.command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// ok runs the tool, which must succeed.
func (u tool) ok(t *testing.T, args ...string) string {
	t.Helper()
	out, errOut, code := u.run(t, "", args...)
	if code != 0 {
		t.Fatalf("%s %s: %d\n%s%s", u.name, strings.Join(args, " "), code, out, errOut)
	}
	return out
}

// lines follows what a tool prints, until the test ends.
func (u tool) lines(t *testing.T, args ...string) (next func(want string) string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := u.command(ctx, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan string, 1000)
	go func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			read <- in.Text()
		}
		close(read)
	}()
	t.Cleanup(func() {
		cancel()
		for range read {
		}
		_ = cmd.Wait()
	})
	return func(want string) string {
		t.Helper()
		limit := time.After(harness.Patience(30 * time.Second))
		var seen []string
		for {
			select {
			case line, ok := <-read:
				if !ok {
					t.Fatalf("%s %s ended before it said %q:\n%s", u.name, strings.Join(args, " "), want, strings.Join(seen, "\n"))
				}
				seen = append(seen, line)
				if regexp.MustCompile(want).MatchString(line) {
					return line
				}
			case <-limit:
				t.Fatalf("%s %s does not say %q but:\n%s", u.name, strings.Join(args, " "), want, strings.Join(seen, "\n"))
			}
		}
	}
}

func wants(t *testing.T, what, got string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(got) {
			t.Errorf("%s: no %q in:\n%s", what, p, got)
		}
	}
}

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

// attachTo talks to the container that reads, and leaves it.
func attachTo(t *testing.T, u tool) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := u.command(ctx, "attach", "-i", "web", "-c", "shell")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	if _, err := io.WriteString(stdin, "from "+u.name+"\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "got from "+u.name+"\n" {
		t.Errorf("attach: %q, %v", line, err)
	}
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

// TestNobodyElseGetsIn tries all doors as another user and from a pod with the host's network: both are on the loopback.
func TestNobodyElseGetsIn(t *testing.T) {
	port := freePort(t)
	n := start(t, fmt.Sprintf("  address: 127.0.0.1:%d\n", port))
	n.write("inside.yaml", podText("inside", sleeper, "    volumeMounts: [{name: tools, mountPath: /tools, readOnly: true}]\n"+
		"  hostNetwork: true\n  volumes: [{name: tools, hostPath: {path: "+filepath.Dir(harness.Tool("kubectl"))+"}}]\n"))
	n.awaitReady("inside")
	config, err := os.ReadFile(filepath.Join(n.RunDir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	api := regexp.MustCompile(`https://[0-9.:]+`).FindString(string(config))
	token := regexp.MustCompile(`token: (\S+)`).FindStringSubmatch(string(config))[1]
	kubelet := fmt.Sprintf("https://127.0.0.1:%d", port)
	paths := []string{
		api + "/api/v1/pods", api + "/version", api + "/healthz", api + "/api/v1/namespaces/default/secrets",
		api + "/api/v1/namespaces/default/pods/inside/log", api + "/api/v1/namespaces/default/pods/inside/exec?command=id&stdout=1",
		kubelet + "/pods", kubelet + "/healthz", kubelet + "/metrics", kubelet + "/metrics/cadvisor", kubelet + "/stats/summary", kubelet + "/configz",
		kubelet + "/containerLogs/default/inside/main", kubelet + "/exec/default/inside/main?command=id&output=1", kubelet + "/logs/", kubelet + "/debug/pprof/",
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	ask := func(path, token string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, path := range paths {
		for _, wrong := range []string{"", "guess", token + "x"} {
			if code, body := ask(path, wrong); code != http.StatusUnauthorized || strings.Contains(body, "inside") {
				t.Errorf("%s with token %q: %d %s", path, wrong, code, body)
			}
		}
	}
	for path, want := range map[string]string{
		api + "/api/v1/pods": `"name":"inside"`, kubelet + "/pods": `"name":"inside"`, kubelet + "/healthz": "ok",
		kubelet + "/stats/summary": `"podRef":{"name":"inside"`, kubelet + "/metrics/resource": `container_memory_working_set_bytes{container="main",namespace="default",pod="inside"}`,
		kubelet + "/metrics/cadvisor": `container_cpu_usage_seconds_total{`, kubelet + "/metrics": "go_goroutines", kubelet + "/configz": "kubeletconfig",
	} {
		if code, body := ask(path, token); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s with the token: %d, no %s in %.300s", path, code, want, body)
		}
	}
	// Without TLS there is no answer that says anything.
	for _, address := range []string{strings.TrimPrefix(api, "https://"), fmt.Sprintf("127.0.0.1:%d", port)} {
		if resp, err := http.Get("http://" + address + "/pods"); err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest || strings.Contains(string(body), "inside") {
				t.Errorf("without TLS: %d %s", resp.StatusCode, body)
			}
		}
	}
	// The ports that upstream's kubelet had without authentication are not there.
	for _, address := range []string{"127.0.0.1:10255", "127.0.0.1:10248"} {
		if conn, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			conn.Close()
			t.Errorf("somebody listens on %s", address)
		}
	}
	t.Run("a pod on the host's network", func(t *testing.T) {
		for _, server := range []string{api, kubelet} {
			ask := []string{"/tools/kubectl", "get", "--raw", "/pods", "--insecure-skip-tls-verify", "--server", server, "--request-timeout=20s"}
			if server == api {
				ask[3] = "/api/v1/pods"
			}
			// Without any token kubectl would ask for a name and a password.
			out, errOut, code := n.berth().run(t, "", append(append([]string{"exec", "inside", "--"}, ask...), "--token", "guess")...)
			if code == 0 || out != "" || !strings.Contains(errOut, "Unauthorized") {
				t.Errorf("%s: %d %s%s", server, code, out, errOut)
			}
			// The same with what it needs comes in, so that nothing else kept it out.
			if out := n.berth().ok(t, append(append([]string{"exec", "inside", "--"}, ask...), "--token", token)...); !strings.Contains(out, "PodList") {
				t.Errorf("%s with the token: %s", server, out)
			}
		}
	})
	t.Run("another user", func(t *testing.T) {
		for _, path := range []string{filepath.Join(n.RunDir, "api.sock"), filepath.Join(n.RunDir, "kubeconfig"), n.pki(""), n.pki("token"), n.pki("client.key"), n.pki("ca.key")} {
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %v, %v", path, info.Mode(), err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(20*time.Second))
		defer cancel()
		cmd := exec.CommandContext(ctx, n.berth().path, "get", "pods", "--run-dir", n.RunDir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = "/"
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "permission denied") {
			t.Errorf("%v: %s", err, out)
		}
		for _, server := range []string{api, kubelet} {
			cmd := exec.CommandContext(ctx, harness.Tool("kubectl"), "get", "--raw", "/healthz", "--insecure-skip-tls-verify", "--server", server, "--token", "guess")
			cmd.Env = []string{"HOME=/nonexistent"}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			cmd.Dir = "/"
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Unauthorized") {
				t.Errorf("%s: %v: %s", server, err, out)
			}
		}
	})
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestSessionsOutliveAnUpgrade has somebody in a container while the daemon is replaced; a watch begins again by itself where the
// command says when to end.
func TestSessionsOutliveAnUpgrade(t *testing.T) {
	n := start(t)
	n.write("web.yaml", podText("web", sleeper))
	n.awaitReady("web")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := n.berth().command(ctx, "exec", "-i", "web", "--", "cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(stdout)
	echo := func(text string) {
		t.Helper()
		if _, err := io.WriteString(stdin, text+"\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := in.ReadString('\n'); err != nil || line != text+"\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	echo("before")
	before := tokenOf(t, n)
	waiting := make(chan string, 1)
	go func() {
		out, errOut, code := n.berth().run(t, "", "wait", "pod/web", "--for=delete", "--timeout=100s")
		waiting <- fmt.Sprint(out, errOut, code)
	}()
	n.Berth(t, "upgrade")
	echo("after")
	if tokenOf(t, n) != before {
		t.Error("the next daemon has another token")
	}
	wants(t, "kubectl", n.kubectl().ok(t, "get", "pods"), `web +1/1 +Running +0`)
	wants(t, "events of the daemon before", n.berth().ok(t, "events"), `Normal +Started +Pod/web`)
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	n.remove("web.yaml")
	if got := <-waiting; got != "pod/web condition met\n0" {
		t.Errorf("wait over an upgrade: %s", got)
	}
}

func tokenOf(t *testing.T, n *node) string {
	config, err := os.ReadFile(filepath.Join(n.RunDir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	return string(config)
}

// TestTerminal has a user's terminal be the one in the container, with its size, also when that changes.
func TestTerminal(t *testing.T) {
	n := start(t)
	n.write("web.yaml", podText("web", sleeper))
	n.awaitReady("web")
	for _, u := range []tool{n.berth(), n.kubectl()} {
		pty, name, err := console.NewPty()
		if err != nil {
			t.Fatal(err)
		}
		defer pty.Close()
		if err := pty.Resize(console.WinSize{Width: 77, Height: 33}); err != nil {
			t.Fatal(err)
		}
		tty, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(30*time.Second))
		defer cancel()
		cmd := u.command(ctx, "exec", "-it", "web", "--", "sh", "-c",
			"until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; stty size; "+ // a slow client's size comes late
				"while [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; stty size; read line; echo bye $line; exit 4")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		tty.Close()
		in := bufio.NewReader(pty)
		await := func(want string) {
			t.Helper()
			for said := ""; ; {
				line, err := in.ReadString('\n')
				if said += line; strings.Contains(line, want) {
					return
				}
				if err != nil {
					t.Fatalf("%s: no %q but %q, %v", u.name, want, said, err)
				}
			}
		}
		await("33 77")
		if err := pty.Resize(console.WinSize{Width: 99, Height: 44}); err != nil {
			t.Fatal(err)
		}
		await("44 99")
		if _, err := io.WriteString(pty, "friend\n"); err != nil {
			t.Fatal(err)
		}
		await("bye friend")
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 4 {
			t.Errorf("%s: %v", u.name, err)
		}
	}
}
