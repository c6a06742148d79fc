package registry

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func serve(t *testing.T, r *Registry) *Server {
	t.Helper()
	s, err := Listen(r, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// do sends a request and returns the status, the headers and the body.
func do(t *testing.T, method, url string, body []byte, headers ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

func TestPushThenPullUnderItsHostOnly(t *testing.T) {
	s := serve(t, New())
	base := s.URL() + "/v2/team/app/"
	blob := []byte("a layer")
	d := digest.FromBytes(blob)

	status, h, _ := do(t, "POST", base+"blobs/uploads/?ns=reg.test", nil)
	if status != http.StatusAccepted {
		t.Fatalf("open an upload: %d", status)
	}
	upload := s.URL() + h.Get("Location")
	if status, _, _ = do(t, "PATCH", upload+"?ns=reg.test", blob[:3]); status != http.StatusAccepted {
		t.Fatalf("first chunk: %d", status)
	}
	if status, _, _ = do(t, "PUT", upload+"?ns=reg.test&digest="+digest.FromString("other").String(), nil); status != http.StatusBadRequest {
		t.Errorf("an upload under a wrong digest: %d", status)
	}
	if status, _, _ = do(t, "PUT", upload+"?ns=reg.test&digest="+d.String(), blob[3:]); status != http.StatusCreated {
		t.Fatalf("end the upload: %d", status)
	}
	if status, _, body := do(t, "GET", base+"blobs/"+d.String(), nil, "Range", "bytes=2-"); status != http.StatusPartialContent || body != "layer" {
		t.Errorf("a range: %d %q", status, body)
	}

	manifest := []byte(`{"schemaVersion":2}`)
	if status, _, _ = do(t, "PUT", base+"manifests/v1?ns=reg.test", manifest, "Content-Type", ocispec.MediaTypeImageManifest); status != http.StatusCreated {
		t.Fatalf("put the manifest: %d", status)
	}
	status, h, body := do(t, "GET", base+"manifests/v1?ns=reg.test", nil)
	if status != http.StatusOK || body != string(manifest) || h.Get("Content-Type") != ocispec.MediaTypeImageManifest ||
		h.Get("Docker-Content-Digest") != digest.FromBytes(manifest).String() {
		t.Errorf("get the manifest: %d %v %q", status, h, body)
	}
	if status, _, _ = do(t, "HEAD", base+"manifests/v1?ns=other.test", nil); status != http.StatusNotFound {
		t.Errorf("the tag of one host is found under another: %d", status)
	}
	if _, _, body = do(t, "GET", base+"tags/list?ns=reg.test", nil); !strings.Contains(body, `"v1"`) {
		t.Errorf("tags: %s", body)
	}
}

func TestLogins(t *testing.T) {
	for name, bearer := range map[string]bool{"basic": false, "bearer": true} {
		t.Run(name, func(t *testing.T) {
			r := New()
			r.Require("private.test", Login{User: "ann", Password: "secret", Bearer: bearer})
			s := serve(t, r)
			ping := s.URL() + "/v2/?ns=private.test"

			status, h, _ := do(t, "GET", ping, nil)
			if status != http.StatusUnauthorized {
				t.Fatalf("without a login: %d", status)
			}
			if status, _, _ = do(t, "GET", s.URL()+"/v2/?ns=open.test", nil); status != http.StatusOK {
				t.Errorf("another host asks for a login: %d", status)
			}
			if !bearer {
				if status, _, _ = do(t, "GET", ping, nil, "Authorization", "Basic YW5uOnNlY3JldA=="); status != http.StatusOK {
					t.Errorf("with the password: %d", status)
				}
				return
			}
			if !strings.Contains(h.Get("WWW-Authenticate"), s.URL()+"/token") {
				t.Errorf("challenge: %s", h.Get("WWW-Authenticate"))
			}
			if status, _, _ = do(t, "GET", ping, nil, "Authorization", "Basic YW5uOnNlY3JldA=="); status != http.StatusUnauthorized {
				t.Errorf("the password in place of a token: %d", status)
			}
			form := url.Values{"service": {"private.test"}, "grant_type": {"refresh_token"}, "refresh_token": {"secret"}}
			status, _, body := do(t, "POST", s.URL()+"/token", []byte(form.Encode()), "Content-Type", "application/x-www-form-urlencoded")
			if status != http.StatusOK || !strings.Contains(body, r.Token("private.test")) {
				t.Fatalf("token by identity token: %d %s", status, body)
			}
			if status, _, _ = do(t, "GET", ping, nil, "Authorization", "Bearer "+r.Token("private.test")); status != http.StatusOK {
				t.Errorf("with a token: %d", status)
			}
		})
	}
}

func TestTLSHostsFileTrustsItsOwnAuthority(t *testing.T) {
	s, err := ListenTLS(New(), "127.0.0.1:0", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	dir := t.TempDir()
	if err := s.WriteHosts(dir, "private.test"); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "private.test", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	resp, err := client.Get(s.URL() + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	text, err := os.ReadFile(filepath.Join(dir, "private.test", "hosts.toml"))
	if err != nil || !strings.Contains(string(text), `[host."`+s.URL()+`"]`) {
		t.Errorf("hosts.toml: %s %v", text, err)
	}
}

func TestHoldDelaysUntilReleased(t *testing.T) {
	r := New()
	s := serve(t, r)
	gate, seen := make(chan struct{}), make(chan struct{})
	r.Hold(func(*http.Request) <-chan struct{} { close(seen); return gate })
	done := make(chan int)
	go func() {
		resp, err := http.Get(s.URL() + "/v2/")
		if err != nil {
			done <- 0
			return
		}
		resp.Body.Close()
		done <- resp.StatusCode
	}()
	<-seen
	if n := r.Count("GET", "/v2/"); n != 0 {
		t.Errorf("%d requests served while held", n)
	}
	close(gate)
	if status := <-done; status != http.StatusOK {
		t.Errorf("after the release: %d", status)
	}
}
