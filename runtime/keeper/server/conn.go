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
	"syscall"
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
	// version of the protocol; 0 before the hello. The goroutine that reads sets it.
	version int

	writing sync.Mutex // one frame at a time

	mu      sync.Mutex
	running map[uint64]context.CancelFunc // requests, by number

	sharing sync.Mutex // spares are looked up and sent in one step, so that the last that is sent is the newest
	settled bool       // has said restored

	left bool // exitLog.mu guards it
}

// connect makes uc a connection that the keeper knows. The caller calls serve.
func (k *Keeper) connect(uc *net.UnixConn) *conn {
	c := &conn{k: k, uc: uc, running: make(map[uint64]context.CancelFunc)}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns[c] = struct{}{}
	return c
}

// serve does what a daemon asks, until the connection ends; what is under way is then cancelled.
func (c *conn) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.uc.Close() })()
	defer c.uc.Close()
	defer func() {
		c.k.mu.Lock()
		delete(c.k.conns, c)
		c.k.mu.Unlock()
		c.k.exits.leave(c)
	}()
	if c.version == 0 {
		c.uc.SetReadDeadline(time.Now().Add(helloGrace))
	} else {
		go c.sendExits(ctx)
	}
	for {
		if err := c.receive(ctx); err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				c.k.log.Warn("connection lost", "error", err)
			}
			return
		}
	}
}

// receive waits for one message and begins what it asks. From its first byte on it is work: a replacement leaves it in
// the socket or waits for its answer.
func (c *conn) receive(ctx context.Context) error {
	if err := awaitReadable(c.uc); err != nil {
		return err
	}
	c.k.work.enter()
	defer c.k.work.leave()
	var msg keeper.Message
	files, err := wire.Read(c.uc, &msg)
	if err != nil {
		return err
	}
	if len(files) != len(msg.Files) {
		wire.CloseAll(files)
		return fmt.Errorf("%s has %d files for %d names", msg.Kind, len(files), len(msg.Files))
	}
	if c.version == 0 {
		wire.CloseAll(files)
		return c.hello(ctx, msg)
	}
	return c.dispatch(ctx, msg, files)
}

// awaitReadable waits until there is something to read, or the deadline or the end of the connection.
func awaitReadable(from syscall.Conn) error {
	raw, err := from.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
}

// hello settles the version before anything else is read.
func (c *conn) hello(ctx context.Context, msg keeper.Message) error {
	c.uc.SetReadDeadline(time.Time{})
	var hello keeper.Hello
	if msg.Kind != keeper.KindHello || json.Unmarshal(msg.Body, &hello) != nil {
		return fmt.Errorf("the first message is %q", msg.Kind)
	}
	ours, theirs := keeper.Protocols(), hello.Range()
	version := min(ours.Newest, theirs.Newest)
	if !ours.Has(version) || !theirs.Has(version) {
		err := fmt.Errorf("the keeper speaks protocol %s, the daemon %s: %w", ours, theirs, errdefs.ErrFailedPrecondition)
		c.answer(msg.Number, reply{}, err)
		return err
	}
	c.version = version
	if err := c.answer(msg.Number, reply{body: c.k.hello(version)}, nil); err != nil {
		return err
	}
	go c.sendExits(ctx)
	return nil
}

// hello is what the keeper says of itself to a daemon that it speaks this version with.
func (k *Keeper) hello(version int) keeper.Hello {
	if version == 1 {
		return keeper.Hello{Version: version, Keeper: k.self}
	}
	ours := keeper.Protocols()
	return keeper.Hello{Version: version, Speaks: &ours, Keeper: k.self, Build: k.build}
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
		c.k.ack(ack.Seq, c)
	case keeper.KindRestore:
		var s keeper.Spare
		if err := json.Unmarshal(msg.Body, &s); err != nil {
			wire.CloseAll(files)
			return err
		}
		c.k.restore(s, byName(msg.Files, files))
	case keeper.KindRestored:
		c.k.restoredOnce.Do(func() { close(c.k.restored) })
		if before := c.k.exits.takeCharge(c); before != nil {
			c.k.doWork(before.relieve)
		}
		c.k.doWork(c.settle)
	case keeper.KindReplace:
		wire.CloseAll(files)
		return c.beginReplace(ctx, msg)
	default:
		c.begin(ctx, msg, files)
	}
	return nil
}

// doWork does f in a goroutine of its own, for a caller who is inside the gate.
func (k *Keeper) doWork(f func()) {
	k.work.admit()
	go func() {
		defer k.work.leave()
		f()
	}()
}

// begin does a request in a goroutine of its own: a stuck one holds up nobody.
func (c *conn) begin(ctx context.Context, msg keeper.Message, files []*os.File) {
	ctx, done := c.bound(ctx, msg)
	c.k.doWork(func() {
		defer done()
		r, err := c.k.request(ctx, c, msg, byName(msg.Files, files))
		wire.CloseAll(files)
		if err := c.answer(msg.Number, r, err); err != nil && ctx.Err() == nil {
			c.k.log.Warn("answer not sent", "kind", msg.Kind, "error", err)
			c.uc.Close()
		}
		closeNamed(r.files)
		if r.then != nil {
			r.then()
		}
	})
}

// bound returns a context that ends with the request's timeout, or when it is cancelled, until done is called.
func (c *conn) bound(ctx context.Context, msg keeper.Message) (_ context.Context, done func()) {
	timeout := msg.Timeout
	if timeout <= 0 || timeout > maxTimeout {
		timeout = maxTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[msg.Number] = cancel
	return ctx, func() {
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.running, msg.Number)
	}
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

// sendExits sends every exit that is for this daemon and was not acknowledged, then each new one.
func (c *conn) sendExits(ctx context.Context) {
	for {
		more, err := c.sendExit()
		if err != nil {
			c.uc.Close() // half a frame may have gone
			return
		}
		if more == nil {
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return
		}
	}
}

// sendExit sends one exit, or returns the channel to wait for.
func (c *conn) sendExit() (<-chan struct{}, error) {
	c.k.flow.enter()
	defer c.k.flow.leave()
	e, ok, more := c.k.exits.next(c)
	if !ok {
		return more, nil
	}
	if err := c.send(keeper.Message{Kind: keeper.KindExit}, e, nil); err != nil {
		return nil, err
	}
	c.k.exits.sent(e.Seq, c)
	return nil, nil
}

func byName(names []string, files []*os.File) map[string]*os.File {
	named := make(map[string]*os.File, len(files))
	for i, f := range files {
		named[names[i]] = f
	}
	return named
}
