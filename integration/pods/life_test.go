//go:build integration

package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// quick are pauses that a test can wait for.
const quick = "  crashLoopBackOff: {initial: 1s, max: 4s}\n  imagePullBackOff: {initial: 1s, max: 4s}\n"

func TestAFileIsAPod(t *testing.T) {
	n := start(t)
	n.write("web.yaml", podText("web", sleeper, "    readinessProbe: {exec: {command: ['true']}}\n"))
	p := n.awaitReady("web")
	if len(p.Status.PodIPs) != 2 || status(p, "main").RestartCount != 0 || p.Status.QOSClass != v1.PodQOSBestEffort {
		t.Errorf("status: %+v", p.Status)
	}
	n.remove("web.yaml")
	n.awaitGone("web")
}

// diary is a folder that pods have mounted, in which they note what happens. Scripts write `note x`.
type diary struct{ dir string }

func newDiary(t *testing.T) diary {
	d := diary{t.TempDir()}
	if err := os.Chmod(d.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d diary) volume() string {
	return fmt.Sprintf("  volumes:\n  - name: diary\n    hostPath: {path: %s}\n", d.dir)
}

const diaryMount = "    volumeMounts: [{name: diary, mountPath: /diary}]\n"

// noting is the beginning of a script that notes.
const noting = "note() { echo $1 >> /diary/notes; }; "

func (d diary) notes(t *testing.T) string {
	data, err := os.ReadFile(filepath.Join(d.dir, "notes"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(data)), " ")
}

// await waits until the notes are these: a container runs, and is ready if nobody asks it, before its script has said anything.
func (d diary) await(t *testing.T, want string) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, fmt.Sprintf("notes %q", want), func() error {
		if got := d.notes(t); got != want {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

// noted is a container of a pod that notes its name when it starts, and when it is told to end.
func noted(name string, more ...string) string {
	return fmt.Sprintf("  - name: %s\n    image: %s\n    command: [sh, -c, %q]\n", name, images.Tools,
		noting+"trap 'note "+name+"-end; exit 0' TERM; note "+name+"; while :; do sleep 1000 & wait; done") + diaryMount + strings.Join(more, "")
}

func TestInitContainersAndSidecarsInOrder(t *testing.T) {
	n, d := start(t), newDiary(t)
	always := "    restartPolicy: Always\n"
	n.write("p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  terminationGracePeriodSeconds: 10\n"+d.volume()+"  initContainers:\n"+
		noted("s1", always, "    startupProbe: {periodSeconds: 1, exec: {command: [sh, -c, 'grep s1 /diary/notes && echo s1-up >> /diary/notes']}}\n")+
		fmt.Sprintf("  - name: init\n    image: %s\n    command: [sh, -c, %q]\n", images.Tools, noting+"note init")+diaryMount+
		noted("s2", always)+"  containers:\n"+noted("main"))
	p := n.awaitReady("p")
	if s := status(p, "init"); s.State.Terminated == nil || s.State.Terminated.Reason != "Completed" || !s.Ready {
		t.Errorf("the init container is shown as %+v", s)
	}
	harness.Eventually(t, 10*time.Second, "all have started", func() error {
		// The last sidecar and the container after it run side by side.
		if got := d.notes(t); !strings.HasSuffix(got, "s2 main") && !strings.HasSuffix(got, "main s2") {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	before := d.notes(t)
	if !strings.HasPrefix(before, "s1 s1-up init ") {
		t.Errorf("they started as %q", before)
	}
	n.remove("p.yaml")
	n.awaitGone("p")
	if got := strings.TrimPrefix(d.notes(t), before); got != " main-end s2-end s1-end" {
		t.Errorf("they ended as %q", got)
	}
}

func TestACrashingContainer(t *testing.T) {
	n := start(t, quick)
	n.write("p.yaml", podText("p", "echo last words; exit 3", "    terminationMessagePolicy: FallbackToLogsOnError\n"))
	p := n.await("p", "restarted and waiting", func(p *v1.Pod) bool {
		s := status(p, "main")
		return s.RestartCount >= 2 && s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff"
	})
	s := status(p, "main")
	want := fmt.Sprintf("back-off 2s restarting failed container=main pod=p_default(%s)", p.UID)
	if s.RestartCount == 2 && s.State.Waiting.Message != want {
		t.Errorf("it waits: %q", s.State.Waiting.Message)
	}
	last := s.LastTerminationState.Terminated
	if last == nil || last.ExitCode != 3 || last.Reason != "Error" || last.Message != "last words\n" {
		t.Errorf("its last state is %+v", last)
	}
	if p.Status.Phase != v1.PodRunning || isReady(p) {
		t.Errorf("the pod is %s", p.Status.Phase)
	}
	if all := n.containers("p"); len(all) > 3 {
		t.Errorf("%d containers are kept", len(all))
	}
	// Its counts go on with the next daemon, and so does the back-off.
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	n.await("p", "restarted once more", func(p *v1.Pod) bool { return status(p, "main").RestartCount >= s.RestartCount+1 })
}

func TestPodsThatEnd(t *testing.T) {
	n := start(t)
	for _, c := range []struct {
		name, policy, script string
		phase                v1.PodPhase
		reason, message      string
		code                 int32
	}{
		{"good", "Never", "echo done > /dev/termination-log", v1.PodSucceeded, "Completed", "done\n", 0},
		{"bad", "Never", "exit 4", v1.PodFailed, "Error", "", 4},
		{"done", "OnFailure", "true", v1.PodSucceeded, "Completed", "", 0},
	} {
		n.write(c.name+".yaml", podText(c.name, c.script)+"  restartPolicy: "+c.policy+"\n")
		p := n.awaitPhase(c.name, c.phase)
		e := status(p, "main").State.Terminated
		if e == nil || e.Reason != c.reason || e.ExitCode != c.code || e.Message != c.message {
			t.Errorf("%s ended as %+v", c.name, e)
		}
		if isReady(p) {
			t.Errorf("%s is ready", c.name)
		}
	}
	ids := map[string]string{}
	for _, p := range n.pods() {
		ids[p.Name] = status(p, "main").ContainerID
	}
	n.Restart(t)
	time.Sleep(time.Second) // what must not happen has no event
	for _, p := range n.pods() {
		if s := status(p, "main"); s.ContainerID != ids[p.Name] || s.RestartCount != 0 {
			t.Errorf("%s ran again with the next daemon", p.Name)
		}
	}
}

func TestActiveDeadline(t *testing.T) {
	n := start(t)
	n.write("p.yaml", podText("p", sleeper)+"  activeDeadlineSeconds: 2\n")
	p := n.awaitPhase("p", v1.PodFailed)
	if p.Status.Reason != "DeadlineExceeded" || p.Status.Message != "Pod was active on the node longer than the specified deadline" {
		t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
	}
	harness.Eventually(t, 20*time.Second, "nothing runs", func() error {
		if s := status(n.pod("p"), "main"); s.State.Terminated == nil {
			return fmt.Errorf("%+v", s.State)
		}
		return nil
	})
}

func TestHooks(t *testing.T) {
	n, d := start(t, quick), newDiary(t)
	hook := func(event, script string) string {
		return fmt.Sprintf("      %s: {exec: {command: [sh, -c, %q]}}\n", event, script)
	}
	n.write("p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"+d.volume()+"  containers:\n"+
		noted("a", "    lifecycle:\n", hook("postStart", noting+"until grep a /diary/notes; do sleep 0.1; done; sleep 0.5; note hook"), hook("preStop", noting+"note stop"))+noted("b"))
	n.awaitReady("p")
	d.await(t, "a hook b")
	n.remove("p.yaml")
	n.awaitGone("p")
	if got := d.notes(t); !strings.Contains(got, "stop a-end") && !strings.Contains(got, "stop b-end a-end") && !strings.Contains(got, "b-end stop a-end") {
		t.Errorf("the hook did not come before the signal: %q", got)
	}
	n.write("q.yaml", podText("q", sleeper, "    lifecycle: {postStart: {exec: {command: ['false']}}}\n"))
	n.await("q", "without its hook", func(p *v1.Pod) bool {
		w := status(p, "main").State.Waiting
		return w != nil && (w.Reason == "PostStartHookError" || w.Reason == "CrashLoopBackOff")
	})
}

func TestImagesThatAreNotThere(t *testing.T) {
	n := start(t, quick)
	text := podText("p", sleeper)
	n.write("p.yaml", strings.Replace(text, images.Tools, images.Tools+"-nothing", 1))
	uid := n.await("p", "waiting for an image", func(p *v1.Pod) bool {
		w := status(p, "main").State.Waiting
		return w != nil && w.Reason == "ImagePullBackOff" && strings.Contains(w.Message, "ErrImagePull: ")
	}).UID
	n.write("never.yaml", strings.Replace(podText("never", sleeper, "    imagePullPolicy: Never\n"), images.Tools, images.Tools+"-nothing", 1))
	n.await("never", "without an image", func(p *v1.Pod) bool {
		w := status(p, "main").State.Waiting
		return w != nil && w.Reason == "ErrImageNeverPull"
	})
	n.write("p.yaml", text) // which is an edit in place
	if p := n.awaitReady("p"); p.UID != uid || p.Generation != 2 || p.Status.ObservedGeneration != 2 {
		t.Errorf("uid %s became %s, generation %d", uid, p.UID, p.Generation)
	}
}

func TestObjectsThatComeLater(t *testing.T) {
	n := start(t)
	n.write("p.yaml", podText("p", sleeper, "    envFrom: [{configMapRef: {name: c}}]\n"))
	n.await("p", "without its environment", func(p *v1.Pod) bool {
		w := status(p, "main").State.Waiting
		return w != nil && w.Reason == "CreateContainerConfigError" && w.Message == `configmap "c" not found`
	})
	n.write("c.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {key: value}\n")
	n.awaitReady("p")
}
