package plan

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

const begun = `prepare
	mount
	pull a
	make sandbox #0
	start a #-1`

func TestAPodStarts(t *testing.T) {
	w := newWorld(t, pod(container("a"), container("b"))).settle().said(`
		prepare
		mount
		pull a
		pull b
		make sandbox #0
		start a #-1
		start b #-1`)
	w.shows("Running; a running ready; b running ready")
	if s := w.last.Status; s.PodIP != "10.0.0.9" || len(s.PodIPs) != 2 || s.HostIP != "192.0.2.1" || !w.last.Again.IsZero() {
		t.Errorf("%+v, again %v", s, w.last.Again)
	}
}

func TestImagesArePulledBesideEverything(t *testing.T) {
	w := newWorld(t, pod(container("a"), container("b")))
	w.slow = []string{"pull", "mount"}
	w.settle().said("prepare\nmount\npull a\npull b\nmake sandbox #0").shows("Pending; a ContainerCreating; b ContainerCreating; not Ready ContainersReady")
	w.finish("pull b").finish("mount").said("") // b waits for its turn
	w.finish("pull a").said("start a #-1\nstart b #-1")
}

func TestInitContainersRunOneAfterTheOther(t *testing.T) {
	w := newWorld(t, withInit(pod(container("a")), container("i"), container("j"))).settle()
	w.said("prepare\nmount\npull i\npull j\npull a\nmake sandbox #0\nstart i #-1")
	w.shows("Pending; i running; j PodInitializing; a PodInitializing; not Initialized Ready ContainersReady")
	w.exit("i", 0).said("-- i0 exits with 0\nstart j #-1")
	w.exit("j", 1).said("-- j0 exits with 1\npull j\nstart j #1")
	w.exit("j", 0).said("-- j1 exits with 0\nstart a #-1")
	w.shows("Running; i Completed 0 ready; j Completed 0 ready #1 last Error 1; a running ready")
}

func TestAFailedInitContainerIsTheEndOfAPodThatNeverRestarts(t *testing.T) {
	p := withInit(pod(container("a")), container("i"))
	p.Spec.RestartPolicy = v1.RestartPolicyNever
	w := newWorld(t, p).settle()
	w.log = nil
	w.exit("i", 3).said("-- i0 exits with 3\nstop sandbox s0\ntear down")
	w.shows("Failed; i Error 3; a PodInitializing; not PodReadyToStartContainers Initialized Ready ContainersReady")
}

func TestSidecars(t *testing.T) {
	s := sidecar("s")
	s.StartupProbe = &v1.Probe{}
	w := newWorld(t, withInit(pod(container("a")), s, container("i"), sidecar("z"))).settle()
	w.said("prepare\nmount\npull s\npull i\npull z\npull a\nmake sandbox #0\nstart s #-1")
	w.change("s", func(c *Container) { c.Probes = Probes{Started: true, Ready: true} }).said("start i #-1")
	w.exit("i", 0).said("-- i0 exits with 0\nstart z #-1\nstart a #-1")
	w.shows("Running; s running ready; i Completed 0 ready; z running ready; a running ready")
	w.exit("s", 1).said("-- s0 exits with 1\npull s\nstart s #1")
	w.slow = []string{"stop"}
	w.delete(30).said(`-- deleted
		(Killing Stopping container s)
		(Killing Stopping container a)
		(Killing Stopping container z)
		stop a0`)
	w.finish("stop a0").said("stop z0")
	w.finish("stop z0").said("stop s1")
	w.finish("stop s1").said("stop sandbox s0")
	w.finish("stop sandbox s0").said("tear down\nremove sandbox s0\nerase")
	if !w.last.Gone {
		t.Error("it is not gone")
	}
}

func TestSidecarsStopInOrderEvenIfGraceRanOut(t *testing.T) {
	w := newWorld(t, withInit(pod(container("a")), sidecar("s"))).settle()
	w.slow, w.log = []string{"stop"}, nil
	w.delete(5).said("-- deleted\n(Killing Stopping container a)\n(Killing Stopping container s)\nstop a0")
	w.after().said("-- 5s\nstop s0")
}

