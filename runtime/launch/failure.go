package launch

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berth-node/berth/runtime/keeper"
)

// classified is an error that knows what the keeper should make of it.
type classified struct {
	failure keeper.Failure
	err     error
}

func (c *classified) Error() string { return c.err.Error() }
func (c *classified) Unwrap() error { return c.err }

// argumentError says that the job itself is wrong.
func argumentError(format string, args ...any) error {
	return &classified{keeper.FailureArgument, fmt.Errorf(format, args...)}
}

// notRunningError says that the container of the job does not run.
func notRunningError(format string, args ...any) error {
	return &classified{keeper.FailureNotRunning, fmt.Errorf(format, args...)}
}

// unsupportedError says that the node lacks what the job needs.
func unsupportedError(format string, args ...any) error {
	return &classified{keeper.FailureUnsupported, fmt.Errorf(format, args...)}
}

// startError classes an error of libcontainer's Start for a process with these arguments.
//
// libcontainer's init hands its errors over as text. What it says about the command is the text of an *exec.Error of
// the standard library, `exec: "name": reason`, and this is the only place that knows.
func startError(err error, args []string) error {
	if len(args) > 0 && strings.Contains(err.Error(), "exec: "+strconv.Quote(args[0])+": ") {
		return &classified{keeper.FailureCommand, err}
	}
	return err
}

// failureOf returns the class of err: setup, unless something closer to the cause said otherwise.
func failureOf(err error) keeper.Failure {
	var c *classified
	if errors.As(err, &c) {
		return c.failure
	}
	return keeper.FailureSetup
}

// checkID refuses what would lead out of the state folder before any path is made of it.
func checkID(job *keeper.Job) error {
	if !filepath.IsAbs(job.Root) {
		return argumentError("state folder %q is not an absolute path", job.Root)
	}
	if job.ID == "" || job.ID == "." || job.ID == ".." || strings.ContainsRune(job.ID, '/') {
		return argumentError("%q is not a container ID", job.ID)
	}
	return nil
}
