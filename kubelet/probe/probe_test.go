package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

var errBroken = errors.New("the node is broken")

// A bench has one container, whose probes are commands: the first word of each says how it goes.
type bench struct {
	t       *testing.T
	manager *Manager
	pod     *v1.Pod
	began   time.Time

	mu     sync.Mutex
	answer map[string]func(n int) (int32, error) // by command, n counts from 0
	asked  map[string][]time.Duration
	events []string
	told   int
}

func newBench(t *testing.T, c v1.Container) *bench {
	b := &bench{t: t, pod: &v1.Pod{}, began: time.Now(), answer: map[string]func(int) (int32, error){}, asked: map[string][]time.Duration{}}
	b.pod.UID, b.pod.Name = "uid", "pod"
	c.Name = "app"
	b.pod.Spec.Containers = []v1.Container{c}
	b.manager = New(Config{Exec: b.exec, Log: slog.New(slog.DiscardHandler),
		Changed: func(uid types.UID) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.told++
		},
		Event: func(_ *v1.Pod, c *v1.Container, eventType, reason, message string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, strings.Join([]string{c.Name, eventType, reason, message}, " "))
		}})
	t.Cleanup(b.manager.Close)
	return b
}

func (b *bench) exec(ctx context.Context, id string, command []string, timeout time.Duration) ([]byte, int32, error) {
	b.mu.Lock()
	name := command[0]
	n := len(b.asked[name])
	b.asked[name] = append(b.asked[name], time.Since(b.began))
	answer := b.answer[name]
	b.mu.Unlock()
	if answer == nil {
		return nil, 0, nil
	}
	status, err := answer(n)
	return []byte("words"), status, err
}

func (b *bench) run(id string) {
	b.manager.Set("uid", false, Target{Pod: b.pod, Container: &b.pod.Spec.Containers[0], ID: id, StartedAt: time.Now()})
}

// want fails unless this is what is known of a container after so much time.
func (b *bench) want(after time.Duration, id string, want Result) {
	b.t.Helper()
	time.Sleep(after - time.Since(b.began))
	synctest.Wait()
	got, ok := b.manager.Result("uid", id)
	if !ok || got != want {
		b.t.Errorf("after %s: %+v (%v), want %+v", after, got, ok, want)
	}
}

func (b *bench) wantAsked(command string, want ...time.Duration) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if fmt.Sprint(b.asked[command]) != fmt.Sprint(want) {
		b.t.Errorf("%s was asked at %v, want %v", command, b.asked[command], want)
	}
}

func probeOf(command string, initial, period, success, failure int32) *v1.Probe {
	return &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{command}}},
		TimeoutSeconds: 1, InitialDelaySeconds: initial, PeriodSeconds: period, SuccessThreshold: success, FailureThreshold: failure}
}

// outcomes answers by exit codes, the last of which stays.
func outcomes(codes ...int32) func(int) (int32, error) {
	return func(n int) (int32, error) {
		return codes[min(n, len(codes)-1)], nil
	}
}

const second = time.Second

func TestNoProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{})
		b.run("1")
		b.want(0, "1", Result{Started: true, Ready: true})
		b.manager.Set("uid", false)
		if _, ok := b.manager.Result("uid", "1"); ok {
			t.Error("a container that is gone is still known")
		}
		if len(b.manager.pods) != 0 {
			t.Error("a pod without containers is still there")
		}
	})
}

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{ReadinessProbe: probeOf("ready", 0, 5, 2, 2)})
		b.answer["ready"] = outcomes(1, 0, 0, 1, 0, 1, 1, 0)
		b.run("1")
		b.want(0, "1", Result{Started: true})
		b.want(5*second, "1", Result{Started: true}) // one success of two
		b.want(10*second, "1", Result{Started: true, Ready: true})
		b.want(20*second, "1", Result{Started: true, Ready: true}) // one failure of two, and success again
		b.want(30*second, "1", Result{Started: true})
		b.want(40*second, "1", Result{Started: true, Ready: true})
		if b.told != 3 {
			t.Errorf("told of %d changes, want 3", b.told)
		}
		want := "app Warning Unhealthy Readiness probe failed: words"
		if len(b.events) != 4 || b.events[0] != want {
			t.Errorf("events %q, want 4 times %q", b.events, want)
		}
	})
}

func TestInitialDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{ReadinessProbe: probeOf("ready", 3, 10, 1, 3), LivenessProbe: probeOf("live", 15, 10, 1, 3)})
		b.run("1")
		b.want(2*second, "1", Result{Started: true})
		b.want(3*second, "1", Result{Started: true, Ready: true})
		b.want(30*second, "1", Result{Started: true, Ready: true})
		b.wantAsked("ready", 3*second, 13*second, 23*second)
		b.wantAsked("live", 15*second, 25*second)
	})
}

func TestLivenessWaitsAPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{LivenessProbe: probeOf("live", 0, 10, 1, 2)})
		b.answer["live"] = outcomes(1, 0, 1, 1, 1)
		b.run("1")
		b.want(35*second, "1", Result{Started: true, Ready: true})
		b.want(40*second, "1", Result{Started: true, Ready: true, Failed: Liveness})
		b.want(90*second, "1", Result{Started: true, Ready: true, Failed: Liveness})
		b.wantAsked("live", 10*second, 20*second, 30*second, 40*second) // and no more until there is another container
		b.answer["live"] = nil
		b.run("2")
		b.want(120*second, "2", Result{Started: true, Ready: true})
		if _, ok := b.manager.Result("uid", "1"); ok {
			t.Error("the container before is still known")
		}
	})
}

