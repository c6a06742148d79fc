//go:build integration

package pods

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// sh runs a script in a pod's container and returns what it prints.
func (n *node) sh(pod, container, script string) string {
	n.t.Helper()
	out, err := n.trySh(pod, container, script)
	if err != nil {
		n.t.Fatalf("%s in %s/%s: %v", script, pod, container, err)
	}
	return out
}

func (n *node) trySh(pod, container, script string) (string, error) {
	for _, c := range n.containers(pod) {
		if c.Metadata.Name != container || c.State != cri.ContainerState_CONTAINER_RUNNING {
			continue
		}
		ctx, cancel := deadline()
		defer cancel()
		resp, err := n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.Id, Cmd: []string{"sh", "-c", script}, Timeout: 20})
		if err == nil && resp.ExitCode != 0 {
			err = fmt.Errorf("status %d: %s%s", resp.ExitCode, resp.Stdout, resp.Stderr)
		}
		return strings.TrimSpace(string(resp.GetStdout())), err
	}
	return "", fmt.Errorf("no such container runs")
}

// eventuallySh runs a script until it prints what is wanted.
func (n *node) eventuallySh(pod, container, script, want string) {
	n.t.Helper()
	harness.Eventually(n.t, 20*time.Second, script+" prints "+want, func() error {
		got, err := n.trySh(pod, container, script)
		if err == nil && got != want {
			err = fmt.Errorf("%q", got)
		}
		return err
	})
}

// spec is the text of a pod: lines of its spec with two blanks before them, and its one container's with four.
func spec(name, pod, container string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  labels: {app: web}\n  annotations: {note: hello}\nspec:\n  terminationGracePeriodSeconds: 1\n%s  containers:\n  - name: main\n    image: %s\n    command: [sh, -c, %q]\n%s",
		name, pod, images.Tools, sleeper, container)
}

func configMap(name string, data ...string) string {
	return object("ConfigMap", name, "data", data)
}

func secret(name string, data ...string) string {
	return object("Secret", name, "stringData", data)
}

func object(kind, name, field string, data []string) string {
	text := fmt.Sprintf("apiVersion: v1\nkind: %s\nmetadata: {name: %s}\n%s:\n", kind, name, field)
	for i := 0; i < len(data); i += 2 {
		text += fmt.Sprintf("  %s: %q\n", data[i], data[i+1])
	}
	return text
}

func TestEnvironment(t *testing.T) {
	n := start(t)
	n.write("objects.yaml", configMap("settings", "COLOR", "red", "SIZE", "1")+"---\n"+secret("keys", "TOKEN", "s3cret", "SIZE", "2")+
		"---\n"+strings.Replace(secret("bytes", "x", "x"), `stringData:`+"\n"+`  x: "x"`, "data: {x: /w==}", 1))
	n.write("p.yaml", spec("p", "", `    args: [unused, $(COLOR)]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {memory: 64Mi}}
    envFrom: [{configMapRef: {name: settings}}, {prefix: K_, secretRef: {name: keys}}, {configMapRef: {name: none, optional: true}}]
    env:
    - {name: PLAIN, value: "a $(COLOR) $(K_TOKEN) $$(COLOR) $(NOBODY)"}
    - {name: SIZE, value: "$(SIZE)0"}
    - {name: ONE, valueFrom: {secretKeyRef: {name: keys, key: TOKEN}}}
    - {name: BYTE, valueFrom: {secretKeyRef: {name: bytes, key: x}}}
    - {name: OPTIONAL, valueFrom: {configMapKeyRef: {name: settings, key: none, optional: true}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
`))
	p := n.awaitReady("p")
	env := map[string]string{}
	for _, line := range strings.Split(n.sh("p", "main", "env"), "\n") {
		name, value, _ := strings.Cut(line, "=")
		env[name] = value
	}
	ips := p.Status.PodIPs[0].IP + "," + p.Status.PodIPs[1].IP
	for name, want := range map[string]string{
		"COLOR": "red", "SIZE": "10", "K_SIZE": "2", "K_TOKEN": "s3cret", "PLAIN": "a red s3cret $(COLOR) $(NOBODY)", "ONE": "s3cret",
		"POD": "p", "LABEL": "web", "NODE": "self", "IPS": ips, "MEMORY": "64",
	} {
		if env[name] != want {
			t.Errorf("%s is %q, want %q", name, env[name], want)
		}
	}
	if _, there := env["OPTIONAL"]; there {
		t.Error("a variable of nothing is there")
	}
	if env["CPUS"] == "" || env["CPUS"] == "0" {
		t.Errorf("CPUS is %q", env["CPUS"])
	}
	// What a container was started with stays; what is missing is told, and is looked for again.
	n.write("q.yaml", spec("q", "", "    env: [{name: A, valueFrom: {configMapKeyRef: {name: later, key: a}}}]\n"))
	waiting := n.await("q", "waiting for its ConfigMap", func(p *v1.Pod) bool {
		return status(p, "main").State.Waiting != nil && status(p, "main").State.Waiting.Message != ""
	})
	if w := status(waiting, "main").State.Waiting; w.Reason != "CreateContainerConfigError" || w.Message != `configmap "later" not found` {
		t.Errorf("%+v", w)
	}
	n.write("later.yaml", configMap("later", "a", "now"))
	n.awaitReady("q")
	if got := n.sh("q", "main", "echo $A"); got != "now" {
		t.Errorf("A is %q", got)
	}
}

