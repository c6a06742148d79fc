package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/berth-node/berth/internal/stream"
)

// A Door is a listener with a handler behind it.
type Door struct {
	http     *http.Server
	listener *stream.Listener
	tls      *tls.Config
	leaving  context.Context // ends when only sessions may go on
	leave    context.CancelFunc
}

// NewDoor returns a Door on a listener, which is its own from now on. With credentials it is TLS, and only who shows them
// gets in. The caller runs Serve, and Close in any case.
func NewDoor(l net.Listener, h http.Handler, credentials *Credentials, log *slog.Logger) (*Door, error) {
	tracked, err := stream.NewListener(l, log)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	d := &Door{listener: tracked}
	d.leaving, d.leave = context.WithCancel(context.Background())
	if credentials == nil {
		h = known(h)
	} else {
		h, d.tls = credentials.guard(h), credentials.tlsConfig()
	}
	d.http = &http.Server{
		Handler:           d.untilLeft(h),
		ConnContext:       stream.ConnContext,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		// What clients do wrong in TLS is theirs to know.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// A session takes its connection over, which HTTP/2 does not have.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	return d, nil
}

// known lets everybody in: the socket did not let others come this far.
func known(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stream.Spoke(r)
		h.ServeHTTP(w, r)
	})
}

// untilLeft ends requests when this daemon leaves, but for sessions: those go on until their clients end them.
func (d *Door) untilLeft(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isSession(r.URL.Path) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(d.leaving, cancel)()
			r = r.WithContext(ctx)
		}
		h.ServeHTTP(w, r)
	})
}

func isSession(path string) bool {
	for _, prefix := range []string{"/exec/", "/attach/", "/portForward/"} {
		if strings.HasPrefix(path, prefix) {
			return true
		}
	}
	for _, suffix := range []string{"/exec", "/attach", "/portforward"} {
		if strings.HasSuffix(path, suffix) {
			return true
		}
	}
	return false
}

// Serve answers until Close or HandOver, and returns nil then.
func (d *Door) Serve() error {
	var err error
	if d.tls != nil {
		err = d.http.Serve(tls.NewListener(d.listener, d.tls))
	} else {
		err = d.http.Serve(d.listener)
	}
	if errors.Is(err, http.ErrServerClosed) || d.leaving.Err() != nil {
		return nil
	}
	return err
}

// HandOver lets nobody else in and ends what is under way but for sessions, those that are still there when ctx ends.
func (d *Door) HandOver(ctx context.Context) {
	d.leave()
	_ = d.listener.Close() // before Shutdown, which would report that it is closed
	_ = d.http.Shutdown(ctx)
}

// Close ends everything.
func (d *Door) Close() error {
	d.leave()
	return errors.Join(d.http.Close(), d.listener.CloseAll())
}
