//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
	"github.com/berth-node/berth/integration/registry"
)

// badRegistry is a node whose registry misbehaves as a test tells it.
type badRegistry struct {
	node   *harness.Node
	faulty *registry.Faulty
	server *registry.Server
	hosts  string // the folder of hosts.toml

	mu   sync.Mutex
	seen []*http.Request
}

// newBadRegistry starts them. A read that brings nothing for half a second is a stall.
func newBadRegistry(t *testing.T, config ...string) *badRegistry {
	t.Helper()
	b := &badRegistry{faulty: &registry.Faulty{Serve: world.registry}, hosts: t.TempDir()}
	var err error
	if b.server, err = registry.Listen(b, "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.server.Close)
	b.useOnly(t)
	b.node = ownNode(t, func(o *harness.Options) {
		o.HostsDir = b.hosts
		o.Config = "image:\n  pullProgressTimeout: 5s\n" + strings.Join(config, "")
	})
	return b
}

// ServeHTTP notes each request and serves it as badly as it was told to.
func (b *badRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.seen = append(b.seen, r)
	b.mu.Unlock()
	b.faulty.ServeHTTP(w, r)
}

func (b *badRegistry) useOnly(t *testing.T) {
	t.Helper()
	dir := filepath.Join(b.hosts, images.Registry)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = %q\n", b.server.URL()), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// spoil sets a fault for requests whose path has a part; the first `times` of them, all if it is 0.
func (b *badRegistry) spoil(part string, times int, fault registry.Fault) {
	b.mu.Lock()
	b.seen = nil
	b.mu.Unlock()
	var mu sync.Mutex
	n := 0
	b.faulty.Set(func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		mu.Lock()
		hit := strings.Contains(r.URL.Path, part) && (times == 0 || n < times)
		if hit {
			n++
		}
		mu.Unlock()
		if hit {
			fault(w, r, serve)
			return
		}
		serve.ServeHTTP(w, r)
	})
}

// requests returns those that came since spoil and whose path has a part.
func (b *badRegistry) requests(part string) []*http.Request {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.seen), func(r *http.Request) bool { return !strings.Contains(r.URL.Path, part) })
}

// wantNoHalves fails if a part of a layer is left.
func (b *badRegistry) wantNoHalves(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"layers/ingest", "spool"} {
		left, err := os.ReadDir(filepath.Join(b.node.RootDir, "images", dir))
		if err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v %v", dir, left, err)
		}
	}
}

// bigLayer is the path of the one layer of images.StopByUSR1.
func bigLayer(t *testing.T) (string, int) {
	t.Helper()
	layers := layersOf(t, images.StopByUSR1)
	return "/blobs/" + layers[0].Digest.String(), int(layers[0].Size)
}

// A pull that can come to a good end does, whatever happens on the way, and fetches no byte twice that it has.
func TestPullFromABadRegistry(t *testing.T) {
	b := newBadRegistry(t)
	layer, size := bigLayer(t)
	for name, c := range map[string]struct {
		part  string
		times int
		fault registry.Fault
	}{
		"slow":                      {layer, 0, registry.Drip(64<<10, 20*time.Millisecond)},
		"cut once":                  {layer, 1, registry.Cut(300_000)},
		"cut every time":            {layer, 0, registry.Cut(300_000)},
		"stalled":                   {layer, 1, registry.Stall(500_000)},
		"reset before the answer":   {layer, 2, registry.Cut(0)},
		"manifest cut":              {"/manifests/", 2, registry.Cut(10)},
		"500":                       {"", 2, registry.Refuse(http.StatusInternalServerError)},
		"502":                       {layer, 2, registry.Refuse(http.StatusBadGateway)},
		"503 of a manifest":         {"/manifests/", 2, registry.Refuse(http.StatusServiceUnavailable)},
		"429 without a Retry-After": {layer, 2, registry.Refuse(http.StatusTooManyRequests)},
		"redirected":                {layer, 1, registry.Refuse(http.StatusTemporaryRedirect, "Location", "?again=1")},
	} {
		t.Run(name, func(t *testing.T) {
			removeImage(t, b.node, images.StopByUSR1)
			b.spoil(c.part, c.times, c.fault)
			if _, err := pull(t, b.node, images.StopByUSR1, nil); err != nil {
				t.Fatal(err)
			}
			b.wantNoHalves(t)
			for i, r := range b.requests(layer) {
				from := strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
				if at, _ := strconv.Atoi(from); strings.HasPrefix(name, "cut") && at != min(i*300_000, size) {
					t.Errorf("connection %d begins at byte %d of %d", i, at, size)
				}
			}
		})
	}
}