func TestHostnameHostsAndDNS(t *testing.T) {
	n := start(t, "  clusterDNS: [192.0.2.53]\n")
	n.write("p.yaml", spec("p", "  hostname: front\n  subdomain: web\n  hostAliases: [{ip: 192.0.2.80, hostnames: [db, db.example]}]\n  dnsConfig: {searches: [more.example], options: [{name: timeout, value: '1'}]}\n", ""))
	n.write("q.yaml", spec("q", "  hostname: front\n  subdomain: web\n  setHostnameAsFQDN: true\n  dnsPolicy: None\n  dnsConfig: {nameservers: [192.0.2.1, 2001:db8::1]}\n", ""))
	n.write("r.yaml", spec("r", "  hostNetwork: true\n  hostAliases: [{ip: 192.0.2.81, hostnames: [alias]}]\n", ""))
	p, q, r := n.awaitReady("p"), n.awaitReady("q"), n.awaitReady("r")
	if got := n.sh("p", "main", "hostname"); got != "front" {
		t.Errorf("p is called %s", got)
	}
	if got := n.sh("q", "main", "hostname"); got != "front.web.default.svc.cluster.local" {
		t.Errorf("q is called %s", got)
	}
	hosts := n.sh("p", "main", "cat /etc/hosts")
	for _, want := range []string{
		"# Kubernetes-managed hosts file.\n", p.Status.PodIPs[0].IP + "\tfront.web.default.svc.cluster.local\tfront\n",
		p.Status.PodIPs[1].IP + "\tfront.web.default.svc.cluster.local\tfront\n", "# Entries added by HostAliases.\n192.0.2.80\tdb\tdb.example",
	} {
		if !strings.Contains(hosts, want) {
			t.Errorf("%q is not in the hosts file:\n%s", want, hosts)
		}
	}
	resolv := n.sh("p", "main", "cat /etc/resolv.conf")
	for _, want := range []string{"nameserver 192.0.2.53", "search default.svc.cluster.local svc.cluster.local cluster.local", "more.example", "ndots:5", "timeout:1"} {
		if !strings.Contains(resolv, want) {
			t.Errorf("%q is not in resolv.conf:\n%s", want, resolv)
		}
	}
	if got := n.sh("q", "main", "cat /etc/resolv.conf"); !strings.Contains(got, "nameserver 192.0.2.1\nnameserver 2001:db8::1") || strings.Contains(got, "search") {
		t.Errorf("resolv.conf of q:\n%s", got)
	}
	if got := n.sh("r", "main", "cat /etc/hosts"); !strings.HasPrefix(got, "# Kubernetes-managed hosts file (host network).\n") || !strings.Contains(got, "192.0.2.81\talias") {
		t.Errorf("hosts of the host's network:\n%s", got)
	}
	if r.Status.PodIP == "" || r.Status.PodIP != r.Status.HostIP {
		t.Errorf("a pod on the host's network has %s, the host %s", r.Status.PodIP, r.Status.HostIP)
	}
	if len(q.Status.PodIPs) != 2 {
		t.Errorf("%v", q.Status.PodIPs)
	}
}

