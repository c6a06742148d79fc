package layer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
)

// UnpackRequest describes a layer to unpack.
type UnpackRequest struct {
	// ChainID is the name that the layer gets.
	ChainID digest.Digest
	// DiffID is the digest that the uncompressed archive must have.
	DiffID digest.Digest
	// Open opens the archive, uncompressed, gzip or zstd. What it returns is read to its end and closed; an error of
	// its Read ends the unpacking, so it may verify what passes. Open is called a second time for the rare layer that
	// cannot be unpacked without those below it.
	Open func(context.Context) (io.ReadCloser, error)
	// Below waits until all layers below this one are committed, and returns them, lowest first. Nil stands for none.
	// It is called when the archive was read to its end.
	Below func(context.Context) ([]digest.Digest, error)
	// MaxBytes bounds the uncompressed archive. 0 is no bound.
	MaxBytes int64
}

// Unpack unpacks and commits a layer. If ctx ends, or the archive turns out to be another one than DiffID names, the
// store is left as it was. A layer that is there already is left alone.
//
// The layer is unpacked by itself, while those below may still be on their way: a whiteout needs nothing below it, and
// the attributes of directories that the archive only implies are taken over when all is there. What does depend on the
// content below (see errNeedsBelow) is found out on the way; such a layer is then unpacked again, on top of the others.
func (s *Store) Unpack(ctx context.Context, req UnpackRequest) (Info, error) {
	if info, err := s.Get(req.ChainID); err == nil {
		return info, nil
	}
	in, err := s.newIngest(req)
	if err != nil {
		return Info{}, err
	}
	defer in.discard()
	failpoint.Here(failpoint.LayerBegun)
	info, err := in.unpack(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("unpack layer %s: %w", req.DiffID, err)
	}
	return info, nil
}

// ingest is a layer on its way into the store.
type ingest struct {
	store *Store
	req   UnpackRequest
	dir   string
	info  Info
	meter meter
}

func (s *Store) newIngest(req UnpackRequest) (*ingest, error) {
	for _, d := range []digest.Digest{req.ChainID, req.DiffID} {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("layer %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
		}
	}
	dir, err := os.MkdirTemp(s.path("ingest"), "unpack-")
	if err != nil {
		return nil, err
	}
	return &ingest{store: s, req: req, dir: dir}, nil
}

func (in *ingest) path(name string) string { return filepath.Join(in.dir, name) }
func (in *ingest) tree() string            { return in.path(treeName) }

// count adds to what the layer takes on disk.
func (in *ingest) count(bytes, inodes uint64) {
	in.info.Bytes += bytes
	in.info.Inodes += inodes
	in.store.ingestBytes.Add(int64(bytes))
	in.store.ingestInodes.Add(int64(inodes))
}

// reset begins anew, with an empty tree.
func (in *ingest) reset() error {
	in.store.ingestBytes.Add(-int64(in.info.Bytes))
	in.store.ingestInodes.Add(-int64(in.info.Inodes))
	in.info = Info{ChainID: in.req.ChainID, DiffID: in.req.DiffID}
	in.meter = meter{}
	if err := os.RemoveAll(in.tree()); err != nil {
		return err
	}
	if err := os.Mkdir(in.tree(), 0o755); err != nil {
		return err
	}
	in.count(2*blockSize, 2) // the layer's directory and its tree
	return os.Chmod(in.tree(), 0o755)
}

// discard ends the ingest. After commit nothing is left to delete.
func (in *ingest) discard() {
	in.store.ingestBytes.Add(-int64(in.info.Bytes))
	in.store.ingestInodes.Add(-int64(in.info.Inodes))
	if err := os.RemoveAll(in.dir); err != nil {
		in.store.log.Warn("cannot delete a half-unpacked layer, ignoring", "path", in.dir, "error", err)
	}
}

func (in *ingest) unpack(ctx context.Context) (Info, error) {
	alone, err := in.applyAlone(ctx)
	if err != nil && !errors.Is(err, errNeedsBelow) {
		return Info{}, err
	}
	var below []digest.Digest
	if in.req.Below != nil {
		var berr error
		if below, berr = in.req.Below(ctx); berr != nil {
			return Info{}, berr
		}
	}
	if err == nil {
		err = alone.adopt(in.store.trees(below))
	}
	if errors.Is(err, errNeedsBelow) {
		err = in.applyOnTop(ctx, below)
	}
	if err != nil {
		return Info{}, err
	}
	failpoint.Here(failpoint.LayerUnpacked)
	return in.commit()
}

