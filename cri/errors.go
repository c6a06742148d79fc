package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-node/berth/internal/errdefs"
)

// codeOf is the one place where a class of error becomes a gRPC code. The first class that the error wraps wins, so a
// class that was chosen stands before a context's error, which may be one of its causes.
var codeOf = []struct {
	class error
	code  codes.Code
}{
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{errdefs.ErrUnimplemented, codes.Unimplemented},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	// What the kernel says of a disk, wherever it was written to; the message has the path.
	{syscall.ENOSPC, codes.ResourceExhausted},
	{syscall.EDQUOT, codes.ResourceExhausted},
	{syscall.EROFS, codes.Unavailable},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// known are errors that the kubelet recognizes by how their message begins. It looks at the message alone where the code
// is Unknown, and at "rpc error: code = …" before it with any other code.
var known = []error{
	crierrors.ErrRegistryUnavailable,
	crierrors.ErrSignatureValidationFailed,
	crierrors.ErrRROUnsupported,
	crierrors.ErrImageVolumeMountFailed,
}

// toStatus returns err as the gRPC status that a client gets; nil for nil.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range known {
		if errors.Is(err, k) {
			return status.Error(codes.Unknown, withPrefix(k.Error(), err.Error()))
		}
	}
	// What gRPC itself returned, such as a failed Send, has its code already.
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	for _, c := range codeOf {
		if errors.Is(err, c.class) {
			return status.Error(c.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

func withPrefix(prefix, message string) string {
	if strings.HasPrefix(message, prefix) {
		return message
	}
	return prefix + ": " + message
}

// notYet is the error for what the CRI defines and berth does not have.
func notYet(what string) error {
	return fmt.Errorf("berth does not have %s: %w", what, errdefs.ErrUnimplemented)
}

// isCutOff tells whether a subscriber lost its subscription because it was too slow.
func isCutOff(err error) bool { return errors.Is(err, errdefs.ErrResourceExhausted) }

// notReady is the error for what only a ready sandbox can do.
func notReady(sandboxID string) error {
	return fmt.Errorf("sandbox %s is not ready: %w", sandboxID, errdefs.ErrFailedPrecondition)
}
