package runtime

import (
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/runtime/image"
)

func TestVolumesOfAnImage(t *testing.T) {
	r := &Runtime{paths: layout{run: t.TempDir()}}
	c := newContainer(t.TempDir())
	c.record.ID = "c1"
	c.config = &cri.ContainerConfig{Mounts: []*cri.Mount{{ContainerPath: "/mounted/"}}}
	content := map[string]string{"/a/b": "of a/b", "/a-b": "of a-b", "/data": "of data"}
	for path, text := range content {
		dir := filepath.Join(r.paths.rootfs("c1"), path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var img image.Image
	img.Config = ocispec.Image{Config: ocispec.ImageConfig{Volumes: map[string]struct{}{
		"/a/b": {}, "/a-b": {}, "/data": {}, "/data/": {}, "/mounted": {}, "/none": {},
	}}}
	volumes, err := r.imageVolumes(c, img, testSandbox("s1", "web"))
	if err != nil {
		t.Fatal(err)
	}
	if len(volumes) != 4 {
		t.Errorf("%d volumes, want 4: %v", len(volumes), volumes)
	}
	for _, v := range volumes {
		want := content[filepath.Clean(v.Destination)]
		got, err := os.ReadFile(filepath.Join(v.Source, "file"))
		if want != "" && (err != nil || string(got) != want) {
			t.Errorf("%s has %q, %v", v.Destination, got, err)
		}
	}
}
