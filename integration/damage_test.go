//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// A damage does to a file what power cuts, disks, downgrades and people do.
type damage struct {
	name string
	do   func(path string) error
}

var damages = []damage{
	{"empty", func(path string) error { return os.Truncate(path, 0) }},
	{"cut after a byte", cutAt(func(int) int { return 1 })},
	{"cut in the middle", cutAt(func(size int) int { return size / 2 })},
	{"without its last byte", cutAt(func(size int) int { return size - 1 })},
	{"a page of zeros", rewrite(func(data []byte) []byte { return append(make([]byte, len(data)/2), data[len(data)/2:]...) })},
	{"garbage", rewrite(func([]byte) []byte { return []byte("\x7fELF\x00 no JSON at all {{{") })},
	{"of another type", rewrite(func([]byte) []byte { return []byte(`["a","list"]`) })},
	{"an empty object", rewrite(func([]byte) []byte { return []byte(`{}`) })},
	{"of a newer version", rewrite(func(data []byte) []byte {
		return bytes.Replace(data, []byte(`"version":1`), []byte(`"version":99`), 1)
	})},
	{"of another ID", rewrite(func(data []byte) []byte { return ids.ReplaceAll(data, []byte(strings.Repeat("ab", 32))) })},
	{"a folder", func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }},
	{"a pipe", func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) }},
	{"a link to itself", func(path string) error { return errors.Join(os.Remove(path), os.Symlink(path, path)) }},
	{"missing", os.Remove},
}

var ids = regexp.MustCompile(`[0-9a-f]{64}`)

func rewrite(change func([]byte) []byte) func(string) error {
	return func(path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(path, change(data), 0o600)
	}
}

func cutAt(at func(size int) int) func(string) error {
	return rewrite(func(data []byte) []byte { return data[:at(len(data))] })
}

// target is a pod with one container of which a file is going to be damaged, and how it was before.
type target struct {
	name string
	pod  *harness.Pod
	app  *harness.Container
	pid  int
	ips  []string
	// keepersKilled since it runs; see wantCountedBut.
	keepersKilled int
}

func newTarget(t *testing.T, n *harness.Node, name string, change ...func(*cri.PodSandboxConfig)) *target {
	t.Helper()
	pod := n.RunPod(t, "p", change...)
	app := pod.Sh(t, "app", counter)
	return &target{name: name, pod: pod, app: app, pid: containerPid(t, app), ips: pod.IPs(t)}
}

// containerPid is the pid of the container's init.
func containerPid(t *testing.T, c *harness.Container) int {
	t.Helper()
	resp, err := c.Pod.Node.Runtime.ContainerStatus(harness.Ctx(t), &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
		t.Fatal(err)
	}
	return info.Pid
}

// file is the path of a file of a record: record.json, facts.json, or the copy of both in the run dir.
func (tg *target) file(kind, name string) string {
	id := tg.app.ID
	if kind == "sandboxes" {
		id = tg.pod.ID
	}
	if name == "copy" {
		return filepath.Join(tg.pod.Node.RunDir, "records", kind, id+".json")
	}
	return filepath.Join(tg.pod.Node.RootDir, kind, id, name)
}

// wantAlive fails unless everything is as it was: process, addresses, exec, a log without a gap but for keepers that were killed.
func (tg *target) wantAlive(t *testing.T) {
	t.Helper()
	if s := tg.pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("%s: the sandbox is %s", tg.name, s.State)
	}
	if s := tg.app.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt == 0 {
		t.Errorf("%s: the container is %s, started at %d", tg.name, s.State, s.StartedAt)
		return
	}
	if pid := containerPid(t, tg.app); pid != tg.pid {
		t.Errorf("%s: pid %d, was %d", tg.name, pid, tg.pid)
	}
	if ips := tg.pod.IPs(t); !slices.Equal(ips, tg.ips) {
		t.Errorf("%s: addresses %v, were %v", tg.name, ips, tg.ips)
	}
	if got := tg.app.Exec(t, "hostname"); got != "p" {
		t.Errorf("%s: exec: %q", tg.name, got)
	}
	wantCountedBut(t, tg.app, 0, tg.keepersKilled) // a new one may not have come to print
}

