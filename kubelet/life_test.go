package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/runtime"
)

func TestALife(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.apply(onePod)
		d.after(10)
		d.happened(`
			0s: make cgroup
			1s: pull a:1; run sandbox #0
			3s: create a #0
			4s: start a #0`)
		d.shows("Running ready; a running")
		d.exit("a", 1)
		d.after(10)
		d.exit("a", 0)
		d.after(5)
		d.shows("Running; a CrashLoopBackOff #1")
		d.after(15)
		d.happened(`
			10s: -- a exits with 1; create a #1
			11s: start a #1
			20s: (BackOff Back-off restarting failed container a in pod p_default(uid)); -- a exits with 0
			30s: create a #2
			31s: remove a #0; start a #2`)
		d.delete(30)
		d.shows("Running ready; a running #2")
		d.after(10)
		d.happened(`
			40s: (Killing Stopping container a); -- deleted; stop a in 30s
			41s: stop sandbox
			42s: remove cgroup
			43s: remove sandbox`)
		d.isGone()
	})
}

const (
	initAndSidecar = `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 20
  initContainers:
  - {name: s, image: "s:1", restartPolicy: Always}
  - {name: i, image: "i:1"}
  containers:
  - {name: a, image: "a:1", lifecycle: {preStop: {exec: {command: [bye]}}}}
`
)

func TestALifeWithInitContainers(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.apply(initAndSidecar)
		d.after(10)
		d.shows("Pending; s running; i running; a PodInitializing")
		d.exit("i", 0)
		d.after(10)
		d.shows("Running ready; s running; i Completed 0; a running")
		d.exit("s", 3)
		d.after(10)
		d.happened(`
			0s: make cgroup
			1s: pull a:1; pull i:1; pull s:1; run sandbox #0
			3s: create s #0
			4s: start s #0
			5s: create i #0
			6s: start i #0
			10s: -- i exits with 0; create a #0
			11s: start a #0
			20s: -- s exits with 3; create s #1
			21s: start s #1`)
		d.hooks["bye"] = func(ctx context.Context) (int32, error) {
			return 0, d.call(ctx, 5*time.Second, "hook")
		}
		d.deaf["s"] = true
		d.delete(12)
		d.after(20)
		d.happened(`
			30s: (Killing Stopping container a); (Killing Stopping container s); -- deleted; hook
			35s: stop a in 7s
			36s: stop s in 6s
			42s: stop sandbox
			43s: remove cgroup
			44s: remove sandbox`)
		d.isGone()
	})
}

// An edit that changes the pod makes another one, when nothing is left of the one before; only the last of several begins. One that
// comes while its pod ends is for the next.
func TestLivesOneAfterTheOther(t *testing.T) {
	inBubble(t, func(d *daemon) {
		edited := func(n int) string {
			return strings.Replace(onePod, `"a:1"`, fmt.Sprintf(`"a:%d", command: [c%d]`, n, n), 1)
		}
		d.apply(edited(1))
		d.after(10)
		clear(d.said)
		d.deaf["a"] = true
		d.apply(edited(2))
		d.after(1)
		d.apply(edited(3))
		d.after(60)
		d.happened(`
			10s: (Killing Stopping container a); stop a in 30s
			40s: stop sandbox
			41s: remove cgroup
			42s: remove sandbox
			43s: make cgroup
			44s: pull a:3; run sandbox #0
			46s: create a #0
			47s: start a #0`)
		d.shows("Running ready; a running")
		// What can be changed in place is.
		d.deaf["a"] = false
		d.apply(strings.Replace(edited(3), "a:3", "a:4", 1))
		d.after(10)
		d.happened(`
			1m11s: (Killing Container a definition changed, will be restarted); stop a in 30s
			1m12s: pull a:4
			1m13s: create a #1
			1m14s: start a #1`)
		d.shows("Running ready; a running #1")
	})
}

