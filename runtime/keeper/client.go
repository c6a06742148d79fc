package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/wire"
)

const (
	// defaultTimeout bounds a request whose context has no deadline.
	defaultTimeout = 2 * time.Minute
	// answerGrace is how long a client waits for the keeper's word on a request that it has cancelled: whether it was
	// undone or had succeeded already. The keeper needs it to kill a launcher.
	answerGrace = 5 * time.Second
	// sendGrace is how long the keeper may take to read a request. It reads all the time, unless it was stopped.
	sendGrace = 30 * time.Second
)

// A Client is one connection to the keeper. All methods may be called at the same time.
//
// When the connection is lost every call returns an error of class ErrUnavailable, Done and Exits are closed, and
// Redial makes a new client. Close must be called all the same.
type Client struct {
	socket string
	hello  Hello // the keeper's
	conn   *net.UnixConn
	spares *spares
	exits  *exitQueue
	done   chan struct{}

	writing sync.Mutex // one frame at a time

	mu    sync.Mutex
	last  uint64
	calls map[uint64]pending
	err   error // why the connection ended
	// relieved is closed when another daemon has taken charge.
	relieved chan struct{}
}

// pending is a request that waits for its answer.
type pending struct {
	back chan answer // capacity 1
	// spare names the process that a good answer makes; nil for other requests.
	spare *Ref
}

// answer is what came back for a request.
type answer struct {
	msg   Message
	files []*os.File
}

// Dial connects to the keeper at socket and takes charge. A keeper without a common protocol version is an error of class
// ErrFailedPrecondition, and nothing was touched; no keeper is one of class ErrUnavailable.
func Dial(ctx context.Context, socket string) (*Client, error) {
	return dialSettled(ctx, socket, newSpares(), Process{})
}

// Probe says whether this program and the keeper at socket speak with each other; the errors are those of Dial. Nothing
// changes for the keeper, nor for the daemon in charge.
func Probe(ctx context.Context, socket string) error {
	c, err := dial(ctx, socket, newSpares())
	if err != nil {
		return err
	}
	return c.Close()
}

// Redial connects again after the connection was lost. If another keeper runs by now, it gets the spare descriptors
// that c has held, so that terminals and exit codes outlive the first one. c is of no use any more, whatever comes back,
// except for calling Redial again after an error.
func (c *Client) Redial(ctx context.Context) (*Client, error) {
	c.end(errors.New("replaced by Redial"))
	<-c.done
	next, err := dialSettled(ctx, c.socket, c.held(), c.hello.Keeper)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.spares = newSpares() // what was held is next's now, whatever becomes of c
	}
	return next, err
}

func dialSettled(ctx context.Context, socket string, spares *spares, before Process) (*Client, error) {
	c, err := dial(ctx, socket, spares)
	if err != nil {
		return nil, err
	}
	if err := c.restore(before); err != nil {
		c.end(err)
		<-c.done
		return nil, err
	}
	return c, nil
}

// dial connects and says hello. The keeper does not take it for a daemon until restore.
func dial(ctx context.Context, socket string, spares *spares) (*Client, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w: %w", err, errdefs.ErrUnavailable)
	}
	c := &Client{
		socket:   socket,
		conn:     nc.(*net.UnixConn),
		spares:   spares,
		exits:    newExitQueue(),
		done:     make(chan struct{}),
		relieved: make(chan struct{}),
		calls:    make(map[uint64]pending),
	}
	go c.receive()
	if err := c.greet(ctx); err != nil {
		c.end(err)
		<-c.done
		return nil, fmt.Errorf("keeper %s: %w", socket, err)
	}
	return c, nil
}

