package spec

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/app:/bin/sh\nbig:x:4294967295:1::/:\n"
	testGroup  = "root:x:0:\napp:x:1001:app\nwheel:x:10:app,root\naudio:x:29:app\nstaff:x:50:\n"
)

// newRoot makes a root filesystem with users.
func newRoot(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestResolveUser(t *testing.T) {
	id := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
	strict := cri.SupplementalGroupsPolicy_Strict
	tests := map[string]struct {
		image string
		sc    *cri.LinuxContainerSecurityContext
		want  string // JSON, or a word of the error
	}{
		"nothing":               {"", nil, `{"UID":0,"GID":0,"AdditionalGids":[0,10]}`},
		"image name":            {"app", nil, `{"UID":1000,"GID":1001,"AdditionalGids":[10,29,1001]}`},
		"image uid":             {"1000", nil, `{"UID":1000,"GID":1001,"AdditionalGids":[10,29,1001]}`},
		"image unknown uid":     {"77", nil, `{"UID":77,"GID":0,"AdditionalGids":[0]}`},
		"image unknown name":    {"nobody", nil, `nobody`},
		"image user and group":  {"app:staff", nil, `{"UID":1000,"GID":50,"AdditionalGids":[10,29,50]}`},
		"image numbers":         {"77:78", nil, `{"UID":77,"GID":78,"AdditionalGids":[78]}`},
		"image unknown group":   {"app:nogroup", nil, `nogroup`},
		"image out of range":    {"4294967296", nil, `range`},
		"image negative":        {"-1", nil, `range`},
		"image group too large": {"1:99999999999999999999", nil, `range`},
		"strict":                {"app", &cri.LinuxContainerSecurityContext{SupplementalGroupsPolicy: strict}, `{"UID":1000,"GID":1001,"AdditionalGids":[1001]}`},
		"run_as_user":           {"app", &cri.LinuxContainerSecurityContext{RunAsUser: id(0)}, `{"UID":0,"GID":0,"AdditionalGids":[0,10]}`},
		"run_as_user and group": {"app", &cri.LinuxContainerSecurityContext{RunAsUser: id(1000), RunAsGroup: id(7)},
			`{"UID":1000,"GID":7,"AdditionalGids":[7,10,29]}`},
		"run_as_username": {"", &cri.LinuxContainerSecurityContext{RunAsUsername: "app"}, `{"UID":1000,"GID":1001,"AdditionalGids":[10,29,1001]}`},
		"run_as_username and group": {"", &cri.LinuxContainerSecurityContext{RunAsUsername: "app", RunAsGroup: id(5), SupplementalGroupsPolicy: strict},
			`{"UID":1000,"GID":5,"AdditionalGids":[5]}`},
		"run_as_username unknown": {"", &cri.LinuxContainerSecurityContext{RunAsUsername: "nobody"}, `run_as_username`},
		"name wins over number":   {"", &cri.LinuxContainerSecurityContext{RunAsUsername: "app", RunAsUser: id(3)}, `{"UID":1000,"GID":1001,"AdditionalGids":[10,29,1001]}`},
		"group without user":      {"app", &cri.LinuxContainerSecurityContext{RunAsGroup: id(5)}, `run_as_group`},
		"supplemental merged": {"app", &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{5, 10, 5}},
			`{"UID":1000,"GID":1001,"AdditionalGids":[5,10,29,1001]}`},
		"supplemental strict": {"app", &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{5}, SupplementalGroupsPolicy: strict},
			`{"UID":1000,"GID":1001,"AdditionalGids":[5,1001]}`},
		"supplemental out of range": {"", &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{-1}}, `supplemental_groups`},
		"unknown policy":            {"", &cri.LinuxContainerSecurityContext{SupplementalGroupsPolicy: 9}, `supplemental_groups_policy`},
		"negative user":             {"", &cri.LinuxContainerSecurityContext{RunAsUser: id(-1)}, `run_as_user`},
		"passwd out of range":       {"big", nil, `out of range`},
	}
	root := newRoot(t, map[string]string{"etc/passwd": testPasswd, "etc/group": testGroup})
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			u, err := ResolveUser(root, ocispec.ImageConfig{User: tt.image}, tt.sc)
			if !strings.HasPrefix(tt.want, "{") {
				wantInvalid(t, err, tt.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantShow(t, "user", u, tt.want)
		})
	}
}

func TestResolveUserWithoutFiles(t *testing.T) {
	u, err := ResolveUser(t.TempDir(), ocispec.ImageConfig{User: "5:6"}, nil)
	if err != nil || u.UID != 5 || u.GID != 6 {
		t.Errorf("got %v, %v", u, err)
	}
	_, err = ResolveUser(t.TempDir(), ocispec.ImageConfig{User: "app"}, nil)
	wantInvalid(t, err, "app")
}

// What an image's symbolic links name is in the image, and only there.
func TestResolveUserStaysInRoot(t *testing.T) {
	outside := newRoot(t, map[string]string{"etc/passwd": "spy:x:7:7::/:\n"})
	root := newRoot(t, map[string]string{"etc/real": testPasswd})
	link := filepath.Join(root, "etc/passwd")
	for target, found := range map[string]bool{
		"/etc/real":                             true, // as the container sees it
		"../../../../etc/real":                  true,
		filepath.Join(outside, "etc/passwd"):    false,
		"../../../" + outside + "/etc/passwd":   false,
		"/proc/self/root" + outside + "/passwd": false,
	} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		u, err := ResolveUser(root, ocispec.ImageConfig{User: "app"}, nil)
		if found && (err != nil || u.UID != 1000) {
			t.Errorf("%s: %v, %v", target, u, err)
		}
		if _, err := ResolveUser(root, ocispec.ImageConfig{User: "spy"}, nil); err == nil {
			t.Errorf("%s: a user from outside of the image", target)
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(link, 0o644); err != nil {
		t.Fatal(err)
	}
	wantInvalid := func(word string) {
		t.Helper()
		_, err := ResolveUser(root, ocispec.ImageConfig{User: "app"}, nil)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), word) {
			t.Errorf("got %v, want an invalid argument with %q", err, word)
		}
		if err := os.RemoveAll(link); err != nil {
			t.Fatal(err)
		}
	}
	wantInvalid("regular") // CVE-2024-9676: who opens it waits for good
	if err := os.Symlink("passwd", link); err != nil {
		t.Fatal(err)
	}
	wantInvalid("symbolic links")
	if err := os.Mkdir(link, 0o755); err != nil {
		t.Fatal(err)
	}
	wantInvalid("regular")
	for word, text := range map[string]string{"token too long": "x", "larger than": "x:x:1:1::/:\n"} {
		if err := os.WriteFile(link, []byte(strings.Repeat(text, 17<<20/len(text))), 0o644); err != nil {
			t.Fatal(err)
		}
		wantInvalid(word)
	}
}

func TestContainerUser(t *testing.T) {
	got := ContainerUser(specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{2, 3}})
	wantShow(t, "user", got.GetLinux(), `{"uid":1,"gid":2,"supplemental_groups":[2,3]}`)
}
