package image

import (
	"context"
	_ "crypto/sha512" // digests of images may be sha512
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

const (
	maxManifest = 8 << 20
	maxConfig   = 8 << 20
	// maxIndexDepth is how many indexes may lead to a manifest.
	maxIndexDepth = 4
	maxLayers     = 500 // of one overlay mount
)

// source is an image that can be fetched: what its manifest and its configuration say, and how to open its layers.
type source struct {
	id            digest.Digest
	manifestBytes []byte
	configBytes   []byte
	annotations   map[string]string
	config        ocispec.Image
	layers        []ocispec.Descriptor // lowest first
	chain         []digest.Digest
	open          blobs
}

// document is any of the JSON documents that may stand where a manifest is wanted.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
	Annotations   map[string]string    `json:"annotations"`
}

// readSource reads the image that target, a manifest or an index, names for a platform.
func readSource(ctx context.Context, open blobs, target ocispec.Descriptor, match platforms.MatchComparer) (*source, error) {
	b, doc, err := readManifest(ctx, open, target, match, 0)
	if err != nil {
		return nil, err
	}
	configBytes, err := readBlob(ctx, open, *doc.Config, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	src := &source{
		id: doc.Config.Digest, manifestBytes: b, configBytes: configBytes, annotations: doc.Annotations,
		layers: doc.Layers, open: open,
	}
	return src, src.check(match)
}

// check reads the configuration and compares it with the rest.
func (src *source) check(match platforms.MatchComparer) error {
	var err error
	if src.config, err = parseConfig(src.configBytes); err != nil {
		return err
	}
	diffs := src.config.RootFS.DiffIDs
	if len(diffs) != len(src.layers) {
		return fmt.Errorf("no container image: %d layers, and %d in its configuration: %w", len(src.layers), len(diffs), errdefs.ErrInvalidArgument)
	}
	if len(diffs) > maxLayers {
		return fmt.Errorf("%d layers are more than can be mounted: %w", len(diffs), errdefs.ErrUnimplemented)
	}
	for i, d := range diffs {
		if err := errors.Join(d.Validate(), src.layers[i].Digest.Validate()); err != nil {
			return fmt.Errorf("digests of layer %d: %w: %w", i, err, errdefs.ErrInvalidArgument)
		}
		if strings.HasSuffix(src.layers[i].MediaType, "+encrypted") {
			return fmt.Errorf("layer %d is encrypted: %w", i, errdefs.ErrUnimplemented)
		}
	}
	if p := src.config.Platform; p.OS != "" && p.Architecture != "" && !match.Match(platforms.Normalize(p)) {
		return fmt.Errorf("the image is for %s, which this node is not: %w", platforms.Format(p), errdefs.ErrNotFound)
	}
	src.chain = identity.ChainIDs(slices.Clone(diffs))
	return nil
}

func parseConfig(b []byte) (ocispec.Image, error) {
	var config ocispec.Image
	if err := json.Unmarshal(b, &config); err != nil {
		return config, fmt.Errorf("configuration of the image: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return config, nil
}

// readManifest follows indexes to the manifest for a platform.
func readManifest(ctx context.Context, open blobs, desc ocispec.Descriptor, match platforms.MatchComparer, depth int) ([]byte, document, error) {
	var doc document
	b, err := readBlob(ctx, open, desc, maxManifest)
	if err != nil {
		return nil, doc, fmt.Errorf("manifest: %w", err)
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, doc, fmt.Errorf("manifest %s: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	switch {
	case doc.SchemaVersion == 1 || doc.FSLayers != nil:
		return nil, doc, errSchema1
	case doc.Manifests != nil && (doc.Layers != nil || doc.Config != nil):
		// Two readers could see two images in it.
		return nil, doc, fmt.Errorf("manifest %s is an index and a manifest at once: %w", desc.Digest, errdefs.ErrInvalidArgument)
	case doc.Manifests != nil:
		if depth == maxIndexDepth {
			return nil, doc, fmt.Errorf("more than %d indexes in each other: %w", maxIndexDepth, errdefs.ErrInvalidArgument)
		}
		next, err := choose(doc.Manifests, match)
		if err != nil {
			return nil, doc, err
		}
		return readManifest(ctx, open, next, match, depth+1)
	case doc.Config == nil:
		return nil, doc, fmt.Errorf("manifest %s is not one of an image: %w", desc.Digest, errdefs.ErrInvalidArgument)
	}
	return b, doc, nil
}

// choose returns the manifest of an index that suits a platform best.
func choose(all []ocispec.Descriptor, match platforms.MatchComparer) (ocispec.Descriptor, error) {
	var suitable []ocispec.Descriptor
	var known []string
	for _, d := range all {
		switch {
		case d.Platform == nil:
			if len(all) == 1 {
				return d, nil // its configuration will tell
			}
		case match.Match(*d.Platform):
			suitable = append(suitable, d)
		default:
			known = append(known, platforms.Format(*d.Platform))
		}
	}
	if len(suitable) == 0 {
		return ocispec.Descriptor{}, fmt.Errorf("the image is not there for this platform, but for [%s]: %w",
			strings.Join(known, " "), errdefs.ErrNotFound)
	}
	slices.SortStableFunc(suitable, func(a, b ocispec.Descriptor) int {
		switch {
		case match.Less(*a.Platform, *b.Platform):
			return -1
		case match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return suitable[0], nil
}

// matcher returns what suits a platform, or the node if it is empty.
func matcher(platform string) (platforms.MatchComparer, error) {
	if platform == "" {
		return platforms.Default(), nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil, fmt.Errorf("platform %q: %w: %w", platform, err, errdefs.ErrInvalidArgument)
	}
	return platforms.Only(p), nil
}

// readBlob reads and verifies a small blob.
func readBlob(ctx context.Context, open blobs, desc ocispec.Descriptor, limit int64) (b []byte, err error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	if desc.Size < 0 || desc.Size > limit {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are accepted: %w", desc.Digest, desc.Size, limit, errdefs.ErrInvalidArgument)
	}
	rc, err := open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	return io.ReadAll(verify(rc, desc))
}

// verify returns a reader that fails where the content is not what desc says. Its digest must be a valid one.
func verify(r io.Reader, desc ocispec.Descriptor) io.Reader {
	return &verifier{r: r, desc: desc, digester: desc.Digest.Algorithm().Digester()}
}

type verifier struct {
	r        io.Reader
	desc     ocispec.Descriptor
	digester digest.Digester
	n        int64
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.n += int64(n)
	v.digester.Hash().Write(p[:n])
	switch {
	case v.n > v.desc.Size:
		return n, fmt.Errorf("%s has more than the %d bytes that were announced: %w", v.desc.Digest, v.desc.Size, errdefs.ErrInvalidArgument)
	case errors.Is(err, io.EOF) && v.n < v.desc.Size:
		return n, fmt.Errorf("%s ended after %d of %d bytes: %w", v.desc.Digest, v.n, v.desc.Size, errdefs.ErrUnavailable)
	case errors.Is(err, io.EOF) && v.digester.Digest() != v.desc.Digest:
		return n, fmt.Errorf("what came as %s is %s: %w", v.desc.Digest, v.digester.Digest(), errdefs.ErrInvalidArgument)
	}
	return n, err
}