// greet settles the version.
func (c *Client) greet(ctx context.Context) error {
	ours := Protocols()
	_, err := c.call(ctx, KindHello, Hello{Version: ours.Oldest, Speaks: &ours}, nil, &c.hello)
	if err == nil && !ours.Has(c.hello.Version) {
		err = fmt.Errorf("it speaks protocol %s and this program %s: %w", c.hello.Range(), ours, errdefs.ErrFailedPrecondition)
	}
	if errors.Is(err, errdefs.ErrFailedPrecondition) {
		err = fmt.Errorf("%w; use a berth that speaks with this keeper, or drain the node with one and start this one then", err)
	}
	return err
}

// restore hands the spares to a keeper that took the place of the one before, and says that this is all. The keeper then
// sends a full set of its own, and at its end says so too.
func (c *Client) restore(before Process) error {
	c.spares.age()
	if before != (Process{}) && before != c.hello.Keeper {
		if err := c.spares.each(func(s Spare, names []string, files []*os.File) error {
			body, err := json.Marshal(s)
			if err != nil {
				return err
			}
			return c.send(Message{Kind: KindRestore, Body: body, Files: names}, files)
		}); err != nil {
			return err
		}
	}
	return c.send(Message{Kind: KindRestored}, nil)
}

// TakeCharge makes this connection the one in charge again, after another was; it is for a daemon that has to go on since
// its successor failed. It is called when Relieved is closed.
func (c *Client) TakeCharge() error {
	c.held().reopen()
	c.mu.Lock()
	c.relieved = make(chan struct{})
	c.mu.Unlock()
	return c.restore(c.hello.Keeper)
}

// Relieved is closed when another daemon takes charge. From then on this connection is good for the calls that end what
// was begun, and Exits gives the exits of execs that it asked for; those of containers are the other's to record. When the
// connection is lost then, it is not this daemon's to call Redial. A keeper of protocol version 1 relieves nobody.
func (c *Client) Relieved() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relieved
}

// Keeper returns the keeper's own process. It stays the same when the keeper is replaced in place.
func (c *Client) Keeper() Process { return c.hello.Keeper }

// Protocol returns the version of the protocol that is used.
func (c *Client) Protocol() int { return c.hello.Version }

// Build returns the program version of the keeper that answered Dial; empty for one of protocol version 1.
func (c *Client) Build() string { return c.hello.Build }

// Done is closed when the connection is lost or closed.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why Done is closed; nil before.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and closes the spare descriptors. Containers are not touched.
func (c *Client) Close() error {
	c.end(errors.New("closed"))
	<-c.done
	c.held().close()
	return nil
}

func (c *Client) held() *spares {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spares
}

// Create makes a container and leaves its init waiting for Start. The error is a *LaunchError for what a launcher
// reports, and of class ErrAlreadyExists for an ID that is taken; nothing is left then. At the end of ctx the launcher
// is killed and the half-made container undone.
func (c *Client) Create(ctx context.Context, req CreateRequest) (Process, error) {
	var p Process
	_, err := c.callMaking(ctx, KindCreate, req, nil, &p, &Ref{ID: req.ID})
	return p, err
}

// Start lets a created container's workload go. A container that was started or has exited is of class
// ErrFailedPrecondition.
func (c *Client) Start(ctx context.Context, id string) error {
	_, err := c.call(ctx, KindStart, Ref{ID: id}, nil, nil)
	return err
}

// Exec starts a further process in a running container; its exit comes on Exits. With Terminal, the caller gets the
// master end of the terminal and closes it; otherwise console is nil.
func (c *Client) Exec(ctx context.Context, req ExecRequest) (p Process, console *os.File, err error) {
	in := namedFiles{}
	if !req.Terminal {
		in.add(FileStdin, req.Stdin)
		in.add(FileStdout, req.Stdout)
		in.add(FileStderr, req.Stderr)
	}
	if c.Protocol() >= 2 { // an older keeper does with Process what Plan says
		in.add(FilePlan, req.Plan)
		in.add(FileCgroup, req.Cgroup)
	}
	out, err := c.callMaking(ctx, KindExec, req, &in, &p, &Ref{req.ContainerID, req.ExecID})
	if err != nil {
		return Process{}, nil, err
	}
	console = out.take(FileConsole)
	out.close()
	return p, console, nil
}

