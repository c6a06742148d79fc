package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/kubelet/manifest"
	"github.com/berth-node/berth/kubelet/pull"
	"github.com/berth-node/berth/kubelet/source"
	"github.com/berth-node/berth/kubelet/volume"
	"github.com/berth-node/berth/runtime"
)

// A daemon runs pods on a machine, in a bubble with a clock of its own: it is the real thing from what is declared to the calls of the
// runtime.
type daemon struct {
	*machine
	t        *testing.T
	dir      string
	declared *source.Store
	k        *Kubelet
	admit    func(pod *v1.Pod, others []*v1.Pod) *Refusal
	stop     func()
}

// inBubble runs a test with a daemon.
func inBubble(t *testing.T, test func(d *daemon)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		d := &daemon{t: t, dir: dir, machine: newMachine(filepath.Join(dir, "logs"))}
		d.begin()
		t.Cleanup(func() { d.stop() })
		test(d)
		if len(d.twice) > 0 {
			t.Errorf("two copies of %v ran at once", d.twice)
		}
	})
}

// begin starts a daemon.
func (d *daemon) begin() {
	d.t.Helper()
	log := slog.New(slog.DiscardHandler)
	declared, err := source.Open(source.Config{Dir: filepath.Join(d.dir, "objects"), Log: log})
	if err != nil {
		d.t.Fatal(err)
	}
	images, err := pull.New(pull.Config{
		Get: d.getImage, Pull: d.pullImage, Dir: filepath.Join(d.dir, "pulls"), Now: time.Now,
		Event: func(pod *v1.Pod, _ *v1.Container, typ, reason, message string) {
			d.Eventf(&v1.ObjectReference{UID: pod.UID}, typ, reason, "%s", message)
		},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	spec := d.specOf()
	k, err := New(Config{
		Dir: d.dir, NodeName: "self", Runtime: d.machine, Source: declared, Spec: spec, Images: images,
		Volumes: volume.New(volume.Config{PodsDir: filepath.Join(d.dir, "pods"), MemoryDir: filepath.Join(d.dir, "memory"), ClaimsDir: filepath.Join(d.dir, "claims"), Node: spec, Log: log}),
		Cgroups: noCgroups{d.machine}, Users: noUsers{}, Events: d.machine, Log: log, Admit: d.admit,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	d.k, d.declared = k, declared
	ctx, cancel := context.WithCancel(d.t.Context())
	ended := make(chan error)
	go func() { ended <- k.Run(ctx) }()
	d.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			d.t.Error(err)
		}
	}
	synctest.Wait()
}

// restart replaces the daemon. What it was doing has no end, or one that it does not hear of.
func (d *daemon) restart() {
	d.t.Helper()
	d.stop()
	d.note("-- another daemon")
	d.begin()
}

// apply declares pods.
func (d *daemon) apply(text string) {
	d.t.Helper()
	objects, err := manifest.Decode("pod.yaml", []byte(text))
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.declared.Apply(objects); err != nil {
		d.t.Fatal(err)
	}
	synctest.Wait()
}

func (d *daemon) delete(grace int64) {
	d.t.Helper()
	d.note("-- deleted")
	if _, err := d.k.DeletePod(d.t.Context(), "default", "p", DeleteOptions{Grace: &grace}); err != nil {
		d.t.Fatal(err)
	}
	synctest.Wait()
}

// after lets time go by.
func (d *daemon) after(seconds float64) {
	time.Sleep(time.Duration(seconds * float64(time.Second)))
	synctest.Wait()
}

// exit ends a container that runs.
func (d *daemon) exit(container string, code int32) {
	d.t.Helper()
	d.note("-- %s exits with %d", container, code)
	d.change(container, func(c *fakeContainer) { d.end(c, code) })
}

func (d *daemon) change(container string, f func(*fakeContainer)) {
	d.t.Helper()
	d.mu.Lock()
	found := false
	for _, c := range d.containers {
		if name(c) == container && c.State == runtime.Running {
			f(c)
			found = true
		}
	}
	d.mu.Unlock()
	synctest.Wait()
	if !found {
		d.t.Fatalf("%s does not run:\n%s", container, d.transcript())
	}
}

// transcript is what happened since the last time: a line for each moment.
func (d *daemon) transcript() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var lines []string
	for _, at := range slices.Sorted(maps.Keys(d.said)) {
		slices.Sort(d.said[at])
		lines = append(lines, fmt.Sprintf("%s: %s", at, strings.Join(d.said[at], "; ")))
	}
	return strings.Join(lines, "\n")
}

func (d *daemon) happened(want string) {
	d.t.Helper()
	lines := strings.Split(strings.TrimSpace(want), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	if got := d.transcript(); got != strings.Join(lines, "\n") {
		d.t.Errorf("what happened:\n%s\n\nwanted:\n%s", got, strings.Join(lines, "\n"))
	}
	clear(d.said)
}

func withoutUID(text, uid string) string { return strings.ReplaceAll(text, uid, "uid") }

// shows compares the status of pod p: the phase, whether it is ready, then each container.
func (d *daemon) shows(want string) {
	d.t.Helper()
	p, ok := d.k.pods.Get("default", "p")
	if !ok {
		if want != "" {
			d.t.Errorf("there is no pod; wanted %s", want)
		}
		return
	}
	all := []string{string(p.Status.Phase)}
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady && c.Status == v1.ConditionTrue {
			all[0] += " ready"
		}
	}
	for _, cs := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		text := cs.Name
		switch s := cs.State; {
		case s.Running != nil:
			text += " running"
		case s.Terminated != nil:
			text += fmt.Sprintf(" %s %d", s.Terminated.Reason, s.Terminated.ExitCode)
		case s.Waiting != nil:
			text += " " + s.Waiting.Reason
		}
		if cs.RestartCount > 0 {
			text += fmt.Sprintf(" #%d", cs.RestartCount)
		}
		all = append(all, text)
	}
	if got := strings.Join(all, "; "); got != want {
		d.t.Errorf("the status is\n%s\nwanted\n%s", got, want)
	}
}

// isGone looks for what is left of pods: of the machine, and of what the daemon keeps.
func (d *daemon) isGone() {
	d.t.Helper()
	d.shows("")
	if len(d.sandboxes) > 0 || len(d.containers) > 0 {
		d.t.Errorf("%d sandboxes and %d containers are left", len(d.sandboxes), len(d.containers))
	}
	for _, dir := range []string{filepath.Join(d.dir, "pods"), d.logs, d.logs + "-links"} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			d.t.Errorf("%s: %v, %v", dir, entries, err)
		}
	}
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	if len(d.k.workers) > 0 || len(d.k.uids) > 0 {
		d.t.Errorf("%d workers are left, %d UIDs", len(d.k.workers), len(d.k.uids))
	}
}

const onePod = `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - {name: a, image: "a:1"}
`

// until lets time go by until ok, and replaces the daemon when it is time for that.
func (d *daemon) until(what string, cut time.Duration, ok func() bool) {
	d.t.Helper()
	for range 600 {
		d.after(0.5)
		if time.Since(d.began) == cut {
			d.restart()
		}
		if ok() {
			return
		}
	}
	d.t.Fatalf("never: %s\n%s", what, d.transcript())
}

func (d *daemon) runs(container string, attempt uint32) func() bool {
	return func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, c := range d.containers {
			if name(c) == container && c.State == runtime.Running && c.Config.Metadata.Attempt == attempt {
				return true
			}
		}
		return false
	}
}
