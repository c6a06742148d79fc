package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// A Server gives out URLs and serves the sessions behind them.
//
// New makes one whose URLs are valid at once; Serve answers them until Close. In between, HandOver leaves the URLs to another
// Server on the same socket and keeps the sessions. A Server cannot be used again.
type Server struct {
	sessions *Sessions
	listener *Listener
	http     *http.Server
	pending  *tokens
	served   chan struct{} // closed when Serve has returned
}

// Listen opens the address, for New.
func Listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("stream server: %w", err)
	}
	return l, nil
}

// New returns a Server on a TCP listener, which is its own from now on, also after an error. The caller runs Serve, and Close
// in any case.
func New(cfg Config, l net.Listener, b Backend) (*Server, error) {
	cfg = cfg.withDefaults()
	tracked, err := NewListener(l, cfg.Log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("stream server: %w", err), l.Close())
	}
	s := &Server{
		sessions: NewSessions(cfg, b),
		listener: tracked,
		pending:  newTokens(cfg.MaxPending, cfg.TokenTTL, time.Now),
		served:   make(chan struct{}),
	}
	mux := http.NewServeMux()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		mux.HandleFunc(method+" /exec/{token}", s.session(s.tokenExec))
		mux.HandleFunc(method+" /attach/{token}", s.session(s.tokenAttach))
		mux.HandleFunc(method+" /portforward/{token}", s.session(s.tokenPortForward))
	}
	s.http = &http.Server{
		Handler:           mux,
		ConnContext:       ConnContext,
		ReadHeaderTimeout: cfg.CreationTimeout,
		// A connection is for one session. One that never asks must not stay.
		IdleTimeout: cfg.CreationTimeout,
	}
	return s, nil
}

// Address is where the Server listens, with the port in use.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Serve answers until Close or HandOver, and returns nil then.
func (s *Server) Serve() error {
	defer close(s.served)
	err := s.http.Serve(s.listener)
	if errors.Is(err, http.ErrServerClosed) || s.listener.ended() {
		return nil
	}
	return fmt.Errorf("stream server on %s: %w", s.Address(), err)
}

// Close ends all sessions and the listening. It does not wait for the Backend's functions.
func (s *Server) Close() error {
	// Upgraded connections are no longer the http.Server's: it would leave them open.
	return errors.Join(s.http.Close(), s.listener.CloseAll())
}

// Sessions is how many are at work.
func (s *Server) Sessions() int { return s.sessions.Count() }

// Exec returns the URL of a new session. Errors: ErrInvalidArgument, ErrResourceExhausted.
func (s *Server) Exec(r ExecRequest) (string, error) {
	if err := r.check(); err != nil {
		return "", err
	}
	return s.issue("exec", r)
}

// Attach returns the URL of a new session. Errors: ErrInvalidArgument, ErrResourceExhausted.
func (s *Server) Attach(r AttachRequest) (string, error) {
	if err := r.check(); err != nil {
		return "", err
	}
	return s.issue("attach", r)
}

// PortForward returns the URL of a new session. Errors: ErrResourceExhausted.
func (s *Server) PortForward(r PortForwardRequest) (string, error) {
	return s.issue("portforward", r)
}

func (s *Server) issue(kind string, request any) (string, error) {
	token, err := s.pending.add(request)
	if err != nil {
		return "", fmt.Errorf("%s: %w", kind, err)
	}
	u := url.URL{Scheme: "http", Host: s.Address(), Path: "/" + kind + "/" + token}
	return u.String(), nil
}

// session finds the request behind the token.
func (s *Server) session(serve func(http.ResponseWriter, *http.Request, any) (served bool)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.sessions.guard(w, r, func(w http.ResponseWriter) bool {
			request, ok := s.pending.take(r.PathValue("token"))
			if !ok {
				http.NotFound(w, r)
				return false
			}
			Spoke(r)
			return serve(w, r, request)
		})
	}
}

var errTooMany = fmt.Errorf("too many streaming sessions: %w", errdefs.ErrResourceExhausted)

// unlessGone returns err, which the library logs as a failure and tells the client, but nil if the client has left: that is no
// failure, and there is nobody to tell.
func unlessGone(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