// CompileFilter compiles linux.seccomp of a runtime spec into what libcontainer would load. It takes as long as a start
// and some memory: the caller keeps the result. A keeper of protocol version 1 answers ErrUnimplemented.
func (c *Client) CompileFilter(ctx context.Context, seccomp json.RawMessage) (Filter, error) {
	var f Filter
	_, err := c.call(ctx, KindFilter, FilterRequest{Seccomp: seccomp}, nil, &f)
	return f, err
}

// Signal sends a signal to a container's init, or to the process of an exec. It is of class ErrNotFound if there is no
// such process or it is gone.
func (c *Client) Signal(ctx context.Context, id, execID string, sig int) error {
	_, err := c.call(ctx, KindSignal, SignalRequest{Ref: Ref{id, execID}, Signal: sig}, nil, nil)
	return err
}

// CloseStdin closes the keeper's end of a container's input. The workload sees the end as soon as the attached clients
// have closed theirs. That needs StdinOnce: without it the workload has an end of its own. It does nothing for a terminal,
// which has no half close, and when it was called before.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	_, err := c.call(ctx, KindCloseStdin, Ref{ID: id}, nil, nil)
	return err
}

// Resize sets the size of a container's terminal, in characters. A container without one is of class
// ErrFailedPrecondition.
func (c *Client) Resize(ctx context.Context, id string, width, height uint16) error {
	_, err := c.call(ctx, KindResize, ResizeRequest{Ref: Ref{ID: id}, Width: width, Height: height}, nil, nil)
	return err
}

// ReopenLog goes on with a new file at the container's LogPath, after the old one was renamed. On an error nothing new
// exists and the old file is still written. An exited container is of class ErrFailedPrecondition.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := c.call(ctx, KindReopenLog, Ref{ID: id}, nil, nil)
	return err
}

// Delete forgets an exited container: FIFOs, record, libcontainer's state folder; with Hooks through a launcher. The
// cgroups are not touched. It is no error if there is none; a living container is of class ErrFailedPrecondition.
func (c *Client) Delete(ctx context.Context, id string) error {
	_, err := c.call(ctx, KindDelete, Ref{ID: id}, nil, nil)
	return err
}

// Checkpoint dumps a running container with criu.
func (c *Client) Checkpoint(ctx context.Context, id string, opts CheckpointOptions) error {
	_, err := c.call(ctx, KindCheckpoint, CheckpointRequest{Ref: Ref{ID: id}, Options: opts}, nil, nil)
	return err
}

// Adopt has the keeper take over a living container whose record it has lost, as it takes over those of a keeper before.
// It is of class ErrNotFound if the process has ended, and ErrAlreadyExists if the keeper knows the container.
func (c *Client) Adopt(ctx context.Context, req AdoptRequest) (State, error) {
	var s State
	_, err := c.call(ctx, KindAdopt, req, nil, &s)
	return s, err
}

// List returns what the keeper knows, by ID. Containers that are just being made are not among them.
func (c *Client) List(ctx context.Context) ([]State, error) {
	var states []State
	_, err := c.call(ctx, KindList, nil, nil, &states)
	return states, err
}

// Replace has the keeper become the berth-keeper at binary: by execve, under the same pid, with all containers, connections
// and sessions. launch is the berth-launch of the new one. It returns the new one's program version. What is asked and
// written meanwhile waits. An error says that the keeper goes on as it was: of class ErrFailedPrecondition if binary is no
// keeper that can take over from this one or speak with all who are connected, ErrUnavailable if the keeper does not come to
// rest and may be asked again, ErrUnimplemented from a keeper of protocol version 1, which cannot be replaced in place.
func (c *Client) Replace(ctx context.Context, binary, launch string) (build string, err error) {
	var hello Hello
	_, err = c.call(ctx, KindReplace, ReplaceRequest{Binary: binary, Launch: launch}, nil, &hello)
	return hello.Build, err
}