func TestSidecarsDoNotKeepAPodAlive(t *testing.T) {
	p := withInit(pod(container("a")), sidecar("s"))
	p.Spec.RestartPolicy = v1.RestartPolicyNever
	w := newWorld(t, p).settle()
	w.log = nil
	w.exit("a", 0).said("-- a0 exits with 0\n(Killing Stopping container s)\nstop s0\nstop sandbox s0\ntear down")
	w.shows("Succeeded; s Error 143; a Completed 0; not PodReadyToStartContainers Ready ContainersReady")
}

func TestCrashLoopBackOff(t *testing.T) {
	w := newWorld(t, pod(container("a"))).settle().said(begun)
	w.exit("a", 1).said("-- a0 exits with 1\npull a\nstart a #1")
	const told = "(BackOff Back-off restarting failed container a in pod p_default(uid))"
	w.exit("a", 1).said("-- a1 exits with 1\n" + told)
	w.shows("Running; a CrashLoopBackOff #1 last Error 1; not Ready ContainersReady")
	w.message("a", "back-off 10s restarting failed container=a pod=p_default(uid)")
	w.after().said("-- 10s\npull a\nstart a #2\nremove container a0")
	w.exit("a", 1).message("a", "back-off 20s restarting failed container=a pod=p_default(uid)").said("-- a2 exits with 1\n" + told)
	w.after().said("-- 30s\npull a\nstart a #3\nremove container a1")
	for _, delay := range []string{"40s", "1m20s", "2m40s", "5m0s", "5m0s"} {
		w.exit("a", 1).message("a", "back-off "+delay+" restarting failed container=a pod=p_default(uid)").after()
	}
	w.log = nil
	w.now = w.now.Add(9 * time.Minute) // it had run for less than ten
	w.exit("a", 1).message("a", "back-off 5m0s restarting failed container=a pod=p_default(uid)").after()
	w.now = w.now.Add(11 * time.Minute)
	w.log = nil
	w.exit("a", 1).said("-- a9 exits with 1\npull a\nstart a #10\nremove container a8")
	w.exit("a", 1).message("a", "back-off 10s restarting failed container=a pod=p_default(uid)")
	w.pod.Spec.Containers[0].Image = "image:b"
	w.log = nil
	w.settle().said("pull a\nstart a #11\nremove container a9")
}

func TestRestartPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		policy v1.RestartPolicy
		code   int32
		want   string
		shows  string
	}{
		"never, failed":      {v1.RestartPolicyNever, 2, "stop sandbox s0\ntear down", "Failed; a Error 2; not PodReadyToStartContainers Ready ContainersReady"},
		"never, completed":   {v1.RestartPolicyNever, 0, "stop sandbox s0\ntear down", "Succeeded; a Completed 0; not PodReadyToStartContainers Ready ContainersReady"},
		"failure, failed":    {v1.RestartPolicyOnFailure, 2, "pull a\nstart a #1", "Running; a running ready #1 last Error 2"},
		"failure, completed": {v1.RestartPolicyOnFailure, 0, "stop sandbox s0\ntear down", "Succeeded; a Completed 0; not PodReadyToStartContainers Ready ContainersReady"},
		"always, completed":  {v1.RestartPolicyAlways, 0, "pull a\nstart a #1", "Running; a running ready #1 last Completed 0"},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod(container("a"))
			p.Spec.RestartPolicy = c.policy
			w := newWorld(t, p).settle().exit("a", c.code)
			w.log = w.log[6:]
			w.said(c.want).shows(c.shows)
		})
	}
}

func TestRestartRules(t *testing.T) {
	c := container("a")
	never := v1.ContainerRestartPolicyNever
	c.RestartPolicy = &never
	c.RestartPolicyRules = []v1.ContainerRestartRule{{
		Action:    v1.ContainerRestartRuleActionRestart,
		ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
	}}
	w := newWorld(t, pod(c)).settle()
	w.log = nil
	w.exit("a", 42).said("-- a0 exits with 42\npull a\nstart a #1")
	w.exit("a", 1).said("-- a1 exits with 1\nstop sandbox s0\ntear down")
	w.shows("Failed; a Error 1 #1 last Error 42; not PodReadyToStartContainers Ready ContainersReady")
}

