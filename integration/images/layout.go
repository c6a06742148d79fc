package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// NameAnnotation carries the full name of an image in the index of a layout, as containerd's archives have it.
const NameAnnotation = "io.containerd.image.name"

// Media types of Docker's schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// layout is an OCI image layout that is being written.
type layout struct {
	dir    string
	index  ocispec.Index
	layers map[layerKey]layer
}

type layerKey struct {
	tree *Tree
	zstd bool
}

type layer struct {
	diffID digest.Digest
	desc   ocispec.Descriptor
}

func createLayout(dir string) (*layout, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	l := &layout{dir: dir, layers: map[layerKey]layer{}}
	l.index.SchemaVersion = 2
	l.index.MediaType = ocispec.MediaTypeImageIndex
	return l, nil
}

// finish writes what makes the folder a layout.
func (l *layout) finish() error {
	version, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir, ocispec.ImageLayoutFile), version, 0o644); err != nil {
		return err
	}
	index, err := json.MarshalIndent(l.index, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, ocispec.ImageIndexFile), index, 0o644)
}

// add writes an image and enters it under its names.
func (l *layout) add(image Image) error {
	top, err := l.manifest(image)
	if err != nil {
		return err
	}
	if image.Form.Index {
		if top, err = l.multiPlatform(image.Form, top); err != nil {
			return err
		}
	}
	for _, name := range image.Names {
		named := top
		named.Annotations = map[string]string{NameAnnotation: name, ocispec.AnnotationRefName: name}
		l.index.Manifests = append(l.index.Manifests, named)
	}
	return nil
}

func (l *layout) manifest(image Image) (ocispec.Descriptor, error) {
	created := time.Unix(0, 0).UTC()
	config := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   image.Config,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, tree := range image.Layers {
		done, err := l.layer(tree, image.Form)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, done.diffID)
		config.History = append(config.History, ocispec.History{Created: &created, CreatedBy: "integration/images"})
		m.Layers = append(m.Layers, done.desc)
	}
	configType := ocispec.MediaTypeImageConfig
	if image.Form.Docker {
		m.MediaType, configType = dockerManifest, dockerConfig
	}
	var err error
	if m.Config, err = l.putJSON(configType, config); err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.putJSON(m.MediaType, m)
}

// multiPlatform puts an index above a manifest, with a second entry for a platform that the layout does not have: who
// pulls all platforms fails.
func (l *layout) multiPlatform(form Form, own ocispec.Descriptor) (ocispec.Descriptor, error) {
	own.Platform = &ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	other := own
	other.Digest = digest.FromString("the manifest of a platform that is not served")
	other.Platform = &ocispec.Platform{Architecture: "s390x", OS: "linux"}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{other, own},
	}
	if form.Docker {
		index.MediaType = dockerList
	}
	return l.putJSON(index.MediaType, index)
}

// layer writes a tree as a compressed layer, once per tree and compression.
func (l *layout) layer(tree *Tree, form Form) (layer, error) {
	key := layerKey{tree, form.Zstd}
	done, ok := l.layers[key]
	if !ok {
		var plain bytes.Buffer
		if err := tree.write(&plain); err != nil {
			return layer{}, err
		}
		packed, err := compress(plain.Bytes(), form.Zstd)
		if err != nil {
			return layer{}, err
		}
		done.diffID = digest.FromBytes(plain.Bytes())
		if done.desc, err = l.put("", packed); err != nil {
			return layer{}, err
		}
		l.layers[key] = done
	}
	switch {
	case form.Docker && form.Zstd:
		return layer{}, fmt.Errorf("a Docker manifest has no zstd layers")
	case form.Docker:
		done.desc.MediaType = dockerLayer
	case form.Zstd:
		done.desc.MediaType = ocispec.MediaTypeImageLayerZstd
	default:
		done.desc.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	return done, nil
}

func compress(data []byte, useZstd bool) ([]byte, error) {
	if useZstd {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return w.EncodeAll(data, nil), nil
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func (l *layout) putJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.put(mediaType, data)
}

func (l *layout) put(mediaType string, data []byte) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return desc, os.WriteFile(filepath.Join(l.dir, "blobs", "sha256", desc.Digest.Encoded()), data, 0o644)
}

// archive packs a layout into one tar file: an OCI archive.
func archive(dir, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	tw := tar.NewWriter(f)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: time.Unix(0, 0)})
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
		_, err = io.Copy(tw, bytes.NewReader(data))
		return err
	})
	if err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return f.Close()
}
