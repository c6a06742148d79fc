//go:build integration

package integration

import (
	"context"
	"encoding/base64"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
	"github.com/berth-node/berth/integration/registry"
)

func pull(t *testing.T, n *harness.Node, ref string, auth *cri.AuthConfig) (string, error) {
	t.Helper()
	resp, err := n.Images.PullImage(harness.Ctx(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: auth})
	return resp.GetImageRef(), err
}

func imageStatus(t *testing.T, n *harness.Node, ref string) *cri.Image {
	t.Helper()
	resp, err := n.Images.ImageStatus(harness.Ctx(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("ImageStatus %s: %v", ref, err)
	}
	return resp.Image
}

func removeImage(t *testing.T, n *harness.Node, ref string) {
	t.Helper()
	if _, err := n.Images.RemoveImage(harness.Ctx(t), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		t.Fatalf("RemoveImage %s: %v", ref, err)
	}
}

// The same files come out of every form in which an image can be served.
func TestPullEveryForm(t *testing.T) {
	n := sharedNode(t)
	for name, ref := range map[string]string{"oci-gzip": images.Tools, "oci-zstd": images.ToolsZstd, "docker": images.ToolsDocker} {
		t.Run(name, func(t *testing.T) {
			id, err := pull(t, n, ref, nil)
			if err != nil {
				t.Fatal(err)
			}
			image := imageStatus(t, n, ref)
			if image == nil || image.Id != id || image.Size == 0 || !slices.Contains(image.RepoTags, ref) {
				t.Fatalf("pulled as %s, status %v", id, image)
			}
			digested := strings.TrimSuffix(ref, ref[strings.LastIndex(ref, ":"):]) + "@" + world.registry.Digest(ref).String()
			if !slices.Contains(image.RepoDigests, digested) {
				t.Errorf("repo digests %v, want %s", image.RepoDigests, digested)
			}
			for _, other := range []string{id, strings.TrimPrefix(id, "sha256:"), strings.TrimPrefix(id, "sha256:")[:12], digested} {
				if found := imageStatus(t, n, other); found.GetId() != id {
					t.Errorf("not found as %s: %v", other, found)
				}
			}
			c := n.RunPod(t, "form").Run(t, harness.ContainerConfig("app", ref, "sh", "-c", "ls -l /bin/busybox | cut -c1-10; stat -c %h /bin/busybox; id -u www-data; ls -d /tmp | xargs stat -c %a"))
			if s := c.WaitExit(t); s.ExitCode != 0 || s.ImageId != id {
				t.Errorf("status %v", s)
			}
			lines := harness.Texts(c.Log(t), "stdout")
			if len(lines) != 4 || lines[0] != "-rwxr-xr-x" || lines[1] == "1" || lines[2] != "33" || lines[3] != "1777" {
				t.Errorf("the files are not right: %q", lines)
			}
		})
	}
}

func TestWhiteouts(t *testing.T) {
	c := sharedNode(t).RunPod(t, "whiteouts").Run(t, harness.ContainerConfig("app", images.Whiteouts, "sh", "-c", "ls / | grep -E 'gone|wh'; ls -A /emptied /kept; cat link/a"))
	c.WaitExit(t)
	want := []string{"/emptied:", "new", "", "/kept:", "a", "b", "a"}
	if got := harness.Texts(c.Log(t), "stdout"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPullWithLogin(t *testing.T) {
	n := sharedNode(t)
	const user, password = "ann", "s3cret:with colon"
	private := world.private + "/app:1"
	for name, c := range map[string]struct {
		bearer bool
		auth   func() *cri.AuthConfig
	}{
		"basic": {false, func() *cri.AuthConfig { return &cri.AuthConfig{Username: user, Password: password} }},
		"basic, one field": {false, func() *cri.AuthConfig {
			return &cri.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}
		}},
		"bearer":         {true, func() *cri.AuthConfig { return &cri.AuthConfig{Username: user, Password: password} }},
		"identity token": {true, func() *cri.AuthConfig { return &cri.AuthConfig{IdentityToken: password} }},
		"registry token": {true, func() *cri.AuthConfig {
			return &cri.AuthConfig{RegistryToken: world.registry.Token(privateHost)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			world.registry.Require(privateHost, registry.Login{User: user, Password: password, Bearer: c.bearer})
			t.Cleanup(func() { world.registry.Require(privateHost, registry.Login{}) })
			removeImage(t, n, private)
			if _, err := pull(t, n, private, nil); err == nil {
				t.Error("pulled without a login")
			}
			if _, err := pull(t, n, private, &cri.AuthConfig{Username: user, Password: "wrong"}); err == nil {
				t.Error("pulled with a wrong password")
			} else if strings.Contains(err.Error(), "wrong\"") {
				t.Errorf("the error tells the password: %v", err)
			}
			if _, err := pull(t, n, private, c.auth()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A mirror that the operator configured gets the request, and not the credentials, which are for the registry.
func TestMirrorGetsNoCredentials(t *testing.T) {
	n := sharedNode(t)
	removeImage(t, n, images.Volume)
	world.registry.Require(images.Registry, registry.Login{User: "ann", Password: "secret"})
	t.Cleanup(func() { world.registry.Require(images.Registry, registry.Login{}) })
	if _, err := pull(t, n, images.Volume, &cri.AuthConfig{Username: "ann", Password: "secret"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("credentials of %s were sent to another address: %v", images.Registry, err)
	}
}

func TestPullErrors(t *testing.T) {
	n := sharedNode(t)
	for ref, want := range map[string]codes.Code{
		images.Registry + "/no/such:1":    codes.NotFound,
		images.Registry + "/tools:absent": codes.NotFound,
		images.Registry + "/UPPER:1":      codes.InvalidArgument,
		"":                                codes.InvalidArgument,
	} {
		if _, err := pull(t, n, ref, nil); status.Code(err) != want {
			t.Errorf("%q: %v, want %s", ref, err, want)
		}
	}
}

func TestPullWithinADeadline(t *testing.T) {
	n := sharedNode(t)
	removeImage(t, n, images.Volume)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: images.Volume}})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	if _, err := pull(t, n, images.Volume, nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Callers who want the same image with the same credentials share one download.
func TestOnePullForAll(t *testing.T) {
	n := sharedNode(t)
	removeImage(t, n, images.Whiteouts)
	gate := make(chan struct{})
	var asked sync.Once
	first := make(chan struct{})
	world.registry.Hold(func(r *http.Request) <-chan struct{} {
		if strings.Contains(r.URL.Path, "/whiteouts/") {
			asked.Do(func() { close(first) })
			return gate
		}
		return nil
	})
	t.Cleanup(func() { world.registry.Hold(nil) })
	before := world.registry.Count(http.MethodGet, "/whiteouts/blobs/")

	var all sync.WaitGroup
	refs := make([]string, 8)
	for i := range refs {
		all.Go(func() {
			ref, err := pull(t, n, images.Whiteouts, nil)
			if err != nil {
				t.Error(err)
			}
			refs[i] = ref
		})
	}
	<-first
	close(gate)
	all.Wait()
	for _, ref := range refs {
		if ref != refs[0] {
			t.Errorf("different answers: %v", refs)
		}
	}
	// Three layers and a configuration, each at most once; layers that other images share are there already.
	if got := world.registry.Count(http.MethodGet, "/whiteouts/blobs/") - before; got > 4 {
		t.Errorf("%d blobs fetched for one image of four", got)
	}
}

func TestRemoveByOneTagRemovesTheImage(t *testing.T) {
	n := sharedNode(t)
	second := images.Registry + "/volume:also"
	if err := world.registry.Tag(images.Volume, second); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{images.Volume, second} {
		if _, err := pull(t, n, ref, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := imageStatus(t, n, second); len(got.GetRepoTags()) != 2 {
		t.Errorf("tags: %v", got)
	}
	removeImage(t, n, second)
	if got := imageStatus(t, n, images.Volume); got != nil {
		t.Errorf("still there by its other tag: %v", got)
	}
	removeImage(t, n, second) // idempotent
}

func TestSaveAndLoad(t *testing.T) {
	n := ownNode(t)
	id, err := pull(t, n, images.Tools, nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(n.Dir, "tools.tar")
	n.Berth(t, "image", "save", "-o", file, images.Tools)
	removeImage(t, n, images.Tools)
	n.Berth(t, "image", "load", file)
	if got := imageStatus(t, n, images.Tools); got.GetId() != id {
		t.Fatalf("loaded as %v, was %s", got, id)
	}
	before := len(world.registry.Requests())
	if got := n.RunPod(t, "loaded").Idle(t, "app").Exec(t, "echo", "runs"); got != "runs" {
		t.Errorf("got %q", got)
	}
	if after := len(world.registry.Requests()); after != before {
		t.Errorf("the registry was asked %d times for a loaded image", after-before)
	}
	if err := wantIn(n.Berth(t, "image", "list"), images.Registry+"/tools"); err != nil {
		t.Error(err)
	}
}

func TestImageFsInfoCounts(t *testing.T) {
	n := ownNode(t)
	used := func() (uint64, string) {
		resp, err := n.Images.ImageFsInfo(harness.Ctx(t), &cri.ImageFsInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.ImageFilesystems) != 1 || len(resp.ContainerFilesystems) != 1 {
			t.Fatalf("got %v", resp)
		}
		fs := resp.ImageFilesystems[0]
		if fs.Timestamp == 0 || fs.GetInodesUsed() == nil {
			t.Errorf("incomplete: %v", fs)
		}
		return fs.GetUsedBytes().GetValue(), fs.GetFsId().GetMountpoint()
	}
	empty, mountpoint := used()
	if mountpoint == "" {
		t.Error("no mount point")
	}
	if _, err := pull(t, n, images.Tools, nil); err != nil {
		t.Fatal(err)
	}
	size := imageStatus(t, n, images.Tools).Size
	harness.Eventually(t, 30*time.Second, "the image to be counted", func() error {
		if full, _ := used(); full < empty+size/2 {
			return status.Errorf(codes.Unknown, "%d bytes before, %d after an image of %d", empty, full, size)
		}
		return nil
	})
}
