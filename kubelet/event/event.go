// Package event keeps the events of the node: what happened to its pods, in the words that "kubectl get events" shows. They
// are counted, combined and held back as client-go's recorder does it, so that a pod that fails all the time fills neither
// the store nor the log.
package event

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-node/berth/kubelet/feed"
)

// maxEvents bounds what is kept. The start of a pod makes four or five.
const maxEvents = 2000

// Config is what a Store needs. All fields but File are required.
type Config struct {
	Node string // this node's name
	// File is where events are kept for the next daemon; "" is nowhere.
	File string
	Log  *slog.Logger
	Now  func() time.Time
}

// A Store is the last events. It is safe for concurrent use, and its methods return at once.
type Store struct {
	cfg    Config
	source v1.EventSource
	events *feed.Feed[*v1.Event]

	mu         sync.Mutex
	correlator *correlator
	kept       int // in events
	serial     int64
	journal    *journal // nil without a file, and when the store is closed
	failed     bool     // the journal's last line could not be written
}

// Open returns a store with the events that an earlier one left in the file. That they cannot be had is no reason to have none.
func Open(c Config) *Store {
	now := c.Now()
	s := &Store{
		cfg: c, source: v1.EventSource{Component: "kubelet", Host: c.Node},
		events:     feed.New[*v1.Event](uint64(now.UnixMicro()), maxEvents/4),
		correlator: newCorrelator(),
	}
	if c.File == "" {
		return s
	}
	j, kept, err := openJournal(c.File)
	if err != nil {
		c.Log.Warn("the events of the daemon before are not all there, ignoring", "err", err)
	}
	for _, e := range kept {
		s.correlator.remember(e)
		s.put(e)
	}
	s.journal = j
	return s
}

// Close leaves the file to the next store. What happens from now on is not in it.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal != nil {
		s.journal.close()
		s.journal = nil
	}
}

// sorted returns the events, the oldest first.
func (s *Store) sorted() []*v1.Event {
	all, _ := s.events.List()
	slices.SortStableFunc(all, byTime)
	return all
}

func byTime(a, b *v1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) }

// note writes the event into the file. Of many that cannot be written one is told.
func (s *Store) note(e *v1.Event) {
	if s.journal == nil {
		return
	}
	err := s.journal.add(e)
	if err == nil && s.journal.lines > maxLines {
		err = s.journal.rewrite(s.sorted())
	}
	if err != nil && !s.failed {
		s.cfg.Log.Warn("events cannot be kept for the next daemon, ignoring", "err", err)
	}
	s.failed = err != nil
}

// Feed is the table of what is kept.
func (s *Store) Feed() *feed.Feed[*v1.Event] { return s.events }

// Eventf is Record with a format.
func (s *Store) Eventf(about *v1.ObjectReference, eventType, reason, format string, args ...any) {
	s.Record(about, eventType, reason, fmt.Sprintf(format, args...))
}

// Record notes what happened. eventType is v1.EventTypeNormal or v1.EventTypeWarning.
func (s *Store) Record(about *v1.ObjectReference, eventType, reason, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	e, pass := s.correlator.correlate(s.newEvent(about, eventType, reason, message, now), now)
	if !pass {
		return
	}
	s.put(e)
	s.note(e)
	level := slog.LevelInfo
	if eventType == v1.EventTypeWarning {
		level = slog.LevelWarn
	}
	s.cfg.Log.Log(context.Background(), level, "event", "object", about.Kind+" "+about.Namespace+"/"+about.Name,
		"field", about.FieldPath, "reason", reason, "message", e.Message, "count", e.Count)
}

func (s *Store) newEvent(about *v1.ObjectReference, eventType, reason, message string, now time.Time) *v1.Event {
	namespace := cmp.Or(about.Namespace, metav1.NamespaceDefault)
	// Two in one tick of the clock are two events.
	s.serial = max(s.serial+1, now.UnixNano())
	t := metav1.NewTime(now)
	return &v1.Event{
		TypeMeta:       metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%v.%x", about.Name, s.serial), Namespace: namespace, CreationTimestamp: t},
		InvolvedObject: *about, Type: eventType, Reason: reason, Message: message,
		FirstTimestamp: t, LastTimestamp: t, Count: 1,
		Source: s.source, ReportingController: s.source.Component, ReportingInstance: s.source.Host,
	}
}

// put adds the event, or replaces the one whose occurrences it counts on.
func (s *Store) put(e *v1.Event) {
	if _, again := s.events.Get(e.Namespace, e.Name); !again {
		s.kept++
	}
	s.events.Put(e)
	if s.kept <= maxEvents {
		return
	}
	// Some more go than must, so that the next ones need not look for the oldest again.
	for _, old := range s.sorted()[:maxEvents/8] {
		s.events.Delete(old.Namespace, old.Name)
		s.kept--
	}
}

// About refers to a pod, as the object of an event.
func About(pod *v1.Pod) *v1.ObjectReference {
	return &v1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion}
}

// AboutContainer refers to a container of a pod, of whatever sort it is.
func AboutContainer(pod *v1.Pod, container string) *v1.ObjectReference {
	ref := About(pod)
	ref.FieldPath = fieldPath(pod, container)
	return ref
}

func fieldPath(pod *v1.Pod, container string) string {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == container {
			return "spec.initContainers{" + container + "}"
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == container {
			return "spec.ephemeralContainers{" + container + "}"
		}
	}
	return "spec.containers{" + container + "}"
}