// check returns what berth check says, whatever its exit status is.
func check(t *testing.T, n *harness.Node) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(harness.Root(), "bin", "berth"), "check", "--run-dir", n.RunDir).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("berth check: %v\n%s", err, out)
	}
	return string(out)
}

// One damaged file of any kind and in any way: the daemon starts, the pod runs on as it did, the operator is told, and
// after a further start all is as if nothing had been.
func TestDamagedRecordCostsNothing(t *testing.T) {
	n := ownNode(t)
	type hit struct {
		*target
		damage
		path string
	}
	var hits []hit
	for _, kind := range []string{"sandboxes", "containers"} {
		for _, file := range []string{"record.json", "facts.json", "copy"} {
			for _, d := range damages {
				if d.name == "of a newer version" && file == "facts.json" {
					continue // facts have the version of their record
				}
				tg := newTarget(t, n, fmt.Sprintf("%s of %s: %s", file, kind, d.name))
				hits = append(hits, hit{tg, d, tg.file(kind, file)})
			}
		}
	}
	n.Kill9(t)
	for _, h := range hits {
		if err := h.do(h.path); err != nil {
			t.Fatal(h.target.name, err)
		}
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	said := check(t, n)
	for _, h := range hits {
		h.wantAlive(t)
		if h.damage.name != "missing" && !strings.Contains(said, ids.FindString(h.path)) {
			t.Errorf("%s: berth check says nothing of %s", h.target.name, h.path)
		}
	}
	n.Restart(t)
	for _, h := range hits {
		h.wantAlive(t)
	}
}

// A record that is damaged in both places describes a pod that runs on unseen and is not made a second time, until the
// file is put right, the operator gives it up, or it ends by itself.
func TestUnreadableRecordOfARunningPod(t *testing.T) {
	n := ownNode(t)
	repaired, givenUp, ended := newTarget(t, n, "repaired"), newTarget(t, n, "given up"), newTarget(t, n, "ended")
	lone := newTarget(t, n, "a container alone")
	bystander := newTarget(t, n, "bystander")
	originals := map[string][]byte{}
	n.Kill9(t)
	garbage := func(paths ...string) {
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, []byte("{"), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			originals[path] = data
		}
	}
	for _, tg := range []*target{repaired, givenUp, ended} {
		garbage(tg.file("sandboxes", "record.json"), tg.file("sandboxes", "copy"))
	}
	garbage(lone.file("containers", "record.json"), lone.file("containers", "copy"))
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}

	bystander.wantAlive(t)
	said := check(t, n)
	for _, tg := range []*target{repaired, givenUp, ended} {
		if !strings.Contains(said, tg.file("sandboxes", "record.json")) || !strings.Contains(said, "berth repair --give-up "+tg.pod.ID) {
			t.Errorf("berth check does not say what is wrong with %s:\n%s", tg.name, said)
		}
		tg.wantUnseen(t)
		tg.wantRefused(t)
	}
	if s := lone.pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("the sandbox of the lone container: %s", s.State)
	}
	_, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{
		PodSandboxId: lone.pod.ID, SandboxConfig: lone.pod.Config,
		Config: harness.ContainerConfig("app", images.Tools, "true"),
	})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), lone.file("containers", "record.json")) {
		t.Errorf("the lone container again: %v", err)
	}

	// An image that only an unseen container uses keeps its layers.
	if _, err := n.Images.RemoveImage(harness.Ctx(t), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: images.Tools}}); err != nil {
		t.Error(err)
	}

	for _, tg := range []*target{repaired, lone} {
		for _, kind := range []string{"sandboxes", "containers"} {
			path := tg.file(kind, "record.json")
			if data := originals[path]; data != nil {
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if out := n.Berth(t, "repair"); strings.Count(out, "is known again") != 2 || strings.Count(out, "cannot be used yet") != 2 {
		t.Errorf("berth repair: %s", out)
	}
	repaired.wantAlive(t)
	lone.wantAlive(t)

	n.Berth(t, "repair", "--give-up", givenUp.pod.ID)
	givenUp.wantGone(t)
	if err := syscall.Kill(ended.pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended.wantGone(t)
	for _, tg := range []*target{givenUp, ended} {
		resp, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: tg.pod.Config})
		if err != nil {
			t.Errorf("%s: its pod again: %v", tg.name, err)
			continue
		}
		tg.pod.ID = resp.PodSandboxId // which the clean-up removes
	}
	n.Restart(t)
	repaired.wantAlive(t)
	lone.wantAlive(t)
	bystander.wantAlive(t)
	for _, tg := range []*target{givenUp, ended} {
		if _, err := os.Stat(filepath.Join(n.RootDir, "damaged")); err != nil {
			t.Errorf("%s: its record was not kept: %v", tg.name, err)
		}
	}
}

// wantUnseen fails unless the container lives and no list shows it or its pod.
func (tg *target) wantUnseen(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(tg.pid, 0); err != nil {
		t.Errorf("%s: its process: %v", tg.name, err)
	}
	pods, err := tg.pod.Node.Runtime.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{})
	if err != nil || slices.ContainsFunc(pods.Items, func(p *cri.PodSandbox) bool { return p.Id == tg.pod.ID }) {
		t.Errorf("%s: the list has it: %v", tg.name, err)
	}
	containers, err := tg.pod.Node.Runtime.ListContainers(harness.Ctx(t), &cri.ListContainersRequest{})
	if err != nil || slices.ContainsFunc(containers.Containers, func(c *cri.Container) bool { return c.Id == tg.app.ID }) {
		t.Errorf("%s: the list has its container: %v", tg.name, err)
	}
}