func TestAllContainersRestart(t *testing.T) {
	c := container("a")
	never := v1.ContainerRestartPolicyNever
	c.RestartPolicy = &never
	c.RestartPolicyRules = []v1.ContainerRestartRule{{
		Action:    v1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
	}}
	w := newWorld(t, withInit(pod(c, container("b")), container("i"))).settle().exit("i", 0)
	w.log = nil
	w.exit("a", 42).said(`-- a0 exits with 42
		(Killing Stopping container b)
		stop b0
		remove container i0
		remove container a0
		remove container b0
		pull i
		pull a
		pull b
		start i #-1`)
	w.exit("i", 0).shows("Running; i Completed 0 ready #1 last RestartingAllContainers 137; a running ready #1 last RestartingAllContainers 137; b running ready #1 last RestartingAllContainers 137; not AllContainersRestarting")
}

func TestAPullThatFails(t *testing.T) {
	w := newWorld(t, pod(container("a"), container("b")))
	w.fail["pull a"] = Result{Err: errors.New("no"), Reason: "ErrImagePull", Message: "no such thing"}
	w.settle().said("prepare\nmount\npull a\npull b\nmake sandbox #0\nstart b #-1")
	w.shows("Pending; a ErrImagePull; b running ready; not Ready ContainersReady").message("a", "no such thing")
	const told = "(BackOff Back-off pulling image \"image:a\")\n(Failed Error: ImagePullBackOff)"
	w.after().said("-- 1s\n"+told).message("a", `Back-off pulling image "image:a": ErrImagePull: no such thing`)
	w.after().said("-- 10s\npull a").after().said("-- 11s\n" + told)
	w.after().said("-- 30s\npull a")
	delete(w.fail, "pull a")
	w.after().after().shows("Running; a running ready; b running ready")
}

func TestAContainerThatCannotBeMade(t *testing.T) {
	w := newWorld(t, pod(container("a"), container("b")))
	w.fail["start a #-1"] = Result{Err: errors.New("no"), Reason: "CreateContainerConfigError", Message: `configmap "c" not found`}
	w.settle().said("prepare\nmount\npull a\npull b\nmake sandbox #0\nstart a #-1\nstart b #-1")
	w.shows("Pending; a CreateContainerConfigError; b running ready; not Ready ContainersReady").message("a", `configmap "c" not found`)
	w.after().said("-- 10s\npull a\nstart a #-1")
	delete(w.fail, "start a #-1")
	w.o.Memory = w.o.Memory.Hurry() // the config map came
	w.settle().said("pull a\nstart a #-1")
}

func TestPostStart(t *testing.T) {
	c := container("a")
	c.Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{}}
	w := newWorld(t, pod(c, container("b")))
	w.slow = []string{"post-start"}
	w.settle().said("prepare\nmount\npull a\npull b\nmake sandbox #0\nstart a #-1\npost-start a a0")
	w.shows("Pending; a ContainerCreating; b ContainerCreating; not Ready ContainersReady")
	w.fail["post-start a a0"] = Result{Err: errors.New("no"), Reason: "PostStartHookError", Message: "hook failed"}
	w.finish("post-start a a0").said("(Killing FailedPostStartHook)\nstop a0\npull a\nstart a #1\npost-start a a1")
	w.shows("Pending; a PostStartHookError last Error 143; b ContainerCreating; not Ready ContainersReady")
	w.finish("post-start a a1").said("start b #-1").shows("Running; a running ready #1 last Error 143; b running ready")
}

func TestPreStopAndGraceThatOnlyShrinks(t *testing.T) {
	c := container("a")
	c.Lifecycle = &v1.Lifecycle{PreStop: &v1.LifecycleHandler{}}
	w := newWorld(t, pod(c)).settle()
	w.slow, w.log = []string{"pre-stop", "stop a"}, nil
	w.delete(60).said("-- deleted\n(Killing Stopping container a)\npre-stop a a0")
	w.now = w.now.Add(10 * time.Second)
	w.delete(90).said("-- deleted")
	if by := w.o.Memory.Stops["a0"].By; !by.Equal(epoch.Add(time.Minute)) {
		t.Errorf("the longer grace counts: %v", by)
	}
	w.delete(5).said("-- deleted\npre-stop a a0") // until earlier
	w.after().said("-- 15s\nstop a0")
	w.finish("stop a0").said("stop sandbox s0\ntear down\nremove sandbox s0\nerase")
}

