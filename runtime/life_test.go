package runtime

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/keeper"
)

// newKeeperless returns a Runtime whose keeper is away for good and whose cgroups cannot be opened: what would be killed
// shows up in the log.
func newKeeperless(t *testing.T) (*Runtime, *journal) {
	t.Helper()
	said := &journal{}
	host := &cgroups.Host{}
	oom, err := cgroups.NewOOMWatcher(host, slog.New(said))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Runtime{index: newIndex(), ctx: ctx, cancel: cancel, oom: oom, log: slog.New(said), cfg: Config{Cgroups: host}}
	r.keeper = newKeeperLink(KeeperConfig{}, r.log)
	if err := r.keeper.close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.end()
		r.work.Wait()
		if err := oom.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, said
}

// journal is a log that remembers what was said when.
type journal struct {
	mu    sync.Mutex
	lines []line
}

type line struct {
	at   time.Time
	text string
}

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }
func (j *journal) WithAttrs([]slog.Attr) slog.Handler       { return j }
func (j *journal) WithGroup(string) slog.Handler            { return j }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line{r.Time, r.Message})
	return nil
}

// when returns the times at which text was said.
func (j *journal) when(text string) []time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	var at []time.Time
	for _, l := range j.lines {
		if l.text == text {
			at = append(at, l.at)
		}
	}
	return at
}

const (
	notKilled   = "container could not be killed"
	notSignaled = "stop signal could not be sent, the container is killed at its deadline"
)

// runningContainer is on record and in the index, started.
func runningContainer(t *testing.T, r *Runtime) *container {
	t.Helper()
	c := newContainer(t.TempDir())
	c.record.ID, c.record.SandboxID = "c1", "s1"
	c.config = &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "app"}}
	if err := c.update(func(f *containerFacts) { f.MadeAt, f.StartedAt = time.Now(), time.Now() }); err != nil {
		t.Fatal(err)
	}
	r.index.addContainer(c)
	return c
}

func TestTheEarliestDeadlineOfSeveralStopsCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newKeeperless(t)
		c := runningContainer(t, r)
		begun := time.Now()
		var calls sync.WaitGroup
		for _, call := range []struct{ after, grace time.Duration }{
			{0, 30 * time.Second}, {5 * time.Second, 10 * time.Second}, {6 * time.Second, time.Minute},
		} {
			calls.Go(func() {
				time.Sleep(call.after)
				if err := r.StopContainer(context.Background(), c.id(), call.grace); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(14 * time.Second)
		if at := said.when(notKilled); len(at) > 0 {
			t.Errorf("killed %s after the first call", at[0].Sub(begun))
		}
		if by := c.factsNow().StopBy; !by.Equal(begun.Add(15 * time.Second)) {
			t.Errorf("the deadline on record is %s after the first call", by.Sub(begun))
		}
		time.Sleep(2 * time.Second)
		if at := said.when(notKilled); len(at) == 0 || at[0].Sub(begun) != 15*time.Second {
			t.Errorf("killed at %v, begun %v", at, begun)
		}
		if at := said.when(notSignaled); len(at) != 1 || at[0] != begun {
			t.Errorf("the stop signal was sent at %v, begun %v", at, begun)
		}
		r.finish(c, keeper.Exit{ID: c.id(), Code: 137, At: time.Now()})
		calls.Wait()
	})
}

func TestAStopWithoutGraceKillsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newKeeperless(t)
		c := runningContainer(t, r)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		begun := time.Now()
		if err := r.StopContainer(ctx, c.id(), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the call for a container that does not end: %v", err)
		}
		if at := said.when(notKilled); len(at) != 1 || at[0] != begun {
			t.Errorf("killed at %v, begun %v", at, begun)
		}
		if at := said.when(notSignaled); len(at) > 0 {
			t.Errorf("the stop signal was sent too")
		}
	})
}

// A container that has ended needs no kill at its deadline, and a further stop nothing at all.
func TestAStopEndsWithTheContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newKeeperless(t)
		c := runningContainer(t, r)
		stopped := make(chan error)
		go func() { stopped <- r.StopContainer(context.Background(), c.id(), time.Minute) }()
		time.Sleep(time.Second)
		r.finish(c, keeper.Exit{ID: c.id(), At: time.Now()})
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if err := r.StopContainer(context.Background(), c.id(), 0); err != nil {
			t.Errorf("stop of an exited container: %v", err)
		}
		if err := r.StopContainer(context.Background(), "nobody", 0); err != nil {
			t.Errorf("stop of a container that does not exist: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if at := said.when(notKilled); len(at) > 0 {
			t.Errorf("killed after its end: %v", at)
		}
	})
}

// A container that no kill ends is named, and does not hold up a drain for ever.
func TestADrainEndsAlsoWhereAContainerDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newKeeperless(t)
		sb := testSandbox("s1", "web")
		sb.dir, sb.facts.ReadyAt = t.TempDir(), time.Now()
		r.index.addSandbox(sb)
		c := runningContainer(t, r)
		if err := c.update(func(f *containerFacts) { f.Process.Pid = 1 }); err != nil {
			t.Fatal(err)
		}
		err := r.drainSandbox(context.Background(), sb, 10*time.Second)
		if err == nil || !strings.Contains(err.Error(), c.id()) {
			t.Errorf("got %v", err)
		}
	})
}

// eventTypes drains what a subscription has.
func eventTypes(s *Subscription) []EventType {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var types []EventType
	for {
		ev, err := s.Next(ctx)
		if err != nil {
			return types
		}
		types = append(types, ev.Type)
	}
}