// A pull that cannot come to a good end says why in the class that callers act by, soon, and leaves nothing half done.
func TestPullErrorsOfABadRegistry(t *testing.T) {
	b := newBadRegistry(t)
	layer, _ := bigLayer(t)
	loop := func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, r.URL.Path+"?n="+strconv.Itoa(len(b.requests(""))), http.StatusFound)
	}
	for name, c := range map[string]struct {
		part  string
		fault registry.Fault
		code  codes.Code
		words string
		most  int // requests of that part; 0 is not counted
	}{
		"always 500":       {layer, registry.Refuse(http.StatusInternalServerError), codes.Unknown, "500", 6},
		"429 for an hour":  {"/manifests/", registry.Refuse(http.StatusTooManyRequests, "Retry-After", "3600"), codes.Unknown, "left alone for 1h", 1},
		"always stalled":   {layer, registry.Stall(0), codes.Unknown, "sent nothing for 5s", 0},
		"redirect loop":    {layer, loop, codes.Unknown, "stopped after 10 redirects", 11},
		"forbidden":        {layer, registry.Refuse(http.StatusForbidden), codes.PermissionDenied, "403", 1},
		"gone":             {layer, registry.Refuse(http.StatusNotFound), codes.NotFound, "not found", 1},
		"other bytes":      {layer, registry.Garble, codes.InvalidArgument, "", 1},
		"other manifest":   {"/manifests/sha256:", registry.Garble, codes.InvalidArgument, "what came as", 1},
		"too long":         {layer, resized(2 << 20), codes.InvalidArgument, "past expected size", 1},
		"too short":        {layer, resized(-(1 << 20)), codes.Unknown, "", 30},
		"another digest":   {"/manifests/1", saying("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64)), codes.NotFound, "", 0},
		"digest of nobody": {"/manifests/1", saying("Docker-Content-Digest", "sha256:../../etc"), codes.InvalidArgument, "digest", 0},
	} {
		t.Run(name, func(t *testing.T) {
			removeImage(t, b.node, images.StopByUSR1)
			b.spoil(c.part, 0, c.fault)
			_, err := pull(t, b.node, images.StopByUSR1, nil)
			said := status.Convert(err).Message()
			// The CRI has its own word, and no code, for a registry that is not there.
			unavailable := strings.HasPrefix(said, crierrors.ErrRegistryUnavailable.Error())
			if status.Code(err) != c.code || unavailable != (c.code == codes.Unknown) || !strings.Contains(said, c.words) {
				t.Errorf("got %v, want %s with %q", err, c.code, c.words)
			}
			if got := len(b.requests(c.part)); c.most > 0 && got > c.most {
				t.Errorf("the registry was asked %d times", got)
			}
			b.wantNoHalves(t)
			b.spoil("", 1, registry.Fault(func(w http.ResponseWriter, r *http.Request, serve http.Handler) { serve.ServeHTTP(w, r) }))
			if _, err := pull(t, b.node, images.StopByUSR1, nil); err != nil {
				t.Errorf("when the registry is well again: %v", err)
			}
		})
	}
}

// resized makes an answer longer, or shorter, than the descriptor says, with headers that go with it.
func resized(by int) registry.Fault {
	return func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		r = r.Clone(r.Context())
		r.Header.Del("Range")
		rec := &kept{header: http.Header{}}
		serve.ServeHTTP(rec, r)
		data := rec.data
		if by < 0 {
			data = data[:max(len(data)+by, 0)]
		} else {
			data = append(data, make([]byte, by)...)
		}
		w.Header().Set("Content-Type", rec.header.Get("Content-Type"))
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data) // the client may have had enough
	}
}

type kept struct {
	header http.Header
	data   []byte
}

