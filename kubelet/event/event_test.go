package event

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A stage is a store whose clock the test sets.
type stage struct {
	*Store
	now time.Time
	log bytes.Buffer
}

func newStage(t *testing.T, kept ...*v1.Event) *stage {
	t.Helper()
	s := &stage{now: start}
	s.Store = New(Config{Node: "node", Log: slog.New(slog.NewTextHandler(&s.log, nil)), Now: func() time.Time { return s.now }}, kept)
	return s
}

func testPod(name string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID("uid-" + name)},
		Spec: v1.PodSpec{
			InitContainers: []v1.Container{{Name: "init"}}, Containers: []v1.Container{{Name: "main"}},
			EphemeralContainers: []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "debug"}}},
		},
	}
}

// shown writes the events down, the oldest first.
func (s *stage) shown() string {
	var lines []string
	for _, e := range s.Kept() {
		lines = append(lines, fmt.Sprintf("%s %s %s x%d: %s", e.InvolvedObject.Name, e.Type, e.Reason, e.Count, e.Message))
	}
	return strings.Join(lines, "\n")
}

func TestTheSameIsCounted(t *testing.T) {
	s := newStage(t)
	pod := testPod("p")
	for range 3 {
		s.Eventf(AboutContainer(pod, "main"), v1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s", "main")
		s.now = s.now.Add(time.Minute)
	}
	s.Eventf(AboutContainer(pod, "init"), v1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s", "main")
	if got, want := s.shown(), "p Warning BackOff x3: Back-off restarting failed container main\np Warning BackOff x1: Back-off restarting failed container main"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	first := s.Kept()[0]
	if !first.FirstTimestamp.Equal(&metav1.Time{Time: start}) || !first.LastTimestamp.Equal(&metav1.Time{Time: start.Add(2 * time.Minute)}) {
		t.Errorf("from %s to %s", first.FirstTimestamp, first.LastTimestamp)
	}
	if first.InvolvedObject.UID != "uid-p" || first.InvolvedObject.FieldPath != "spec.containers{main}" || first.Source.Component != "kubelet" || first.Source.Host != "node" {
		t.Errorf("about %+v, from %+v", first.InvolvedObject, first.Source)
	}
	if got := strings.Count(s.log.String(), "level=WARN msg=event object=\"Pod ns/p\""); got != 4 {
		t.Errorf("%d of 4 were logged:\n%s", got, s.log.String())
	}
}

func TestSimilarOnesAreCombined(t *testing.T) {
	s := newStage(t)
	for i := range 15 {
		s.Eventf(About(testPod("p")), v1.EventTypeNormal, "Pulled", "image %d", i)
		s.now = s.now.Add(time.Second)
	}
	lines := strings.Split(s.shown(), "\n")
	if len(lines) != 10 || lines[8] != "p Normal Pulled x1: image 8" || lines[9] != "p Normal Pulled x6: (combined from similar events): image 14" {
		t.Errorf("got:\n%s", s.shown())
	}
	s.now = s.now.Add(similarInterval + time.Second)
	s.Eventf(About(testPod("p")), v1.EventTypeNormal, "Pulled", "image 99")
	if !strings.HasSuffix(s.shown(), "p Normal Pulled x1: image 99") {
		t.Errorf("after a pause:\n%s", s.shown())
	}
}

func TestOneObjectCannotFlood(t *testing.T) {
	s := newStage(t)
	for range 1000 {
		s.Record(About(testPod("noisy")), v1.EventTypeWarning, "Unhealthy", "probe failed")
	}
	s.Record(About(testPod("noisy")), v1.EventTypeNormal, "Killing", "of the other type")
	s.Record(About(testPod("quiet")), v1.EventTypeWarning, "Unhealthy", "probe failed")
	if got, want := strings.Count(s.log.String(), "\n"), burst+2; got != want {
		t.Errorf("%d lines were logged, want %d", got, want)
	}
	s.now = s.now.Add(refill)
	s.Record(About(testPod("noisy")), v1.EventTypeWarning, "Unhealthy", "probe failed")
	if !strings.Contains(s.shown(), "noisy Warning Unhealthy x1001: probe failed") {
		t.Errorf("what was held back is not counted:\n%s", s.shown())
	}
}

func TestTheOldestGo(t *testing.T) {
	s := newStage(t)
	for i := range 3 * maxEvents {
		s.Record(About(testPod(fmt.Sprintf("p%d", i))), v1.EventTypeNormal, "Started", "started")
		s.now = s.now.Add(time.Millisecond)
		if i%100 == 0 {
			s.Record(About(testPod("p0")), v1.EventTypeNormal, "Started", "again")
		}
	}
	all := s.Kept()
	if len(all) > maxEvents || len(all) < maxEvents*3/4 {
		t.Errorf("%d events are kept, of at most %d", len(all), maxEvents)
	}
	if newest := all[len(all)-1].InvolvedObject.Name; newest != fmt.Sprintf("p%d", 3*maxEvents-1) {
		t.Errorf("the newest is of %s", newest)
	}
	if s.kept != len(all) {
		t.Errorf("%d are counted, %d there", s.kept, len(all))
	}
}

func TestTheNextDaemonGoesOn(t *testing.T) {
	before := newStage(t)
	before.Record(About(testPod("p")), v1.EventTypeNormal, "Started", "started")
	after := newStage(t, before.Kept()...)
	after.now = start.Add(time.Hour)
	after.Record(About(testPod("p")), v1.EventTypeNormal, "Started", "started")
	if got, want := after.shown(), "p Normal Started x2: started"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestFieldPath(t *testing.T) {
	for container, want := range map[string]string{
		"init": "spec.initContainers{init}", "main": "spec.containers{main}", "debug": "spec.ephemeralContainers{debug}",
	} {
		if got := AboutContainer(testPod("p"), container).FieldPath; got != want {
			t.Errorf("%s: %s, want %s", container, got, want)
		}
	}
}

// Two objects without a namespace, such as the node, get theirs in the default one, as in a cluster.
func TestTheNodesNamespace(t *testing.T) {
	s := newStage(t)
	s.Record(&v1.ObjectReference{Kind: "Node", Name: "n"}, v1.EventTypeNormal, "Starting", "a")
	s.Record(&v1.ObjectReference{Kind: "Node", Name: "n"}, v1.EventTypeNormal, "NodeReady", "b")
	if all := s.Kept(); len(all) != 2 || all[0].Namespace != "default" {
		t.Errorf("got %v", all)
	}
}
