package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/berth-node/berth/internal/errdefs"
)

func (s *Server) tokenPortForward(w http.ResponseWriter, r *http.Request, request any) bool {
	req, ok := request.(PortForwardRequest)
	if !ok { // the token is of another kind of session
		http.NotFound(w, r)
		return false
	}
	return s.sessions.servePortForward(w, r, req)
}

func (s *Sessions) forward(w http.ResponseWriter, r *http.Request, req PortForwardRequest) {
	f := forwarder{session: r.Context(), backend: s.backend, slots: make(chan struct{}, maxForwards)}
	portforward.ServePortForward(w, r, f, req.SandboxID, "",
		&portforward.V4Options{Ports: req.Ports}, s.cfg.IdleTimeout, s.cfg.CreationTimeout, portforward.SupportedProtocols)
}

// forwarder is a port-forward session in the library's words.
type forwarder struct {
	// session ends with the client's connection. The library passes a context that never ends.
	session context.Context
	backend Backend
	slots   chan struct{} // one for each connection
}

// maxForwards bounds the connections at once in one session: each costs descriptors and buffers, and a client may ask for any
// number.
const maxForwards = 1000

// PortForward is called by the library for each connection that the client makes.
func (f forwarder) PortForward(_ context.Context, sandboxID, _ string, port int32, conn io.ReadWriteCloser) error {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return fmt.Errorf("%d connections are open in this session: %w", maxForwards, errdefs.ErrResourceExhausted)
	}
	return unlessGone(f.session, f.backend.PortForward(f.session, sandboxID, port, conn))
}

// serveTunnel serves SPDY inside of the binary messages of a WebSocket, as kubectl, crictl and critest ask for it when
// they forward ports over WebSocket. To the library the WebSocket is the connection of a plain SPDY client.
func (s *Sessions) serveTunnel(w http.ResponseWriter, r *http.Request, req PortForwardRequest) {
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			const want = portforward.WebsocketsSPDYTunnelingPortForwardV1
			if !slices.Contains(c.Protocol, want) {
				return fmt.Errorf("none of the protocols %q is %q", c.Protocol, want)
			}
			c.Protocol = []string{want}
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.PortForwardV1Name)
			s.forward(&tunnelWriter{ws: ws, header: http.Header{}}, inner, req)
		},
	}.ServeHTTP(w, r)
}

// tunnelWriter hands the library the WebSocket as if it were the connection of the request. The response to the upgrade
// has no place in a tunnel and is dropped.
type tunnelWriter struct {
	ws     *websocket.Conn
	header http.Header
}

func (t *tunnelWriter) Header() http.Header { return t.header }

func (t *tunnelWriter) WriteHeader(int) {}

func (t *tunnelWriter) Write(b []byte) (int, error) {
	return 0, errors.New("not in a tunnel: " + strings.TrimSpace(string(b)))
}

func (t *tunnelWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.ws, bufio.NewReadWriter(boundedSPDY(bufio.NewReader(t.ws)), bufio.NewWriter(t.ws)), nil
}