// wantRefused fails unless the pod cannot be made a second time, for the reason that an operator needs to know.
func (tg *target) wantRefused(t *testing.T) {
	t.Helper()
	m := tg.pod.Config.Metadata
	next := &cri.PodSandboxMetadata{Name: m.Name, Namespace: m.Namespace, Uid: m.Uid, Attempt: m.Attempt + 1}
	again := &cri.PodSandboxConfig{Metadata: next, Linux: tg.pod.Config.Linux}
	_, err := tg.pod.Node.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: again})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), tg.file("sandboxes", "record.json")) {
		t.Errorf("%s: its pod again: %v", tg.name, err)
	}
}

// wantGone waits until nothing of the pod is left but its record, for the operator to look at.
func (tg *target) wantGone(t *testing.T) {
	t.Helper()
	n := tg.pod.Node
	harness.Eventually(t, 20*time.Second, tg.name+" to be gone", func() error {
		if err := syscall.Kill(tg.pid, 0); err == nil {
			return errors.New("its process lives")
		}
		for _, path := range []string{
			filepath.Join(n.RunDir, "containers", tg.app.ID), filepath.Join(n.RunDir, "sandboxes", tg.pod.ID),
			filepath.Join("/run/netns", "berth-"+tg.pod.ID[:24]), filepath.Join(n.RootDir, "containers", tg.app.ID),
			filepath.Join(n.RootDir, "sandboxes", tg.pod.ID),
		} {
			if _, err := os.Lstat(path); err == nil {
				return fmt.Errorf("%s is there", path)
			}
		}
		return nil
	})
	if _, err := os.Lstat(filepath.Join(n.RootDir, "damaged", "sandboxes-"+tg.pod.ID, "record.json")); err != nil {
		t.Errorf("%s: its record: %v", tg.name, err)
	}
}