// Shutdown ends the keeper. It refuses with class ErrFailedPrecondition while a container lives or is being made.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := c.call(ctx, KindShutdown, nil, nil, nil)
	return err
}

// Exits gives every exit in order. What was not acknowledged comes again after a reconnect. The channel is closed when
// the connection is lost; a reader that is late delays nobody.
func (c *Client) Exits() <-chan Exit { return c.exits.out }

// Ack says that the exit with this number is on record and needs not be sent again. An exec is then forgotten.
func (c *Client) Ack(seq uint64) {
	body, err := json.Marshal(Ack{Seq: seq})
	if err != nil {
		return // a number always encodes
	}
	// If the connection is lost the exit comes again, and with it the chance to acknowledge it.
	_ = c.send(Message{Kind: KindAck, Body: body}, nil)
}

// call sends a request and waits for its answer, whose body goes into result and whose files are the caller's.
func (c *Client) call(ctx context.Context, kind Kind, body any, in *namedFiles, result any) (*namedFiles, error) {
	return c.callMaking(ctx, kind, body, in, result, nil)
}

// callMaking is call for a request that makes a process, named made.
func (c *Client) callMaking(ctx context.Context, kind Kind, body any, in *namedFiles, result any, made *Ref) (*namedFiles, error) {
	msg := Message{Kind: kind, Timeout: defaultTimeout}
	if deadline, ok := ctx.Deadline(); ok {
		msg.Timeout = max(time.Until(deadline), 1) // 0 would be none
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var files []*os.File
	if in != nil {
		msg.Files, files = in.names, in.files
	}
	var err error
	if msg.Body, err = json.Marshal(body); err != nil {
		return nil, fmt.Errorf("keeper: encode %s: %w", kind, err)
	}

	back := make(chan answer, 1)
	if msg.Number, err = c.begin(pending{back, made}); err != nil {
		return nil, err
	}
	defer c.forget(msg.Number, back)
	if err := c.send(msg, files); err != nil {
		return nil, err
	}
	a, err := c.await(ctx, msg.Number, back)
	if err != nil {
		return nil, err
	}
	out := &namedFiles{names: a.msg.Files, files: a.files}
	err = a.msg.Error.Decode()
	if err == nil && result != nil {
		err = json.Unmarshal(a.msg.Body, result)
	}
	if err == nil && len(out.names) != len(out.files) {
		err = fmt.Errorf("keeper: answer to %s has %d files for %d names", kind, len(out.files), len(out.names))
	}
	if err != nil {
		out.close()
		return nil, err
	}
	return out, nil
}

// await waits for the answer. When ctx ends first, the request is cancelled and the keeper given a moment to say what
// became of it, so that the caller does not have to guess.
func (c *Client) await(ctx context.Context, number uint64, back chan answer) (answer, error) {
	select {
	case a := <-back:
		return a, nil
	case <-c.done:
		return c.lastAnswer(back)
	case <-ctx.Done():
	}
	if err := c.send(Message{Kind: KindCancel, Number: number}, nil); err != nil {
		return answer{}, err
	}
	grace := time.NewTimer(answerGrace)
	defer grace.Stop()
	select {
	case a := <-back:
		if a.msg.Error != nil {
			wire.CloseAll(a.files)
			return answer{}, fmt.Errorf("keeper: %w: %w", ctx.Err(), a.msg.Error.Decode())
		}
		return a, nil
	case <-c.done:
		return c.lastAnswer(back)
	case <-grace.C:
		return answer{}, fmt.Errorf("keeper: no answer, outcome unknown: %w", ctx.Err())
	}
}

// lastAnswer is for the end of the connection: the answer may have come just before.
func (c *Client) lastAnswer(back chan answer) (answer, error) {
	select {
	case a := <-back:
		return a, nil
	default:
		return answer{}, fmt.Errorf("keeper: connection lost: %w: %w", c.Err(), errdefs.ErrUnavailable)
	}
}

func (c *Client) begin(p pending) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, fmt.Errorf("keeper: %w: %w", c.err, errdefs.ErrUnavailable)
	}
	c.last++
	c.calls[c.last] = p
	return c.last, nil
}

