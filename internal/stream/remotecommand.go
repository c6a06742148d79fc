package stream

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

func (s *Server) tokenExec(w http.ResponseWriter, r *http.Request, request any) bool {
	req, ok := request.(ExecRequest)
	if !ok { // the token is of another kind of session
		http.NotFound(w, r)
		return false
	}
	return s.sessions.serveExec(w, r, req)
}

func (s *Server) tokenAttach(w http.ResponseWriter, r *http.Request, request any) bool {
	req, ok := request.(AttachRequest)
	if !ok {
		http.NotFound(w, r)
		return false
	}
	return s.sessions.serveAttach(w, r, req)
}

func (s *Sessions) serveRemote(w http.ResponseWriter, r *http.Request, e *remote) bool {
	if wsstream.IsWebSocketRequest(r) {
		s.serveWebSocket(w, r, e)
	} else {
		s.serveSPDY(w, r, e)
	}
	return true // both close what they have upgraded
}

// remote is one exec or attach session.
type remote struct {
	connect Connect
	run     func(context.Context, Streams) (int32, error)
}

// ends are the client's ends of a session, in whatever protocol: those that it asked for, and perhaps more.
type ends struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	sizes          io.Reader // JSON; nil in protocols that have none
	status         io.Writer
	// statusText makes the status a message, and that of a success nothing. It is else in JSON.
	statusText bool
}

// runRemote runs a session whose client is there, until ctx ends at the latest, and tells that one how it ended.
func (s *Sessions) runRemote(ctx context.Context, path string, e *remote, c ends) {
	ctx, done := context.WithCancel(ctx)
	defer done()
	st := Streams{TTY: e.connect.TTY}
	if e.connect.Stdin {
		st.Stdin = c.stdin
	}
	if e.connect.Stdout {
		st.Stdout = c.stdout
	}
	if e.connect.Stderr {
		st.Stderr = c.stderr
	}
	if e.connect.TTY && c.sizes != nil {
		sizes := make(chan Size)
		go decodeSizes(ctx, c.sizes, sizes)
		st.Resize = sizes
	}
	code, err := e.run(ctx, st)
	if unlessGone(ctx, err) != nil {
		s.cfg.Log.Error("streaming session failed", "path", path, "err", err)
	}
	// The client may have gone by now; then nobody wants to know.
	_ = c.tell(statusOf(code, err))
}

// tell sends the status as the client's protocol has it.
func (c ends) tell(st status) error {
	if !c.statusText {
		return json.NewEncoder(c.status).Encode(st)
	}
	if st.Status == statusSuccess {
		return nil
	}
	_, err := io.WriteString(c.status, st.Message)
	return err
}

// maxSizeText bounds the JSON of one terminal's size, in bytes.
const maxSizeText = 4096

// decodeSizes passes the terminal's sizes on until the client stops sending or ctx ends, and closes out. What comes behind a
// text that is no size is read too, and forgotten: nobody else would, and the client's input might be behind it.
func decodeSizes(ctx context.Context, in io.Reader, out chan<- Size) {
	defer close(out)
	defer func() { _, _ = io.Copy(io.Discard, in) }()
	// A text without end would be kept whole.
	bounded := &io.LimitedReader{R: in}
	d := json.NewDecoder(bounded)
	for {
		var size Size
		bounded.N = maxSizeText
		if d.Decode(&size) != nil {
			return
		}
		select {
		case out <- size:
		case <-ctx.Done():
			return
		}
	}
}

// status is what the client is told at the end of a session: the fields of a metav1.Status that clients read.
type status struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int32    `json:"code,omitempty"`
}

const (
	statusSuccess = "Success"
	statusFailure = "Failure"
)

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

func statusOf(code int32, err error) status {
	switch {
	case err != nil:
		return status{Status: statusFailure, Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
	case code != 0:
		n := strconv.Itoa(int(code))
		return status{
			Status:  statusFailure,
			Reason:  remotecommand.NonZeroExitCodeReason,
			Message: "command terminated with non-zero exit code: exit status " + n,
			Details: &details{Causes: []cause{{Type: remotecommand.ExitCodeCauseType, Message: n}}},
		}
	default:
		return status{Status: statusSuccess}
	}
}