// A pod that is declared again while it ends begins anew at its end, and a shorter grace ends the wait.
func TestDeletedAndDeclaredAgain(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.deaf["a"] = true
		d.apply(onePod)
		d.after(10)
		clear(d.said)
		d.delete(600)
		d.apply(onePod)
		d.after(5)
		if _, err := d.k.DeletePod(d.t.Context(), "default", "p", DeleteOptions{Grace: new(int64(3))}); err != nil {
			t.Fatal(err)
		}
		d.apply(onePod)
		d.after(20)
		d.happened(`
			10s: (Killing Stopping container a); -- deleted; stop a in 10m0s
			15s: stop a in 3s
			18s: stop sandbox
			19s: remove cgroup
			20s: remove sandbox
			21s: make cgroup
			22s: run sandbox #0
			24s: create a #0
			25s: start a #0`)
		d.shows("Running ready; a running")
	})
}

// Whatever does not succeed is tried again, later each time, and the pod gets where it should be.
func TestWhatFailsIsTriedAgain(t *testing.T) {
	for call, want := range map[string]string{
		"make cgroup":    "0s 1.5s 3.5s 6.5s",
		"pull a:1":       "1s 12s 33s 1m14s",
		"run sandbox #0": "1s 3.5s 6.5s 10.5s",
		"create a #0":    "3s 14s 25s 36s",
		"start a #0":     "4s 16s 28s 40s",
		"stop a":         "2m0s 2m0.5s 2m1.5s 2m3.5s",
		"stop sandbox":   "2m1s 2m2.5s 2m4.5s 2m7.5s",
		"remove cgroup":  "2m2s 2m3.5s 2m5.5s 2m8.5s",
		"remove sandbox": "2m3s 2m4.5s 2m6.5s 2m9.5s",
	} {
		t.Run(call, func(t *testing.T) {
			inBubble(t, func(d *daemon) {
				d.refuse(call, 3)
				d.apply(onePod)
				d.after(120)
				d.shows("Running ready; a running")
				d.delete(5)
				d.after(60)
				var at []string
				for line := range strings.Lines(d.transcript()) {
					if when, what, _ := strings.Cut(strings.TrimSpace(line), ": "); slices.ContainsFunc(strings.Split(what, "; "), func(what string) bool { return kindOf(what) == call }) {
						at = append(at, when)
					}
				}
				if got := strings.Join(at, " "); got != want {
					t.Errorf("it was tried at %s, want %s\n%s", got, want, d.transcript())
				}
				d.isGone()
			})
		})
	}
}

// A container that does not start is another one each time, and what is said of it is the same.
func TestAFailedStartIsSaidInTheSameWords(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.fail["start a #0"] = &failure{2, func() error {
			d.mu.Lock()
			defer d.mu.Unlock()
			for id := range d.containers {
				if d.containers[id].State != runtime.Exited {
					return fmt.Errorf("start container %s: there is no such program", id)
				}
			}
			return errdefs.ErrNotFound
		}}
		d.apply(onePod)
		d.after(60)
		if got := strings.Count(d.transcript(), "(Failed Error: start container a: there is no such program)"); got != 2 {
			t.Errorf("%d times in\n%s", got, d.transcript())
		}
	})
}

// A fault in what is done for one pod is that of the action alone, which is tried again.
func TestAPanicIsAFailure(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.fail["run sandbox #0"] = &failure{1, func() error { panic("a fault of ours") }}
		d.apply(onePod)
		d.after(10)
		d.shows("Running ready; a running")
	})
}

// Events that were missed are made up for by looking.
func TestMissedEvents(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.apply(onePod)
		d.after(10)
		clear(d.said)
		d.mu.Lock()
		for e := range d.subs {
			e.lose = true
		}
		d.mu.Unlock()
		d.exit("a", 1)
		d.after(10)
		d.exit("a", 1) // which it hears of
		d.after(15)
		d.happened(`
			10s: -- a exits with 1; create a #1
			11s: start a #1
			20s: (BackOff Back-off restarting failed container a in pod p_default(uid)); -- a exits with 1
			30s: create a #2
			31s: remove a #0; start a #2`)
	})
}

