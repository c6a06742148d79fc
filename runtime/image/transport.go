package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxTries is how often one request is sent to a registry that is busy or broken, and how often in a row a blob may
	// come to nothing.
	maxTries = 5
	// maxBackoff bounds what is waited between two tries without the registry having said how long.
	maxBackoff = 10 * time.Second
	// maxRetryAfter bounds what is waited because a registry asks for it. Who asks for more is told of at once: the
	// kubelet tries again by its own clock.
	maxRetryAfter = time.Minute
)

// backoff returns how long to wait after a number of failures in a row: longer each time, and never the same for all, so
// that the nodes that a registry has turned away do not come back together.
func backoff(base time.Duration, failures int) time.Duration {
	d := min(base<<min(failures-1, 10), maxBackoff)
	return d/2 + rand.N(d/2+1)
}

// sleep waits, or returns the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// manners is what a pull knows of the hosts that it asks: how they have answered, and which of them is the last resort.
type manners struct {
	base time.Duration // of backoff

	mu    sync.Mutex
	last  string // the host that no other stands in for
	hosts map[string]*hostManners
}

// hostManners are set by a bad answer and cleared by a good one.
type hostManners struct {
	spent  bool      // a request has been tried often enough
	until  time.Time // it wants to be left alone so long
	status int       // that it said so with
}

// lastResort says which host no other stands in for.
func (m *manners) lastResort(host string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = host
}

// spent says that the host of last resort has been asked often enough.
func (m *manners) spent() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts[m.last]
	return h != nil && h.spent
}

// polite is a transport that keeps the manners of a pull: it tries again, later each time and not before the host wants to
// be asked, where trying again may help and no other host stands in; and sends nobody what is for somebody else.
type polite struct {
	base    http.RoundTripper
	manners *manners
	watch   *stallWatch // it waits for what comes
}

// RoundTrip implements http.RoundTripper.
func (t polite) RoundTrip(req *http.Request) (*http.Response, error) {
	req, err := withoutSecretsOfOthers(req)
	if err != nil {
		return nil, err
	}
	for failures := 1; ; failures++ {
		if resp := t.manners.turnedAway(req); resp != nil {
			return resp, nil
		}
		resp, err := t.base.RoundTrip(req)
		wait, again := t.manners.note(req, resp, err, failures)
		if !again {
			return resp, err
		}
		next, rerr := rewound(req)
		if rerr != nil {
			return resp, err
		}
		if resp != nil {
			resp.Body.Close()
		}
		end := t.watch.rest()
		err = sleep(req.Context(), wait)
		end()
		if err != nil {
			return nil, err
		}
		req = next
	}
}

// rewound returns a request that can be sent once more.
func rewound(req *http.Request) (*http.Request, error) {
	next := req.Clone(req.Context())
	if req.Body == nil || req.Body == http.NoBody {
		return next, nil
	}
	if req.GetBody == nil {
		return nil, errors.New("the body of the request is gone")
	}
	body, err := req.GetBody()
	next.Body = body
	return next, err
}

// note takes down how a host answered, and says whether and when the request, which was sent so many times, is to be sent
// again.
func (m *manners) note(req *http.Request, resp *http.Response, err error, sent int) (wait time.Duration, again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil && !busy(resp.StatusCode) || err != nil && !broken(err) {
		delete(m.hosts, req.URL.Host)
		return 0, false
	}
	h := m.hosts[req.URL.Host]
	if h == nil {
		h = &hostManners{}
		m.hosts[req.URL.Host] = h
	}
	wait = backoff(m.base, sent)
	if resp != nil {
		asked := retryAfter(resp)
		wait = max(wait, asked)
		if asked > 0 || resp.StatusCode == http.StatusTooManyRequests {
			h.until, h.status = time.Now().Add(wait), resp.StatusCode
		}
	}
	if sent >= maxTries || wait > maxRetryAfter {
		h.spent = true
	}
	return wait, m.waitsFor(req) && !h.spent
}

// waitsFor says whether nobody stands in for the host that a request was first sent to: it is the last that is configured,
// or one that logs in.
func (m *manners) waitsFor(req *http.Request) bool {
	return origin(req).URL.Host == m.last || req.Method == http.MethodPost
}

// turnedAway answers a request in place of a host that wants to be left alone and would only turn it away once more.
func (m *manners) turnedAway(req *http.Request) *http.Response {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts[req.URL.Host]
	if h == nil || !time.Now().Before(h.until) || m.waitsFor(req) && !h.spent {
		return nil
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", h.status, http.StatusText(h.status)), StatusCode: h.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Request: req, Body: http.NoBody,
	}
}

// wish says how long the host of last resort wants to be left alone; "" if it has not said so.
func (m *manners) wish() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.hosts[m.last]; h != nil {
		if left := time.Until(h.until).Round(time.Second); left > 0 {
			return fmt.Sprintf(" (%s wants to be left alone for %s)", m.last, left)
		}
	}
	return ""
}

// retryAfter is how long a response asks to wait; 0 if it does not.
func retryAfter(resp *http.Response) time.Duration {
	v := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	now := time.Now()
	if said, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		now = said // by its own clock
	}
	return max(at.Sub(now), 0)
}

// busy are the answers that may be better later.
func busy(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// broken are the errors of a connection that may be better with another one. One that was refused is none of them:
// nobody is there.
func broken(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout() || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, errStalled)
}

// harmless are the headers that a registry may see which another one has redirected us to.
var harmless = []string{"Accept", "Accept-Encoding", "Range", "Referer", "User-Agent"}

// withoutSecretsOfOthers takes from a request that a redirect has led elsewhere what was meant for where it came from.
// net/http alone is not enough: to it, another port or plain HTTP is the same host, and a header of hosts.toml no secret.
func withoutSecretsOfOthers(req *http.Request) (*http.Request, error) {
	first := origin(req)
	if first == req || sameOrigin(first.URL, req.URL) {
		return req, nil
	}
	if req.Body != nil && req.Body != http.NoBody {
		return nil, fmt.Errorf("%s sends a login on to %s, which is refused", first.URL.Host, req.URL.Host)
	}
	clean := req.Clone(req.Context())
	for name := range clean.Header {
		copied := name != "Authorization" || slices.Contains(authorizations(req), req.Header.Get(name))
		if copied && !slices.Contains(harmless, name) {
			clean.Header.Del(name)
		}
	}
	return clean, nil
}

// origin is the request that redirects have led to req from; req itself if none has.
func origin(req *http.Request) *http.Request {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return req
}

// authorizations are those of the requests before a redirect. Another one than these is the new host's own.
func authorizations(req *http.Request) []string {
	var all []string
	for r := req; r.Response != nil && r.Response.Request != nil; {
		r = r.Response.Request
		all = append(all, r.Header.Get("Authorization"))
	}
	return all
}

func sameOrigin(a, b *url.URL) bool {
	return strings.EqualFold(a.Scheme, b.Scheme) && strings.EqualFold(a.Host, b.Host)
}
