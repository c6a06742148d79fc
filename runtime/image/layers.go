package image

import (
	"context"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/berth-node/berth/runtime/image/layer"
)

// fetchLayers fetches, verifies and unpacks the layers of an image that are not here, side by side.
//
// A layer is committed after all below it. So that they cannot wait for each other in a circle, each pull takes what it
// needs for a layer (the right to make it, a slot, a part of the budget) from the lowest layer upwards, and gives slot
// and budget back before it waits for the layers below.
func (s *Store) fetchLayers(ctx context.Context, src *source, p *progress) error {
	p.update(true, func(now *Progress) {
		now.Layers = len(src.layers)
		for _, d := range src.layers {
			now.Bytes += max(d.Size, 0)
		}
	})
	g, ctx := errgroup.WithContext(ctx)
	committed := make([]chan struct{}, len(src.chain)) // closed when the layer is there
	for i := range committed {
		committed[i] = make(chan struct{})
	}
	err := func() error {
		for i, chain := range src.chain {
			job, err := s.claimLayer(ctx, chain, src.layers[i].Size)
			if err != nil {
				return err
			}
			if job == nil {
				p.update(true, func(now *Progress) { now.LayersDone++; now.BytesDone += max(src.layers[i].Size, 0) })
				close(committed[i])
				continue
			}
			g.Go(func() error {
				defer job.end()
				err := s.fetchLayer(ctx, src, i, p, func(ctx context.Context) error {
					job.release()
					return waitAll(ctx, committed[:i])
				})
				if err != nil {
					return err
				}
				p.update(true, func(now *Progress) { now.LayersDone++ })
				close(committed[i])
				return nil
			})
		}
		return nil
	}()
	if err != nil {
		// The context of the group ends with the first error of a layer, which says more than that it has ended.
		if gerr := g.Wait(); gerr != nil {
			return gerr
		}
		return err
	}
	return g.Wait()
}

func waitAll(ctx context.Context, all []chan struct{}) error {
	for _, c := range all {
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// layerJob is the right to make one layer.
type layerJob struct {
	unlock  func()
	release func() // gives slot and budget back; may be called again
}

func (j *layerJob) end() {
	j.release()
	j.unlock()
}

// claimLayer waits until the layer may be made, and returns nil if it is there: before, or because another pull that
// needs it has made it meanwhile.
func (s *Store) claimLayer(ctx context.Context, chain digest.Digest, size int64) (*layerJob, error) {
	unlock, err := s.layering.lock(ctx, chain)
	if err != nil {
		return nil, err
	}
	if s.layers.Has(chain) {
		unlock()
		return nil, nil
	}
	if err := s.slots.Acquire(ctx, 1); err != nil {
		unlock()
		return nil, err
	}
	weight := min(max(size, 1), s.cfg.MaxParallelBytes)
	if err := s.budget.Acquire(ctx, weight); err != nil {
		s.slots.Release(1)
		unlock()
		return nil, err
	}
	return &layerJob{unlock: unlock, release: sync.OnceFunc(func() {
		s.budget.Release(weight)
		s.slots.Release(1)
	})}, nil
}

// fetchLayer makes layer i of an image. When it was read, waitBelow waits for those below.
func (s *Store) fetchLayer(ctx context.Context, src *source, i int, p *progress, waitBelow func(context.Context) error) error {
	req := layer.UnpackRequest{
		ChainID: src.chain[i], DiffID: src.config.RootFS.DiffIDs[i], MaxBytes: s.cfg.MaxLayerBytes,
		Open: func(ctx context.Context) (io.ReadCloser, error) {
			rc, err := src.open(ctx, src.layers[i])
			if err != nil {
				return nil, err
			}
			return layerBody{verify(rc, src.layers[i]), rc, p}, nil
		},
	}
	if i > 0 {
		req.Below = func(ctx context.Context) ([]digest.Digest, error) {
			return src.chain[:i], waitBelow(ctx)
		}
	}
	_, err := s.layers.Unpack(ctx, req)
	return err
}

// layerBody is a layer as it comes: verified, and counted.
type layerBody struct {
	io.Reader
	io.Closer
	progress *progress
}

func (b layerBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.progress.update(false, func(now *Progress) { now.BytesDone += int64(n) })
	return n, err
}
