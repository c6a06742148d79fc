package registry

import (
	"net/http"
	"sync"
	"time"
)

// A Fault answers one request badly: itself, or by handing to serve a writer that spoils the answer.
type Fault func(w http.ResponseWriter, r *http.Request, serve http.Handler)

// Faulty serves a registry through a fault that can be changed at any time; nil is none.
type Faulty struct {
	Serve http.Handler

	mu    sync.Mutex
	fault Fault
}

// Set changes the fault for requests to come.
func (f *Faulty) Set(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// ServeHTTP implements http.Handler.
func (f *Faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	fault := f.fault
	f.mu.Unlock()
	if fault == nil {
		f.Serve.ServeHTTP(w, r)
		return
	}
	fault(w, r, f.Serve)
}

// Cut breaks the connection behind the first n bytes of an answer.
func Cut(n int) Fault {
	return after(n, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
}

// Stall sends the first n bytes of an answer and then nothing, until the client goes.
func Stall(n int) Fault {
	return after(n, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush() // the client has gone: then that is all
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	})
}

func after(n int, do func(http.ResponseWriter, *http.Request)) Fault {
	return func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		serve.ServeHTTP(&limited{ResponseWriter: w, left: n, then: func() { do(w, r) }}, r)
	}
}

type limited struct {
	http.ResponseWriter
	left int
	then func()
}

func (l *limited) Write(p []byte) (int, error) {
	n, err := l.ResponseWriter.Write(p[:min(len(p), l.left)])
	if l.left -= n; l.left == 0 && err == nil {
		l.then()
	}
	return n, err
}

// Drip sends an answer in pieces, with a pause after each.
func Drip(piece int, pause time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, serve http.Handler) {
		serve.ServeHTTP(drip{w, r, piece, pause}, r)
	}
}

type drip struct {
	http.ResponseWriter
	r     *http.Request
	piece int
	pause time.Duration
}

func (d drip) Write(p []byte) (written int, err error) {
	for len(p) > 0 && err == nil {
		var n int
		n, err = d.ResponseWriter.Write(p[:min(len(p), d.piece)])
		written, p = written+n, p[n:]
		if err == nil {
			err = http.NewResponseController(d.ResponseWriter).Flush()
		}
		select {
		case <-time.After(d.pause):
		case <-d.r.Context().Done():
		}
	}
	return written, err
}

// Garble changes the last byte of each piece of an answer.
func Garble(w http.ResponseWriter, r *http.Request, serve http.Handler) {
	serve.ServeHTTP(garbled{w}, r)
}

type garbled struct{ http.ResponseWriter }

func (g garbled) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	bad := append([]byte(nil), p...)
	bad[len(bad)-1] ^= 0xff
	return g.ResponseWriter.Write(bad)
}

// Refuse answers with a status and headers, given as name and value in turn.
func Refuse(status int, headers ...string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
	}
}
