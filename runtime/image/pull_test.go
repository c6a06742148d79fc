package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-node/berth/internal/errdefs"
)

func TestPull(t *testing.T) {
	layers := func(t *testing.T) [][]byte {
		return [][]byte{layerOf(t, "a", "1", "b", "2"), layerOf(t, "b", "3"), layerOf(t, "dir/c", strings.Repeat("4", 100000))}
	}
	tests := map[string]func(t *testing.T) (top, img built){
		"gzip": func(t *testing.T) (top, img built) { b := build(t, recipe{layers: layers(t)}); return b, b },
		"zstd": func(t *testing.T) (top, img built) {
			b := build(t, recipe{layers: layers(t), pack: zstded})
			return b, b
		},
		"uncompressed": func(t *testing.T) (top, img built) {
			b := build(t, recipe{layers: layers(t), pack: plain})
			return b, b
		},
		"docker": func(t *testing.T) (top, img built) {
			b := build(t, recipe{layers: layers(t), docker: true})
			return b, b
		},
		"no layers": func(t *testing.T) (top, img built) { b := build(t, recipe{}); return b, b },
		"index": func(t *testing.T) (top, img built) {
			other := build(t, recipe{layers: [][]byte{layerOf(t, "x", "other")}, platform: "s390x"})
			b := build(t, recipe{layers: layers(t)})
			return index(t, other, b), b
		},
		"index in an index": func(t *testing.T) (top, img built) {
			b := build(t, recipe{layers: layers(t)})
			return index(t, index(t, b)), b
		},
	}
	for name, make := range tests {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			top, b := make(t)
			if runtime.GOARCH != "amd64" {
				t.Skip("the images are for amd64")
			}
			ref := reg.push(top, "team/app:1.0")
			s := openStore(t, Config{})
			var last Progress
			img, err := s.Pull(t.Context(), ref, nil, PullOptions{Progress: func(p Progress) { last = p }})
			if err != nil {
				t.Fatal(err)
			}
			if img.ID != b.id.String() {
				t.Errorf("ID is %s, want %s", img.ID, b.id)
			}
			if want := []string{ref}; !reflect.DeepEqual(img.RepoTags, want) {
				t.Errorf("tags are %v, want %v", img.RepoTags, want)
			}
			if want := []string{reg.host + "/team/app@" + top.manifest.Digest.String()}; !reflect.DeepEqual(img.RepoDigests, want) {
				t.Errorf("digests are %v, want %v", img.RepoDigests, want)
			}
			if len(b.layers) > 0 {
				if got := content(t, s, img, "b") + content(t, s, img, "a"); got != "31" {
					t.Errorf("files are %q", got)
				}
				if img.Size < 100000 {
					t.Errorf("size is %d", img.Size)
				}
			}
			if last.LayersDone != len(b.layers) || last.BytesDone != last.Bytes {
				t.Errorf("progress ends at %+v", last)
			}
			if img.Annotations["made"] != "by a test" {
				t.Errorf("annotations are %v", img.Annotations)
			}
			if err := s.Remove(t.Context(), ref); err != nil {
				t.Fatal(err)
			}
			wantNothing(t, s)
		})
	}
}

func TestPullByDigest(t *testing.T) {
	reg := newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	reg.push(b, "app:1")
	s := openStore(t, Config{})
	byDigest := reg.host + "/app@" + b.manifest.Digest.String()
	for _, ref := range []string{byDigest, reg.host + "/app:ignored@" + b.manifest.Digest.String()} {
		img := mustPull(t, s, ref)
		if len(img.RepoTags) != 0 || !reflect.DeepEqual(img.RepoDigests, []string{byDigest}) {
			t.Errorf("references are %v %v", img.RepoTags, img.RepoDigests)
		}
	}
	if n := reg.requests("GET manifests/"); n != 1 {
		t.Errorf("%d manifests were fetched", n)
	}
}

func TestPullAgain(t *testing.T) {
	reg := newRegistry(t)
	base := layerOf(t, "base", "1")
	first := build(t, recipe{layers: [][]byte{base, layerOf(t, "v", "1")}})
	second := build(t, recipe{layers: [][]byte{base, layerOf(t, "v", "2")}})
	ref := reg.push(first, "app:latest")
	s := openStore(t, Config{})
	mustPull(t, s, ref)
	mustPull(t, s, strings.TrimSuffix(ref, ":latest"))
	if n := reg.requests("GET blobs/"); n != 3 {
		t.Errorf("%d blobs were fetched, want two layers and a configuration", n)
	}

	reg.push(second, "app:latest")
	moved := mustPull(t, s, ref)
	if moved.ID != second.id.String() || content(t, s, moved, "v") != "2" {
		t.Errorf("the tag still is the old image")
	}
	if n := reg.requests("GET blobs/" + first.layers[0].Digest.String()); n != 1 {
		t.Errorf("the base layer was fetched %d times", n)
	}
	old, err := s.Get(first.id.String())
	if err != nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 {
		t.Errorf("the old image is %+v, %v", old, err)
	}
	r := openStore(t, Config{Dir: s.cfg.Dir})
	if got, want := r.List(), s.List(); !reflect.DeepEqual(got, want) {
		t.Errorf("after a restart:\n%+v\nbefore:\n%+v", got, want)
	}
}

