package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

type file struct{ name, body, symlink string }

func tarOf(t *testing.T, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.body)), Mode: 0o644}
		if f.symlink != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.symlink
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestSaveAndLoad(t *testing.T) {
	reg := newRegistry(t)
	base := layerOf(t, "base", "1")
	a := reg.push(build(t, recipe{layers: [][]byte{base, layerOf(t, "a", "1")}}), "a:1")
	b := reg.push(build(t, recipe{layers: [][]byte{base, layerOf(t, "b", "1")}, pack: zstded}), "b:1")
	s := openStore(t, Config{})
	images := []Image{mustPull(t, s, a), mustPull(t, s, b)}
	if _, err := s.Tag(b, "second/name"); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := s.Save(t.Context(), &archive, a, images[1].ID); err != nil {
		t.Fatal(err)
	}
	docker := keepOnly(t, archive.Bytes(), func(name string) bool { return name != ocispec.ImageIndexFile })
	tests := map[string][]byte{
		"plain": archive.Bytes(), "gzip": gzipped(t, archive.Bytes()), "zstd": zstded(t, archive.Bytes()), "as docker": docker,
	}
	for name, body := range tests {
		t.Run(name, func(t *testing.T) {
			r := openStore(t, Config{})
			if _, err := r.Load(t.Context(), bytes.NewReader(body), LoadOptions{}); err != nil {
				t.Fatal(err)
			}
			for i, refs := range [][]string{{a}, {b, "docker.io/second/name:latest"}} {
				for _, ref := range refs {
					img, err := r.Get(ref)
					if err != nil {
						t.Fatal(err)
					}
					if img.ID != images[i].ID || !reflect.DeepEqual(img.RepoTags, refs) || !reflect.DeepEqual(img.ChainIDs, images[i].ChainIDs) {
						t.Errorf("image is %+v, was %+v", img, images[i])
					}
					if got := content(t, r, img, "base"); got != "1" {
						t.Errorf("content is %q", got)
					}
				}
			}
			for _, img := range r.List() {
				if err := r.Remove(t.Context(), img.ID); err != nil {
					t.Fatal(err)
				}
			}
			wantNothing(t, r)
		})
	}
	if err := s.Save(t.Context(), io.Discard, "missing"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("save of nothing: %v", err)
	}
}

// keepOnly returns an archive with some of its files.
func keepOnly(t *testing.T, archive []byte, keep func(string) bool) []byte {
	t.Helper()
	var files []file
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return tarOf(t, files...)
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if keep(h.Name) {
			files = append(files, file{name: h.Name, body: string(b)})
		}
	}
}

// layout returns the files of an OCI layout, the index first.
func layout(t *testing.T, images []built, annotations ...map[string]string) []file {
	t.Helper()
	ix := ocispec.Index{}
	var files []file
	for i, b := range images {
		desc := b.manifest
		desc.Platform = nil
		if i < len(annotations) {
			desc.Annotations = annotations[i]
		}
		ix.Manifests = append(ix.Manifests, desc)
		for d, content := range b.blobs {
			files = append(files, file{name: "./" + blobName(d), body: string(content)})
		}
	}
	return append([]file{{name: "./index.json", body: string(encode(t, ix))}}, files...)
}

func TestLoadNames(t *testing.T) {
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	tests := []struct {
		annotations map[string]string
		name        string
		want        []string // tags
	}{
		{map[string]string{annotationImageName: "quay.io/x/y:1", ocispec.AnnotationRefName: "1"}, "", []string{"quay.io/x/y:1"}},
		{map[string]string{ocispec.AnnotationRefName: "x/y:1"}, "ignored", []string{"docker.io/x/y:1"}},
		{map[string]string{ocispec.AnnotationRefName: "1"}, "x/y", []string{"docker.io/x/y:1"}},
		{map[string]string{ocispec.AnnotationRefName: "1"}, "", nil},
		{nil, "x/y", []string{"docker.io/x/y:latest"}},
		{map[string]string{annotationImageName: "x@" + digest.FromString("other").String()}, "", nil},
	}
	for i, tt := range tests {
		s := openStore(t, Config{})
		images, err := s.Load(t.Context(), bytes.NewReader(tarOf(t, layout(t, []built{b}, tt.annotations)...)), LoadOptions{Name: tt.name})
		if err != nil {
			t.Fatal(err)
		}
		if len(images) != 1 || images[0].ID != b.id.String() || !reflect.DeepEqual(images[0].RepoTags, tt.want) {
			t.Errorf("%d: images are %+v, want tags %v", i, images, tt.want)
		}
	}
}

