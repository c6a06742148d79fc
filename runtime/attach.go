package runtime

import (
	"context"
	"errors"
	"io"

	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/runtime/keeper"
)

// Attach connects a client to a container's own process, from now on, until the container ends or ctx does. With
// stdin_once the container's input ends with the first client's.
func (r *Runtime) Attach(ctx context.Context, id string, s Streams) error {
	c, err := r.running(id, "attach to")
	if err != nil {
		return err
	}
	k, err := r.keeper.client(ctx)
	if err != nil {
		return err
	}
	a, err := k.Attach(ctx, c.id())
	if err != nil {
		return err
	}
	defer a.Close()
	stop := context.AfterFunc(ctx, func() { a.Close() })
	defer stop()
	if a.Console != nil {
		endResize := resizeLoop(s.Resize, func(size Size) error { return k.Resize(ctx, c.id(), size.Width, size.Height) })
		defer endResize()
	}
	if s.Stdin != nil && a.Stdin != nil {
		go r.attachStdin(k, c, a, s.Stdin)
	}
	return attachOutput(ctx, a, s)
}

// attachStdin passes the client's input on and, where it is the only one there shall be, its end too.
func (r *Runtime) attachStdin(k *keeper.Client, c *container, a *keeper.Attachment, from io.Reader) {
	_, _ = io.Copy(a.Stdin, from) // a client that went away ends the input as well as one that closed it
	if !c.config.StdinOnce || c.config.Tty {
		return
	}
	a.Stdin.Close()
	ctx, cancel := context.WithTimeout(r.life, releaseLimit)
	defer cancel()
	if err := k.CloseStdin(ctx, c.id()); err != nil && c.state() == Running {
		r.log.Warn("input of a container could not be closed, ignoring", "container", c.id(), "err", err)
	}
}

func attachOutput(ctx context.Context, a *keeper.Attachment, s Streams) error {
	for {
		stream, data, err := a.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		}
		to := s.Stdout
		if stream == keeper.Stderr && !s.Terminal {
			to = s.Stderr
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(data); err != nil {
			return err
		}
	}
}

// ReopenLog goes on with a new file at the log path of a running container.
func (r *Runtime) ReopenLog(ctx context.Context, id string) error {
	c, err := r.running(id, "reopen the log of")
	if err != nil {
		return err
	}
	k, err := r.keeper.client(ctx)
	if err != nil {
		return err
	}
	failpoint.Here(failpoint.LogReopening)
	return k.ReopenLog(ctx, c.id())
}
