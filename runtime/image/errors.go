package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"syscall"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	rerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/berth-node/berth/internal/errdefs"
)

// pullError says in berth's words why a pull failed.
type pullError struct {
	name  name
	err   error
	class error
	more  string // what the registry wishes
}

func (e pullError) Error() string {
	return fmt.Sprintf("pull %s from %s: %s%s", e.name, e.name.host, queries.ReplaceAllString(e.err.Error(), "$1"), e.more)
}

func (e pullError) Unwrap() []error {
	if e.class == nil {
		return []error{e.err}
	}
	return []error{e.class, e.err}
}

// queries are parts of URLs that may hold a signature, with which anyone could read the blob.
var queries = regexp.MustCompile(`(https?://[^\s"?]*)\?[^\s":]*`)

// explain wraps the error of a pull. ctx is the context of the pull, whose end may be the true cause.
func explain(ctx context.Context, n name, err error, more string) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return pullError{name: n, err: err, class: classOf(err), more: more}
}

// mirrorMayBeAtFault says whether another host may have the image that one had not, or not as it should be.
func mirrorMayBeAtFault(err error) bool {
	class := classOf(err)
	if class == nil {
		class = err
	}
	return errors.Is(class, errdefs.ErrUnavailable) || errors.Is(class, errdefs.ErrInvalidArgument)
}

var ours = []error{
	errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, errdefs.ErrUnavailable,
	errdefs.ErrUnimplemented, errdefs.ErrPermissionDenied, errdefs.ErrResourceExhausted,
}

// classOf returns the class of an error of containerd's packages, of the network or of the disk; nil if err has one of
// ours, or none fits.
func classOf(err error) error {
	for _, class := range ours {
		if errors.Is(err, class) {
			return nil
		}
	}
	var status rerrors.ErrUnexpectedStatus
	var netErr net.Error
	var urlErr *url.Error
	switch {
	case errors.As(err, &status):
		return classOfStatus(status.StatusCode)
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return errdefs.ErrPermissionDenied
	case cerrdefs.IsNotFound(err):
		return errdefs.ErrNotFound
	case cerrdefs.IsFailedPrecondition(err): // more came than was announced
		return errdefs.ErrInvalidArgument
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errdefs.ErrResourceExhausted
	case errors.Is(err, context.Canceled):
		return nil
	case damaged(err):
		return errdefs.ErrInvalidArgument
	case errors.As(err, &netErr), errors.As(err, &urlErr), errors.Is(err, io.ErrUnexpectedEOF):
		return errdefs.ErrUnavailable
	}
	return nil
}

// damaged are the errors of what is no archive, not compressed as it says, or no digest. A layer that was changed on its way
// is unpacked as it comes, so one of them is often met before its digest is known to be wrong.
func damaged(err error) bool {
	var corrupt flate.CorruptInputError
	for _, class := range []error{
		tar.ErrHeader, gzip.ErrHeader, gzip.ErrChecksum, zstd.ErrMagicMismatch, zstd.ErrCRCMismatch, zstd.ErrReservedBlockType,
		zstd.ErrCompressedSizeTooBig, zstd.ErrBlockTooSmall, zstd.ErrUnexpectedBlockSize, zstd.ErrWindowSizeExceeded,
		digest.ErrDigestInvalidFormat, digest.ErrDigestInvalidLength, digest.ErrDigestUnsupported,
	} {
		if errors.Is(err, class) {
			return true
		}
	}
	return errors.As(err, &corrupt)
}

func classOfStatus(code int) error {
	switch {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case code == http.StatusNotFound:
		return errdefs.ErrNotFound
	case code == http.StatusTooManyRequests, code >= 500:
		return errdefs.ErrUnavailable
	}
	return nil
}
