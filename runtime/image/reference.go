package image

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/berth-node/berth/internal/errdefs"
)

// A name is a reference to an image in a repository, written out: with the registry, and with either a tag or a digest.
type name struct {
	host   string // "docker.io"
	repo   string // with the host: "docker.io/library/busybox"
	tag    string // empty if there is a digest
	digest digest.Digest
}

func (n name) String() string {
	if n.digest != "" {
		return n.repo + "@" + n.digest.String()
	}
	return n.repo + ":" + n.tag
}

// at returns the name of what n stands for by its digest.
func (n name) at(d digest.Digest) name { return name{host: n.host, repo: n.repo, digest: d} }

// parseName reads a reference as users write it: "busybox" is docker.io/library/busybox:latest. Of a tag and a digest
// the digest says more; the tag is dropped, as all runtimes do.
func parseName(ref string) (name, error) {
	parsed, err := reference.ParseDockerRef(ref)
	if err != nil {
		return name{}, fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	n := name{host: reference.Domain(parsed), repo: parsed.Name()}
	if d, ok := parsed.(reference.Digested); ok {
		n.digest = d.Digest()
		if err := n.digest.Validate(); err != nil {
			return name{}, fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
		}
	} else if t, ok := parsed.(reference.Tagged); ok {
		n.tag = t.Tag()
	}
	return n, nil
}

// minIDPrefix is how many digits of an ID stand for it. With fewer, a name that is not there ("bad", "cafe") would
// too often be the beginning of some ID.
const minIDPrefix = 6

// parseID returns the hexadecimal digits of what may be (the beginning of) an image ID, and whether ref can be nothing
// else. It returns no digits if ref is no ID.
func parseID(ref string) (digits string, only bool) {
	digits, only = strings.CutPrefix(ref, "sha256:")
	if len(digits) < minIDPrefix || len(digits) > 64 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", false
	}
	return digits, only || len(digits) == 64
}
