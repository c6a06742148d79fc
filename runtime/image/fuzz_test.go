package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// What names an image is a name again when it is written out, and can be no path.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"busybox", "localhost:5000/a/b:tag", "r.io/x@sha256:" + strings.Repeat("a", 64), "../x", "a//b", "A:b", "sha256:abcdef", "x@sha512:00", ":", "a:b@c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if digits, only := parseID(s); digits != "" && (strings.Trim(digits, "0123456789abcdef") != "" || only && len(digits) > 64) {
			t.Errorf("the ID of %q is %q", s, digits)
		}
		n, err := parseName(s)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		again, err := parseName(n.String())
		if err != nil || again != n {
			t.Errorf("%q is %+v and then %+v, %v", s, n, again, err)
		}
		if n.host == "" || strings.Contains(n.host, "/") || n.host == ".." || strings.Contains(n.repo, "..") || strings.ContainsFunc(n.String(), unicode.IsControl) {
			t.Errorf("%q is %+v", s, n)
		}
	})
}

// An index, a manifest and a configuration: what is accepted hangs together.
func FuzzManifest(f *testing.F) {
	d := digest.FromString("x").String()
	layer := `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"` + d + `","size":5}`
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"MANIFEST","size":999,"platform":{"os":"linux","architecture":"amd64"}}]}`),
		[]byte(`{"schemaVersion":2,"config":{"digest":"CONFIG","size":999},"layers":[`+layer+`]}`),
		[]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["`+d+`"]},"config":{"Env":["A=b"],"User":"0"}}`))
	f.Add([]byte(`{"manifests":null}`), []byte(`{"layers":[],"config":{}}`), []byte(`null`))
	f.Add([]byte(`{"manifests":[{"digest":"MANIFEST","size":-1}]}`), []byte(`{"schemaVersion":1,"fsLayers":[]}`), []byte(`[]`))
	match := platforms.Only(platforms.MustParse("linux/amd64"))
	f.Fuzz(func(t *testing.T, index, manifest, config []byte) {
		blobs := map[digest.Digest][]byte{}
		put := func(b []byte) ocispec.Descriptor {
			d := digest.FromBytes(b)
			blobs[d] = b
			return ocispec.Descriptor{Digest: d, Size: int64(len(b))}
		}
		// The documents name each other by digests, which a fuzzer does not guess, and sizes.
		fill := func(b []byte, name string, d ocispec.Descriptor) []byte {
			b = bytes.ReplaceAll(b, []byte(name), []byte(d.Digest))
			return bytes.ReplaceAll(b, []byte(`999`), []byte(fmt.Sprint(d.Size)))
		}
		desc := put(fill(index, "MANIFEST", put(fill(manifest, "CONFIG", put(config)))))
		open := func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
			b, ok := blobs[d.Digest]
			if !ok {
				return nil, fmt.Errorf("blob %s: %w", d.Digest, errdefs.ErrNotFound)
			}
			return io.NopCloser(bytes.NewReader(b)), nil
		}
		src, err := readSource(t.Context(), open, desc, match)
		if err != nil {
			if classOf(err) != nil { // one of ours stands in the error already
				t.Errorf("an error without a class: %v", err)
			}
			return
		}
		if len(src.chain) != len(src.layers) || len(src.chain) != len(src.config.RootFS.DiffIDs) || len(src.chain) > maxLayers {
			t.Errorf("%d layers, %d chain IDs", len(src.layers), len(src.chain))
		}
		if src.id != digest.FromBytes(src.configBytes) {
			t.Errorf("the ID is %s", src.id)
		}
		for i := range src.chain {
			if err := errors.Join(src.chain[i].Validate(), src.layers[i].Digest.Validate()); err != nil {
				t.Error(err)
			}
		}
	})
}

