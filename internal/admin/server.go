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
	"sync"
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

// A Server answers the calls on one listener.
type Server struct {
	http   *http.Server
	ctx    context.Context // that of the calls
	cancel context.CancelFunc
	shut   chan struct{} // see Done

	mu      sync.Mutex
	ending  bool
	working map[string]int // calls under way, by path
}

// NewServer returns a Server of b. The caller runs Serve, and Close in any case.
func NewServer(b Backend, log *slog.Logger) *Server {
	s := &Server{shut: make(chan struct{}), working: map[string]int{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s.count(handler(b, log)),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
	}
	return s
}

// Serve answers on l, which it closes, until Close or HandOver.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close takes no more calls and ends those that are under way. Done tells when their last answers are out.
func (s *Server) Close() {
	const grace = 5 * time.Second
	s.end(grace)
}

// HandOver is Close for a daemon that another one replaces: calls to upgrade go on, and those wait for the end of this. It
// returns when no other call is under way, or ctx ends.
func (s *Server) HandOver(ctx context.Context) {
	const grace = 5 * time.Minute // an upgrade is bounded by itself
	s.end(grace)
	for s.atWork() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// Done is closed some time after Close or HandOver, when all answers are out or were cut off.
func (s *Server) Done() <-chan struct{} { return s.shut }

func (s *Server) end(grace time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return
	}
	s.ending = true
	s.cancel()
	go func() {
		defer close(s.shut)
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		if s.http.Shutdown(ctx) != nil {
			s.http.Close()
		}
	}()
}

func (s *Server) atWork() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, n := range s.working {
		if n > 0 && path != upgradePath {
			return true
		}
	}
	return false
}

// count keeps s.working.
func (s *Server) count(next http.Handler) http.Handler {
	add := func(path string, n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.working[path] += n; s.working[path] == 0 {
			delete(s.working, path)
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		add(r.URL.Path, 1)
		defer add(r.URL.Path, -1)
		next.ServeHTTP(w, r)
	})
}

const upgradePath = "/v1/upgrade"

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
	mux.HandleFunc("POST /v1/keeper", func(w http.ResponseWriter, r *http.Request) {
		build, err := b.ReplaceKeeper(r.Context())
		answer(w, build, err)
	})
	mux.HandleFunc("POST "+upgradePath, func(w http.ResponseWriter, r *http.Request) { upgrade(w, r, b) })
	mux.HandleFunc("POST /v1/repair", func(w http.ResponseWriter, r *http.Request) { repair(w, r, b) })
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

func repair(w http.ResponseWriter, r *http.Request, b Backend) {
	if id := r.URL.Query().Get("giveUp"); id != "" {
		answer(w, []string{id + " is given up"}, b.GiveUp(r.Context(), id))
		return
	}
	said, err := b.Repair(r.Context())
	answer(w, said, err)
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

func upgrade(w http.ResponseWriter, r *http.Request, b Backend) {
	send := lines(w)
	// Like a drain, it does not end with the client.
	err := b.Upgrade(context.WithoutCancel(r.Context()), r.URL.Query().Get("program"), func(s string) { send(Progress{Text: s}) })
	if err != nil {
		send(Progress{Error: err.Error()})
		return
	}
	send(Progress{Done: true})
}
