package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// A Client calls the daemon. What takes long has no deadline but its context's.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient does not connect yet.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Images lists the images.
func (c *Client) Images(ctx context.Context) (images []Image, err error) {
	return images, c.json(ctx, http.MethodGet, "/v1/images", nil, nil, &images)
}

// Load sends an archive. name is for images that the archive does not name whole.
func (c *Client) Load(ctx context.Context, archive io.Reader, name string) (images []Image, err error) {
	return images, c.json(ctx, http.MethodPost, "/v1/images/load", url.Values{"name": {name}}, archive, &images)
}

// Save receives an archive.
func (c *Client) Save(ctx context.Context, to io.Writer, refs []string) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/images/save", url.Values{"ref": refs}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(to, resp.Body)
	return err
}

// Pull pulls an image and tells how far it has come.
func (c *Client) Pull(ctx context.Context, ref string, creds Credentials, tell func(string)) (Image, error) {
	body, err := json.Marshal(creds)
	if err != nil {
		return Image{}, err
	}
	last, err := c.lines(ctx, "/v1/images/pull", url.Values{"ref": {ref}}, bytes.NewReader(body), tell)
	if err != nil {
		return Image{}, err
	}
	if last.Image == nil {
		return Image{}, fmt.Errorf("pull %s: the daemon broke off: %w", ref, errdefs.ErrUnavailable)
	}
	return *last.Image, nil
}

// Remove removes an image with all its names.
func (c *Client) Remove(ctx context.Context, ref string) error {
	return c.json(ctx, http.MethodDelete, "/v1/images", url.Values{"ref": {ref}}, nil, nil)
}

// Status asks what the daemon knows of its node.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.json(ctx, http.MethodGet, "/v1/status", nil, nil, &s)
}

// Repair has damaged records read again whose pods run, and returns what became of each.
func (c *Client) Repair(ctx context.Context) (said []string, err error) {
	return said, c.json(ctx, http.MethodPost, "/v1/repair", nil, nil, &said)
}

// GiveUp takes down a pod or container that runs and whose record is damaged.
func (c *Client) GiveUp(ctx context.Context, id string) error {
	return c.json(ctx, http.MethodPost, "/v1/repair", url.Values{"giveUp": {id}}, nil, nil)
}

// Drain removes all pods, giving each container grace to end, and ends the daemon. It returns when that is done.
func (c *Client) Drain(ctx context.Context, grace time.Duration, tell func(string)) error {
	_, err := c.lines(ctx, "/v1/drain", url.Values{"grace": {grace.String()}}, nil, tell)
	return err
}

// Upgrade has another daemon take over: the program at that path, or "" for the installed one. It returns when that one serves; after
// an error the daemon that was asked goes on, unless the error says otherwise.
func (c *Client) Upgrade(ctx context.Context, program string, tell func(string)) error {
	last, err := c.lines(ctx, "/v1/upgrade", url.Values{"program": {program}}, nil, tell)
	if err == nil && !last.Done {
		return fmt.Errorf("the daemon broke off in the middle of the upgrade: %w", errdefs.ErrUnavailable)
	}
	return err
}

// ReplaceKeeper has the installed keeper take the place of the one that runs, in place. build is the new one's version, "" if it
// is the same program.
func (c *Client) ReplaceKeeper(ctx context.Context) (build string, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/keeper", nil, nil, &build)
	return build, err
}

func (c *Client) json(ctx context.Context, method, path string, query url.Values, body io.Reader, into any) error {
	resp, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// lines reads an answer of lines and returns the last one.
func (c *Client) lines(ctx context.Context, path string, query url.Values, body io.Reader, tell func(string)) (Progress, error) {
	resp, err := c.do(ctx, http.MethodPost, path, query, body)
	if err != nil {
		return Progress{}, err
	}
	defer resp.Body.Close()
	var last Progress
	for dec := json.NewDecoder(resp.Body); ; {
		var p Progress
		err := dec.Decode(&p)
		switch {
		case errors.Is(err, io.EOF):
			return last, nil
		case err != nil:
			return last, fmt.Errorf("the daemon broke off: %w", err)
		case p.Error != "":
			return last, errors.New(p.Error)
		}
		if p.Text != "" && tell != nil {
			tell(p.Text)
		}
		last = p
	}
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://berth"+path+"?"+query.Encode(), body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var unreachable *net.OpError
		if errors.As(err, &unreachable) && unreachable.Op == "dial" {
			if errors.Is(err, fs.ErrPermission) {
				return nil, fmt.Errorf("the daemon's socket %s is root's alone: %w", c.socket, unreachable.Err)
			}
			return nil, fmt.Errorf("no daemon answers on %s (is berth serve running, with this --run-dir?): %w", c.socket, unreachable.Err)
		}
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var p Progress
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&p); err != nil || p.Error == "" {
		return nil, fmt.Errorf("the daemon answered %s", resp.Status)
	}
	return nil, errors.New(p.Error)
}
