package event

import (
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/lru"
)

// The numbers of client-go's recorder (tools/record/events_cache.go).
const (
	similarEvents   = 10               // from the tenth on that differ by their message alone, they are one
	similarInterval = 10 * time.Minute // unless there was none for so long
	burst           = 25               // events of one type about one object
	refill          = 5 * time.Minute  // for one more of them
	remembered      = 1024             // objects, reasons and messages; a cluster's recorder has 4096
)

// A correlator decides what becomes of an event: a new one, one more of an earlier one, or nothing.
type correlator struct {
	similar *lru.Cache // by object and reason: *similarity
	seen    *lru.Cache // by all that tells events apart: sighting
	buckets *lru.Cache // by object and type: *bucket
}

// A similarity is the messages that came for one reason.
type similarity struct {
	messages map[string]bool
	last     time.Time
}

// A sighting is the last occurrence of an event.
type sighting struct {
	name  string
	count int32
	first metav1.Time
}

func newCorrelator() *correlator {
	return &correlator{similar: lru.New(remembered), seen: lru.New(remembered), buckets: lru.New(remembered)}
}

// correlate returns the event to be stored. It is false for one too many.
func (c *correlator) correlate(e *v1.Event, now time.Time) (*v1.Event, bool) {
	key := c.combine(e, now)
	c.count(e, key)
	return e, c.bucket(e, now).take(now)
}

// combine makes an event that is one of many similar ones say so, and returns the key under which it is counted.
func (c *correlator) combine(e *v1.Event, now time.Time) string {
	key := reasonKey(e)
	var s *similarity
	if known, ok := c.similar.Get(key); ok {
		s = known.(*similarity)
	}
	if s == nil || now.Sub(s.last) > similarInterval {
		s = &similarity{messages: map[string]bool{}}
		c.similar.Add(key, s)
	}
	s.last = now
	if len(s.messages) < similarEvents {
		s.messages[e.Message] = true
	}
	if len(s.messages) < similarEvents {
		return messageKey(e)
	}
	delete(s.messages, e.Message) // or any: what counts is how many they were
	e.Message = "(combined from similar events): " + e.Message
	return key
}

// count makes an event that was there before one more of it.
func (c *correlator) count(e *v1.Event, key string) {
	if before, ok := c.seen.Get(key); ok {
		s := before.(sighting)
		e.Name, e.Count, e.FirstTimestamp, e.CreationTimestamp = s.name, s.count+1, s.first, s.first
	}
	c.seen.Add(key, sighting{name: e.Name, count: e.Count, first: e.FirstTimestamp})
}

// remember counts on an event that an earlier daemon stored.
func (c *correlator) remember(e *v1.Event) {
	key := messageKey(e)
	if strings.HasPrefix(e.Message, "(combined from similar events): ") {
		key = reasonKey(e)
	}
	c.seen.Add(key, sighting{name: e.Name, count: e.Count, first: e.FirstTimestamp})
}

func (c *correlator) bucket(e *v1.Event, now time.Time) *bucket {
	key := objectKey(e) + "\x00" + e.Type
	if b, ok := c.buckets.Get(key); ok {
		return b.(*bucket)
	}
	b := &bucket{tokens: burst, at: now}
	c.buckets.Add(key, b)
	return b
}

// A bucket of tokens, one per event.
type bucket struct {
	tokens float64
	at     time.Time
}

func (b *bucket) take(now time.Time) bool {
	if since := now.Sub(b.at); since > 0 {
		b.tokens = min(burst, b.tokens+since.Seconds()/refill.Seconds())
		b.at = now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func objectKey(e *v1.Event) string {
	o := &e.InvolvedObject
	return strings.Join([]string{o.Kind, o.Namespace, o.Name, string(o.UID), o.APIVersion}, "\x00")
}

func reasonKey(e *v1.Event) string {
	return strings.Join([]string{objectKey(e), e.Type, e.Reason}, "\x00")
}

func messageKey(e *v1.Event) string {
	return strings.Join([]string{reasonKey(e), e.InvolvedObject.FieldPath, e.Message}, "\x00")
}