func TestAProbeThatFails(t *testing.T) {
	c, grace := container("a"), int64(7)
	c.LivenessProbe = &v1.Probe{TerminationGracePeriodSeconds: &grace}
	w := newWorld(t, pod(c)).settle()
	w.slow, w.log = []string{"stop a"}, nil
	w.change("a", func(c *Container) { c.Probes.FailedLiveness = true }).said("(Killing Container a failed liveness probe, will be restarted)\nstop a0")
	if by := w.o.Busy["stop a0"].By; !by.Equal(epoch.Add(7 * time.Second)) {
		t.Errorf("the grace of the probe does not count: %v", by)
	}
	w.finish("stop a0").said("pull a\nstart a #1")
}

func TestAnEditOfTheImage(t *testing.T) {
	w := newWorld(t, pod(container("a"))).settle()
	w.log = nil
	w.pod.Spec.Containers[0].Image = "image:2"
	w.pod.Generation = 2
	w.settle().said("(Killing Container a definition changed, will be restarted)\nstop a0\npull a\nstart a #1").shows("Running; a running ready #1 last Error 143")
}

func TestUnknownContainersAreKilledFirst(t *testing.T) {
	w := newWorld(t, pod(container("a"))).settle()
	w.slow, w.log = []string{"stop a"}, nil
	w.change("a", func(c *Container) { c.State = Unknown }).said("(Killing Container is in \"unknown\" state, try killing it before restart)\nstop a0")
	w.finish("stop a0").said("pull a\nstart a #1")
}

// It is shown as upstream does, and stays so until another one has begun. In a pod that never restarts there is none.
func TestUnknownContainersAreShownAsFailed(t *testing.T) {
	for policy, want := range map[v1.RestartPolicy]string{
		v1.RestartPolicyAlways: "(Killing Container is in \"unknown\" state, try killing it before restart)\nstop a0",
		v1.RestartPolicyNever:  "(Killing Stopping container a)\nstop a0",
	} {
		t.Run(string(policy), func(t *testing.T) {
			p := pod(container("a"))
			p.Spec.RestartPolicy = policy
			w := newWorld(t, p).settle()
			w.slow, w.log = []string{"stop a"}, nil
			w.change("a", func(c *Container) { c.State = Unknown }).said(want)
			unknown := "Running; a ContainerStatusUnknown 137 #1; not Ready ContainersReady"
			if policy == v1.RestartPolicyNever {
				unknown = strings.Replace(unknown, "Running", "Failed", 1)
			}
			w.shows(unknown)
			w.settle().shows(unknown)
			if got := w.last.Status.ContainerStatuses[0].State.Terminated.Message; got != "The container could not be located when the pod was terminated" {
				t.Errorf("it says %q", got)
			}
			// Whoever kills it removes it.
			w.happen(Action{Kind: RemoveContainer, ID: "a0"})
			if policy == v1.RestartPolicyNever {
				w.finish("stop a0").said("stop sandbox s0\ntear down").shows("Failed; a ContainerStatusUnknown 137 #1; not PodReadyToStartContainers Ready ContainersReady")
				return
			}
			w.finish("stop a0").said("pull a\nstart a #-1").shows("Running; a running ready #1")
		})
	}
}

func TestReboot(t *testing.T) {
	w := newWorld(t, withInit(pod(container("a")), sidecar("s"), container("i"))).settle().exit("i", 0)
	w.exit("a", 1)
	w.log = nil
	w.reboot().said(`-- reboot
		prepare
		mount
		make sandbox #1
		pull s
		start s #1
		pull i
		start i #1`)
	w.shows("Pending; s running ready #1 last Error 255; i running #1 last Completed 0; a Error 255 #1 last Error 1; not Ready ContainersReady")
	w.exit("i", 0).said("-- i1 exits with 0\n(BackOff Back-off restarting failed container a in pod p_default(uid))")
	w.after().said("-- 10s\npull a\nstart a #2\nremove container a0")
}

func TestAPodThatNeverRestartsEndsWithTheMachine(t *testing.T) {
	p := pod(container("a"))
	p.Spec.RestartPolicy = v1.RestartPolicyNever
	w := newWorld(t, p).settle()
	w.log = nil
	w.reboot().said("-- reboot\ntear down").shows("Failed; a Error 255; not PodReadyToStartContainers Ready ContainersReady")
}

func TestActiveDeadline(t *testing.T) {
	p := pod(container("a"))
	deadline := int64(60)
	p.Spec.ActiveDeadlineSeconds = &deadline
	w := newWorld(t, p).settle()
	w.log = nil
	w.after().said(`-- 1m0s
		(DeadlineExceeded Pod was active on the node longer than the specified deadline)
		(Killing Stopping container a)
		stop a0
		stop sandbox s0
		tear down`)
	w.shows("Failed DeadlineExceeded; a Error 143; not PodReadyToStartContainers Ready ContainersReady")
}

