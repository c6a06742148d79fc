package image

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// sync writes the layers of new images to stable storage and then notes in the records that they are there.
//
// It runs beside the pulls: a pod must not wait for a disk. What is lost, if the machine goes down before, is an image
// that can be pulled again; see Unsynced for how it is known then.
func (s *Store) sync() {
	s.syncing.Lock() // one is enough for all that came before it
	defer s.syncing.Unlock()
	pulled := s.unsynced()
	if len(pulled) == 0 {
		return
	}
	if err := s.layers.Sync(); err != nil {
		s.log.Warn("cannot sync image layers, ignoring", "error", err)
		return
	}
	for id, at := range pulled {
		if err := s.markSynced(id, at); err != nil {
			s.log.Warn("cannot note that an image was synced, ignoring", "image", id, "error", err)
		}
	}
}

// unsynced returns the images that are to be synced, and when they were pulled.
func (s *Store) unsynced() map[digest.Digest]time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	pulled := map[digest.Digest]time.Time{}
	for id, e := range s.images {
		if e.record.Unsynced {
			pulled[id] = e.record.Pulled
		}
	}
	return pulled
}

// markSynced notes that an image was synced, unless it was removed and pulled again meanwhile.
func (s *Store) markSynced(id digest.Digest, pulled time.Time) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.RLock()
	e, ok := s.images[id]
	s.mu.RUnlock()
	if !ok || !e.record.Pulled.Equal(pulled) {
		return nil
	}
	r := e.record
	r.Unsynced = false
	_, err := s.put(r)
	return err
}

// synced says whether every layer of a chain belongs to an image that was synced.
func (s *Store) synced(chain []digest.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	known := map[digest.Digest]bool{}
	for _, e := range s.images {
		for _, c := range e.record.ChainIDs {
			known[c] = known[c] || !e.record.Unsynced
		}
	}
	return !slices.ContainsFunc(chain, func(c digest.Digest) bool { return !known[c] })
}
