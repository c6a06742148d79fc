// Package images makes the container images that the tests and the demo run, from Debian packages and the small programs
// in the folders below. Nothing is taken from a registry.
//
// Make writes them as one OCI image layout, in which every manifest carries its full names. Package registry serves such
// a layout under those names; Archive makes an OCI archive of one image, without network.
//
// The same packages and the same compiler give the same digests.
package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An Image is what is written to a layout: a root file system in layers, a configuration, and the form on the wire.
type Image struct {
	// Names are full references with a tag, "registry.k8s.io/pause:3.9".
	Names  []string
	Config ocispec.ImageConfig
	Layers []*Tree
	Form   Form
}

// Form says how an image is written.
type Form struct {
	// Docker uses the media types of Docker's schema 2 instead of OCI's.
	Docker bool
	// Zstd compresses the layers with zstd instead of gzip; OCI only.
	Zstd bool
	// Index puts an image index above the manifest, beside the manifest of another platform that has no blobs.
	Index bool
}

// DemoName is the image of the demo's pods.
const DemoName = "berth.local/demo-web:1"

// Make writes all images that critest and the integration tests ask for to the layout dir, which is replaced. work keeps
// downloaded packages between runs. It needs apt-get, dpkg-deb, the go command and, for packages not in work yet, the
// network.
func Make(ctx context.Context, dir, work string) error {
	programs, err := buildPrograms(ctx, filepath.Join(work, "programs"), "web", "health", "nonewprivs", "pause")
	if err != nil {
		return err
	}
	busybox, err := busyboxTree(ctx, work)
	if err != nil {
		return err
	}
	l, err := createLayout(dir)
	if err != nil {
		return err
	}
	for _, image := range append(critestImages(busybox, programs), ownImages(busybox, programs)...) {
		if err := l.add(image); err != nil {
			return fmt.Errorf("image %s: %w", image.Names[0], err)
		}
	}
	return l.finish()
}

// MakeDemo writes the demo image as an OCI archive to file. work is as for Make, and it needs what that does.
func MakeDemo(ctx context.Context, file, work string) error {
	programs, err := buildPrograms(ctx, filepath.Join(work, "programs"), "web")
	if err != nil {
		return err
	}
	busybox, err := busyboxTree(ctx, work)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(work, "demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := createLayout(filepath.Join(dir, "layout"))
	if err != nil {
		return err
	}
	if err := l.add(demoImage(busybox, programs)); err != nil {
		return err
	}
	if err := l.finish(); err != nil {
		return err
	}
	return archive(l.dir, file)
}