// forget ends a call. An answer that came after its caller had left is thrown away with its files.
func (c *Client) forget(number uint64, back chan answer) {
	c.mu.Lock()
	delete(c.calls, number)
	c.mu.Unlock()
	select {
	case a := <-back:
		wire.CloseAll(a.files)
	default:
	}
}

func (c *Client) send(msg Message, files []*os.File) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(sendGrace))
	if err := wire.Write(c.conn, msg, files...); err != nil {
		c.end(err) // half a frame may have gone
		return fmt.Errorf("keeper: %w: %w", err, errdefs.ErrUnavailable)
	}
	return nil
}

// end closes the connection for the reason err; receive then does the rest.
func (c *Client) end(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.conn.Close()
}

// receive hands out what the keeper sends until the connection ends.
func (c *Client) receive() {
	for {
		var msg Message
		files, err := wire.Read(c.conn, &msg)
		if err == nil {
			err = c.dispatch(msg, files)
		}
		if err != nil {
			c.end(err)
			c.exits.close()
			close(c.done)
			return
		}
	}
}

func (c *Client) dispatch(msg Message, files []*os.File) error {
	switch msg.Kind {
	case KindAnswer:
		c.answered(msg, files)
	case KindExit:
		var e Exit
		if err := json.Unmarshal(msg.Body, &e); err != nil {
			return fmt.Errorf("decode exit: %w", err)
		}
		c.spares.put(Spare{Ref: Ref{e.ID, e.ExecID}}, nil, nil)
		c.exits.put(e)
	case KindSpare:
		var s Spare
		if err := json.Unmarshal(msg.Body, &s); err != nil {
			wire.CloseAll(files)
			return fmt.Errorf("decode spare: %w", err)
		}
		c.spares.put(s, msg.Files, files)
	case KindRestored:
		c.spares.dropAged()
	case KindRelieved:
		c.spares.close() // they are the other daemon's to hold; an input that two hold open would not end
		c.mu.Lock()
		defer c.mu.Unlock()
		select {
		case <-c.relieved:
		default:
			close(c.relieved)
		}
	default:
		wire.CloseAll(files) // of a newer keeper; an event that is not known is not needed
	}
	return nil
}

// answered hands an answer to its caller. Spares are kept here and not by the caller, so that the exit of the process,
// which comes behind, finds them.
func (c *Client) answered(msg Message, files []*os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, waits := c.calls[msg.Number]
	delete(c.calls, msg.Number)
	if len(msg.Files) != len(files) || (!waits && len(files) > 0) {
		wire.CloseAll(files)
		files, msg.Files = nil, nil
	}
	if p.spare != nil && msg.Error == nil {
		msg.Files, files = c.hold(*p.spare, msg, files)
	}
	if waits {
		p.back <- answer{msg, files}
	}
}

// hold keeps the spares among the files of an answer and returns the rest. All of a container's are spares; the console
// of an exec is the caller's.
func (c *Client) hold(ref Ref, msg Message, files []*os.File) (names []string, rest []*os.File) {
	about := Spare{Ref: ref}
	if json.Unmarshal(msg.Body, &about.Process) != nil {
		return msg.Files, files // the caller sees the same error
	}
	var kept namedFiles
	for i, name := range msg.Files {
		if ref.ExecID == "" || name == FilePidfd {
			kept.add(name, files[i])
		} else {
			names, rest = append(names, name), append(rest, files[i])
		}
	}
	c.spares.put(about, kept.names, kept.files)
	return names, rest
}