func TestStartup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{StartupProbe: probeOf("start", 0, 10, 1, 3), ReadinessProbe: probeOf("ready", 0, 10, 1, 3), LivenessProbe: probeOf("live", 0, 10, 1, 3)})
		b.answer["start"] = outcomes(1, 1, 1, 0)
		b.run("1")
		b.want(29*second, "1", Result{})
		b.want(30*second, "1", Result{Started: true, Ready: true})
		b.want(55*second, "1", Result{Started: true, Ready: true})
		b.wantAsked("start", 0, 10*second, 20*second, 30*second)
		b.wantAsked("ready", 30*second, 40*second, 50*second)
		b.wantAsked("live", 40*second, 50*second)
	})
}

// The failure of the early probe does not count: the threshold is reached when a kubelet's is.
func TestStartupFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{StartupProbe: probeOf("start", 0, 10, 1, 2), LivenessProbe: probeOf("live", 0, 1, 1, 1)})
		b.answer["start"] = outcomes(1)
		b.run("1")
		b.want(19*second, "1", Result{})
		b.want(20*second, "1", Result{Failed: Startup})
		b.want(60*second, "1", Result{Failed: Startup})
		b.wantAsked("start", 0, 10*second, 20*second)
		b.wantAsked("live")
	})
}

// What could not be asked counts neither way, after three attempts.
func TestProbeErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{LivenessProbe: probeOf("live", 0, 10, 1, 2)})
		b.answer["live"] = func(n int) (int32, error) {
			if n == 0 || n == 4 {
				return 1, nil
			}
			return 0, errBroken
		}
		b.run("1")
		b.want(29*second, "1", Result{Started: true, Ready: true})
		b.want(30*second, "1", Result{Started: true, Ready: true, Failed: Liveness})
		b.wantAsked("live", 10*second, 20*second, 20*second, 20*second, 30*second)
		want := "app Warning Unhealthy Liveness probe errored and resulted in unknown state: the node is broken"
		if len(b.events) != 3 || b.events[1] != want {
			t.Errorf("events %q, want %q in the middle", b.events, want)
		}
	})
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{ReadinessProbe: probeOf("ready", 0, 10, 1, 1)})
		b.answer["ready"] = func(int) (int32, error) {
			return 0, fmt.Errorf("exec: %w", context.DeadlineExceeded)
		}
		b.run("1")
		b.want(0, "1", Result{Started: true})
		want := `app Warning Unhealthy Readiness probe failed: command timed out: "ready" timed out after 1s`
		if len(b.events) != 1 || b.events[0] != want {
			t.Errorf("events %q, want %q", b.events, want)
		}
	})
}

// A probe that takes longer than its period is followed at once, and not by all that were missed.
func TestSlowProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{ReadinessProbe: probeOf("ready", 0, 2, 1, 3)})
		b.answer["ready"] = func(n int) (int32, error) {
			if n == 1 {
				time.Sleep(7 * second)
			}
			return 0, nil
		}
		b.run("1")
		b.want(14*second, "1", Result{Started: true, Ready: true})
		b.wantAsked("ready", 0, 2*second, 9*second, 11*second, 13*second)
	})
}

// While a pod is terminating only readiness is asked for, and a failure before is kept.
func TestTerminating(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{LivenessProbe: probeOf("live", 0, 1, 1, 1), ReadinessProbe: probeOf("ready", 0, 1, 1, 1)})
		b.answer["ready"] = outcomes(0, 0, 0, 1)
		b.run("1")
		b.want(1500*time.Millisecond, "1", Result{Started: true, Ready: true})
		b.mu.Lock() // it is asked for all the while
		b.answer["live"] = outcomes(1)
		b.mu.Unlock()
		b.manager.Set("uid", true, Target{Pod: b.pod, Container: &b.pod.Spec.Containers[0], ID: "1", StartedAt: b.began})
		b.want(3500*time.Millisecond, "1", Result{Started: true})
		b.wantAsked("live", 1*second)
	})
}

// A container that was ready before the daemon was started again stays so until its probe says otherwise, and its first probe comes
// within one period.
func TestSeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{StartupProbe: probeOf("start", 0, 10, 1, 3), ReadinessProbe: probeOf("ready", 0, 10, 1, 2), LivenessProbe: probeOf("live", 0, 10, 1, 2)})
		b.answer["ready"] = outcomes(1)
		b.manager.Seed("1", Result{Started: true, Ready: true})
		b.run("1")
		b.want(9*second, "1", Result{Started: true, Ready: true})
		b.want(20*second, "1", Result{Started: true})
		b.wantAsked("start")
		if n := len(b.asked["live"]); n != 2 {
			t.Errorf("liveness was asked for %d times in 20 s, want 2", n)
		}
		// The next container begins as any other.
		b.run("2")
		b.want(20*second, "2", Result{Started: true})
		b.wantAsked("start", 20*second)
	})
}

// What a probe says of a container that is gone meanwhile is nobody's.
func TestGoneMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, v1.Container{ReadinessProbe: probeOf("ready", 0, 10, 1, 1)})
		b.answer["ready"] = func(int) (int32, error) {
			time.Sleep(3 * second)
			return 1, nil
		}
		b.run("1")
		time.Sleep(second)
		b.manager.Set("uid", false)
		time.Sleep(20 * second)
		b.wantAsked("ready", 0)
		if len(b.events) > 0 || b.told > 0 {
			t.Errorf("events %q, told %d times", b.events, b.told)
		}
	})
}

func TestVariablesOfCommands(t *testing.T) {
	got := expand([]string{"$(A)", "$$(A)", "$(B)", "$(MISSING)"}, []v1.EnvVar{{Name: "A", Value: "a"}, {Name: "B", ValueFrom: &v1.EnvVarSource{}}})
	if want := []string{"a", "$(A)", "", "$(MISSING)"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q, want %q", got, want)
	}
}
