package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// LoadOptions change how Load works. The zero value is the usual.
type LoadOptions struct {
	// Name is a repository for images that the archive names with a tag alone, or a name for those it does not name.
	Name string
	// Platform is that of the images, as "linux/arm64/v8". Empty is the node's.
	Platform string
}

// annotationImageName has the whole name of an image in an OCI layout, as containerd and docker write it.
const annotationImageName = "io.containerd.image.name"

// Load reads an archive, an OCI layout or what docker save writes, as tar, tar.gz or tar.zst, and returns the images
// for the platform that were in it. If some of them cannot be loaded, those before stay.
func (s *Store) Load(ctx context.Context, r io.Reader, opts LoadOptions) ([]Image, error) {
	match, err := matcher(opts.Platform)
	if err != nil {
		return nil, err
	}
	sp, err := s.spool(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	defer sp.close()
	var images []Image
	for _, item := range []struct {
		file string
		load func(context.Context, *spool, []byte, LoadOptions, platforms.MatchComparer) ([]Image, error)
	}{{ocispec.ImageIndexFile, s.loadLayout}, {dockerManifest, s.loadDocker}} {
		b, err := sp.read(item.file, maxManifest)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue
		}
		if err == nil {
			images, err = item.load(ctx, sp, b, opts, match)
		}
		if err != nil {
			return images, fmt.Errorf("load image: %w", err)
		}
		return images, nil
	}
	return nil, fmt.Errorf("the archive has neither %s nor %s: %w", ocispec.ImageIndexFile, dockerManifest, errdefs.ErrInvalidArgument)
}

// loadLayout loads the images of an OCI layout.
func (s *Store) loadLayout(ctx context.Context, sp *spool, b []byte, opts LoadOptions, match platforms.MatchComparer) ([]Image, error) {
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", ocispec.ImageIndexFile, err, errdefs.ErrInvalidArgument)
	}
	var images []Image
	var unsuitable error
	for _, desc := range index.Manifests {
		if desc.Platform != nil && !match.Match(*desc.Platform) {
			unsuitable = fmt.Errorf("%s is for %s: %w", desc.Digest, platforms.Format(*desc.Platform), errdefs.ErrNotFound)
			continue
		}
		names, err := layoutNames(desc, opts.Name)
		if err != nil {
			return images, err
		}
		src, err := readSource(ctx, sp.open, desc, match)
		if errors.Is(err, errdefs.ErrNotFound) {
			unsuitable = err
			continue
		}
		if err != nil {
			return images, err
		}
		img, err := s.install(ctx, src, &progress{}, names)
		if err != nil {
			return images, err
		}
		images = append(images, img)
	}
	if len(images) == 0 && unsuitable != nil {
		return nil, unsuitable
	}
	return images, nil
}

// layoutNames returns the names of an image in an OCI layout. The format knows only a "reference name", in which some
// tools write a tag and others the whole name.
func layoutNames(desc ocispec.Descriptor, base string) ([]name, error) {
	full := desc.Annotations[annotationImageName]
	ref := desc.Annotations[ocispec.AnnotationRefName]
	switch {
	case full != "":
	case strings.ContainsAny(ref, "/:@"):
		full = ref
	case base != "" && ref != "":
		n, err := parseName(base)
		if err != nil {
			return nil, err
		}
		full = n.repo + ":" + ref
	case base != "":
		full = base
	default:
		return nil, nil
	}
	n, err := parseName(full)
	if err != nil {
		return nil, err
	}
	if n.digest != "" && n.digest != desc.Digest {
		return nil, nil // the name is that of an index that this archive has only a part of
	}
	names := []name{n.at(desc.Digest)}
	if n.tag != "" {
		names = append(names, n)
	}
	return names, nil
}

const dockerManifest = "manifest.json"

// dockerImage is an image in the manifest of docker save. The files are named from the root of the archive.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// loadDocker loads the images of docker save.
func (s *Store) loadDocker(ctx context.Context, sp *spool, b []byte, opts LoadOptions, match platforms.MatchComparer) ([]Image, error) {
	var list []dockerImage
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", dockerManifest, err, errdefs.ErrInvalidArgument)
	}
	var images []Image
	for _, d := range list {
		src, err := sp.source(d, match)
		if err != nil {
			return images, err
		}
		if len(d.RepoTags) == 0 && opts.Name != "" {
			d.RepoTags = []string{opts.Name}
		}
		var names []name
		for _, t := range d.RepoTags {
			n, err := parseName(t)
			if err != nil {
				return images, err
			}
			if n.tag != "" { // a digest of a manifest that is not here proves nothing
				names = append(names, n)
			}
		}
		img, err := s.install(ctx, src, &progress{}, names)
		if err != nil {
			return images, err
		}
		images = append(images, img)
	}
	return images, nil
}

// source returns an image of docker save, which has no manifest of its own.
func (sp *spool) source(d dockerImage, match platforms.MatchComparer) (*source, error) {
	config, err := sp.read(d.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	src := &source{id: digest.FromBytes(config), configBytes: config, open: sp.open}
	for _, l := range d.Layers {
		f, err := sp.find(l)
		if err != nil {
			return nil, err
		}
		src.layers = append(src.layers, ocispec.Descriptor{Digest: f.digest, Size: f.size})
	}
	return src, src.check(match)
}