func TestSameImageFromTwoRegistries(t *testing.T) {
	one, two := newRegistry(t), newRegistry(t)
	layers := [][]byte{layerOf(t, "a", "1")}
	refs := []string{
		one.push(build(t, recipe{layers: layers}), "app:1"),
		two.push(build(t, recipe{layers: layers, pack: zstded}), "other/app:2"), // another manifest, the same image
	}
	s := openStore(t, Config{})
	a, b := mustPull(t, s, refs[0]), mustPull(t, s, refs[1])
	sorted := slices.Sorted(slices.Values(refs))
	if a.ID != b.ID || !reflect.DeepEqual(b.RepoTags, sorted) || len(b.RepoDigests) != 2 {
		t.Errorf("images are %+v\n%+v", a, b)
	}
	if n := two.requests("GET blobs/" + digest.FromBytes(zstded(t, layers[0])).String()); n != 0 {
		t.Error("a layer that is here was fetched")
	}
	if err := s.Remove(t.Context(), refs[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(refs[1]); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("the other reference is still there: %v", err)
	}
	wantNothing(t, s)
}

func TestPullErrors(t *testing.T) {
	good := build(t, recipe{layers: [][]byte{layerOf(t, "a", strings.Repeat("1", 3000))}, pack: plain})
	blob := good.layers[0].Digest
	status := func(code int) func(*fakeRegistry) {
		return func(r *fakeRegistry) {
			r.before = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
		}
	}
	tests := map[string]struct {
		ref     string // without the host; empty is app:1
		prepare func(*fakeRegistry)
		cfg     Config
		class   error
		words   string
	}{
		"no such tag":      {ref: "app:2", class: errdefs.ErrNotFound, words: "app:2"},
		"bad reference":    {ref: "APP:2", class: errdefs.ErrInvalidArgument, words: "lowercase"},
		"unauthorized":     {prepare: status(401), class: errdefs.ErrPermissionDenied},
		"forbidden":        {prepare: status(403), class: errdefs.ErrPermissionDenied},
		"broken":           {prepare: status(500), class: errdefs.ErrUnavailable},
		"closed":           {prepare: func(r *fakeRegistry) { r.Close() }, class: errdefs.ErrUnavailable, words: "refused"},
		"layer too long":   {prepare: func(r *fakeRegistry) { r.blobs[blob] = slices.Concat(r.blobs[blob][:600], r.blobs[blob][512:]) }, class: errdefs.ErrInvalidArgument},
		"forged layer":     {prepare: func(r *fakeRegistry) { r.blobs[blob] = layerOf(t, "a", strings.Repeat("2", 3000)) }, class: errdefs.ErrInvalidArgument, words: "what came as " + blob.String()},
		"layer too short":  {prepare: func(r *fakeRegistry) { r.blobs[blob] = r.blobs[blob][:1000] }, class: errdefs.ErrUnavailable},
		"missing layer":    {prepare: func(r *fakeRegistry) { delete(r.blobs, blob) }, class: errdefs.ErrNotFound},
		"layer too large":  {cfg: Config{MaxLayerBytes: 1000}, class: errdefs.ErrResourceExhausted},
		"forged config":    {prepare: func(r *fakeRegistry) { r.blobs[good.id] = []byte("{}") }, class: errdefs.ErrUnavailable},
		"cut off, always":  {prepare: func(r *fakeRegistry) { r.onBlob(blob, cutOff(r, blob)) }, class: errdefs.ErrUnavailable},
		"schema 1":         {prepare: func(r *fakeRegistry) { pushRaw(r, "app:1", mediaTypeSchema1Unsigned, `{"schemaVersion":1}`) }, class: errdefs.ErrUnimplemented, words: "schema 1"},
		"schema 1, unsaid": {prepare: func(r *fakeRegistry) { pushRaw(r, "app:1", "application/json", `{"schemaVersion":1,"fsLayers":[]}`) }, class: errdefs.ErrUnimplemented},
		"two in one":       {prepare: func(r *fakeRegistry) { pushRaw(r, "app:1", "application/json", `{"manifests":[],"layers":[]}`) }, class: errdefs.ErrInvalidArgument},
		"no JSON":          {prepare: func(r *fakeRegistry) { pushRaw(r, "app:1", "application/json", `<html>`) }, class: errdefs.ErrInvalidArgument},
		"no image":         {prepare: func(r *fakeRegistry) { pushRaw(r, "app:1", "application/json", `{"schemaVersion":2}`) }, class: errdefs.ErrInvalidArgument},
		"other platform": {prepare: func(r *fakeRegistry) {
			r.push(index(t, build(t, recipe{platform: "s390x"}), build(t, recipe{platform: "ppc64le"})), "app:1")
		}, class: errdefs.ErrNotFound, words: "[linux/s390x linux/ppc64le]"},
		"other platform, one": {prepare: func(r *fakeRegistry) { r.push(build(t, recipe{platform: "s390x"}), "app:1") }, class: errdefs.ErrNotFound, words: "linux/s390x"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			if tt.ref == "" {
				tt.ref = "app:1"
			}
			reg.push(good, "app:1")
			if tt.prepare != nil {
				tt.prepare(reg)
			}
			s := openStore(t, tt.cfg)
			_, err := s.Pull(t.Context(), reg.host+"/"+tt.ref, nil, PullOptions{})
			if !errors.Is(err, tt.class) {
				t.Errorf("error is %v, want %v", err, tt.class)
			}
			if err != nil && (!strings.Contains(err.Error(), tt.words) || !strings.Contains(err.Error(), reg.host)) {
				t.Errorf("error %q does not say %q and %q", err, tt.words, reg.host)
			}
			wantNothing(t, s)
		})
	}
}