// An archive of images, and the records of a store: nothing comes into being outside of the store.
func FuzzArchive(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("layers need root")
	}
	f.Add(tarOfF(map[string]string{"index.json": `{"manifests":[]}`, "oci-layout": "{}"}))
	f.Add(tarOfF(map[string]string{"manifest.json": `[{"Config":"../c","RepoTags":["a:b"],"Layers":["l/../../layer.tar"]}]`, "c": "{}", "layer.tar": ""}))
	dir := f.TempDir()
	s, err := Open(Config{Dir: filepath.Join(dir, "store"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, archive []byte) {
		images, _ := s.Load(t.Context(), bytes.NewReader(archive), LoadOptions{})
		for _, img := range images {
			if _, err := s.Get(img.ID); err != nil {
				t.Error(err)
			}
			if err := s.Remove(t.Context(), img.ID); err != nil {
				t.Error(err)
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("beside the store: %v, %v", left, err)
		}
		if left, err := os.ReadDir(filepath.Join(s.cfg.Dir, "spool")); err != nil || len(left) != 0 {
			t.Errorf("left in the spool: %v, %v", left, err)
		}
	})
}

// tarOfF is tarOf for those who have no T.
func tarOfF(files map[string]string) []byte {
	var t testing.T
	var list []file
	for name, body := range files {
		list = append(list, file{name: name, body: body})
	}
	return tarOf(&t, list...)
}

// A record that is not what the store wrote is set aside, and the store opens.
func FuzzRecord(f *testing.F) {
	config := `{"os":"linux"}`
	id := digest.FromString(config)
	f.Add([]byte(fmt.Sprintf(`{"id":%q,"config":"eyJvcyI6ImxpbnV4In0=","tags":["docker.io/library/a:b"],"chainIDs":[]}`, id)))
	f.Add([]byte(`{"id":"../../x"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "images", id.Encoded()+recordSuffix)
		if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, damaged := os.Stat(path + damagedSuffix)
		if (damaged == nil) == (len(s.List()) == 1) {
			if _, err := os.Stat(path); len(s.List()) == 0 && err == nil && strings.Contains(string(data), "emoved") {
				return // an image that was removed while it was in use
			}
			t.Errorf("%d images, and set aside: %v", len(s.List()), damaged == nil)
		}
	})
}

// Credentials: they are for one host, and what cannot be understood is refused.
func FuzzAuth(f *testing.F) {
	f.Add("", "", "dXNlcjpwYXNz", "https://r.io/v1/", "")
	f.Add("u", "p", "", "", "t")
	f.Fuzz(func(t *testing.T, user, password, auth, server, token string) {
		c, err := newCredentials(&Auth{Username: user, Password: password, Auth: auth, ServerAddress: server, IdentityToken: token}, "docker.io")
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Error(err)
			}
			return
		}
		if c.host == "" {
			t.Errorf("credentials for no host")
		}
		if u, s, err := c.forHost("elsewhere.invalid"); !strings.EqualFold(c.host, "elsewhere.invalid") && (u != "" || s != "" || err != nil) {
			t.Errorf("sent to another host: %q, %v", u, err)
		}
	})
}

// A hosts.toml of noise is an error of the pull, or is understood; the credentials stay with their host.
func FuzzHostsTOML(f *testing.F) {
	f.Add([]byte("server = \"https://r.io\"\n[host.\"http://127.0.0.1:1\"]\ncapabilities = [\"pull\"]\nskip_verify = true\n[host.\"http://127.0.0.1:1\".header]\nx = [\"y\"]\n"))
	f.Add([]byte("[host]\nx = 1\n"))
	f.Add([]byte("[[host]]\n"))
	f.Add([]byte("ca = 1\nclient = [[\"a\"]]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "r.io", "hosts.toml")
		if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, text, 0o600)); err != nil {
			t.Fatal(err)
		}
		hosts := config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: hostDirs([]string{dir})})
		if found, err := hosts("r.io"); err == nil && len(found) == 0 {
			t.Error("no hosts and no error")
		}
	})
}