// applyAlone unpacks the archive into an empty tree, in overlayfs form.
func (in *ingest) applyAlone(ctx context.Context) (*applier, error) {
	if err := in.reset(); err != nil {
		return nil, err
	}
	a := newApplier(in)
	return a, in.read(ctx, func(r io.Reader) error { return a.extract(ctx, r) })
}

// applyOnTop unpacks the archive into an overlay mount of the layers below, whose upper directory becomes the layer.
func (in *ingest) applyOnTop(ctx context.Context, below []digest.Digest) error {
	if len(below) == 0 {
		return fmt.Errorf("the archive refers to files of a layer below, and there is none: %w", errdefs.ErrInvalidArgument)
	}
	if err := in.reset(); err != nil {
		return err
	}
	in.info.Below = below
	merged, work := in.path("merged"), in.path("work")
	if err := errors.Join(os.MkdirAll(merged, 0o700), os.MkdirAll(work, 0o700)); err != nil {
		return err
	}
	o := overlay{lower: in.store.lower(below, ""), target: merged, upper: in.tree(), work: work, volatile: true}
	if err := in.store.mountOverlay(o); err != nil {
		return err
	}
	err := in.read(ctx, func(r io.Reader) error {
		_, err := archive.Apply(ctx, merged, r, archive.WithFilter(in.weigh))
		return err
	})
	return errors.Join(err, Unmount(merged), os.Remove(merged), os.RemoveAll(work))
}

// read passes the uncompressed archive to apply, and verifies it. Meanwhile the recipe is written.
func (in *ingest) read(ctx context.Context, apply func(io.Reader) error) (err error) {
	rc, err := in.req.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	plain, err := Decompress(rc)
	if err != nil {
		return err
	}
	defer plain.Close()
	verified := &verifier{r: plain, digester: in.req.DiffID.Algorithm().Digester(), max: in.req.MaxBytes}
	ahead := newReadAhead(verified)
	err = writeRecipe(in.path(recipeName), ahead, in.req.MaxBytes, apply)
	ahead.Close()
	if err != nil {
		return err
	}
	// What follows the archive belongs to the compressed digest.
	if _, err := io.Copy(io.Discard, rc); err != nil {
		return err
	}
	if got := verified.digester.Digest(); got != in.req.DiffID {
		return fmt.Errorf("the uncompressed archive is %s: %w", got, errdefs.ErrInvalidArgument)
	}
	in.info.TarSize = verified.n
	return nil
}

// commit moves the layer to where it is seen.
func (in *ingest) commit() (Info, error) {
	if fi, err := os.Lstat(in.path(recipeName)); err == nil {
		in.count(uint64(fi.Size()), 1)
	}
	in.count(blockSize, 1) // layer.json
	in.info.Committed = time.Now().UTC()
	b, err := json.Marshal(in.info)
	if err != nil {
		return Info{}, err
	}
	if err := os.WriteFile(in.path(infoName), b, 0o600); err != nil {
		return Info{}, err
	}
	failpoint.Here(failpoint.LayerDescribed)
	if err := os.Chmod(in.dir, 0o711); err != nil {
		return Info{}, err
	}
	s := in.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if info, ok := s.layers[in.info.ChainID]; ok {
		return info, nil // somebody was faster
	}
	if err := os.Rename(in.dir, s.layerDir(in.info.ChainID)); err != nil {
		return Info{}, err
	}
	failpoint.Here(failpoint.LayerCommitted)
	s.layers[in.info.ChainID] = in.info
	return in.info, nil
}

// verifier computes the digest of what is read through it, and counts it.
type verifier struct {
	r        io.Reader
	digester digest.Digester
	n, max   int64
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.digester.Hash().Write(p[:n])
	v.n += int64(n)
	failpoint.Here(failpoint.LayerHalf)
	if v.max > 0 && v.n > v.max {
		return n, fmt.Errorf("the uncompressed archive is larger than %d bytes: %w", v.max, errdefs.ErrResourceExhausted)
	}
	return n, err
}
