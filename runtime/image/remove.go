package image

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
)

// Remove removes the image that ref names, with all its references. It does nothing where there is none. Layers that
// no other image has are deleted before it returns, or, while a user of the image has not released it, after that.
func (s *Store) Remove(ctx context.Context, ref string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.changing.Lock()
	free := func() error { return nil }
	removed, err := s.forget(ref)
	if err == nil && removed != nil {
		failpoint.Here(failpoint.ImageForgotten)
		free, err = s.settle(removed)
	}
	s.changing.Unlock()
	return errors.Join(err, free())
}

// forget makes the image vanish for all but its users, and returns it, or nil if there is none. The caller holds
// changing.
func (s *Store) forget(ref string) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(ref)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, n := range e.record.names() {
		delete(s.names, n)
	}
	gone := *e
	gone.record.Tags, gone.record.Digests, gone.record.Removed = nil, nil, true
	gone.image.RepoTags, gone.image.RepoDigests = nil, nil
	s.images[gone.record.ID] = &gone
	return &gone, nil
}

// settle writes down that an image was removed, and then takes its layers out of the store and the record away; what the
// layers took on disk is freed by the function that it returns. While the image is in use both stay, for a daemon that
// starts anew to find the layers of running containers. The caller holds changing.
func (s *Store) settle(e *entry) (free func() error, err error) {
	nothing := func() error { return nil }
	id := e.record.ID
	s.mu.Lock()
	now, ok := s.images[id]
	if !ok || !now.record.Removed {
		s.mu.Unlock()
		return nothing, nil // pulled again
	}
	inUse := s.uses[id] > 0
	if !inUse {
		delete(s.images, id)
	}
	s.mu.Unlock()
	if _, err := s.write(e.record); errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		// It is removed all the same, or nothing would ever free the disk. A next daemon finds it as it was.
		s.log.Error("the removal of an image cannot be recorded, ignoring", "image", id, "error", err)
	} else if err != nil && inUse {
		return nothing, err
	} // else a full disk must not keep anybody from making room
	if inUse {
		return nothing, nil
	}
	failpoint.Here(failpoint.ImageReleased)
	// Before the record: layers without one would stay for as long as those of a pull that may be tried again.
	free, err = s.forgetLayers(e.record.ChainIDs)
	failpoint.Here(failpoint.ImageUnlayered)
	return free, errors.Join(err, s.deleteRecord(id))
}

// Acquire says that user (the ID of a container or a sandbox) has the image mounted. Its layers then stay on disk,
// even if the image is removed, until Release. It may be called again for the same user, and for several images.
// ErrNotFound if there is no such image; one that was removed while it was in use counts only for its users.
func (s *Store) Acquire(imageID, user string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := digest.Digest(imageID)
	if _, ok := s.images[id]; !ok {
		return fmt.Errorf("image %s: %w", imageID, errdefs.ErrNotFound)
	}
	if s.users[user] == nil {
		s.users[user] = map[digest.Digest]bool{}
	}
	if !s.users[user][id] {
		s.users[user][id] = true
		s.uses[id]++
	}
	return nil
}

// AcquireLayers is Acquire for a user whose image is not known any more, since its record is damaged: the layers stay.
func (s *Store) AcquireLayers(chain []digest.Digest, user string) {
	if len(chain) == 0 {
		return
	}
	release := s.hold(chain)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, twice := s.layerUsers[user]; twice {
		s.running.Go(release)
		return
	}
	s.layerUsers[user] = func() {
		release()
		if err := s.deleteLayers(chain); err != nil {
			s.log.Warn("cannot delete the layers of an image that is not known, ignoring", "error", err)
		}
	}
}

// KeepLayers says whether all layers stay on disk, whoever needs them: it cannot be told which ones a container has that
// runs and whose record cannot be read.
func (s *Store) KeepLayers(all bool) { s.keepAll.Store(all) }