// pushRaw stores a manifest that no tool would write.
func pushRaw(r *fakeRegistry, name, mediaType, doc string) {
	b := built{blobs: map[digest.Digest][]byte{}}
	b.manifest = b.add(mediaType, []byte(doc))
	r.push(b, name)
}

// cutOff answers half of a blob and breaks the connection, without ever getting further.
func cutOff(r *fakeRegistry, d digest.Digest) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, req *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(r.blobs[d])))
		if req.Header.Get("Range") == "" {
			_, _ = w.Write(r.blobs[d][:1000])
		}
		panic(http.ErrAbortHandler)
	}
}

// A connection that breaks is taken up where it was, and a pull that was broken off at the layer.
func TestPullResumes(t *testing.T) {
	reg := newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1"), layerOf(t, "b", strings.Repeat("2", 100000))}, pack: plain})
	ref := reg.push(b, "app:1")
	second := b.layers[1].Digest
	var broken atomic.Bool
	broken.Store(true)
	reg.onBlob(second, func(w http.ResponseWriter, _ *http.Request) bool {
		if broken.Load() {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	s := openStore(t, Config{MaxParallelLayers: 1})
	if _, err := s.Pull(t.Context(), ref, nil, PullOptions{}); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Fatalf("error is %v", err)
	}
	s.Close()

	r := openStore(t, Config{Dir: s.cfg.Dir})
	if err := r.Collect(t.Context()); err != nil { // within the grace
		t.Fatal(err)
	}
	broken.Store(false)
	var once sync.Once
	reg.onBlob(second, func(w http.ResponseWriter, req *http.Request) (cut bool) {
		once.Do(func() { cut = true })
		if cut {
			w.Header().Set("Content-Length", fmt.Sprint(b.layers[1].Size))
			_, _ = w.Write(b.blobs[second][:50000])
			panic(http.ErrAbortHandler)
		}
		return false
	})
	mustPull(t, r, ref)
	if n := reg.requests("GET blobs/" + b.layers[0].Digest.String()); n != 1 {
		t.Errorf("the finished layer was fetched %d times", n)
	}
}

func TestLeftoversAreCollected(t *testing.T) {
	reg := newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1"), layerOf(t, "b", "2")}})
	ref := reg.push(b, "app:1")
	reg.onBlob(b.layers[1].Digest, func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	s := openStore(t, Config{MaxParallelLayers: 1, LeftoverGrace: time.Nanosecond})
	if _, err := s.Pull(t.Context(), ref, nil, PullOptions{}); err == nil {
		t.Fatal("no error")
	}
	if len(s.layers.List()) != 1 {
		t.Fatalf("layers are %v", s.layers.List())
	}
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNothing(t, s)
}

func TestParallelPullsShareOne(t *testing.T) {
	reg := newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	ref := reg.push(b, "app:1")
	gate := make(chan struct{})
	reg.onBlob(b.layers[0].Digest, func(http.ResponseWriter, *http.Request) bool { <-gate; return false })
	s := openStore(t, Config{})
	impatient, giveUp := context.WithCancel(t.Context())
	const n = 10
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := s.Pull(t.Context(), ref, nil, PullOptions{})
			errs <- err
		}()
	}
	left := make(chan error)
	go func() {
		_, err := s.Pull(impatient, ref, nil, PullOptions{})
		left <- err
	}()
	waitForWaiters(s, n+1)
	giveUp()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	close(gate)
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, what := range []string{"HEAD manifests/", "GET manifests/", "GET blobs/" + b.layers[0].Digest.String()} {
		if got := reg.requests(what); got != 1 {
			t.Errorf("%d requests %s", got, what)
		}
	}
}

// waitForWaiters returns when n callers wait for a pull.
func waitForWaiters(s *Store, n int) {
	for {
		s.flights.mu.Lock()
		waiters := 0
		for _, f := range s.flights.all {
			waiters += f.waiters
		}
		s.flights.mu.Unlock()
		if waiters == n {
			return
		}
		runtime.Gosched()
	}
}

// Images that are pulled side by side make a layer that they share once.
func TestParallelPullsShareLayers(t *testing.T) {
	reg := newRegistry(t)
	base := [][]byte{layerOf(t, "a", "1"), layerOf(t, "b", "2")}
	s := openStore(t, Config{MaxParallelLayers: 2, MaxParallelBytes: 1})
	const n = 8
	var refs []string
	var shared []digest.Digest
	for i := range n {
		b := build(t, recipe{layers: append(slices.Clone(base), layerOf(t, "c", fmt.Sprint(i)))})
		shared = []digest.Digest{b.layers[0].Digest, b.layers[1].Digest}
		refs = append(refs, reg.push(b, fmt.Sprintf("app:%d", i)))
	}
	var wg sync.WaitGroup
	for i, ref := range refs {
		wg.Go(func() {
			img, err := s.Pull(t.Context(), ref, nil, PullOptions{})
			if err != nil {
				t.Error(err)
			} else if got := content(t, s, img, "c"); got != fmt.Sprint(i) {
				t.Errorf("image %d has %q", i, got)
			}
		})
	}
	wg.Wait()
	for _, d := range shared {
		if got := reg.requests("GET blobs/" + d.String()); got != 1 {
			t.Errorf("a shared layer was fetched %d times", got)
		}
	}
}

func TestPullEndsWhenNobodyWaits(t *testing.T) {
	reg := newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	ref := reg.push(b, "app:1")
	asked, ended := make(chan struct{}), make(chan struct{})
	reg.onBlob(b.layers[0].Digest, func(w http.ResponseWriter, r *http.Request) bool {
		close(asked)
		<-r.Context().Done()
		close(ended)
		return true
	})
	s := openStore(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := s.Pull(ctx, ref, nil, PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	<-ended
	reg.mu.Lock()
	reg.before = nil
	reg.mu.Unlock()
	mustPull(t, s, ref)
}

func TestDeadline(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}}), "app:1")
	reg.before = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	s := openStore(t, Config{})
	for _, d := range []time.Duration{-time.Second, time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		_, err := s.Pull(ctx, ref, nil, PullOptions{})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
	}
}