// A container of which nobody knows whether it runs is killed, with whatever is in its cgroup, before another one begins.
func TestAnUnknownContainer(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.apply(onePod)
		d.after(10)
		clear(d.said)
		d.change("a", func(c *fakeContainer) {
			c.State = runtime.Unknown
			d.tell(c.SandboxID, runtime.EventStopped)
		})
		d.shows("Running; a ContainerStatusUnknown 137 #1")
		d.after(10)
		d.happened(`
			10s: (Killing Container is in "unknown" state, try killing it before restart); remove a #0
			11s: create a #1
			12s: start a #1`)
		d.shows("Running ready; a running #1")
		p, _ := d.k.pods.Get("default", "p")
		if last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.Reason != "ContainerStatusUnknown" {
			d.t.Errorf("its last state is %+v", last)
		}
	})
}

// A restart of the daemon neither ends nor changes anything: no pod becomes unready, no startup probe begins again, no container
// begins anew. What ended meanwhile is not taken for ready because its predecessor was.
func TestReadinessOutlivesTheDaemon(t *testing.T) {
	inBubble(t, func(d *daemon) {
		const probe = `periodSeconds: 5, exec: {command: [%s]}`
		d.apply(strings.NewReplacer(
			`"a:1"`, `"a:1", readinessProbe: {`+fmt.Sprintf(probe, "ready")+`}`,
			`containers:`, `initContainers: [{name: s, image: "s:1", restartPolicy: Always, startupProbe: {`+fmt.Sprintf(probe, "started")+`}}]`+"\n  containers:",
		).Replace(onePod))
		d.after(20)
		d.shows("Running ready; s running; a running")
		clear(d.said)
		before, _ := d.k.pods.Get("default", "p")
		for _, command := range []string{"ready", "started"} {
			d.hooks[command] = func(ctx context.Context) (int32, error) { return 0, d.call(ctx, 3*time.Second, "probe %s", command) }
		}
		d.restart()
		d.after(2)
		d.shows("Running ready; s running; a running")
		if after, _ := d.k.pods.Get("default", "p"); after.UID != before.UID || !equality.Semantic.DeepEqual(after.Status, before.Status) {
			d.t.Errorf("it was shown as %+v, and is shown as %+v", before.Status, after.Status)
		}
		d.after(10)
		if strings.Contains(d.transcript(), "probe started") || !strings.Contains(d.transcript(), "probe ready") {
			d.t.Errorf("what happened:\n%s", d.transcript())
		}
		d.stop()
		d.exit("a", 1)
		d.hooks["ready"] = func(context.Context) (int32, error) { return 1, nil }
		d.begin()
		d.after(10)
		d.shows("Running; s running; a running #1")
	})
}

// A container that the daemon finds only later, since its record was damaged and was repaired, is as ready as it was.
func TestAContainerThatIsFoundLater(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.apply(strings.Replace(onePod, `"a:1"`, `"a:1", readinessProbe: {periodSeconds: 5, exec: {command: [ready]}}`, 1))
		d.after(20)
		d.shows("Running ready; a running")
		d.stop()
		sandboxes, containers := d.sandboxes, d.containers
		d.sandboxes, d.containers = map[string]*runtime.Sandbox{}, map[string]*fakeContainer{}
		d.refuse("run sandbox #0", 1) // it must not run twice
		d.begin()
		d.after(3.25) // when nothing else is being done that would wake the worker
		d.shows("Running; a ContainerCreating #1")
		d.mu.Lock()
		d.sandboxes, d.containers = sandboxes, containers
		d.tell("s1", runtime.EventCreated)
		d.mu.Unlock()
		d.after(20)
		d.shows("Running ready; a running #1")
	})
}

