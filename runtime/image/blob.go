package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	rerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// errStalled ends a connection that a blob does not come by any more.
var errStalled = fmt.Errorf("the registry has stopped in the middle of a blob: %w", errdefs.ErrUnavailable)

// A blobReader reads one blob of a registry over as many connections as it takes: one that breaks, or over which nothing
// comes any more, is followed by another that goes on where it ended. It gives up after maxTries of them in a row that
// brought less than worthwhile.
type blobReader struct {
	reg  *registry
	ctx  context.Context
	desc ocispec.Descriptor

	conn     *blobConn // nil between connections
	offset   int64
	failures int // connections in a row that brought less than worthwhile
}

// worthwhile is how many bytes a connection must bring to be no failure.
const worthwhile = 64 << 10

// blobConn is one connection of a blobReader.
type blobConn struct {
	body    io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	login   int // which of the registry's it has
	brought int64
	stalled *time.Timer
}

// Read implements io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	for {
		n, err := b.read(p)
		b.offset += int64(n)
		if errors.Is(err, io.EOF) && b.offset < b.desc.Size {
			err = io.ErrUnexpectedEOF
		}
		if err == nil || errors.Is(err, io.EOF) {
			return n, err
		}
		again := b.recover(err)
		if again != nil || n > 0 {
			return n, again
		}
	}
}

// read reads from the connection at hand, or from a new one.
func (b *blobReader) read(p []byte) (int, error) {
	if b.conn == nil {
		if err := b.connect(); err != nil {
			return 0, err
		}
	}
	c := b.conn
	// Before the first byte a registry may have to fetch the blob itself, from far away; the pull's own limit is for that.
	if c.brought > 0 {
		c.stalled.Reset(b.reg.readTimeout)
	}
	end := b.reg.watch.wait()
	n, err := c.body.Read(p)
	end(n > 0)
	c.stalled.Stop()
	if n > 0 && c.brought == 0 {
		b.reg.proved(c.login)
	}
	if c.brought += int64(n); c.brought >= worthwhile {
		b.failures = 0
	}
	if err != nil && errors.Is(context.Cause(c.ctx), errStalled) {
		err = errStalled
	}
	return n, err
}

func (b *blobReader) connect() error {
	fetcher, login, err := b.reg.fetcher(b.ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(b.ctx)
	body, err := fetcher.Fetch(b.reg.context(ctx), b.desc)
	if err == nil && b.offset > 0 {
		_, err = body.(io.Seeker).Seek(b.offset, io.SeekStart) // nothing is sent before the first Read
	}
	if err != nil {
		cancel(nil)
		return err
	}
	c := &blobConn{body: body, ctx: ctx, cancel: cancel, login: login}
	c.stalled = time.AfterFunc(time.Hour, func() { cancel(errStalled) })
	c.stalled.Stop()
	b.conn = c
	return nil
}

// recover decides whether the blob can go on after err: nil if so, or else why not.
func (b *blobReader) recover(err error) error {
	login := -1
	if b.conn != nil {
		login = b.conn.login
	}
	b.drop()
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	var status rerrors.ErrUnexpectedStatus
	switch {
	case errors.As(err, &status) && status.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%s ended after %d of %d bytes: %w", b.desc.Digest, b.offset, b.desc.Size, errdefs.ErrUnavailable)
	case errors.Is(err, docker.ErrInvalidAuthorization), errors.As(err, &status) && status.StatusCode == http.StatusUnauthorized:
		// What it took a moment ago it takes no more: a token that has ended before its time.
		b.failures++
		if b.failures < maxTries && login >= 0 && b.reg.loginAgain(login) {
			return nil
		}
		return err
	case !broken(err), b.reg.manners.spent():
		return err
	}
	if b.failures++; b.failures >= maxTries {
		return err
	}
	return sleep(b.ctx, backoff(b.reg.manners.base, b.failures))
}

func (b *blobReader) drop() {
	if b.conn == nil {
		return
	}
	b.conn.stalled.Stop()
	b.conn.cancel(nil)
	_ = b.conn.body.Close() // what came is verified; nothing is lost with the rest
	b.conn = nil
}

// Close ends the reading.
func (b *blobReader) Close() error {
	b.drop()
	return nil
}