func TestStalledPull(t *testing.T) {
	reg := newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", strings.Repeat("1", 100000))}, pack: plain})
	ref := reg.push(b, "app:1")
	d := b.layers[0].Digest
	reg.onBlob(d, func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(b.blobs[d])))
		_, _ = w.Write(b.blobs[d][:5000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	})
	s := openStore(t, Config{ProgressTimeout: 50 * time.Millisecond})
	_, err := s.Pull(t.Context(), ref, nil, PullOptions{})
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "sent nothing for 50ms") {
		t.Errorf("error is %v", err)
	}
	wantNothing(t, s)
}

func TestPullAfterClose(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}}), "app:1")
	asked := make(chan struct{})
	reg.before = func(_ http.ResponseWriter, r *http.Request) bool { close(asked); <-r.Context().Done(); return true }
	s := openStore(t, Config{})
	done := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), ref, nil, PullOptions{})
		done <- err
	}()
	<-asked
	s.Close()
	if err := <-done; err == nil {
		t.Error("no error")
	}
}

// A panic in a pull is the error of all who wait for it, and the next one runs.
func TestPullPanics(t *testing.T) {
	s := openStore(t, Config{})
	f := s.join("key", func(context.Context, *flight) (Image, error) { panic("at the manifest") })
	<-f.done
	s.leave("key", f)
	if p := (*errdefs.Panic)(nil); !errors.As(f.err, &p) || p.Value != "at the manifest" {
		t.Errorf("got %v", f.err)
	}
	again := s.join("key", func(context.Context, *flight) (Image, error) { return Image{ID: "well"}, nil })
	defer s.leave("key", again)
	<-again.done
	if again.image.ID != "well" || again.err != nil {
		t.Errorf("afterwards: %v, %v", again.image, again.err)
	}
}