func (k *kept) Header() http.Header { return k.header }
func (k *kept) WriteHeader(int)     {}
func (k *kept) Write(p []byte) (int, error) {
	k.data = append(k.data, p...)
	return len(p), nil
}

// saying changes a header of an answer.
func saying(name, value string) registry.Fault {
	return func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		serve.ServeHTTP(&lying{w, name, value}, r)
	}
}

type lying struct {
	http.ResponseWriter
	name, value string
}

func (l *lying) WriteHeader(code int) {
	l.Header().Set(l.name, l.value)
	l.ResponseWriter.WriteHeader(code)
}

// A registry that says when to come again is not asked before.
func TestPullHonoursRetryAfter(t *testing.T) {
	b := newBadRegistry(t)
	var at []time.Time
	b.spoil("/manifests/", 2, func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		at = append(at, time.Now())
		registry.Refuse(http.StatusTooManyRequests, "Retry-After", "2")(w, r, serve)
	})
	if _, err := pull(t, b.node, images.StopByUSR1, nil); err != nil {
		t.Fatal(err)
	}
	if len(at) != 2 || at[1].Sub(at[0]) < 2*time.Second {
		t.Errorf("asked at %v", at)
	}
}

// Layers of a registry that hangs keep no other pull from its turn.
func TestOtherPullsGoOn(t *testing.T) {
	b := newBadRegistry(t, "  maxParallelLayers: 1\n")
	n := b.node
	layer, _ := bigLayer(t)
	stuck := make(chan struct{}, 1)
	b.spoil(layer, 0, func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		select {
		case stuck <- struct{}{}:
		default:
		}
		registry.Stall(1000)(w, r, serve)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: images.StopByUSR1}})
		failed <- err
	}()
	<-stuck
	if _, err := pull(t, n, images.Volume, nil); err != nil {
		t.Errorf("beside a pull that hangs: %v", err)
	}
	select {
	case err := <-failed:
		t.Fatalf("the pull did not hang: %v", err)
	default:
	}
	b.faulty.Set(nil)
	if err := <-failed; err != nil {
		t.Errorf("when the registry is well again: %v", err)
	}
}

