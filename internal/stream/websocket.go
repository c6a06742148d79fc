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

// serveV5 serves v5.channel.k8s.io, which is v4 plus a message {255, channel} by which the client closes its half of a
// channel. kubectl, crictl and critest offer nothing older over WebSocket, because without it a command that reads its
// standard input to the end never ends. wsstream understands the message; cri-streaming does not offer the protocol.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, e *remote) {
	channels := make([]wsstream.ChannelType, remotecommand.StreamResize+1)
	channels[remotecommand.StreamStdIn] = when(e.connect.Stdin, wsstream.ReadChannel)
	channels[remotecommand.StreamStdOut] = when(e.connect.Stdout, wsstream.WriteChannel)
	channels[remotecommand.StreamStdErr] = when(e.connect.Stderr, wsstream.WriteChannel)
	channels[remotecommand.StreamErr] = wsstream.WriteChannel
	// Sizes that nobody takes would hold up what comes behind them.
	channels[remotecommand.StreamResize] = when(e.connect.TTY, wsstream.ReadChannel)

	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels},
	})
	conn.SetIdleTimeout(s.cfg.IdleTimeout)
	_, ch, err := conn.Open(w, r)
	if err != nil {
		s.cfg.Log.Warn("streaming session not opened", "path", r.URL.Path, "err", err)
		return
	}
	defer func() { _ = conn.Close() }()
	e.ran = true

	resize := make(chan Size)
	go decodeSizes(r.Context(), ch[remotecommand.StreamResize], resize)

	// Clients take the first message, however empty, as the sign that the session stands.
	_, _ = ch[remotecommand.StreamErr].Write(nil)
	code, err := e.run(r.Context(), e.streams(ch[remotecommand.StreamStdIn], ch[remotecommand.StreamStdOut],
		ch[remotecommand.StreamStdErr], resize))
	if unlessGone(r.Context(), err) != nil {
		s.cfg.Log.Error("streaming session failed", "path", r.URL.Path, "err", err)
	}
	// The client may have gone by now; then nobody wants to know.
	_ = json.NewEncoder(ch[remotecommand.StreamErr]).Encode(statusOf(code, err))
}

func when(wanted bool, t wsstream.ChannelType) wsstream.ChannelType {
	if wanted {
		return t
	}
	return wsstream.IgnoreChannel
}

// maxSizeText bounds the JSON of one terminal's size, in bytes.
const maxSizeText = 4096

// decodeSizes passes the terminal's sizes on until the client stops sending or ctx ends, and closes out.
func decodeSizes(ctx context.Context, in io.Reader, out chan<- Size) {
	defer close(out)
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

// status is what the error channel carries at the end of a session: the fields of a metav1.Status that clients read.
type status struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int32    `json:"code,omitempty"`
}

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
		return status{Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
	case code != 0:
		n := strconv.Itoa(int(code))
		return status{
			Status:  "Failure",
			Reason:  remotecommand.NonZeroExitCodeReason,
			Message: "command terminated with non-zero exit code: exit status " + n,
			Details: &details{Causes: []cause{{Type: remotecommand.ExitCodeCauseType, Message: n}}},
		}
	default:
		return status{Status: "Success"}
	}
}
