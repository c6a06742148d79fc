// Package registry is a small container registry for tests. It serves an OCI image layout under many host names from one
// loopback address, takes pushes, asks for passwords where told to, and counts and delays requests.
//
// It speaks the part of the OCI distribution specification that clients use: manifests and blobs by HEAD and GET (blobs by
// range too), tag lists, and uploads in one piece or in chunks. Which host a request means is told by the query parameter
// ns, which containerd's clients add when they ask a mirror, else by the Host header.
package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-node/berth/integration/images"
)

// A Registry is an http.Handler. Its methods may be called at any time.
type Registry struct {
	layout string // folder with blobs/sha256; empty for a registry that has only what is pushed

	mu       sync.Mutex
	tags     map[string]ocispec.Descriptor // by host/repository:tag
	types    map[digest.Digest]string      // media types of manifests
	pushed   map[digest.Digest][]byte
	uploads  map[string][]byte
	requests []Request
	logins   map[string]Login // by host
	hold     func(*http.Request) <-chan struct{}
}

// A Request is one that was served, for tests that count.
type Request struct {
	Host, Method, Path string
	Status             int
}

// Open returns a registry that serves the images of an OCI layout.
func Open(layout string) (*Registry, error) {
	r := New()
	r.layout = layout
	data, err := os.ReadFile(filepath.Join(layout, ocispec.ImageIndexFile))
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", layout, err)
	}
	for _, m := range index.Manifests {
		if err := r.learn(m.Annotations[images.NameAnnotation], m); err != nil {
			return nil, fmt.Errorf("%s: %w", layout, err)
		}
	}
	return r, nil
}

// New returns an empty registry.
func New() *Registry {
	return &Registry{
		tags:    map[string]ocispec.Descriptor{},
		types:   map[digest.Digest]string{},
		pushed:  map[digest.Digest][]byte{},
		uploads: map[string][]byte{},
		logins:  map[string]Login{},
	}
}

// learn enters a name, and the types of all manifests below it.
func (r *Registry) learn(name string, d ocispec.Descriptor) error {
	if name != "" {
		r.tags[name] = d
	}
	r.types[d.Digest] = d.MediaType
	if d.MediaType != ocispec.MediaTypeImageIndex && !strings.HasSuffix(d.MediaType, "manifest.list.v2+json") {
		return nil
	}
	data, err := r.blob(d.Digest)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return err
	}
	for _, m := range index.Manifests {
		if err := r.learn("", m); err != nil {
			return err
		}
	}
	return nil
}

// Hosts returns the host names under which there are images.
func (r *Registry) Hosts() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	hosts := map[string]bool{}
	for name := range r.tags {
		host, _, _ := strings.Cut(name, "/")
		hosts[host] = true
	}
	return slices.Sorted(maps.Keys(hosts))
}

// Digest returns the digest behind a full name with a tag, or "".
func (r *Registry) Digest(name string) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tags[name].Digest
}

// Tag gives an image that is there one more name.
func (r *Registry) Tag(existing, name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.tags[existing]
	if !ok {
		return fmt.Errorf("no image %s", existing)
	}
	r.tags[name] = d
	return nil
}

// Requests returns what has been served so far, oldest first.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// Count returns how many requests were served whose method and path fit. An empty method fits all.
func (r *Registry) Count(method, pathContains string) int {
	n := 0
	for _, q := range r.Requests() {
		if (method == "" || q.Method == method) && strings.Contains(q.Path, pathContains) {
			n++
		}
	}
	return n
}

// Hold makes f decide how long requests wait: until the channel it returns is closed, or not at all if it is nil. A nil f
// ends the waiting of requests to come.
func (r *Registry) Hold(f func(*http.Request) <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold = f
}

// blob returns the bytes behind a digest, or an error that is os.ErrNotExist.
func (r *Registry) blob(d digest.Digest) ([]byte, error) {
	if data, ok := r.pushed[d]; ok {
		return data, nil
	}
	if r.layout == "" || d.Validate() != nil {
		return nil, os.ErrNotExist
	}
	return os.ReadFile(filepath.Join(r.layout, "blobs", d.Algorithm().String(), d.Encoded()))
}
