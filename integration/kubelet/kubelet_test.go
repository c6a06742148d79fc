//go:build integration

// Package kubelet runs an upstream kubelet by itself, without an API server, against a node, and looks at static pods
// through the kubelet's eyes.
package kubelet

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

const webPod = `apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  terminationGracePeriodSeconds: 2
  initContainers:
  - name: init
    image: ` + images.Tools + `
    command: [sh, -c, "echo content > /data/file"]
    volumeMounts: [{name: data, mountPath: /data}]
  containers:
  - name: web
    image: ` + images.Tools + `
    command: [sh, -c, "touch /tmp/ready /tmp/alive; exec web -listen :80"]
    ports: [{containerPort: 80, hostPort: 12090}]
    resources:
      requests: {cpu: 50m, memory: 16Mi}
      limits: {memory: 64Mi}
    startupProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1, failureThreshold: 120}
    readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 20}
    livenessProbe: {exec: {command: [cat, /tmp/alive]}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 20}
    lifecycle:
      postStart: {exec: {command: [sh, -c, "cat /data/file > /tmp/started"]}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - name: data
    emptyDir: {}
`

const jobPod = `apiVersion: v1
kind: Pod
metadata: {name: job}
spec:
  restartPolicy: Never
  containers:
  - name: job
    image: ` + images.Tools + `
    command: [sh, -c, "echo the last words > /dev/termination-log; exit 3"]
`

func TestStandaloneKubelet(t *testing.T) {
	if _, err := os.Stat(harness.Tool("kubelet")); err != nil {
		t.Fatalf("%v (make test-kubelet builds it)", err)
	}
	for name, criStats := range map[string]bool{"statistics from cAdvisor": false, "statistics from the CRI": true} {
		harness.LeavesNothing(t, name, func(t *testing.T) { runPods(t, criStats) })
	}
}

func runPods(t *testing.T, criStats bool) {
	n := harness.StartNodeWithImages(t)
	k := startKubelet(t, n, criStats)
	k.manifest(t, "web.yaml", webPod)
	k.manifest(t, "job.yaml", jobPod)

	k.eventually(t, "web to be ready", "web", func(p pod) error {
		if p.Status.Phase != "Running" || p.condition("Ready") != "True" {
			return fmt.Errorf("phase %s, conditions %v, containers %+v", p.Status.Phase, p.Status.Conditions, p.Status.ContainerStatuses)
		}
		if len(p.Status.PodIPs) != 2 {
			return fmt.Errorf("addresses %v", p.Status.PodIPs)
		}
		return nil
	})
	k.eventually(t, "job to have failed", "job", func(p pod) error {
		if p.Status.Phase != "Failed" || len(p.Status.ContainerStatuses) != 1 {
			return fmt.Errorf("phase %s", p.Status.Phase)
		}
		end := p.Status.ContainerStatuses[0].State.Terminated
		if end.ExitCode != 3 || end.Reason != "Error" || strings.TrimSpace(end.Message) != "the last words" {
			return fmt.Errorf("ended as %+v", end)
		}
		return nil
	})
	wantHTTP(t, "http://127.0.0.1:12090/", "Hello from pod web")

	web := findContainer(t, n, "web", "web")
	if got := web.Exec(t, "cat", "/tmp/started"); got != "content" {
		t.Errorf("the init container, the volume or postStart: %q", got)
	}
	web.Exec(t, "rm", "/tmp/ready")
	k.eventually(t, "a failing readiness probe to show", "web", func(p pod) error {
		if p.condition("Ready") != "False" {
			return errors.New("it is ready")
		}
		return nil
	})
	web.Exec(t, "rm", "/tmp/alive")
	k.eventually(t, "a failing liveness probe to restart the container", "web", func(p pod) error {
		if c := p.Status.ContainerStatuses; len(c) != 1 || c[0].RestartCount < 1 || p.condition("Ready") != "True" {
			return fmt.Errorf("containers %+v", c)
		}
		return nil
	})

	// A restart of the runtime below it is nothing to the pods.
	again := findContainer(t, n, "web", "web")
	n.Restart(t)
	k.eventually(t, "the pod to be as it was after a restart of berth", "web", func(p pod) error {
		if p.condition("Ready") != "True" || !strings.HasSuffix(p.Status.ContainerStatuses[0].ContainerID, again.ID) {
			return fmt.Errorf("containers %+v", p.Status.ContainerStatuses)
		}
		return nil
	})
	k.statistics(t, criStats)

	k.removeManifest(t, "web.yaml")
	k.removeManifest(t, "job.yaml")
	harness.Eventually(t, 2*time.Minute, "the pods to go with their manifests", func() error {
		list, err := n.Runtime.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
			State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
		}})
		if err == nil && len(list.Items) != 0 {
			err = fmt.Errorf("there are %d", len(list.Items))
		}
		return err
	})
}

// statistics looks at what monitoring systems take from a kubelet. What it has of a pod's network and labels by itself
// depends on cAdvisor knowing the runtime; by the CRI it has all.
func (k *kubelet) statistics(t *testing.T, criStats bool) {
	t.Helper()
	wantSummary := []string{`"name":"web-` + nodeName + `"`, `"workingSetBytes"`, `"usageCoreNanoSeconds"`}
	wantMetrics := []string{`container_cpu_usage_seconds_total{`}
	if criStats {
		wantSummary = append(wantSummary, `"rxBytes"`, `"txBytes"`)
		wantMetrics = append(wantMetrics, `pod="web-`+nodeName+`"`, `container_network_receive_bytes_total{`, `container="web"`)
	}
	for path, parts := range map[string][]string{"/stats/summary": wantSummary, "/metrics/cadvisor": wantMetrics} {
		harness.Eventually(t, time.Minute, path, func() error {
			text, err := k.get(path)
			if err != nil {
				return err
			}
			if path == "/stats/summary" {
				text = space.ReplaceAllString(text, "")
			}
			for _, part := range parts {
				if !strings.Contains(text, part) {
					return fmt.Errorf("%s has no %s", path, part)
				}
			}
			return nil
		})
	}
}

var space = regexp.MustCompile(`\s+`)

func wantHTTP(t *testing.T, url, part string) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "answer of "+url, func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(body), part) {
			err = fmt.Errorf("it says %q", body)
		}
		return err
	})
}

// findContainer returns a running container by the names that the kubelet gave it.
func findContainer(t *testing.T, n *harness.Node, podName, name string) *harness.Container {
	t.Helper()
	list, err := n.Runtime.ListContainers(harness.Ctx(t), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State:         &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
		LabelSelector: map[string]string{"io.kubernetes.pod.name": podName + "-" + nodeName, "io.kubernetes.container.name": name},
	}})
	if err != nil || len(list.Containers) != 1 {
		t.Fatalf("container %s of %s: %v, %v", name, podName, list, err)
	}
	c := list.Containers[0]
	return &harness.Container{Pod: &harness.Pod{Node: n, ID: c.PodSandboxId}, ID: c.Id, Config: &cri.ContainerConfig{Metadata: c.Metadata}}
}

func (k *kubelet) manifest(t *testing.T, name, text string) {
	t.Helper()
	// The kubelet watches the folder and would read half a file.
	if err := errors.Join(os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o600), os.Rename(filepath.Join(k.dir, name), filepath.Join(k.manifests, name))); err != nil {
		t.Fatal(err)
	}
}

func (k *kubelet) removeManifest(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(k.manifests, name)); err != nil {
		t.Fatal(err)
	}
}
