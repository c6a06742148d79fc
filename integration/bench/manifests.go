package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/harness"
)

// A lone node runs the manifests of a folder, with no kubelet but its own.
type lone struct {
	*target
	manifests string
	client    *http.Client // of its API
}

// launchLone starts one, in a cgroup of its own.
func launchLone(hostsDir string) (*lone, error) {
	manifests, err := os.MkdirTemp("", "berth-bench-manifests-")
	if err != nil {
		return nil, err
	}
	var run string
	// How full the machine's disk is does not matter here.
	const config = "kubelet:\n  evictionHard: {nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}\n"
	t, err := launch("berth-lone", harness.Options{HostsDir: hostsDir, Config: config, Flags: []string{"--manifests", manifests}}, func(n *harness.Node) { run = n.RunDir })
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(manifests))
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(run, "api.sock"))
	}
	end := t.close
	t.close = func() error { return errors.Join(end(), os.RemoveAll(manifests)) }
	return &lone{t, manifests, &http.Client{Transport: &http.Transport{DialContext: dial}}}, nil
}

// declare puts a file into the folder as a whole; remove takes it away.
func (l *lone) declare(name, text string) error {
	temp, err := os.CreateTemp("", name)
	if err != nil {
		return err
	}
	_, err = temp.WriteString(text)
	if err = errors.Join(err, temp.Close(), os.Chmod(temp.Name(), 0o644)); err != nil {
		return err
	}
	return os.Rename(temp.Name(), filepath.Join(l.manifests, name))
}

func (l *lone) remove(name string) error { return os.Remove(filepath.Join(l.manifests, name)) }

// watch calls see with each state of a pod, until it returns true.
func (l *lone) watch(ctx context.Context, see func(kind string, pod *v1.Pod) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/api/v1/pods?watch=1", nil)
	if err != nil {
		return err
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("watch of pods: %s", resp.Status)
	}
	for d := json.NewDecoder(resp.Body); ; {
		var event struct {
			Type   string
			Object v1.Pod
		}
		if err := d.Decode(&event); err != nil {
			return fmt.Errorf("watch of pods: %w", err)
		}
		if see(event.Type, &event.Object) {
			return nil
		}
	}
}