// Release ends all that user acquired. Layers that nobody has any more are deleted after it returns.
func (s *Store) Release(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if release, ok := s.layerUsers[user]; ok {
		delete(s.layerUsers, user)
		s.running.Go(release)
	}
	for id := range s.users[user] {
		s.uses[id]--
		if s.uses[id] > 0 {
			continue
		}
		delete(s.uses, id)
		if e := s.images[id]; e.record.Removed {
			s.running.Go(func() {
				if err := s.drop(e); err != nil {
					s.log.Warn("cannot delete a removed image, ignoring", "image", id, "error", err)
				}
			})
		}
	}
	delete(s.users, user)
}

// drop deletes a removed image, unless it is in use again.
func (s *Store) drop(e *entry) error {
	s.changing.Lock()
	free, err := s.settle(e)
	s.changing.Unlock()
	return errors.Join(err, free())
}

// Collect deletes removed images that no user has acquired, and layers that interrupted pulls left behind longer ago
// than the grace.
func (s *Store) Collect(ctx context.Context) error {
	s.mu.RLock()
	var unused []*entry
	for id, e := range s.images {
		if e.record.Removed && s.uses[id] == 0 {
			unused = append(unused, e)
		}
	}
	s.mu.RUnlock()
	var errs []error
	for _, e := range unused {
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, s.drop(e))
	}
	errs = append(errs, s.finishRemovals())
	return errors.Join(append(errs, s.collectLayers(s.cfg.LeftoverGrace))...)
}

// finishRemovals goes on with removals that the death of a daemon cut off among the layers of an image.
func (s *Store) finishRemovals() error {
	s.changing.Lock()
	defer s.changing.Unlock()
	var left []record
	var errs []error
	for _, r := range s.halfRemoved {
		err := s.finishRemoval(r)
		if err != nil {
			left, errs = append(left, r), append(errs, err)
		}
	}
	s.halfRemoved = left
	return errors.Join(errs...)
}

func (s *Store) finishRemoval(r record) error {
	s.mu.RLock()
	_, again := s.images[r.ID]
	s.mu.RUnlock()
	if again {
		return nil // pulled again; the record is its
	}
	free, err := s.forgetLayers(r.ChainIDs)
	if err != nil {
		return errors.Join(err, free())
	}
	return errors.Join(s.deleteRecord(r.ID), free())
}

// collectLayers deletes layers that nobody refers to and that are older than the grace.
func (s *Store) collectLayers(grace time.Duration) error {
	before := time.Now().Add(-grace)
	var old []digest.Digest
	for _, info := range s.layers.List() {
		if info.Committed.Before(before) || grace == 0 {
			old = append(old, info.ChainID)
		}
	}
	return s.deleteLayers(old)
}

// deleteLayers deletes those of the layers that no image and no running pull refers to.
func (s *Store) deleteLayers(chains []digest.Digest) error {
	free, err := s.forgetLayers(chains)
	return errors.Join(err, free())
}

// forgetLayers takes them out of the store; the function that it returns frees what they took on disk.
func (s *Store) forgetLayers(chains []digest.Digest) (free func() error, err error) {
	if len(chains) == 0 || s.keepAll.Load() {
		return func() error { return nil }, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := map[digest.Digest]bool{}
	for _, e := range s.images {
		for _, c := range e.record.ChainIDs {
			needed[c] = true
		}
	}
	var unneeded []digest.Digest
	for _, c := range chains {
		if !needed[c] && s.holds[c] == 0 {
			unneeded = append(unneeded, c)
		}
	}
	// Still under mu: a pull must not begin to count on a layer between the decision and the deed.
	return s.layers.Forget(unneeded...)
}

// hold keeps layers from being deleted until the function that it returns is called.
func (s *Store) hold(chains []digest.Digest) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range chains {
		s.holds[c]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range chains {
			if s.holds[c]--; s.holds[c] == 0 {
				delete(s.holds, c)
			}
		}
	}
}