func TestLoadPlatforms(t *testing.T) {
	here := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	other := build(t, recipe{layers: [][]byte{layerOf(t, "a", "2")}, platform: "s390x"})
	s := openStore(t, Config{})
	archive := tarOf(t, layout(t, []built{other, here})...)
	for platform, want := range map[string]built{"": here, "linux/s390x": other} {
		images, err := s.Load(t.Context(), bytes.NewReader(archive), LoadOptions{Platform: platform})
		if err != nil || len(images) != 1 || images[0].ID != want.id.String() {
			t.Errorf("%q: %v %v", platform, images, err)
		}
	}
	_, err := s.Load(t.Context(), bytes.NewReader(archive), LoadOptions{Platform: "linux/ppc64le"})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("neither: %v", err)
	}
}

// What docker save wrote for many years: each layer in a folder, and one that two images have as a link.
func TestLoadOldDocker(t *testing.T) {
	l := layerOf(t, "a", "1")
	b := build(t, recipe{layers: [][]byte{l, l}})
	archive := tarOf(t,
		file{name: "x/layer.tar", body: string(l)},
		file{name: "y/layer.tar", symlink: "../x/layer.tar"},
		file{name: "config.json", body: string(b.blobs[b.id])},
		file{name: "manifest.json", body: `[{"Config":"config.json","RepoTags":["app:1"],"Layers":["x/layer.tar","y/layer.tar"]}]`})
	s := openStore(t, Config{})
	images, err := s.Load(t.Context(), bytes.NewReader(archive), LoadOptions{})
	if err != nil || len(images) != 1 || images[0].ID != b.id.String() {
		t.Fatalf("images are %v, %v", images, err)
	}
	if _, err := s.Get("app:1"); err != nil {
		t.Error(err)
	}
}

func TestLoadErrors(t *testing.T) {
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	forged := layout(t, []built{b})
	for i := range forged {
		if forged[i].name == "./"+blobName(b.layers[0].Digest) {
			forged[i].body = string(gzipped(t, layerOf(t, "a", "2")))
		}
	}
	tests := map[string]struct {
		archive []byte
		class   error
	}{
		"empty":          {nil, errdefs.ErrInvalidArgument},
		"other files":    {tarOf(t, file{name: "x", body: "x"}), errdefs.ErrInvalidArgument},
		"no tar":         {bytes.Repeat([]byte("x"), 2000), errdefs.ErrInvalidArgument},
		"no JSON":        {tarOf(t, file{name: "index.json", body: "x"}), errdefs.ErrInvalidArgument},
		"missing blobs":  {tarOf(t, layout(t, []built{b})[0]), errdefs.ErrNotFound},
		"forged layer":   {tarOf(t, forged...), nil},
		"link to itself": {tarOf(t, file{name: "manifest.json", symlink: "manifest.json"}), errdefs.ErrInvalidArgument},
		"path outside":   {tarOf(t, file{name: "manifest.json", body: `[{"Config":"../../../../etc/passwd"}]`}), errdefs.ErrNotFound},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Config{})
			_, err := s.Load(t.Context(), bytes.NewReader(tt.archive), LoadOptions{})
			if err == nil || tt.class != nil && !errors.Is(err, tt.class) {
				t.Errorf("error is %v, want %v", err, tt.class)
			}
			wantNothing(t, s)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := openStore(t, Config{})
	if _, err := s.Load(ctx, bytes.NewReader(tarOf(t, layout(t, []built{b})...)), LoadOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
	wantNothing(t, s)
}

func TestSaveFailsWithItsWriter(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", fmt.Sprint(make([]int, 50000)))}}), "a:1")
	s := openStore(t, Config{})
	mustPull(t, s, ref)
	r, w := io.Pipe()
	go func() {
		_, _ = io.CopyN(io.Discard, r, 2000)
		r.CloseWithError(errors.New("the reader has gone"))
	}()
	if err := s.Save(t.Context(), w, ref); err == nil || !bytes.Contains([]byte(err.Error()), []byte("the reader has gone")) {
		t.Errorf("error is %v", err)
	}
}
