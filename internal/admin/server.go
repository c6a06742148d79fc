package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// Listen opens the socket, mode 0600. A socket that is there already is taken over if nobody answers on it.
func Listen(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: another daemon answers: %w", path, errdefs.ErrAlreadyExists)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Serve answers on l until ctx ends; then it waits for what is under way, at most grace.
func Serve(ctx context.Context, l net.Listener, b Backend, log *slog.Logger) error {
	server := &http.Server{
		Handler:           handler(b, log),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		const grace = 5 * time.Second
		shut, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if server.Shutdown(shut) != nil {
			server.Close()
		}
	})
	err := server.Serve(l) // it does not wait for the answers under way; Shutdown does
	if !stop() {
		<-ended
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func handler(b Backend, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/images", func(w http.ResponseWriter, _ *http.Request) { answer(w, b.Images(), nil) })
	mux.HandleFunc("POST /v1/images/load", func(w http.ResponseWriter, r *http.Request) {
		images, err := b.Load(r.Context(), r.Body, r.URL.Query().Get("name"))
		answer(w, images, err)
	})
	mux.HandleFunc("GET /v1/images/save", func(w http.ResponseWriter, r *http.Request) { save(w, r, b, log) })
	mux.HandleFunc("POST /v1/images/pull", func(w http.ResponseWriter, r *http.Request) { pull(w, r, b) })
	mux.HandleFunc("DELETE /v1/images", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, b.Remove(r.Context(), r.URL.Query().Get("ref")))
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { answer(w, b.Status(r.Context()), nil) })
	mux.HandleFunc("POST /v1/drain", func(w http.ResponseWriter, r *http.Request) { drain(w, r, b) })
	return mux
}

// statusOf maps the class of an error; the text says the rest.
func statusOf(err error) int {
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, errdefs.ErrInvalidArgument):
		return http.StatusBadRequest
	case errors.Is(err, errdefs.ErrPermissionDenied):
		return http.StatusForbidden
	case errors.Is(err, errdefs.ErrUnavailable):
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(statusOf(err))
		v = Progress{Error: err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the client may have gone
}

// save streams: once the first byte is out an error can only break the connection off, which the client then reports.
func save(w http.ResponseWriter, r *http.Request, b Backend, log *slog.Logger) {
	out := &lazyWriter{w: w}
	buffered := bufio.NewWriterSize(out, 1<<20)
	err := b.Save(r.Context(), buffered, r.URL.Query()["ref"])
	if err == nil {
		err = buffered.Flush()
	}
	switch {
	case err == nil:
	case !out.begun:
		answer(w, nil, err)
	default:
		log.Error("save of images broke off", "err", err)
		panic(http.ErrAbortHandler)
	}
}

type lazyWriter struct {
	w     http.ResponseWriter
	begun bool
}

func (l *lazyWriter) Write(p []byte) (int, error) {
	if !l.begun {
		l.w.Header().Set("Content-Type", "application/x-tar")
		l.begun = true
	}
	return l.w.Write(p)
}

// lineLimit is how long a client may take to read a line. What is told is done meanwhile, and must not wait for somebody
// whose terminal stands still.
const lineLimit = 10 * time.Second

// lines makes an answer of lines, each sent at once.
func lines(w http.ResponseWriter) func(Progress) {
	w.Header().Set("Content-Type", "application/jsonl")
	enc := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	return func(p Progress) {
		_ = flush.SetWriteDeadline(time.Now().Add(lineLimit)) // a connection always has one
		_ = enc.Encode(p)                                     // the client may have gone
		_ = flush.Flush()
		_ = flush.SetWriteDeadline(time.Time{})
	}
}

func pull(w http.ResponseWriter, r *http.Request, b Backend) {
	var creds Credentials
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&creds); err != nil && !errors.Is(err, io.EOF) {
		answer(w, nil, fmt.Errorf("credentials: %w: %w", err, errdefs.ErrInvalidArgument))
		return
	}
	send := lines(w)
	image, err := b.Pull(r.Context(), r.URL.Query().Get("ref"), creds, func(s string) { send(Progress{Text: s}) })
	if err != nil {
		send(Progress{Error: err.Error()})
		return
	}
	send(Progress{Image: &image})
}

func drain(w http.ResponseWriter, r *http.Request, b Backend) {
	grace, err := time.ParseDuration(r.URL.Query().Get("grace"))
	if err != nil {
		answer(w, nil, fmt.Errorf("grace: %w: %w", err, errdefs.ErrInvalidArgument))
		return
	}
	send := lines(w)
	// A drain that began is not stopped by a terminal that was closed.
	if err := b.Drain(context.WithoutCancel(r.Context()), grace, func(s string) { send(Progress{Text: s}) }); err != nil {
		send(Progress{Error: err.Error()})
		return
	}
	send(Progress{Text: "drained"})
	b.Stop()
}
