package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Save writes the images that refs name as an OCI layout archive, which docker load reads too. Layers are written
// uncompressed; the image IDs stay as they are. An image has in the archive the tag that it is asked for by, or all its
// tags if it is asked for by ID or digest.
func (s *Store) Save(ctx context.Context, w io.Writer, refs ...string) error {
	a := archiveWriter{store: s, tar: tar.NewWriter(w), written: map[digest.Digest]bool{}}
	a.index.Versioned = specs.Versioned{SchemaVersion: 2}
	a.index.MediaType = ocispec.MediaTypeImageIndex
	if err := a.writeJSON(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	for _, ref := range refs {
		if err := a.addImage(ctx, ref); err != nil {
			return fmt.Errorf("save %s: %w", ref, err)
		}
	}
	if err := a.writeJSON(ocispec.ImageIndexFile, a.index); err != nil {
		return err
	}
	if err := a.writeJSON(dockerManifest, a.docker); err != nil {
		return err
	}
	return a.tar.Close()
}

// archiveWriter writes an archive of images. It has both descriptions of them: that of OCI, and that of docker save.
type archiveWriter struct {
	store   *Store
	tar     *tar.Writer
	index   ocispec.Index
	docker  []dockerImage
	written map[digest.Digest]bool
}

func (a *archiveWriter) addImage(ctx context.Context, ref string) error {
	s := a.store
	s.mu.RLock()
	e, err := s.find(ref)
	s.mu.RUnlock()
	if err != nil {
		return err
	}
	release := s.hold(e.record.ChainIDs) // it may be removed meanwhile
	defer release()
	manifest := ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Config:      ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: e.record.ID, Size: int64(len(e.record.Config))},
		Layers:      []ocispec.Descriptor{},
		Annotations: e.record.Annotations,
	}
	docker := dockerImage{Config: blobName(e.record.ID), RepoTags: tagsFor(ref, e.image), Layers: []string{}}
	for _, chain := range e.record.ChainIDs {
		info, err := s.layers.Get(chain)
		if err != nil {
			return err
		}
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: info.DiffID, Size: info.TarSize}
		manifest.Layers = append(manifest.Layers, desc)
		docker.Layers = append(docker.Layers, blobName(info.DiffID))
		err = a.writeBlob(desc, func(w io.Writer) error { return s.layers.WriteTar(ctx, chain, w) })
		if err != nil {
			return err
		}
	}
	if err := a.writeBlob(manifest.Config, writeBytes(e.record.Config)); err != nil {
		return err
	}
	b, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{MediaType: manifest.MediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := a.writeBlob(desc, writeBytes(b)); err != nil {
		return err
	}
	a.docker = append(a.docker, docker)
	a.index.Manifests = append(a.index.Manifests, named(desc, docker.RepoTags)...)
	return nil
}

// tagsFor returns the tags that an image has in the archive.
func tagsFor(ref string, img Image) []string {
	if n, err := parseName(ref); err == nil && slices.Contains(img.RepoTags, n.String()) {
		return []string{n.String()}
	}
	return img.RepoTags
}

// named returns a descriptor for each of the names of an image, or one if it has none.
func named(desc ocispec.Descriptor, tags []string) []ocispec.Descriptor {
	if len(tags) == 0 {
		return []ocispec.Descriptor{desc}
	}
	var all []ocispec.Descriptor
	for _, t := range tags {
		d := desc
		d.Annotations = map[string]string{
			annotationImageName:       t,
			ocispec.AnnotationRefName: t[strings.LastIndexByte(t, ':')+1:],
		}
		all = append(all, d)
	}
	return all
}

func blobName(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func writeBytes(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

// writeBlob writes a blob, once.
func (a *archiveWriter) writeBlob(desc ocispec.Descriptor, write func(io.Writer) error) error {
	if a.written[desc.Digest] {
		return nil
	}
	a.written[desc.Digest] = true
	err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: blobName(desc.Digest), Mode: 0o444, Size: desc.Size})
	if err != nil {
		return err
	}
	return write(a.tar)
}

func (a *archiveWriter) writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: int64(len(b))}); err != nil {
		return err
	}
	_, err = a.tar.Write(b)
	return err
}
