package event

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

func newStage(t *testing.T) *stage { return stageOn(t, "") }

// stageOn is one whose events are in a file.
func stageOn(t *testing.T, file string) *stage {
	t.Helper()
	s := &stage{now: start}
	s.Store = Open(Config{Node: "node", File: file, Log: slog.New(slog.NewTextHandler(&s.log, nil)), Now: func() time.Time { return s.now }})
	t.Cleanup(s.Close)
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
	for _, e := range s.sorted() {
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
	first := s.sorted()[0]
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
	all := s.sorted()
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

// The daemon before ended in no order: its store was not closed.
func TestTheNextDaemonGoesOn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	before := stageOn(t, file)
	for range 3 {
		before.Record(About(testPod("p")), v1.EventTypeNormal, "Started", "started")
	}
	before.Record(About(testPod("q")), v1.EventTypeWarning, "Failed", "failed")
	after := stageOn(t, file)
	if got, want := after.shown(), "p Normal Started x3: started\nq Warning Failed x1: failed"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	after.now = start.Add(time.Hour)
	after.Record(About(testPod("p")), v1.EventTypeNormal, "Started", "started")
	if got, want := stageOn(t, file).shown(), "q Warning Failed x1: failed\np Normal Started x4: started"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestAClosedStoreLeavesTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	before := stageOn(t, file)
	before.Record(About(testPod("p")), v1.EventTypeNormal, "Started", "started")
	before.Close()
	before.Record(About(testPod("p")), v1.EventTypeNormal, "Killing", "late")
	if got, want := stageOn(t, file).shown(), "p Normal Started x1: started"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDamagedFiles(t *testing.T) {
	whole := `{"metadata":{"name":"a","namespace":"ns"},"involvedObject":{"name":"p"},"type":"Normal","reason":"Started","message":"m","count":2}` + "\n"
	for name, tt := range map[string]struct{ text, want string }{
		"empty":            {"", ""},
		"a torn line":      {whole + whole[:40], "p Normal Started x2: m"},
		"without its end":  {whole + strings.TrimSuffix(strings.Replace(whole, `"a"`, `"b"`, 1), "\n"), "p Normal Started x2: m"},
		"one in between":   {"\x00\x00\n" + whole, "p Normal Started x2: m"},
		"of another sort":  {`[{"metadata":{"name":"a"}}]`, ""},
		"an event no more": {"{}\n" + whole, "p Normal Started x2: m"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "events")
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			s := stageOn(t, file)
			if s.shown() != tt.want {
				t.Errorf("got %s, want %s", s.shown(), tt.want)
			}
			if said := strings.Contains(s.log.String(), "not all there"); said != (name != "empty") {
				t.Errorf("the log says %s", &s.log)
			}
			s.Record(About(testPod("next")), v1.EventTypeNormal, "Started", "m")
			next := stageOn(t, file)
			if want := strings.TrimPrefix(tt.want+"\nnext Normal Started x1: m", "\n"); next.shown() != want {
				t.Errorf("got %s, want %s", next.shown(), want)
			}
			if strings.Contains(next.log.String(), "WARN") {
				t.Errorf("it is damaged still: %s", &next.log)
			}
		})
	}
	t.Run("a folder in its place", func(t *testing.T) {
		s := stageOn(t, t.TempDir())
		s.Record(About(testPod("p")), v1.EventTypeNormal, "Started", "one")
		s.Record(About(testPod("p")), v1.EventTypeNormal, "Started", "two")
		if n := strings.Count(s.log.String(), "cannot be kept"); n != 1 || !strings.Contains(s.shown(), "two") {
			t.Errorf("%d warnings; %s", n, s.shown())
		}
	})
}

// What cannot be written whole must not spoil what is written next. A limit of the process stands in for a full disk.
func TestFullDisk(t *testing.T) {
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	file := filepath.Join(t.TempDir(), "events")
	s := stageOn(t, file)
	s.Record(About(testPod("p")), v1.EventTypeNormal, "Started", "one")
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(info.Size()) + 10, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	s.Record(About(testPod("p")), v1.EventTypeNormal, "Started", "two")
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	s.Record(About(testPod("p")), v1.EventTypeNormal, "Started", "three")
	next := stageOn(t, file)
	if want := "p Normal Started x1: one\np Normal Started x1: three"; next.shown() != want || strings.Contains(next.log.String(), "WARN") {
		t.Errorf("got %s, want %s\n%s", next.shown(), want, &next.log)
	}
}

func TestTheFileIsBounded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	s := stageOn(t, file)
	most := 0
	for i := range maxLines + 3*maxEvents {
		s.Record(About(testPod(fmt.Sprintf("p%d", i))), v1.EventTypeNormal, "Started", "started")
		s.now = s.now.Add(time.Second)
		most = max(most, s.journal.lines)
	}
	if most > maxLines+1 {
		t.Errorf("the file has had %d lines", most)
	}
	if got, want := stageOn(t, file).shown(), s.shown(); got != want {
		t.Errorf("kept are %d bytes of events, want %d", len(got), len(want))
	}
}

func BenchmarkRecord(b *testing.B) {
	s := Open(Config{Node: "node", File: filepath.Join(b.TempDir(), "events"), Log: slog.New(slog.DiscardHandler), Now: time.Now})
	defer s.Close()
	for i := 0; b.Loop(); i++ {
		s.Record(About(testPod(fmt.Sprintf("p%d", i))), v1.EventTypeNormal, "Started", "Container started")
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
	if all := s.sorted(); len(all) != 2 || all[0].Namespace != "default" {
		t.Errorf("got %v", all)
	}
}
