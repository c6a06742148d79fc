package image

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/image/layer"
)

// fetchLayers fetches, verifies and unpacks the layers of an image that are not here, side by side.
//
// A layer is committed after all below it. So that they cannot wait for each other in a circle, each pull takes what it
// needs for a layer (the right to make it, a slot, a part of the budget) from the lowest layer upwards, and gives slot
// and budget back before it waits for the layers below.
func (s *Store) fetchLayers(ctx context.Context, src *source, p *progress) error {
	p.update(true, func(now *Progress) {
		*now = Progress{Layers: len(src.layers)} // an earlier try may have counted
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
			g.Go(func() (err error) {
				defer errdefs.Recover(&err)
				defer job.end()
				err = s.fetchLayer(ctx, src, i, p, job, func(ctx context.Context) error {
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

// layerJob is the right to make one layer, and a turn at it: a slot and a part of the budget.
type layerJob struct {
	store  *Store
	weight int64
	unlock func()

	mu       sync.Mutex
	released bool // for good
	yielded  bool // until take

	began time.Time // of the present turn
	read  int64     // bytes since then
}

func (j *layerJob) end() {
	j.release()
	j.unlock()
}

// release gives the turn back. It may be called again.
func (j *layerJob) release() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.released && !j.yielded {
		j.giveBack()
	}
	j.released = true
}

func (j *layerJob) giveBack() {
	j.store.budget.Release(j.weight)
	j.store.slots.Release(1)
}

// yield gives the turn to others until take.
func (j *layerJob) yield() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.released && !j.yielded {
		j.giveBack()
		j.yielded = true
	}
}

// take waits for a turn after yield, unless release was called. Who has a turn never waits for others, so this ends.
func (j *layerJob) take(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.yielded || j.released {
		return nil
	}
	if err := j.store.acquireTurn(ctx, j.weight); err != nil {
		return err
	}
	j.yielded, j.began, j.read = false, time.Now(), 0
	return nil
}

// slowRate is the rate, in bytes per second, below which a layer uses so little of the node that others come first.
const slowRate = 64 << 10

// slow notes that n bytes were read, and says whether a turn has been one of waiting while others wait for theirs.
func (j *layerJob) slow(n int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.read += int64(n)
	took := time.Since(j.began)
	return j.store.waiting.Load() > 0 && took > j.store.cfg.YieldAfter && float64(j.read) < slowRate*took.Seconds()
}

// acquireTurn waits for a turn, in the order of those who ask.
func (s *Store) acquireTurn(ctx context.Context, weight int64) error {
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	if err := s.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	if err := s.budget.Acquire(ctx, weight); err != nil {
		s.slots.Release(1)
		return err
	}
	return nil
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
	weight := min(max(size, 1), s.cfg.MaxParallelBytes)
	if err := s.acquireTurn(ctx, weight); err != nil {
		unlock()
		return nil, err
	}
	return &layerJob{store: s, weight: weight, unlock: unlock, began: time.Now()}, nil
}

// fetchLayer makes layer i of an image. When it was read, waitBelow waits for those below.
func (s *Store) fetchLayer(ctx context.Context, src *source, i int, p *progress, job *layerJob, waitBelow func(context.Context) error) error {
	req := layer.UnpackRequest{
		ChainID: src.chain[i], DiffID: src.config.RootFS.DiffIDs[i], MaxBytes: s.cfg.MaxLayerBytes,
		Open: func(ctx context.Context) (io.ReadCloser, error) {
			rc, err := src.open(ctx, src.layers[i])
			if err != nil {
				return nil, err
			}
			turns := takingTurns{r: rc, ctx: ctx, job: job}
			return layerBody{verify(turns, src.layers[i]), rc, p}, nil
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

// takingTurns reads a layer, and lets the layers of other pulls have its turn while nothing comes, or next to nothing: a
// registry that hangs would otherwise take those along that come from elsewhere.
type takingTurns struct {
	r   io.Reader
	ctx context.Context
	job *layerJob
}

func (t takingTurns) Read(p []byte) (int, error) {
	timer := time.AfterFunc(t.job.store.cfg.YieldAfter, t.job.yield)
	n, err := t.r.Read(p)
	timer.Stop()
	if t.job.slow(n) {
		t.job.yield()
	}
	if terr := t.job.take(t.ctx); terr != nil && err == nil {
		err = terr
	}
	return n, err
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