// A mirror that has the image, but not as it should be, is passed over for the registry.
func TestBadMirrorIsPassedOver(t *testing.T) {
	b := newBadRegistry(t)
	good, err := registry.Listen(world.registry, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(good.Close)
	text := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n",
		good.URL(), b.server.URL(), good.URL())
	if err := os.WriteFile(filepath.Join(b.hosts, images.Registry, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	layer, _ := bigLayer(t)
	for name, c := range map[string]struct {
		part  string
		fault registry.Fault
		most  int
	}{
		"other bytes":     {layer, registry.Garble, 0},
		"429":             {"", registry.Refuse(http.StatusTooManyRequests, "Retry-After", "600"), 1},
		"500":             {"", registry.Refuse(http.StatusInternalServerError), 0},
		"always stalled":  {layer, registry.Stall(1000), 0},
		"always cut":      {layer, registry.Cut(0), 0},
		"html everywhere": {"", registry.Fault(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { fmt.Fprint(w, "<html>log in</html>") }), 0},
	} {
		t.Run(name, func(t *testing.T) {
			removeImage(t, b.node, images.StopByUSR1)
			b.spoil(c.part, 0, c.fault)
			if _, err := pull(t, b.node, images.StopByUSR1, nil); err != nil {
				t.Error(err)
			}
			if got := len(b.requests("")); got == 0 || c.most > 0 && got > c.most {
				t.Errorf("the mirror was asked %d times", got)
			}
			b.wantNoHalves(t)
		})
	}
}

// privateHome serves the private image, in TLS, to nodes with this HostsDir, and is faulty on demand.
func privateHome(t *testing.T, hosts string) (faulty *registry.Faulty, home *registry.Server, ref string) {
	t.Helper()
	faulty = &registry.Faulty{Serve: world.registry}
	home, err := registry.ListenTLS(faulty, "127.0.0.1:0", privateHost)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(home.Close)
	host := fmt.Sprintf("localhost:%d", home.Port())
	if err := home.WriteHosts(hosts, host); err != nil {
		t.Fatal(err)
	}
	return faulty, home, host + "/app:1"
}

// What a redirect leads to gets no password, no token and no header of the operator's: not another host, nor another port
// or plain HTTP on the same one.
func TestRedirectTakesNoCredentialsAlong(t *testing.T) {
	const user, password = "ann", "the-secret"
	hosts := t.TempDir()
	var mu sync.Mutex
	var leaked []string
	elsewhere, err := registry.Listen(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		for name, values := range r.Header {
			if name == "Authorization" || strings.HasPrefix(name, "X-") {
				leaked = append(leaked, name+": "+values[0])
			}
		}
		mu.Unlock()
		world.registry.ServeHTTP(w, r)
	}), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(elsewhere.Close)
	faulty, home, ref := privateHome(t, hosts)
	file := filepath.Join(hosts, strings.TrimSuffix(ref, "/app:1"), "hosts.toml")
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, append(text, "  [host.\""+home.URL()+"\".header]\n    X-Api-Key = \"operator\"\n"...), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	n := ownNode(t, func(o *harness.Options) { o.HostsDir = hosts })
	for _, bearer := range []bool{false, true} {
		for _, to := range []string{"http://localhost:%d", "http://127.0.0.1:%d"} {
			t.Run(fmt.Sprintf("bearer=%v to %s", bearer, to), func(t *testing.T) {
				removeImage(t, n, ref)
				world.registry.Require(privateHost, registry.Login{User: user, Password: password, Bearer: bearer})
				t.Cleanup(func() { world.registry.Require(privateHost, registry.Login{}) })
				redirected := false
				faulty.Set(func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
					if !strings.Contains(r.URL.Path, "/blobs/") || r.Header.Get("Authorization") == "" {
						serve.ServeHTTP(w, r)
						return
					}
					redirected = true
					// The place that keeps the blobs knows them under a name that needs no login.
					http.Redirect(w, r, fmt.Sprintf(to, elsewhere.Port())+r.URL.Path+"?ns="+images.Registry, http.StatusTemporaryRedirect)
				})
				if _, err := pull(t, n, ref, &cri.AuthConfig{Username: user, Password: password}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if !redirected || len(leaked) > 0 {
					t.Errorf("redirected: %v; told to another host: %q", redirected, leaked)
				}
				leaked = nil
			})
		}
	}
}

// A token that ends in the middle of a pull, before its time and without a word on why, is followed by another one.
func TestTokenEndsInTheMiddleOfAPull(t *testing.T) {
	hosts := t.TempDir()
	faulty, _, ref := privateHome(t, hosts)
	world.registry.Require(privateHost, registry.Login{User: "ann", Password: "first", Bearer: true})
	t.Cleanup(func() { world.registry.Require(privateHost, registry.Login{}) })
	n := ownNode(t, func(o *harness.Options) { o.HostsDir = hosts })
	layers := layersOf(t, images.Private)
	var once sync.Once
	faulty.Set(func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		cut := false
		if strings.Contains(r.URL.Path, layers[0].Digest.String()) && r.Header.Get("Authorization") == "Bearer "+world.registry.Token(privateHost) {
			once.Do(func() { cut = true })
		}
		if !cut {
			serve.ServeHTTP(w, r)
			return
		}
		// The registry is given another secret while it serves; from then on the tokens of before are worth nothing.
		defer world.registry.RenewTokens(privateHost)
		registry.Cut(100_000)(w, r, serve)
	})
	if _, err := pull(t, n, ref, &cri.AuthConfig{Username: "ann", Password: "first"}); err != nil {
		t.Error(err)
	}
	if got := world.registry.Count(http.MethodPost, "/token") + world.registry.Count(http.MethodGet, "/token"); got < 2 {
		t.Errorf("%d tokens were fetched", got)
	}
}

// layersOf returns the layers of a test image with one platform.
func layersOf(t *testing.T, ref string) []ocispec.Descriptor {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(harness.Layout(), "blobs", "sha256", world.registry.Digest(ref).Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil || len(m.Layers) == 0 {
		t.Fatalf("manifest of %s: %s, %v", ref, data, err)
	}
	return m.Layers
}
