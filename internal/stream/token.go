package stream

import (
	"container/list"
	"crypto/rand"
	"sync"
	"time"
)

// tokens keeps the requests that wait for their client. Each is taken once at most, and not after its time.
//
//	add ──▶ waiting ──take──▶ given out
//	           └───── ttl ──▶ forgotten
type tokens struct {
	max int
	ttl time.Duration
	now func() time.Time

	mu     sync.Mutex
	byName map[string]*list.Element
	oldest *list.List // of *waiting, the next to expire first
}

type waiting struct {
	token   string
	request any
	until   time.Time
}

func newTokens(max int, ttl time.Duration, now func() time.Time) *tokens {
	return &tokens{max: max, ttl: ttl, now: now, byName: map[string]*list.Element{}, oldest: list.New()}
}

// add keeps the request and returns the only name it can be had by. The name has 128 random bits or more: whoever can
// guess it has a shell in the container.
func (t *tokens) add(request any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if t.oldest.Len() >= t.max {
		return "", errTooMany
	}
	w := &waiting{token: rand.Text(), request: request, until: t.now().Add(t.ttl)}
	t.byName[w.token] = t.oldest.PushBack(w)
	return w.token, nil
}

func (t *tokens) take(token string) (any, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	e, ok := t.byName[token]
	if !ok {
		return nil, false
	}
	return t.drop(e).request, true
}

// expire forgets what is too old. The list is in the order of expiry, because the time to live is the same for all.
func (t *tokens) expire() {
	now := t.now()
	for e := t.oldest.Front(); e != nil && e.Value.(*waiting).until.Before(now); e = t.oldest.Front() {
		t.drop(e)
	}
}

// takeAll takes every request that waits.
func (t *tokens) takeAll() []*waiting {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	var all []*waiting
	for e := t.oldest.Front(); e != nil; e = t.oldest.Front() {
		all = append(all, t.drop(e))
	}
	return all
}

// put adds what another Server took: it is older than what was added here.
func (t *tokens) put(w *waiting) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byName[w.token] = t.oldest.PushBack(w)
}

func (t *tokens) drop(e *list.Element) *waiting {
	w := t.oldest.Remove(e).(*waiting)
	delete(t.byName, w.token)
	return w
}
