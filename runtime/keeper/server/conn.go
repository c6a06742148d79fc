package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
)

const (
	// helloGrace is how long a new connection may take to say what it speaks.
	helloGrace = 10 * time.Second
	// writeGrace is how long a daemon may take to read what it is sent. One that stands still longer is dropped; it finds
	// everything again when it comes back.
	writeGrace = 30 * time.Second
	// maxTimeout bounds requests that name no timeout.
	maxTimeout = 10 * time.Minute
)

// conn is the connection of a daemon.
type conn struct {
	k  *Keeper
	uc *net.UnixConn

	writing sync.Mutex // one frame at a time

	mu      sync.Mutex
	running map[uint64]context.CancelFunc // requests, by number

	sharing sync.Mutex // spares are looked up and sent in one step, so that the last that is sent is the newest
	settled bool       // has said restored
}

// serve does what a daemon asks, until the connection ends; what is under way is then cancelled.
func (k *Keeper) serve(ctx context.Context, uc *net.UnixConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { uc.Close() })()
	defer uc.Close()
	c := &conn{k: k, uc: uc, running: make(map[uint64]context.CancelFunc)}
	if err := c.hello(); err != nil {
		k.log.Warn("connection refused", "error", err)
		return
	}
	k.mu.Lock()
	k.conns[c] = struct{}{}
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.conns, c)
		k.mu.Unlock()
	}()
	go c.sendExits(ctx)
	for {
		var msg keeper.Message
		files, err := wire.Read(uc, &msg)
		if err == nil && len(files) != len(msg.Files) {
			wire.CloseAll(files)
			err = fmt.Errorf("%s has %d files for %d names", msg.Kind, len(files), len(msg.Files))
		}
		if err == nil {
			err = c.dispatch(ctx, msg, files)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				k.log.Warn("connection lost", "error", err)
			}
			return
		}
	}
}

// hello settles the version before anything else is read.
func (c *conn) hello() error {
	c.uc.SetReadDeadline(time.Now().Add(helloGrace))
	var msg keeper.Message
	files, err := wire.Read(c.uc, &msg)
	wire.CloseAll(files)
	if err != nil {
		return err
	}
	c.uc.SetReadDeadline(time.Time{})
	var hello keeper.Hello
	if msg.Kind != keeper.KindHello || json.Unmarshal(msg.Body, &hello) != nil {
		return fmt.Errorf("the first message is %q", msg.Kind)
	}
	if hello.Version != keeper.ProtocolVersion {
		err := fmt.Errorf("the keeper speaks protocol version %d, not %d: %w", keeper.ProtocolVersion, hello.Version, errdefs.ErrFailedPrecondition)
		c.answer(msg.Number, reply{}, err)
		return err
	}
	return c.answer(msg.Number, reply{body: keeper.Hello{Version: keeper.ProtocolVersion, Keeper: c.k.self}}, nil)
}

// dispatch begins a request, or does at once what is no request.
func (c *conn) dispatch(ctx context.Context, msg keeper.Message, files []*os.File) error {
	switch msg.Kind {
	case keeper.KindCancel:
		c.mu.Lock()
		if cancel := c.running[msg.Number]; cancel != nil {
			cancel()
		}
		c.mu.Unlock()
	case keeper.KindAck:
		var ack keeper.Ack
		if err := json.Unmarshal(msg.Body, &ack); err != nil {
			return err
		}
		c.k.ack(ack.Seq)
	case keeper.KindRestore:
		var s keeper.Spare
		if err := json.Unmarshal(msg.Body, &s); err != nil {
			wire.CloseAll(files)
			return err
		}
		c.k.restore(s, byName(msg.Files, files))
	case keeper.KindRestored:
		c.k.restoredOnce.Do(func() { close(c.k.restored) })
		go c.settle()
	default:
		c.begin(ctx, msg, files)
	}
	return nil
}

// begin does a request in a goroutine of its own: a stuck one holds up nobody.
func (c *conn) begin(ctx context.Context, msg keeper.Message, files []*os.File) {
	timeout := msg.Timeout
	if timeout <= 0 || timeout > maxTimeout {
		timeout = maxTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	c.mu.Lock()
	c.running[msg.Number] = cancel
	c.mu.Unlock()
	go func() {
		defer cancel()
		r, err := c.k.request(ctx, msg, byName(msg.Files, files))
		wire.CloseAll(files)
		c.mu.Lock()
		delete(c.running, msg.Number)
		c.mu.Unlock()
		if err := c.answer(msg.Number, r, err); err != nil && ctx.Err() == nil {
			c.k.log.Warn("answer not sent", "kind", msg.Kind, "error", err)
			c.uc.Close()
		}
		closeNamed(r.files)
		if r.then != nil {
			r.then()
		}
	}()
}

// reply is the good answer to a request.
type reply struct {
	body any
	// files are sent by name, and closed.
	files map[string]*os.File
	// then is called when the answer is sent, or could not be.
	then func()
}

func (c *conn) answer(number uint64, r reply, err error) error {
	msg := keeper.Message{Kind: keeper.KindAnswer, Number: number, Error: keeper.EncodeError(err)}
	return c.send(msg, r.body, r.files)
}

func (c *conn) send(msg keeper.Message, body any, named map[string]*os.File) error {
	if body != nil {
		var err error
		if msg.Body, err = json.Marshal(body); err != nil {
			return err
		}
	}
	var files []*os.File
	for name, f := range named {
		msg.Files = append(msg.Files, name)
		files = append(files, f)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.uc.SetWriteDeadline(time.Now().Add(writeGrace))
	return wire.Write(c.uc, msg, files...)
}

// sendExits sends every exit that was not acknowledged, then each new one.
func (c *conn) sendExits(ctx context.Context) {
	var sent uint64
	for {
		exits, more := c.k.exits.after(sent)
		for _, e := range exits {
			if err := c.send(keeper.Message{Kind: keeper.KindExit}, e, nil); err != nil {
				c.uc.Close() // half a frame may have gone
				return
			}
			sent = e.Seq
		}
		select {
		case <-more:
		case <-ctx.Done():
			return
		}
	}
}

func byName(names []string, files []*os.File) map[string]*os.File {
	named := make(map[string]*os.File, len(files))
	for i, f := range files {
		named[names[i]] = f
	}
	return named
}