// Who runs is not asked again whether he may: not by the next daemon, and not by an edit in place. Beside whom a pod is to fit are those
// that run and those that end, however soon, but neither who was refused nor who has ended.
func TestAdmission(t *testing.T) {
	inBubble(t, func(d *daemon) {
		named := func(name, more string) string { return strings.Replace(onePod, "name: p", "name: "+name, 1) + more }
		var asked []string
		d.admit = func(pod *v1.Pod, others []*v1.Pod) *Refusal {
			beside := []string{pod.Name + ":"}
			for _, o := range others {
				beside = append(beside, o.Name)
			}
			slices.Sort(beside[1:])
			d.mu.Lock()
			defer d.mu.Unlock()
			asked = append(asked, strings.Join(beside, " "))
			if pod.Name == "big" {
				return &Refusal{"OutOfcpu", "Node didn't have enough resource: cpu"}
			}
			return nil
		}
		said := func(want string) {
			d.t.Helper()
			d.mu.Lock()
			defer d.mu.Unlock()
			// Who was refused is asked about as often as he is looked at.
			if got := strings.Join(slices.Compact(asked), "; "); got != want {
				d.t.Errorf("asked: %s, want %s", got, want)
			}
			asked = nil
		}
		d.restart()
		d.apply(onePod)
		d.apply(named("done", "  restartPolicy: Never\n"))
		d.apply(named("big", ""))
		d.after(10)
		said("p:; done: p; big: done p")
		d.mu.Lock()
		for _, c := range d.containers {
			if d.sandboxes[c.SandboxID].Config.Metadata.Name == "done" {
				d.end(c, 0)
			}
		}
		d.mu.Unlock()
		d.after(5)
		said("big: p") // since done has left what it had
		d.restart()
		d.apply(strings.Replace(onePod, "a:1", "a:2", 1))
		d.after(10)
		said("big: p")
		d.shows("Running ready; a running #1")
		d.deaf["a"] = true
		if _, err := d.k.DeletePod(d.t.Context(), "default", "p", DeleteOptions{Grace: new(int64)}); err != nil {
			d.t.Fatal(err)
		}
		synctest.Wait()
		d.apply(named("late", ""))
		said("late: p")
		d.after(10)
	})
}

// What a daemon waits for, the next one goes on waiting for: a back-off, and a grace.
func TestTheNextDaemonWaitsOn(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.apply(onePod)
		d.after(10)
		d.exit("a", 1)
		d.after(10)
		d.exit("a", 1)
		d.after(5)
		clear(d.said)
		d.restart()
		d.after(15)
		d.deaf["a"] = true
		d.delete(60)
		d.after(20)
		d.restart()
		d.after(60)
		d.happened(`
			25s: -- another daemon; make cgroup
			30s: create a #2
			31s: remove a #0; start a #2
			40s: (Killing Stopping container a); -- deleted; stop a in 1m0s
			1m0s: -- another daemon; stop a in 40s
			1m40s: stop sandbox
			1m41s: remove cgroup
			1m42s: remove sandbox`)
		d.isGone()
	})
}

// What has ended and has a successor, or was a pod's that is over, goes with its log and the link to it when there is need of room.
func TestDeadContainersGoWithTheirLogs(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.apply(onePod)
		d.after(10)
		d.exit("a", 1)
		d.after(10)
		logs := func() (found []string) {
			for _, pattern := range []string{d.logs + "/*/*/*.log", d.logs + "-links/*.log"} {
				all, err := filepath.Glob(pattern)
				if err != nil {
					d.t.Fatal(err)
				}
				for _, path := range all {
					found = append(found, filepath.Base(path))
				}
			}
			return found
		}
		if got, want := fmt.Sprint(logs()), "[0.log 1.log p_default_a-c2.log p_default_a-c3.log]"; got != want {
			d.t.Errorf("there are %s, want %s", got, want)
		}
		remove := func() {
			if err := d.k.RemoveDead(d.t.Context()); err != nil {
				d.t.Error(err)
			}
			synctest.Wait()
		}
		remove()
		if got, want := fmt.Sprint(logs()), "[1.log p_default_a-c3.log]"; got != want {
			d.t.Errorf("there are %s, want %s", got, want)
		}
		d.shows("Running ready; a running #1")
		d.delete(1)
		d.after(10)
		d.apply(onePod + "  restartPolicy: Never\n")
		d.after(10)
		d.exit("a", 0)
		d.after(10)
		remove()
		if got := logs(); len(got) > 0 {
			d.t.Errorf("there are %q", got)
		}
		d.shows("Succeeded; a Completed 0")
		d.delete(1)
		d.after(10)
		d.isGone()
	})
}

