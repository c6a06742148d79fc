package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/berth-node/berth/internal/errdefs"
)

// send answers with an object in JSON.
func send(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // the client may have gone
}

// fail answers with a metav1.Status, by which clients tell errors apart.
func fail(w http.ResponseWriter, err error) {
	status := statusOf(err)
	send(w, int(status.Code), status)
}

func statusOf(err error) metav1.Status {
	var known apierrors.APIStatus
	if !errors.As(err, &known) {
		known = apiError(err)
	}
	status := known.Status()
	status.Kind, status.APIVersion = "Status", "v1"
	return status
}

// apiError makes an error of the API of one with a class. Where a name is known, the caller makes one that says it.
func apiError(err error) *apierrors.StatusError {
	message := err.Error()
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return statusError(http.StatusNotFound, metav1.StatusReasonNotFound, trimClass(message, errdefs.ErrNotFound))
	case errors.Is(err, errdefs.ErrInvalidArgument):
		return apierrors.NewBadRequest(trimClass(message, errdefs.ErrInvalidArgument))
	case errors.Is(err, errdefs.ErrFailedPrecondition):
		return apierrors.NewBadRequest(trimClass(message, errdefs.ErrFailedPrecondition))
	case errors.Is(err, errdefs.ErrAlreadyExists):
		return statusError(http.StatusConflict, metav1.StatusReasonConflict, trimClass(message, errdefs.ErrAlreadyExists))
	case errors.Is(err, errdefs.ErrPermissionDenied):
		return statusError(http.StatusForbidden, metav1.StatusReasonForbidden, message)
	case errors.Is(err, errdefs.ErrResourceExhausted):
		return apierrors.NewResourceExpired(trimClass(message, errdefs.ErrResourceExhausted))
	case errors.Is(err, errdefs.ErrUnavailable):
		return apierrors.NewServiceUnavailable(message)
	}
	return apierrors.NewInternalError(err)
}

// trimClass takes the class off the end of a message: the status says it already.
func trimClass(message string, class error) string {
	return strings.TrimSuffix(message, ": "+class.Error())
}

func statusError(code int32, reason metav1.StatusReason, message string) *apierrors.StatusError {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message}}
}

func errNoPath(*http.Request) error {
	return statusError(http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
}

// errDeclared answers who wants to change an object here.
func errDeclared() error {
	return statusError(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed,
		"an object is changed where it is declared: edit its file, or change it with berth apply")
}

func errNotFound(resource, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: resource}, name)
}

func errBadRequest(format string, args ...any) error {
	return apierrors.NewBadRequest(fmt.Sprintf(format, args...))
}

func errNotAllowed(resource, verb string) error {
	return apierrors.NewMethodNotSupported(schema.GroupResource{Resource: resource}, verb)
}
