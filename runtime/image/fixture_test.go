package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func openStore(t *testing.T, cfg Config) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.RetryDelay == 0 {
		cfg.RetryDelay = time.Millisecond
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// layerOf returns an archive that holds files, given as name and content in turn.
func layerOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644, Uid: os.Getuid(), Gid: os.Getgid()}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstded(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func plain(_ *testing.T, b []byte) []byte { return b }

// recipe says how to build an image. The zero value, with layers, is the usual.
type recipe struct {
	layers   [][]byte // uncompressed
	pack     func(*testing.T, []byte) []byte
	platform string // architecture; empty is amd64
	docker   bool   // docker's media types
	label    string
}

// built is an image as a registry has it.
type built struct {
	id       digest.Digest
	manifest ocispec.Descriptor
	layers   []ocispec.Descriptor
	blobs    map[digest.Digest][]byte // manifest included
}

func build(t *testing.T, r recipe) built {
	t.Helper()
	b := built{blobs: map[digest.Digest][]byte{}}
	types := []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerGzip}
	if r.docker {
		types = []string{"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json",
			"application/vnd.docker.image.rootfs.diff.tar.gzip"}
	}
	if r.pack == nil {
		r.pack = gzipped
	}
	if r.platform == "" {
		r.platform = "amd64"
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: r.platform}}
	config.RootFS.Type = "layers"
	config.Config.Labels = map[string]string{"label": r.label}
	for _, l := range r.layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		b.layers = append(b.layers, b.add(types[2], r.pack(t, l)))
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types[0], Layers: b.layers}
	manifest.Config = b.add(types[1], encode(t, config))
	manifest.Annotations = map[string]string{"made": "by a test"}
	b.id = manifest.Config.Digest
	b.manifest = b.add(types[0], encode(t, manifest))
	b.manifest.Platform = &config.Platform
	return b
}

func (b *built) add(mediaType string, content []byte) ocispec.Descriptor {
	d := digest.FromBytes(content)
	b.blobs[d] = content
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

// index returns images as one of several platforms.
func index(t *testing.T, images ...built) built {
	t.Helper()
	ix := built{blobs: map[digest.Digest][]byte{}}
	doc := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, b := range images {
		doc.Manifests = append(doc.Manifests, b.manifest)
		for d, content := range b.blobs {
			ix.blobs[d] = content
		}
	}
	ix.manifest = ix.add(ocispec.MediaTypeImageIndex, encode(t, doc))
	return ix
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fakeRegistry speaks the registry protocol, as far as pulls need it, and counts.
type fakeRegistry struct {
	*httptest.Server
	host string
	// before is called for each request, and answers it itself if it returns true.
	before func(w http.ResponseWriter, r *http.Request) bool

	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	types map[digest.Digest]string
	tags  map[string]digest.Digest // "repo:tag"
	count map[string]int           // requests by method and last parts of the path: "GET blobs/sha256:…"
	auths map[string]bool          // Authorization headers that came
}

func newRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	r := &fakeRegistry{}
	r.init(httptest.NewServer(r))
	t.Cleanup(r.Close)
	return r
}

func (r *fakeRegistry) init(srv *httptest.Server) {
	r.Server = srv
	r.host = srv.Listener.Addr().String()
	r.blobs, r.types = map[digest.Digest][]byte{}, map[digest.Digest]string{}
	r.tags, r.count, r.auths = map[string]digest.Digest{}, map[string]int{}, map[string]bool{}
}

// push stores an image under "repo:tag" and returns the reference to it.
func (r *fakeRegistry) push(b built, name string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, content := range b.blobs {
		r.blobs[d] = content
	}
	r.types[b.manifest.Digest] = b.manifest.MediaType
	r.tags[name] = b.manifest.Digest
	return r.host + "/" + name
}

func (r *fakeRegistry) requests(prefix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for k, c := range r.count {
		if strings.HasPrefix(k, prefix) {
			n += c
		}
	}
	return n
}

func (r *fakeRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	parts := strings.Split(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
	if len(parts) < 3 {
		http.NotFound(w, req)
		return
	}
	repo, kind, ref := strings.Join(parts[:len(parts)-2], "/"), parts[len(parts)-2], parts[len(parts)-1]
	r.mu.Lock()
	r.count[req.Method+" "+kind+"/"+ref]++
	if a := req.Header.Get("Authorization"); a != "" {
		r.auths[a] = true
	}
	before := r.before
	r.mu.Unlock()
	if before != nil && before(w, req) {
		return
	}
	r.mu.Lock()
	d, ok := r.tags[repo+":"+ref]
	if !ok {
		d = digest.Digest(ref)
	}
	content, ok := r.blobs[d]
	mediaType := r.types[d]
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, req)
		return
	}
	if mediaType == "" {
		mediaType = "application/octet-stream"
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	if req.Method != http.MethodHead {
		_, _ = w.Write(content)
	}
}

// onBlob has f called for GET requests of a blob.
func (r *fakeRegistry) onBlob(d digest.Digest, f func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		return strings.HasSuffix(req.URL.Path, "/blobs/"+d.String()) && req.Method == http.MethodGet && f(w, req)
	}
}

func mustPull(t *testing.T, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, nil, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// wantNothing checks that a store without images takes no space.
func wantNothing(t *testing.T, s *Store) {
	t.Helper()
	u, err := s.Usage()
	if err != nil || u.Bytes != 0 || u.Inodes != 0 {
		t.Errorf("usage is %+v, %v", u, err)
	}
	for _, dir := range []string{"images", "spool", "layers/layers", "layers/ingest"} {
		left, err := os.ReadDir(filepath.Join(s.cfg.Dir, dir))
		if err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v %v", dir, left, err)
		}
	}
}

// content reads a file of an image from its topmost layer that has it.
func content(t *testing.T, s *Store, img Image, name string) string {
	t.Helper()
	for i := len(img.ChainIDs) - 1; i >= 0; i-- {
		b, err := os.ReadFile(filepath.Join(s.cfg.Dir, "layers", "layers", img.ChainIDs[i].Encoded(), "fs", name))
		if err == nil {
			return string(b)
		}
	}
	return fmt.Sprintf("no file %s", name)
}
