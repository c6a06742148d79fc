// Package errdefs holds the few classes of error that a caller of berth's packages acts upon.
//
// A package wraps a class with words of its own:
//
//	fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
//
// and the callers ask with errors.Is. Only the CRI door knows which gRPC code belongs to a class. A class is added
// only when some caller acts differently on it.
package errdefs

import "errors"

var (
	// ErrNotFound says that the named thing does not exist (any more).
	ErrNotFound = errors.New("not found")
	// ErrInvalidArgument says that the request can never succeed as it is; the message names the field.
	ErrInvalidArgument = errors.New("invalid argument")
	// ErrAlreadyExists says that another thing has the name or the place already.
	ErrAlreadyExists = errors.New("already exists")
	// ErrFailedPrecondition says that the thing is in a state that does not allow the operation.
	ErrFailedPrecondition = errors.New("failed precondition")
	// ErrUnavailable says that a part that berth needs is not there at the moment; trying again may help.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnimplemented says that this node cannot do what is asked, now or later.
	ErrUnimplemented = errors.New("not implemented")
	// ErrPermissionDenied says that credentials or policy refuse the operation.
	ErrPermissionDenied = errors.New("permission denied")
	// ErrResourceExhausted says that a bound (space, a queue, a count) is reached.
	ErrResourceExhausted = errors.New("resource exhausted")
)