func TestSecurityContext(t *testing.T) {
	n := start(t)
	n.write("p.yaml", spec("p", "  securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456, supplementalGroups: [4567], sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: '99'}]}\n",
		"    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}\n"))
	n.write("q.yaml", spec("q", "  securityContext: {runAsUser: 1234}\n", "    securityContext: {runAsUser: 0, capabilities: {drop: [ALL], add: [NET_ADMIN]}}\n"))
	n.write("root.yaml", spec("root", "", "    securityContext: {runAsNonRoot: true}\n"))
	n.write("sysctl.yaml", spec("sysctl", "  securityContext: {sysctls: [{name: kernel.msgmax, value: '1000'}]}\n", ""))
	n.awaitReady("p")
	for script, want := range map[string]string{
		"id -u": "1234", "id -g": "2345", "id -G": "2345 3456 4567", "touch /x 2>/dev/null || echo no": "no",
		"grep CapEff /proc/self/status | cut -f2": "0000000000000000", "grep NoNewPrivs /proc/self/status | cut -f2": "1",
		"grep Seccomp: /proc/self/status | cut -f2": "2", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start": "99",
	} {
		if got := n.sh("p", "main", script); got != want {
			t.Errorf("%s: %s, want %s", script, got, want)
		}
	}
	n.awaitReady("q")
	for script, want := range map[string]string{
		"id -u": "0", "grep CapEff /proc/self/status | cut -f2": "0000000000001000", "grep Seccomp: /proc/self/status | cut -f2": "0",
	} {
		if got := n.sh("q", "main", script); got != want {
			t.Errorf("%s: %s, want %s", script, got, want)
		}
	}
	p := n.await("root", "refused", func(p *v1.Pod) bool {
		w := status(p, "main").State.Waiting
		return w != nil && w.Reason == "CreateContainerConfigError"
	})
	if w := status(p, "main").State.Waiting; !strings.HasPrefix(w.Message, "container has runAsNonRoot and image will run as root (pod: \"root_default(") {
		t.Errorf("%+v", w)
	}
	p = n.awaitPhase("sysctl", v1.PodFailed)
	if p.Status.Reason != "SysctlForbidden" || p.Status.Message != `Pod was rejected: forbidden sysctl: "kernel.msgmax" not allowlisted` {
		t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
	}
}

// Root of a pod with a user namespace is nobody on the host, what it writes to a volume is root's, and the next pod has
// other IDs.
func TestUserNamespaces(t *testing.T) {
	n := start(t)
	volumes := "  hostUsers: false\n  volumes: [{name: data, emptyDir: {}}, {name: secret, secret: {secretName: keys}}]\n"
	mounts := "    volumeMounts: [{name: data, mountPath: /data}, {name: secret, mountPath: /secret}]\n"
	n.write("objects.yaml", secret("keys", "k", "s3cret"))
	n.write("p.yaml", spec("p", volumes, mounts))
	n.write("q.yaml", spec("q", volumes, mounts))
	pod := n.awaitReady("p")
	n.awaitReady("q")
	ids := map[string]bool{}
	for _, name := range []string{"p", "q"} {
		mapping := strings.Fields(n.sh(name, "main", "cat /proc/self/uid_map"))
		if len(mapping) != 3 || mapping[0] != "0" || mapping[1] == "0" || mapping[2] != "65536" {
			t.Errorf("%s has the IDs %v", name, mapping)
		}
		ids[mapping[1]] = true
	}
	if len(ids) != 2 {
		t.Error("two pods have the same IDs")
	}
	if got := n.sh("p", "main", "id -u; touch /data/f; stat -c %u /data/f; cat /secret/k"); got != "0\n0\ns3cret" {
		t.Errorf("%q", got)
	}
	file := n.RootDir + "/kubelet/pods/" + string(pod.UID) + "/volumes/kubernetes.io~empty-dir/data/f"
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	// The daemon knows whose IDs are whose after a restart.
	n.Restart(t)
	n.write("r.yaml", spec("r", volumes, mounts))
	n.awaitReady("r")
	if mapping := strings.Fields(n.sh("r", "main", "cat /proc/self/uid_map")); ids[mapping[1]] {
		t.Errorf("r has the IDs of another pod: %v", mapping)
	}
}
