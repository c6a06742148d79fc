package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"github.com/berth-node/berth/internal/failpoint"
)

// PullOptions change how Pull works. The zero value is the usual.
type PullOptions struct {
	// Platform is that of the image, as "linux/arm64/v8". Empty is the node's.
	Platform string
	// Progress is called now and then while the pull runs, one call at a time. It must not block.
	Progress func(Progress)
}

// Pull fetches the image that ref names, and returns it. Layers that are there already are not fetched again.
//
// Calls with the same reference and credentials join in one pull. If ctx ends, Pull returns ctx.Err() at once; the pull
// goes on as long as somebody waits for it. Layers that were finished stay for the next try.
//
// ErrInvalidArgument: ref cannot be a reference, or what came is damaged. ErrNotFound: the registry does not have it,
// or not for this platform. ErrPermissionDenied: the registry wants other credentials. ErrUnavailable: it cannot be
// reached, or has stalled. ErrUnimplemented: an image of a kind that berth cannot run. ErrResourceExhausted: the disk
// is full.
func (s *Store) Pull(ctx context.Context, ref string, auth *Auth, opts PullOptions) (Image, error) {
	n, err := parseName(ref)
	if err != nil {
		return Image{}, err
	}
	if auth != nil && *auth == (Auth{}) {
		auth = nil
	}
	match, err := matcher(opts.Platform)
	if err != nil {
		return Image{}, err
	}
	if err := ctx.Err(); err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", n, err)
	}
	key, err := flightKey(n, auth, opts.Platform)
	if err != nil {
		return Image{}, err
	}
	f := s.join(key, func(ctx context.Context, f *flight) (Image, error) {
		return s.pull(ctx, f, n, auth, match)
	})
	defer s.leave(key, f)
	defer f.progress.listen(opts.Progress)()
	select {
	case <-f.done:
		return f.image, f.err
	case <-ctx.Done():
		return Image{}, fmt.Errorf("pull %s: %w", n, ctx.Err())
	}
}

// flightKey names a pull. Who has other credentials must not get what these may fetch, nor wait for what they may not.
func flightKey(n name, auth *Auth, platform string) (string, error) {
	b, err := json.Marshal(auth)
	return fmt.Sprintf("%s %s %x", n, platform, sha256.Sum256(b)), err
}

// pull does the work of one flight.
func (s *Store) pull(ctx context.Context, f *flight, n name, auth *Auth, match platforms.MatchComparer) (Image, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := watchStalls(s.cfg.ProgressTimeout, cancel)
	defer watch.stop()
	reg, err := s.newRegistry(n, auth, watch)
	if err != nil {
		return Image{}, err
	}
	defer reg.close()
	img, err := s.pullFrom(ctx, &f.progress, reg, match)
	if err != nil && ctx.Err() == nil && mirrorMayBeAtFault(err) && reg.withoutMirrors() {
		s.log.Warn("pull failed, trying without mirrors", "image", n.String(), "error", err)
		img, err = s.pullFrom(ctx, &f.progress, reg, match)
	}
	if err == nil {
		return img, nil
	}
	if errors.Is(err, syscall.ENOSPC) {
		// What earlier pulls left behind may be the reason. The next try begins with more room.
		if cerr := s.collectLayers(0); cerr != nil {
			s.log.Warn("cannot delete the layers that pulls left behind, ignoring", "error", cerr)
		}
	}
	return Image{}, explain(ctx, n, err, reg.manners.wish())
}

func (s *Store) pullFrom(ctx context.Context, p *progress, reg *registry, match platforms.MatchComparer) (Image, error) {
	target, err := reg.resolve(ctx)
	if err != nil {
		return Image{}, err
	}
	names := []name{reg.name.at(target.Digest)}
	if reg.name.digest == "" {
		names = append(names, reg.name)
	}
	if img, found, err := s.reuse(target.Digest, names, match); found || err != nil {
		return img, err
	}
	src, err := readSource(ctx, reg.open, target, match)
	if err != nil {
		return Image{}, err
	}
	failpoint.Here(failpoint.ImageResolved)
	img, err := s.install(ctx, src, p, names)
	if err != nil {
		return Image{}, err
	}
	if err := s.collectLayers(s.cfg.LeftoverGrace); err != nil {
		s.log.Warn("cannot delete the layers that pulls left behind, ignoring", "error", err)
	}
	return img, nil
}

// reuse gives further names to an image that is here, if one was pulled by the digest of this manifest or index.
func (s *Store) reuse(target digest.Digest, names []name, match platforms.MatchComparer) (Image, bool, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.RLock()
	e := s.pulledAs(target, match)
	s.mu.RUnlock()
	if e == nil {
		return Image{}, false, nil
	}
	r := e.record.with(names...)
	if slices.Equal(r.names(), e.record.names()) {
		return e.image, true, nil
	}
	img, err := s.put(r)
	return img, true, err
}

// pulledAs returns the image that has a reference with the digest. The caller holds mu.
func (s *Store) pulledAs(target digest.Digest, match platforms.MatchComparer) *entry {
	for _, e := range s.images {
		for _, ref := range e.record.Digests {
			if n, err := parseName(ref); err == nil && n.digest == target && match.Match(platforms.Normalize(e.image.Config.Platform)) {
				return e
			}
		}
	}
	return nil
}

// install fetches what is missing of an image and records it under the given names.
func (s *Store) install(ctx context.Context, src *source, p *progress, names []name) (Image, error) {
	release := s.hold(src.chain)
	defer release()
	if err := s.fetchLayers(ctx, src, p); err != nil {
		return Image{}, err
	}
	failpoint.Here(failpoint.ImageFetched)
	s.changing.Lock()
	defer s.changing.Unlock()
	r := record{
		ID: src.id, Config: src.configBytes, Manifest: src.manifestBytes, Annotations: src.annotations,
		ChainIDs: src.chain, Pulled: time.Now().UTC(), Unsynced: !s.synced(src.chain),
	}
	s.mu.RLock()
	if e, ok := s.images[src.id]; ok {
		r = e.record
		r.Removed = false
	}
	s.mu.RUnlock()
	img, err := s.put(r.with(names...))
	if err == nil && r.Unsynced {
		s.running.Go(s.sync)
	}
	return img, err
}
