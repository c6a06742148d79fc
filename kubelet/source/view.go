package source

import (
	"maps"
	"slices"
	"sync"

	"github.com/berth-node/berth/kubelet/manifest"
)

// A Subscription gathers the keys of what changes, each once, until they are taken: who is slow looks at the latest, and
// nothing waits for him. A new one has all that is declared.
type Subscription struct {
	store *Store
	wake  chan struct{}

	mu   sync.Mutex
	keys map[manifest.Key]bool
}

// Subscribe begins to gather.
func (s *Store) Subscribe() *Subscription {
	sub := &Subscription{store: s, wake: make(chan struct{}, 1), keys: map[manifest.Key]bool{}}
	s.viewMu.Lock()
	defer s.viewMu.Unlock()
	for key := range s.view {
		sub.add(key)
	}
	s.subs[sub] = true
	return sub
}

// C has a value when there are keys to take.
func (s *Subscription) C() <-chan struct{} { return s.wake }

// Take returns the keys of what came, changed or went since the last call.
func (s *Subscription) Take() []manifest.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := slices.SortedFunc(maps.Keys(s.keys), manifest.Key.Compare)
	clear(s.keys)
	return keys
}

// Close ends the gathering.
func (s *Subscription) Close() {
	s.store.viewMu.Lock()
	defer s.store.viewMu.Unlock()
	delete(s.store.subs, s)
}

func (s *Subscription) add(key manifest.Key) {
	s.mu.Lock()
	s.keys[key] = true
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// publish shows all who ask what counts now of a name, and tells subscribers if that is something else than before.
func (s *Store) publish(key manifest.Key, changed bool) {
	s.viewMu.Lock()
	defer s.viewMu.Unlock()
	if line := s.claims[key]; len(line) > 0 {
		s.view[key] = line[0].Entry
	} else {
		delete(s.view, key)
	}
	if changed {
		for sub := range s.subs {
			sub.add(key)
		}
	}
}

// Get returns an object.
func (s *Store) Get(key manifest.Key) (Entry, bool) {
	s.viewMu.Lock()
	defer s.viewMu.Unlock()
	e, ok := s.view[key]
	return e, ok
}

// List returns all objects of a kind, by namespace and name.
func (s *Store) List(kind manifest.Kind) (all []Entry) {
	s.viewMu.Lock()
	for key, e := range s.view {
		if key.Kind == kind {
			all = append(all, e)
		}
	}
	s.viewMu.Unlock()
	slices.SortFunc(all, func(a, b Entry) int { return a.Key.Compare(b.Key) })
	return all
}
