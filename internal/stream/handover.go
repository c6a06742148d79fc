package stream

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// silentLimit is how long a client that has connected may take to ask, when the Server is handed over. It has the URL
// already, so this is one packet.
const silentLimit = time.Second

// A pendingURL is a URL that was given out and not used yet, on its way to another Server. One of the requests is set.
type pendingURL struct {
	Token       string              `json:"token"`
	Until       time.Time           `json:"until"`
	Exec        *ExecRequest        `json:"exec,omitempty"`
	Attach      *AttachRequest      `json:"attach,omitempty"`
	PortForward *PortForwardRequest `json:"portForward,omitempty"`
}

// HandOver ends the taking of connections, without a word to those that wait for it, and returns the URLs that wait for their
// clients, for TakeOver of a Server on another listener of the same socket. The sessions go on: see Sessions. Serve must
// have been called, and no URL may be asked for any more.
func (s *Server) HandOver(ctx context.Context) (json.RawMessage, error) {
	if err := s.listener.Close(); err != nil {
		return nil, fmt.Errorf("stream server: %w", err)
	}
	select {
	case <-s.served: // and knows all of its connections
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.awaitSilent(ctx)
	urls := []pendingURL{}
	for _, w := range s.pending.takeAll() {
		u := pendingURL{Token: w.token, Until: w.until}
		switch r := w.request.(type) {
		case ExecRequest:
			u.Exec = &r
		case AttachRequest:
			u.Attach = &r
		case PortForwardRequest:
			u.PortForward = &r
		}
		urls = append(urls, u)
	}
	return json.Marshal(urls)
}

// awaitSilent waits for the clients that have connected and not asked yet: their URLs are known here alone. Who says nothing
// is cut off.
func (s *Server) awaitSilent(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, silentLimit)
	defer cancel()
	for silent := s.listener.unspoken(); len(silent) > 0; silent = s.listener.unspoken() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			for _, c := range silent {
				_ = c.Close()
			}
			return
		}
	}
}

// TakeOver makes the URLs of another Server this one's. Call it before Serve.
func (s *Server) TakeOver(pending json.RawMessage) error {
	var urls []pendingURL
	if err := json.Unmarshal(pending, &urls); err != nil {
		return fmt.Errorf("stream server: pending sessions: %w", err)
	}
	for _, u := range urls {
		w := &waiting{token: u.Token, until: u.Until}
		switch {
		case u.Exec != nil:
			w.request = *u.Exec
		case u.Attach != nil:
			w.request = *u.Attach
		case u.PortForward != nil:
			w.request = *u.PortForward
		default:
			continue // of a kind that is not known here: its client gets "not found"
		}
		s.pending.put(w)
	}
	return nil
}
