package image

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// demand refuses requests without the right Authorization header.
func (r *fakeRegistry) demand(header, challenge string) {
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Authorization") == header {
			return false
		}
		w.Header().Set("WWW-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

// tokenServer gives out the token "t0ken" to user:secret, by GET and by POST, and for the refresh token "refresh".
func tokenServer(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, secret, ok := r.BasicAuth()
		_ = r.ParseForm()
		if r.Method == http.MethodPost {
			user, secret, ok = r.PostForm.Get("username"), r.PostForm.Get("password"), true
			if r.PostForm.Get("refresh_token") == "refresh" {
				user, secret = "user", "secret"
			}
		}
		if !ok || user != "user" || secret != "secret" || !strings.Contains(r.Form.Get("scope"), "repository:app:pull") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"token":"t0ken","access_token":"t0ken"}`)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestCredentials(t *testing.T) {
	token := tokenServer(t)
	bearerChallenge := fmt.Sprintf(`Bearer realm=%q,service="registry",scope="repository:app:pull"`, token)
	basicChallenge := `Basic realm="registry"`
	encoded := base64.StdEncoding.EncodeToString([]byte("user:secret"))
	tests := map[string]struct {
		header, challenge string
		auth              *Auth
		class             error // nil if the pull must succeed
	}{
		"basic":                      {basic("user", "secret"), basicChallenge, &Auth{Username: "user", Password: "secret"}, nil},
		"basic, encoded":             {basic("user", "secret"), basicChallenge, &Auth{Auth: encoded}, nil},
		"basic, wrong":               {basic("user", "secret"), basicChallenge, &Auth{Username: "user", Password: "wrong"}, errdefs.ErrPermissionDenied},
		"basic, none":                {basic("user", "secret"), basicChallenge, nil, errdefs.ErrPermissionDenied},
		"basic, for another server":  {basic("user", "secret"), basicChallenge, &Auth{Username: "user", Password: "secret", ServerAddress: "https://other.example"}, errdefs.ErrPermissionDenied},
		"bearer":                     {"Bearer t0ken", bearerChallenge, &Auth{Username: "user", Password: "secret"}, nil},
		"bearer, wrong":              {"Bearer t0ken", bearerChallenge, &Auth{Username: "user", Password: "wrong"}, errdefs.ErrPermissionDenied},
		"bearer, none":               {"Bearer t0ken", bearerChallenge, nil, errdefs.ErrPermissionDenied},
		"bearer, identity token":     {"Bearer t0ken", bearerChallenge, &Auth{IdentityToken: "refresh"}, nil},
		"registry token":             {"Bearer mine", bearerChallenge, &Auth{RegistryToken: "mine"}, nil},
		"registry token, wrong":      {"Bearer mine", bearerChallenge, &Auth{RegistryToken: "other"}, errdefs.ErrPermissionDenied},
		"registry token, elsewhere":  {"Bearer mine", bearerChallenge, &Auth{RegistryToken: "mine", ServerAddress: "other.example"}, errdefs.ErrPermissionDenied},
		"not base64":                 {"", "", &Auth{Auth: "%%%"}, errdefs.ErrInvalidArgument},
		"server address is nonsense": {"", "", &Auth{ServerAddress: "https://"}, errdefs.ErrInvalidArgument},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			ref := reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}}), "app:1")
			reg.demand(tt.header, tt.challenge)
			if tt.auth != nil && tt.auth.ServerAddress == "" && name == "basic" {
				tt.auth.ServerAddress = "http://" + reg.host + "/v2/"
			}
			_, err := openStore(t, Config{}).Pull(t.Context(), ref, tt.auth, PullOptions{})
			if !errors.Is(err, tt.class) {
				t.Errorf("error is %v, want %v", err, tt.class)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("error tells the password: %v", err)
			}
		})
	}
}

func writeHosts(t *testing.T, dir, host, toml string) {
	t.Helper()
	d := filepath.Join(dir, host)
	if err := os.MkdirAll(d, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d, "hosts.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMirrors(t *testing.T) {
	mirror, origin := newRegistry(t), newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	mirror.push(b, "team/app:1")
	originOnly := build(t, recipe{layers: [][]byte{layerOf(t, "a", "2")}})
	origin.push(originOnly, "team/other:1")
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	writeHosts(t, dirs[1], "registry.example", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", origin.URL, mirror.URL))
	writeHosts(t, dirs[2], "_default", "server = \"http://127.0.0.1:1\"\n")
	s := openStore(t, Config{HostsDirs: dirs})

	origin.demand(basic("user", "secret"), `Basic realm="origin"`)
	mirror.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if ns := r.URL.Query().Get("ns"); ns != "registry.example" {
			t.Errorf("the mirror was asked for namespace %q", ns)
		}
		return false
	}
	img := mustPull(t, s, "registry.example/team/app:1")
	if img.RepoTags[0] != "registry.example/team/app:1" {
		t.Errorf("tags are %v", img.RepoTags)
	}
	if n := origin.requests(""); n != 0 {
		t.Errorf("the origin was asked %d times", n)
	}

	auth := &Auth{Username: "user", Password: "secret", ServerAddress: origin.host}
	if _, err := s.Pull(t.Context(), "registry.example/team/other:1", auth, PullOptions{}); err != nil {
		t.Errorf("what the mirror does not have: %v", err)
	}
	if len(mirror.auths) != 0 {
		t.Errorf("the mirror got credentials: %v", mirror.auths)
	}
	if _, err := s.Pull(t.Context(), "elsewhere.example/app:1", nil, PullOptions{}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("by _default: %v", err)
	}
}

func TestPrivateCA(t *testing.T) {
	reg := &fakeRegistry{}
	srv := httptest.NewUnstartedServer(reg)
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	reg.init(srv)
	reg.push(build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}}), "app:1")

	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	for name, toml := range map[string]string{
		"none.example": fmt.Sprintf("server = %q\n", srv.URL),
		"ca.example":   fmt.Sprintf("server = %q\nca = \"ca.pem\"\n", srv.URL),
		"skip.example": fmt.Sprintf("server = %q\nskip_verify = true\n", srv.URL),
	} {
		writeHosts(t, dir, name, toml)
		if err := os.WriteFile(filepath.Join(dir, name, "ca.pem"), ca, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := openStore(t, Config{HostsDirs: []string{dir}}).Pull(t.Context(), name+"/app:1", nil, PullOptions{})
		if (name == "none.example") != (err != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A hosts.toml that cannot be read is passed over by containerd's package; the log must say so.
func TestBrokenHostsFileIsLogged(t *testing.T) {
	dir := t.TempDir()
	reg := newRegistry(t)
	ref := reg.push(build(t, recipe{}), "app:1")
	writeHosts(t, dir, reg.host, "server = [broken")
	var log strings.Builder
	s := openStore(t, Config{HostsDirs: []string{dir}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	mustPull(t, s, ref)
	s.Close()
	if !strings.Contains(log.String(), "hosts.toml") {
		t.Errorf("log is %q", log.String())
	}
}

// A blob is often a redirect to other storage, which must not see credentials.
func TestRedirect(t *testing.T) {
	storage, reg := newRegistry(t), newRegistry(t)
	b := build(t, recipe{layers: [][]byte{layerOf(t, "a", "1")}})
	storage.push(b, "app:1")
	ref := reg.push(b, "app:1")
	for _, auth := range []*Auth{{Username: "user", Password: "secret"}, {RegistryToken: "mine"}} {
		header := basic("user", "secret")
		if auth.RegistryToken != "" {
			header = "Bearer mine"
		}
		reg.demand(header, `Basic realm="registry"`)
		demand := reg.before
		reg.before = func(w http.ResponseWriter, r *http.Request) bool {
			if demand(w, r) {
				return true
			}
			if strings.Contains(r.URL.Path, "/blobs/") {
				// Another host, for HTTP: the name of an address is not the address.
				http.Redirect(w, r, strings.Replace(storage.URL, "127.0.0.1", "localhost", 1)+r.URL.Path+"?X-Signature=signed", http.StatusTemporaryRedirect)
				return true
			}
			return false
		}
		if _, err := openStore(t, Config{}).Pull(t.Context(), ref, auth, PullOptions{}); err != nil {
			t.Error(err)
		}
	}
	if len(storage.auths) != 0 {
		t.Errorf("the storage got credentials: %v", storage.auths)
	}
	storage.before = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusGone); return true }
	_, err := openStore(t, Config{}).Pull(t.Context(), ref, &Auth{RegistryToken: "mine"}, PullOptions{})
	if err == nil || strings.Contains(err.Error(), "signed") {
		t.Errorf("error is %v", err)
	}
}

func TestProxyFromEnvironment(t *testing.T) {
	s := openStore(t, Config{})
	n, err := parseName("registry.example/app")
	if err != nil {
		t.Fatal(err)
	}
	reg, err := s.newRegistry(n, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.resolver.Fetcher(t.Context(), n.String()); err != nil {
		t.Fatal(err)
	}
	if len(reg.transports) == 0 {
		t.Fatal("no transport was made")
	}
	for _, tr := range reg.transports {
		if tr.Proxy == nil {
			t.Error("a transport looks for no proxy")
		}
	}
}