func ready(pod *v1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// manifest is a pod of one container that waits, with more lines for the container.
func manifest(name, image string, containers int, more string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: 2\n  containers:\n", name)
	for i := range containers {
		fmt.Fprintf(&s, "  - name: c%d\n    image: %s\n    imagePullPolicy: IfNotPresent\n%s", i, image, more)
	}
	return s.String()
}

// caseManifest measures from a file that is written to the pod that is running and ready, and beside it, if BENCH_PODMAN is the
// command of one, podman kube play, which waits for no probe.
func (b *bench) caseManifest(ctx context.Context) (err error) {
	l, err := launchLone(b.hosts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if l.app, err = l.pull(ctx, b.ref(appImage)); err != nil {
		return err
	}
	tab := &table{Name: "manifest", What: "from the file to the pod running and ready, by an exec probe", Unit: "ms"}
	podman := strings.Fields(os.Getenv("BENCH_PODMAN"))
	if len(podman) > 0 {
		if err := runPodman(ctx, podman, "pull", "-q", "--tls-verify=false", b.ref(appImage)); err != nil {
			return err
		}
	}
	const probe = "    readinessProbe: {exec: {command: [\"true\"]}, periodSeconds: 1}\n"
	for i := range b.n + 1 { // the first does not count
		took, err := l.startAndEnd(ctx, fmt.Sprintf("ready-%d", i), b.ref(appImage), probe)
		if err != nil {
			return err
		}
		if i > 0 {
			tab.add("berth", ms(took))
		}
		if len(podman) == 0 {
			continue
		}
		if took, err = kubePlay(ctx, podman, manifest(fmt.Sprintf("play-%d", i), b.ref(appImage), 1, "")); err != nil {
			return err
		}
		if i > 0 {
			tab.add("podman kube play", ms(took))
		}
	}
	b.publish(tab)
	return nil
}

// startAndEnd returns how long a pod took from its file until it was ready, and removes it.
func (l *lone) startAndEnd(ctx context.Context, name, image, more string) (took time.Duration, err error) {
	done := make(chan error, 1)
	var up time.Time
	go func() {
		done <- l.watch(ctx, func(kind string, pod *v1.Pod) bool {
			if pod.Name != name {
				return false
			}
			if up.IsZero() && ready(pod) {
				up = time.Now()
				if err := l.remove(name + ".yaml"); err != nil {
					return true
				}
			}
			return kind == "DELETED"
		})
	}()
	time.Sleep(50 * time.Millisecond) // the watch is open, and the node has come to rest
	began := time.Now()
	if err := l.declare(name+".yaml", manifest(name, image, 1, more)); err != nil {
		return 0, err
	}
	if err := <-done; err != nil {
		return 0, err
	}
	return up.Sub(began), nil
}

func runPodman(ctx context.Context, podman []string, args ...string) error {
	out, err := exec.CommandContext(ctx, podman[0], append(podman[1:len(podman):len(podman)], args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("podman %s: %w: %s", args[0], err, out)
	}
	return nil
}

func kubePlay(ctx context.Context, podman []string, text string) (time.Duration, error) {
	file, err := os.CreateTemp("", "play-*.yaml")
	if err != nil {
		return 0, err
	}
	defer os.Remove(file.Name())
	_, err = file.WriteString(text)
	if err = errors.Join(err, file.Close()); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := runPodman(ctx, podman, "kube", "play", file.Name()); err != nil {
		return 0, err
	}
	took := time.Since(began)
	return took, runPodman(ctx, podman, "kube", "down", file.Name())
}

// caseLone measures a node by itself with many pods: what it takes while nothing happens, and while probes run.
func (b *bench) caseLone(ctx context.Context) error {
	const pods = 100
	probes := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer probes.Close()
	_, port, err := net.SplitHostPort(probes.Listener.Addr().String())
	if err != nil {
		return err
	}
	get := fmt.Sprintf("Probe: {httpGet: {host: 127.0.0.1, port: %s}, periodSeconds: 1}\n", port)
	idle := &table{Name: "lone-idle", What: fmt.Sprintf("CPU of a node by itself, %d pods", pods), Unit: "% of a core"}
	size := &table{Name: "lone-memory", What: fmt.Sprintf("resident memory of daemon and keeper, %d pods", pods), Unit: "MiB"}
	all := &table{Name: "lone-start", What: fmt.Sprintf("from %d files to as many pods that are ready", pods), Unit: "ms"}
	for _, c := range []struct {
		name, more string
		containers int
	}{
		{"no probes", "", 1},
		{"100 exec probes a second", "    readinessProbe: {exec: {command: [\"true\"]}, periodSeconds: 1}\n", 1},
		{"1000 HTTP probes a second", "    readiness" + get + "    liveness" + get, 5},
	} {
		if err := b.manyPods(ctx, pods, c.name, c.containers, c.more, idle, size, all); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	b.publish(all)
	b.publish(idle)
	b.publish(size)
	return nil
}

func (b *bench) manyPods(ctx context.Context, pods int, name string, containers int, more string, idle, size, all *table) (err error) {
	l, err := launchLone(b.hosts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if l.app, err = l.pull(ctx, b.ref(appImage)); err != nil {
		return err
	}
	began := time.Now()
	for i := range pods {
		pod := fmt.Sprintf("many-%d", i)
		if err := l.declare(pod+".yaml", manifest(pod, b.ref(appImage), containers, more)); err != nil {
			return err
		}
	}
	up := map[string]bool{}
	if err := l.watch(ctx, func(_ string, pod *v1.Pod) bool {
		if ready(pod) {
			up[pod.Name] = true
		}
		return len(up) == pods
	}); err != nil {
		return err
	}
	all.add(name, ms(time.Since(began)))
	time.Sleep(5 * settle)
	root, err := accounting()
	if err != nil {
		return err
	}
	before, _ := cpuUsage(filepath.Join(root, l.own))
	watched := time.Now()
	select {
	case <-time.After(b.idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, _ := cpuUsage(filepath.Join(root, l.own))
	idle.add(name, 100*(after-before).Seconds()/time.Since(watched).Seconds())
	_, detail, _ := l.memory()
	size.add(name, float64(detail["berth"].RSS+detail["berth-keeper"].RSS)/(1<<20))
	size.note("%s: %s", name, describe(detail))
	for i := range pods {
		if err := l.remove(fmt.Sprintf("many-%d.yaml", i)); err != nil {
			return err
		}
	}
	return l.gone(ctx)
}

// gone waits until the node has no pod.
func (l *lone) gone(ctx context.Context) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/api/v1/pods", nil)
		if err != nil {
			return err
		}
		resp, err := l.client.Do(req)
		if err != nil {
			return err
		}
		var list v1.PodList
		err = json.NewDecoder(resp.Body).Decode(&list)
		resp.Body.Close()
		if err != nil || len(list.Items) == 0 {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
