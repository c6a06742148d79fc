package stream

import (
	"context"
	"net/http"
	"strconv"

	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Sessions serves sessions to the clients of other HTTP servers, whose requests say themselves what they want: those of the
// Kubernetes API and of the kubelet's port. Such a server takes its connections from a [Listener] and has [ConnContext], so
// that a session ends when its client has gone.
type Sessions struct {
	cfg     Config
	backend Backend
	slots   chan struct{} // one for each session at work
}

// NewSessions returns Sessions; TokenTTL and MaxPending of cfg are not used.
func NewSessions(cfg Config, b Backend) *Sessions {
	cfg = cfg.withDefaults()
	return &Sessions{cfg: cfg, backend: b, slots: make(chan struct{}, cfg.MaxSessions)}
}

// Count is how many are at work.
func (s *Sessions) Count() int { return len(s.slots) }

// ServeExec answers a request for an exec, and returns when that is over.
func (s *Sessions) ServeExec(w http.ResponseWriter, r *http.Request, req ExecRequest) {
	s.checked(w, r, req.check(), func(w http.ResponseWriter) bool { return s.serveExec(w, r, req) })
}

// ServeAttach is ServeExec for an attach.
func (s *Sessions) ServeAttach(w http.ResponseWriter, r *http.Request, req AttachRequest) {
	s.checked(w, r, req.check(), func(w http.ResponseWriter) bool { return s.serveAttach(w, r, req) })
}

// ServePortForward is ServeExec for a port-forward.
func (s *Sessions) ServePortForward(w http.ResponseWriter, r *http.Request, req PortForwardRequest) {
	s.checked(w, r, nil, func(w http.ResponseWriter) bool { return s.servePortForward(w, r, req) })
}

func (s *Sessions) checked(w http.ResponseWriter, r *http.Request, err error, serve func(http.ResponseWriter) bool) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.guard(w, r, serve)
}

// guard has what all sessions need: a slot, and an end of the connection that the library may have forgotten.
func (s *Sessions) guard(w http.ResponseWriter, r *http.Request, serve func(http.ResponseWriter) (served bool)) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		w.Header().Set("Retry-After", strconv.Itoa(int(s.cfg.TokenTTL.Seconds())))
		http.Error(w, errTooMany.Error(), http.StatusTooManyRequests)
		return
	}
	u := &upgradable{ResponseWriter: w, spdy: !wsstream.IsWebSocketRequest(r)}
	if !serve(u) && u.conn != nil {
		// The client upgraded the connection and then did not open its streams: the library gives up without closing.
		_ = u.conn.Close()
	}
}

func (s *Sessions) serveExec(w http.ResponseWriter, r *http.Request, req ExecRequest) bool {
	return s.serveRemote(w, r, &remote{connect: req.Connect, run: func(ctx context.Context, st Streams) (int32, error) {
		return s.backend.Exec(ctx, req.ContainerID, req.Cmd, st)
	}})
}

func (s *Sessions) serveAttach(w http.ResponseWriter, r *http.Request, req AttachRequest) bool {
	return s.serveRemote(w, r, &remote{connect: req.Connect, run: func(ctx context.Context, st Streams) (int32, error) {
		return 0, s.backend.Attach(ctx, req.ContainerID, st)
	}})
}

func (s *Sessions) servePortForward(w http.ResponseWriter, r *http.Request, req PortForwardRequest) bool {
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		s.serveTunnel(w, r, req)
	} else {
		s.forward(w, r, req)
	}
	return true // the library closes what it has upgraded
}
