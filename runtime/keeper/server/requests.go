package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/keeper"
)

// request does one request of from. The files stay the caller's.
func (k *Keeper) request(ctx context.Context, from *conn, msg keeper.Message, files map[string]*os.File) (reply, error) {
	switch msg.Kind {
	case keeper.KindCreate:
		return k.requestCreate(ctx, from, msg.Body)
	case keeper.KindExec:
		return k.requestExec(ctx, from, msg.Body, files)
	case keeper.KindStart:
		return k.requestOf(msg.Body, func(c *container) error { return c.start(ctx) })
	case keeper.KindSignal:
		var req keeper.SignalRequest
		return k.requestWith(msg.Body, &req, &req.Ref, func(c *container) error { return c.signal(req.ExecID, req.Signal) })
	case keeper.KindResize:
		var req keeper.ResizeRequest
		return k.requestWith(msg.Body, &req, &req.Ref, func(c *container) error { return c.resize(req.Width, req.Height) })
	case keeper.KindCheckpoint:
		var req keeper.CheckpointRequest
		return k.requestWith(msg.Body, &req, &req.Ref, func(c *container) error { return c.checkpoint(ctx, req.Options) })
	case keeper.KindAttach:
		return k.requestAttach(msg.Body)
	case keeper.KindCloseStdin:
		return k.requestCloseStdin(msg.Body)
	case keeper.KindReopenLog:
		return k.requestOf(msg.Body, (*container).reopenLog)
	case keeper.KindDelete:
		return k.requestDelete(ctx, msg.Body)
	case keeper.KindAdopt:
		return k.requestAdopt(ctx, msg.Body)
	case keeper.KindList:
		return reply{body: k.list(ctx)}, nil
	case keeper.KindFilter:
		return k.requestFilter(ctx, msg.Body)
	case keeper.KindShutdown:
		if why := k.busy(); why != "" {
			return reply{}, fmt.Errorf("shut down the keeper: %s: %w", why, errdefs.ErrFailedPrecondition)
		}
		return reply{then: k.stop}, nil
	default:
		return reply{}, fmt.Errorf("request %q: %w", msg.Kind, errdefs.ErrUnimplemented)
	}
}

// requestWith reads body into req, of which ref is a part, and calls f with the container that it names.
func (k *Keeper) requestWith(body json.RawMessage, req any, ref *keeper.Ref, f func(*container) error) (reply, error) {
	if err := decode(body, req); err != nil {
		return reply{}, err
	}
	c, err := k.container(ref.ID)
	if err != nil {
		return reply{}, err
	}
	return reply{}, f(c)
}

func (k *Keeper) requestOf(body json.RawMessage, f func(*container) error) (reply, error) {
	var ref keeper.Ref
	return k.requestWith(body, &ref, &ref, f)
}

func decode(body json.RawMessage, req any) error {
	if err := json.Unmarshal(body, req); err != nil {
		return fmt.Errorf("decode %T: %w: %w", req, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (k *Keeper) requestCreate(ctx context.Context, from *conn, body json.RawMessage) (reply, error) {
	var req keeper.CreateRequest
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	c, watch, err := k.create(ctx, req)
	if err != nil {
		return reply{}, err
	}
	var spares map[string]*os.File
	if k.exits.inCharge() == from {
		spares = c.spare().files
	} else {
		k.share(c)
	}
	return reply{body: c.rec.Process, files: spares, then: func() { go watch() }}, nil
}

func (k *Keeper) requestExec(ctx context.Context, from *conn, body json.RawMessage, files map[string]*os.File) (reply, error) {
	var req keeper.ExecRequest
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	c, err := k.container(req.ContainerID)
	if err != nil {
		return reply{}, err
	}
	stdio := [3]*os.File{files[keeper.FileStdin], files[keeper.FileStdout], files[keeper.FileStderr]}
	e, console, watch, err := c.exec(ctx, from, req, stdio, plan{files[keeper.FilePlan], files[keeper.FileCgroup]})
	if err != nil {
		return reply{}, err
	}
	back := k.shareExec(from, e)
	if console != nil {
		back[keeper.FileConsole] = console
	}
	return reply{body: e.process, files: back, then: func() { go watch() }}, nil
}

func (k *Keeper) requestFilter(ctx context.Context, body json.RawMessage) (reply, error) {
	var req keeper.FilterRequest
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	result, err := k.job(ctx, keeper.Job{Kind: keeper.JobFilter, Root: filepath.Join(k.runDir, keeper.LibcontainerDir), Seccomp: req.Seccomp})
	return reply{body: result.Filter}, err
}

func (k *Keeper) requestAttach(body json.RawMessage) (reply, error) {
	var files map[string]*os.File
	r, err := k.requestOf(body, func(c *container) (err error) {
		files, err = c.attach()
		return err
	})
	r.files = files
	return r, err
}

// requestCloseStdin also has the daemon let go of the spare end, or the workload would not see its end.
func (k *Keeper) requestCloseStdin(body json.RawMessage) (reply, error) {
	return k.requestOf(body, func(c *container) error {
		if err := c.closeStdin(); err != nil {
			return err
		}
		k.share(c)
		return nil
	})
}

func (k *Keeper) requestDelete(ctx context.Context, body json.RawMessage) (reply, error) {
	r, err := k.requestOf(body, func(c *container) error { return c.delete(ctx) })
	if errors.Is(err, errdefs.ErrNotFound) {
		return reply{}, nil // it is as the caller wants it
	}
	return r, err
}

// requestAdopt takes over a container of which this keeper has no record: it was damaged, or lost with the run dir.
func (k *Keeper) requestAdopt(ctx context.Context, body json.RawMessage) (reply, error) {
	var req keeper.AdoptRequest
	if err := decode(body, &req); err != nil {
		return reply{}, err
	}
	if err := checkCreate(req.Request); err != nil {
		return reply{}, err
	}
	proc, err := openProcess(req.Process)
	if err != nil {
		return reply{}, fmt.Errorf("container %s: %w: %w", req.Request.ID, err, errdefs.ErrNotFound)
	}
	proc.pidfd.Close() // takeOver opens its own
	c := k.newContainer(req.Request)
	c.rec.Process, c.adopted = req.Process, true
	if err := k.reserve(c); err != nil {
		return reply{}, err
	}
	c.takeOver(context.WithoutCancel(ctx)) // the taking over outlives the request
	c.mu.Lock()
	err = c.saveRecord()
	c.mu.Unlock()
	if err != nil {
		k.log.Error("record a container that was taken over, known to this keeper only", "container", c.id, "error", err)
	}
	k.share(c)
	s, _ := c.state() // it is made
	return reply{body: s}, nil
}

func (k *Keeper) list(ctx context.Context) []keeper.State {
	all := k.all()
	states := make([]keeper.State, 0, len(all))
	for _, c := range all {
		c.awaitStart(ctx)
		if s, ok := c.state(); ok {
			states = append(states, s)
		}
	}
	slices.SortFunc(states, func(a, b keeper.State) int { return strings.Compare(a.ID, b.ID) })
	return states
}
