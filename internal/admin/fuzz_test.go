package admin

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// Any request gets an answer, and what is no request does nothing.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("POST /v1/images/pull?ref=x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("POST /v1/drain?grace=-1s HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte("GET /v1/images/save?ref=a&ref= HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte("DELETE /v1/images HTTP/1.0\r\n\r\n"))
	none := errors.Join(errdefs.ErrNotFound)
	h := handler(Backend{
		Images: func() []Image { return nil },
		Load: func(_ context.Context, r io.Reader, _ string) ([]Image, error) {
			_, err := io.Copy(io.Discard, r)
			return nil, err
		},
		Save:   func(context.Context, io.Writer, []string) error { return none },
		Pull:   func(context.Context, string, Credentials, func(string)) (Image, error) { return Image{}, none },
		Remove: func(context.Context, string) error { return none },
		Status: func(context.Context) Status { return Status{} },
		Drain:  func(context.Context, time.Duration, func(string)) error { return none },
		Stop:   func() {},
	}, slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code < 200 || w.Code > 599 {
			t.Errorf("%q: %d", data, w.Code)
		}
	})
}
