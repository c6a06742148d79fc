// Package ctl does what berth's commands for pods do: kubectl's words, output and exit statuses, over the daemon's socket.
package ctl

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// A Client speaks to the daemon.
type Client struct {
	socket string
	http   *http.Client

	kinds []metav1.APIResource // see resource
}

// NewClient does not connect yet.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) }}}
	return c
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "unix", c.socket)
	var inner *net.OpError
	switch {
	case err == nil || ctx.Err() != nil:
		return conn, err
	case errors.As(err, &inner):
		err = inner.Err // without the socket's name, which is said here
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("the daemon's socket %s is root's alone: %w", c.socket, err)
	}
	return nil, fmt.Errorf("no daemon answers on %s (is berth serve running, with this --run-dir?): %w", c.socket, err)
}

// A call is a request.
type call struct {
	method string // "" is GET
	path   string
	query  url.Values
	accept string
	body   any // sent as JSON, if it is not nil
}

// do returns an answer that is none of an error.
func (c *Client) do(ctx context.Context, r call) (*http.Response, error) {
	var body io.Reader
	if r.body != nil {
		data, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, cmp.Or(r.method, http.MethodGet), "http://berth"+r.path+"?"+r.query.Encode(), body)
	if err != nil {
		return nil, err
	}
	if r.accept != "" {
		req.Header.Set("Accept", r.accept)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err // without the name of a host that is none
		}
		return nil, err
	}
	if resp.StatusCode < http.StatusBadRequest {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, statusError(resp)
}

// maxStatus bounds the text of an error, in bytes.
const maxStatus = 1 << 20

func statusError(resp *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxStatus)) // what there is of it
	status := metav1.Status{}
	if json.Unmarshal(data, &status) != nil || status.Kind != "Status" {
		status = metav1.Status{Status: metav1.StatusFailure, Code: int32(resp.StatusCode), Message: strings.TrimSpace(string(data))}
	}
	return &apierrors.StatusError{ErrStatus: status}
}

// get reads an answer in JSON.
func (c *Client) get(ctx context.Context, r call, into any) error {
	resp, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

// A change is an event of a watch.
type change struct {
	Type   watch.EventType `json:"type"`
	Object json.RawMessage `json:"object"`
}

// errWatchOver says that a watch has ended without the answer: the daemon ended, say.
var errWatchOver = errors.New("the watch has ended")

// watch calls each for every event until that returns false or an error, or ctx ends.
func (c *Client) watch(ctx context.Context, r call, each func(change) (bool, error)) error {
	query := url.Values{}
	for k, v := range r.query {
		query[k] = v
	}
	query.Set("watch", "true")
	r.query = query
	resp, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var e change
		if err := d.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return errWatchOver
		}
		if e.Type == watch.Error {
			status := metav1.Status{}
			_ = json.Unmarshal(e.Object, &status) // its message is what there is
			return &apierrors.StatusError{ErrStatus: status}
		}
		if more, err := each(e); err != nil || !more {
			return err
		}
	}
}

// Message is an error in kubectl's words.
func Message(err error) string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return "error: " + err.Error()
	}
	s := status.Status()
	if s.Reason == "" {
		return "Error from server: " + s.Message
	}
	return fmt.Sprintf("Error from server (%s): %s", s.Reason, s.Message)
}

// An Exit is an error that says with what status the program ends. Text is what is said before, if anything.
type Exit struct {
	Code int
	Text string
}

func (e *Exit) Error() string { return e.Text }