func TestAnExitInTheMakingIsToldAfterTheCreation(t *testing.T) {
	r, _ := newKeeperless(t)
	sub := r.Subscribe()
	defer sub.Close()
	c := newContainer(t.TempDir())
	c.record.ID, c.record.SandboxID, c.making = "c1", "s1", true
	c.config = &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "app"}}
	r.index.addMaking(c)

	r.onExit(keeper.Exit{ID: "c1", Code: 3, At: time.Now()})
	if got := eventTypes(sub); len(got) > 0 || c.state() != Created {
		t.Errorf("before it was made it is %s, events %v", c.state(), got)
	}
	r.becomeVisible(c, time.Now())
	if got, want := eventTypes(sub), []EventType{EventCreated, EventStopped}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if f := c.factsNow(); f.state() != Exited || f.ExitCode != 3 {
		t.Errorf("facts %+v", f)
	}
}

// A container that could not be made, and whose undoing kills its init, was never there.
func TestTheExitOfAnUndoneContainerIsNothing(t *testing.T) {
	r, said := newKeeperless(t)
	sub := r.Subscribe()
	defer sub.Close()
	c := newContainer(t.TempDir() + "/gone")
	c.record.ID, c.making = "c1", true
	r.index.addMaking(c)
	exited, forget := r.exits.await("c1")
	defer forget()
	r.onExit(keeper.Exit{ID: "c1", Code: 137, At: time.Now()})
	select {
	case <-exited:
	default:
		t.Error("who waits for the exit was not told")
	}
	if got := eventTypes(sub); len(got) > 0 || len(said.lines) > 0 {
		t.Errorf("events %v, log %v", got, said.lines)
	}
}

func TestExitWaitersAreForgotten(t *testing.T) {
	var w exitWaiters
	_, forgetFirst := w.await("a")
	second, forgetSecond := w.await("a")
	forgetFirst()
	w.tell("b")
	select {
	case <-second:
		t.Error("told of somebody else's exit")
	default:
	}
	w.tell("a")
	<-second
	forgetSecond()
	if _, forget := w.await("c"); len(w.waiting) != 1 {
		t.Errorf("remembered: %v", w.waiting)
	} else if forget(); len(w.waiting) != 0 {
		t.Errorf("remembered: %v", w.waiting)
	}
}

// An exit is true also where there is no room for its record.
func TestAnExitThatCannotBeRecordedIsTrue(t *testing.T) {
	r, said := newKeeperless(t)
	c := runningContainer(t, r)
	c.dir += "/gone"
	r.finish(c, keeper.Exit{ID: c.id(), Code: 1, At: time.Now()})
	if f := c.factsNow(); f.state() != Exited || f.Reason != "Error" {
		t.Errorf("facts %+v", f)
	}
	if len(said.when("exit could not be recorded")) != 1 {
		t.Error("it was not said")
	}
}

// News that come while a record is deleted do not write into its folder: it could not be deleted then.
func TestNothingIsRecordedOfWhatIsErased(t *testing.T) {
	r, said := newKeeperless(t)
	sb := testSandbox("s1", "web")
	sb.dir = t.TempDir()
	c := runningContainer(t, r)
	if err := errors.Join(sb.erase(), c.erase()); err != nil {
		t.Fatal(err)
	}
	r.pauseExited(sb, time.Now())
	if err := r.beginStop(c, time.Hour); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("stop of a container that is being removed: %v", err)
	}
	for _, dir := range []string{sb.dir, c.dir} {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there (%v)", dir, err)
		}
	}
	if len(said.lines) > 0 {
		t.Errorf("log: %v", said.lines)
	}
}

func TestADrainedNodeTakesNoPods(t *testing.T) {
	r, _ := newKeeperless(t)
	if err := r.admission.shut(t.Context(), errDraining); err != nil {
		t.Fatal(err)
	}
	cfg := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}}
	if _, err := r.RunSandbox(t.Context(), cfg, "", OwnerCRI); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("RunSandbox on a drained node: %v", err)
	}
}

func TestAStoppedSandboxTakesNoContainers(t *testing.T) {
	r, _ := newKeeperless(t)
	sb := testSandbox("s1", "web")
	sb.facts.ReadyAt = time.Now()
	r.index.addSandbox(sb)
	if err := sb.creations.shut(t.Context(), sb.notReady()); err != nil {
		t.Fatal(err)
	}
	cfg := &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "app"}}
	if _, err := r.CreateContainer(t.Context(), "s1", cfg, nil); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("CreateContainer in a sandbox that stops: %v", err)
	}
}

func TestAClosedRuntimeBeginsNothing(t *testing.T) {
	r, _ := newKeeperless(t)
	r.end()
	r.background(func() { t.Error("it worked") })
	if _, err := join(t.Context(), r, "key", func() (string, error) { return "done", nil }); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("a call: %v", err)
	}
	r.work.Wait()
}

// A panic of work that calls share is the error of each of them, and a later call of the same kind runs.
func TestJoinedPanic(t *testing.T) {
	r, _ := newKeeperless(t)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			_, err := join(t.Context(), r, "key", func() (string, error) { panic("at the disco") })
			var p *errdefs.Panic
			if !errors.As(err, &p) || p.Value != "at the disco" || !strings.Contains(string(p.Stack), "TestJoinedPanic") {
				t.Errorf("got %v", err)
			}
		})
	}
	all.Wait()
	if got, err := join(t.Context(), r, "key", func() (string, error) { return "well", nil }); got != "well" || err != nil {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}