// What a pod writes to its hosts file and as its last words takes room as all else that it writes.
func TestFilesTakeRoom(t *testing.T) {
	inBubble(t, func(d *daemon) {
		d.apply(onePod)
		d.after(10)
		pod, _ := d.k.pods.Get("default", "p")
		before, err := d.k.Files(pod)
		if err != nil || before.Inodes != 4 { // two folders, two files
			d.t.Errorf("%+v, %v", before, err)
		}
		dir := d.k.store.podDir(pod.UID)
		words, err := filepath.Glob(filepath.Join(podspec.TerminationDir(dir, "a"), "*"))
		if err != nil || len(words) != 1 {
			d.t.Fatal(words, err)
		}
		for _, path := range []string{words[0], filepath.Join(dir, podspec.HostsFile)} {
			if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
				d.t.Fatal(err)
			}
		}
		if after, err := d.k.Files(pod); err != nil || after.Bytes-before.Bytes < 2<<20-8<<10 || after.Inodes != 4 {
			d.t.Errorf("%+v, %v", after, err)
		}
	})
}

// A drain ends the pods, and none begins; the next daemon begins them.
func TestDrain(t *testing.T) {
	inBubble(t, func(d *daemon) {
		critical := strings.NewReplacer("name: p", "name: critical", "name: a", "name: c", "spec:", "spec:\n  priorityClassName: system-node-critical").Replace(onePod)
		d.deaf["a"] = true
		d.apply(onePod + "---" + critical)
		d.after(10)
		clear(d.said)
		var gone []string
		drained := make(chan error)
		go func() {
			drained <- d.k.Drain(d.t.Context(), 8*time.Second, func(text string) { gone = append(gone, text) })
		}()
		d.after(1)
		d.apply(strings.Replace(onePod, "name: p", "name: late", 1))
		d.after(20)
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if fmt.Sprint(gone) != "[removed pod default/p removed pod default/critical]" {
			t.Error(gone)
		}
		d.happened(`
			10s: (Killing Stopping container a); stop a in 8s
			18s: stop sandbox
			19s: remove cgroup
			20s: remove sandbox
			21s: (Killing Stopping container c); stop c in 8s
			22s: stop sandbox
			23s: remove cgroup
			24s: remove sandbox`)
		d.isGone()
		d.deaf["a"] = false
		d.restart()
		d.after(10)
		d.shows("Running ready; a running")
		if all, _ := d.k.pods.List(); len(all) != 3 {
			t.Errorf("%d pods", len(all))
		}
	})
}

// A daemon that is replaced at any moment of a pod's life, in the middle of a call or after it, whose outcome it has heard of or has
// not, changes nothing of that life.
func TestAnotherDaemonAtAnyMoment(t *testing.T) {
	for _, finishes := range []bool{false, true} {
		for half := range 60 {
			cut := time.Duration(half) * time.Second / 2
			if finishes && half%2 == 0 {
				continue // at these moments no call is under way
			}
			t.Run(fmt.Sprintf("%s, calls that go on: %v", cut, finishes), func(t *testing.T) {
				inBubble(t, func(d *daemon) {
					d.finishes = finishes
					d.apply(initAndSidecar)
					d.until("the init container runs", cut, d.runs("i", 0))
					d.exit("i", 0)
					d.until("the main container runs", cut, d.runs("a", 0))
					d.exit("a", 1)
					d.until("it runs again", cut, d.runs("a", 1))
					d.exit("a", 2)
					d.until("and again", cut, d.runs("a", 2))
					d.until("it is shown", cut, func() bool {
						p, _ := d.k.pods.Get("default", "p")
						return p != nil && p.Status.ContainerStatuses[0].State.Running != nil
					})
					d.shows("Running ready; s running; i Completed 0; a running #2")
					d.delete(5)
					d.until("it is gone", cut, func() bool {
						_, there := d.k.pods.Get("default", "p")
						return !there && len(d.sandboxes) == 0
					})
					d.isGone()
				})
			})
		}
	}
}
