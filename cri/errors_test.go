package cri

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-node/berth/internal/errdefs"
)

func TestToStatus(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("container c1: %w", err) }
	for _, tc := range []struct {
		err     error
		code    codes.Code
		message string
	}{
		{nil, codes.OK, ""},
		{wrap(errdefs.ErrNotFound), codes.NotFound, "container c1: not found"},
		{wrap(errdefs.ErrInvalidArgument), codes.InvalidArgument, "container c1: invalid argument"},
		{wrap(errdefs.ErrAlreadyExists), codes.AlreadyExists, "container c1: already exists"},
		{wrap(errdefs.ErrFailedPrecondition), codes.FailedPrecondition, "container c1: failed precondition"},
		{wrap(errdefs.ErrUnavailable), codes.Unavailable, "container c1: unavailable"},
		{wrap(errdefs.ErrUnimplemented), codes.Unimplemented, "container c1: not implemented"},
		{wrap(errdefs.ErrPermissionDenied), codes.PermissionDenied, "container c1: permission denied"},
		{wrap(errdefs.ErrResourceExhausted), codes.ResourceExhausted, "container c1: resource exhausted"},
		{wrap(context.DeadlineExceeded), codes.DeadlineExceeded, "container c1: context deadline exceeded"},
		{wrap(context.Canceled), codes.Canceled, "container c1: context canceled"},
		{wrap(errors.New("oh")), codes.Unknown, "container c1: oh"},
		// A class that was chosen stands before the context's error that was its cause.
		{fmt.Errorf("%w: %w", errdefs.ErrUnavailable, context.DeadlineExceeded), codes.Unavailable, "unavailable: context deadline exceeded"},
		{status.Error(codes.Aborted, "gone"), codes.Aborted, "gone"},
		// The kubelet reads the beginning of the message, and only with the code Unknown nothing stands before it.
		{fmt.Errorf("mount: %w: %w", crierrors.ErrImageVolumeMountFailed, errdefs.ErrNotFound), codes.Unknown, "ImageVolumeMountFailed: mount: ImageVolumeMountFailed: not found"},
		{fmt.Errorf("%w: no", crierrors.ErrRROUnsupported), codes.Unknown, "RROUnsupported: no"},
		{pullError("x", wrap(errdefs.ErrUnavailable)), codes.Unknown, "RegistryUnavailable: pull x: container c1: unavailable"},
		{pullError("x", fmt.Errorf("%w: key", crierrors.ErrSignatureValidationFailed)), codes.Unknown, "SignatureValidationFailed: pull x: SignatureValidationFailed: key"},
		{pullError("x", context.DeadlineExceeded), codes.DeadlineExceeded, "pull x: context deadline exceeded"},
		{notYet("it"), codes.Unimplemented, "berth does not have it: not implemented"},
	} {
		got := toStatus(tc.err)
		if status.Code(got) != tc.code || status.Convert(got).Message() != tc.message {
			t.Errorf("toStatus(%v) = %v, want %s %q", tc.err, got, tc.code, tc.message)
		}
	}
}
