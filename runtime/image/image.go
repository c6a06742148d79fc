package image

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image as it is at one moment. It and what it points to must not be changed.
type Image struct {
	// ID is "sha256:" and the digest of the configuration.
	ID string
	// RepoTags and RepoDigests are the references of the image, sorted: "docker.io/library/busybox:1" and
	// "docker.io/library/busybox@sha256:…".
	RepoTags, RepoDigests []string
	// Size is what its layers (shared ones too) and its configuration take on disk, in bytes.
	Size     uint64
	Config   ocispec.Image
	ChainIDs []digest.Digest // lowest layer first
	Pinned   bool
	// Annotations are those of the manifest.
	Annotations map[string]string
	// Pulled is when the image came to this node; when it was built, Config.Created says.
	Pulled time.Time
}

// entry is an image in memory: its record, and what follows from it.
type entry struct {
	record record
	image  Image
	size   uint64 // of the record's file
}

// newEntry prepares what a record says for those who ask. The layers must be there.
func (s *Store) newEntry(r record, fileSize int) (*entry, error) {
	config, err := parseConfig(r.Config)
	if err != nil {
		return nil, err
	}
	img := Image{
		ID: r.ID.String(), RepoTags: r.Tags, RepoDigests: r.Digests, Config: config, ChainIDs: r.ChainIDs,
		Size: uint64(len(r.Config)), Pulled: r.Pulled, Annotations: r.Annotations,
	}
	for _, chain := range r.ChainIDs {
		info, err := s.layers.Get(chain)
		if err != nil {
			return nil, err
		}
		img.Size += info.Bytes
	}
	img.Pinned = slices.ContainsFunc(append([]string{img.ID}, r.names()...), func(n string) bool { return s.pinned[n] })
	return &entry{record: r, image: img, size: uint64(fileSize)}, nil
}