func TestAnEndInTheMiddleOfTheStart(t *testing.T) {
	w := newWorld(t, pod(container("a")))
	w.slow = []string{"pull", "make sandbox"}
	w.settle()
	w.log = nil
	w.delete(30).said("-- deleted\ncancel pull a")
	w.slow = nil
	w.finish("make sandbox #0").said("stop sandbox s0\ntear down\nremove sandbox s0\nerase")
	w.shows("Failed; a ContainerStatusUnknown 137; not PodReadyToStartContainers Ready ContainersReady")
}

func TestASandboxThatFailsIsTriedAgain(t *testing.T) {
	w := newWorld(t, pod(container("a")))
	w.fail["make sandbox #0"] = Result{Err: errors.New("no network")}
	w.settle().said("prepare\nmount\npull a\nmake sandbox #0").after().said("-- 500ms\nmake sandbox #0").after().said("-- 1.5s\nmake sandbox #0")
	delete(w.fail, "make sandbox #0")
	w.after().said("-- 3.5s\nmake sandbox #0\nstart a #-1")
}

func TestASandboxThatIsGoneIsMadeAnew(t *testing.T) {
	w := newWorld(t, pod(container("a"))).settle()
	w.log = nil
	w.o.Sandboxes[0].Ready = false
	w.settle().said(`
		(Killing Stopping container a)
		stop a0
		make sandbox #1
		pull a
		start a #1`)
}

func TestEphemeralContainers(t *testing.T) {
	w := newWorld(t, pod(container("a"))).settle()
	w.log = nil
	w.pod.Spec.EphemeralContainers = []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "e", Image: "image:e"}}}
	w.settle().said("pull e\nstart e #-1").exit("e", 1).said("-- e0 exits with 1")
	w.shows("Running; a running ready; e Error 1")
}

func TestAContainerRestartsWhereSomebodyWantsIt(t *testing.T) {
	p := pod(container("a"))
	p.Spec.RestartPolicy = v1.RestartPolicyNever
	w := newWorld(t, p).settle()
	w.log = nil
	w.o.Memory.Restart("a", "a0", nil)
	w.settle().said("(Killing Container a is restarted as requested)\nstop a0\npull a\nstart a #1").shows("Running; a running ready #1 last Error 143")
	w.exit("a", 0).shows("Succeeded; a Completed 0 #1 last Error 143; not PodReadyToStartContainers Ready ContainersReady")
}

func TestARejectedPodHasNothing(t *testing.T) {
	w := newWorld(t, withInit(pod(container("a")), container("i")))
	w.o.Memory.Finish(End{Since: w.now, Phase: v1.PodFailed, Reason: "OutOfcpu", Message: Rejected + "Node didn't have enough resource: cpu"})
	w.settle().said("tear down").shows("Failed OutOfcpu")
	w.o.Memory.Finish(End{Since: w.now, Remove: true})
	w.settle().said("erase").shows("Failed OutOfcpu")
	if !w.last.Gone {
		t.Error("it is not gone")
	}
}

// What a pod ends for and what its disruption says are two sentences, as upstream has it with preemption.
func TestADisruptionHasWordsOfItsOwn(t *testing.T) {
	w := newWorld(t, pod(container("a"))).settle()
	w.o.Memory.Finish(End{Since: w.now, Phase: v1.PodFailed, Reason: Preempting, Message: "for another one", Disruption: "to make room"})
	w.settle().shows("Failed Preempting; a Error 143; not PodReadyToStartContainers Ready ContainersReady")
	if !slices.ContainsFunc(w.last.Status.Conditions, func(c v1.PodCondition) bool {
		return c.Type == v1.DisruptionTarget && c.Reason == v1.PodReasonTerminationByKubelet && c.Message == "to make room"
	}) {
		t.Errorf("the conditions are %+v", w.last.Status.Conditions)
	}
}

// A grace that is said later counts if it is shorter than the pod's own, if nothing else was said before.
func TestALongerGraceThanThePods(t *testing.T) {
	w := newWorld(t, pod(container("a"))).settle()
	w.slow = []string{"stop a"}
	for _, c := range []struct {
		said *int64
		want int64
	}{{nil, 30}, {new(int64(90)), 30}, {new(int64(20)), 20}, {nil, 20}, {new(int64(25)), 20}} {
		m := w.o.Memory.clone()
		m.Finish(End{Since: w.now, Grace: c.said, Remove: true})
		w.o.Memory = m
		w.settle()
		if got := *w.o.Memory.End.Grace; got != c.want {
			t.Errorf("the grace is %d, want %d", got, c.want)
		}
	}
}

// A status that says the same is the same, also after it was written and read: its times are whole seconds, and its parts in order. What
// others say of the pod stays.
func TestTheSameStatusAgain(t *testing.T) {
	c := container("b")
	c.ReadinessProbe = &v1.Probe{}
	w := newWorld(t, pod(c, container("a")))
	w.now = epoch.Add(123456789)
	w.o.Previous.Conditions = []v1.PodCondition{{Type: "example.org/Seen", Status: v1.ConditionTrue}}
	w.settle()
	for range 3 {
		text, err := json.Marshal(w.last.Status)
		if err != nil {
			t.Fatal(err)
		}
		var read v1.PodStatus
		if err := json.Unmarshal(text, &read); err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(read, w.last.Status) {
			t.Fatalf("what was written as\n%+v\nis read as\n%+v", w.last.Status, read)
		}
		w.now = w.now.Add(1111111111)
		w.o.Previous = read
		slices.Reverse(w.o.Containers)
		if again := Next(w.pod, w.o, w.now).Status; !equality.Semantic.DeepEqual(again, read) {
			t.Errorf("it is\n%+v\nand was\n%+v", again, read)
		}
	}
	if s := w.last.Status; s.ContainerStatuses[0].Name != "a" || !slices.ContainsFunc(s.Conditions, func(c v1.PodCondition) bool { return c.Type == "example.org/Seen" }) {
		t.Errorf("%+v", s)
	}
}

// A pod keeps its addresses when its sandbox is gone; one on the host's network keeps the first, and may get one of the other family.
func TestAddressesStay(t *testing.T) {
	w := newWorld(t, pod(container("a")))
	w.pod.Spec.RestartPolicy = v1.RestartPolicyNever
	w.settle().exit("a", 0)
	if s := w.last.Status; w.o.Sandboxes[0].Ready || s.PodIP != "10.0.0.9" || len(s.PodIPs) != 2 {
		t.Errorf("%+v", s)
	}
	w = newWorld(t, pod(container("a")))
	w.pod.Spec.HostNetwork, w.o.HostIPs = true, []string{"192.0.2.1"}
	for _, c := range []struct{ host, want []string }{
		{[]string{"192.0.2.1"}, []string{"192.0.2.1"}},
		{[]string{"192.0.2.1", "2001:db8::1"}, []string{"192.0.2.1", "2001:db8::1"}},
		{[]string{"192.0.2.99", "2001:db8::99"}, []string{"192.0.2.1", "2001:db8::1"}},
	} {
		w.o.HostIPs = c.host
		w.settle()
		var got []string
		for _, ip := range w.last.Status.PodIPs {
			got = append(got, ip.IP)
		}
		if !slices.Equal(got, c.want) || w.last.Status.PodIP != c.want[0] {
			t.Errorf("on a host of %v it has %v, want %v", c.host, got, c.want)
		}
	}
}

// A pod that is over stays so, whatever becomes of what is left of it.
func TestThereIsNoWayBack(t *testing.T) {
	w := newWorld(t, pod(container("a")))
	w.pod.Spec.RestartPolicy = v1.RestartPolicyNever
	const over = "Succeeded; a Completed 0; not PodReadyToStartContainers Ready ContainersReady"
	w.settle().exit("a", 0).shows(over)
	w.log = nil
	w.reboot().shows(over)
	w.o.Containers = nil // somebody removed it
	w.settle().shows(over)
	w.settle().shows(over).said("-- reboot")
	// It is the phase that counts: by its containers this one would run again.
	w = newWorld(t, pod(container("a")))
	w.pod.Spec.ActiveDeadlineSeconds = new(int64(60))
	w.settle().after()
	w.o.Memory, w.log = Memory{}, nil
	w.pod.Spec.ActiveDeadlineSeconds = nil
	w.settle().said("").shows("Failed DeadlineExceeded; a Error 143; not PodReadyToStartContainers Ready ContainersReady")
}
