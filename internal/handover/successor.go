package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/wire"
)

// A Successor is a daemon that this process has started to take its place.
//
//	Start → Take → Commit    each may fail; then Kill, and this process goes on
type Successor struct {
	// Version is that of its program.
	Version string

	process *os.Process
	pid     int // process forgets it
	conn    *net.UnixConn
	ended   chan struct{} // closed when it was reaped; nil if that is not ours to do

	ableLimit, servingLimit, stallLimit time.Duration
	works                               bool // it says when it gets on
}

// Start starts program with args, in this process's environment, and waits until it says that it can serve the node in
// these folders. Nothing has changed then. sibling makes it a child of this process's parent, which has to be one that reaps
// any child, as pid 1 does.
func Start(ctx context.Context, program string, args []string, version string, folders Folders, sibling bool) (*Successor, error) {
	s, err := start(program, args, sibling)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	if err := s.offer(ctx, program, version, folders); err != nil {
		return nil, err
	}
	return s, nil
}

// offer asks it whether it can serve the node. After an error it is dead.
func (s *Successor) offer(ctx context.Context, program, version string, folders Folders) error {
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	m, err := s.ask(message{Kind: offer, Protocol: protocol, Version: version, Folders: &folders, Working: true}, nil, s.ableLimit, able, unable)
	switch {
	case err != nil:
		err = fmt.Errorf("%s %s", program, s.silence(err))
	case m.Kind == unable:
		err = fmt.Errorf("%s cannot take over: %s: %w", program, m.Why, errdefs.ErrFailedPrecondition)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	default:
		s.Version, s.works = m.Version, m.Working
		failpoint.Here(failpoint.HandoverAble)
		return nil
	}
	s.Kill()
	return err
}

func start(program string, args []string, sibling bool) (*Successor, error) {
	ours, theirs, err := wire.Pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(program, args...) // not bound to a context: it outlives every one of this process
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	const inherited = 3 // the first of ExtraFiles
	cmd.Env = append(os.Environ(), variable+"="+strconv.Itoa(inherited))
	if sibling {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT}
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	s := &Successor{process: cmd.Process, pid: cmd.Process.Pid, conn: ours, ableLimit: ableLimit, servingLimit: servingLimit, stallLimit: stallLimit}
	if !sibling {
		s.ended = make(chan struct{})
		go func() {
			_ = cmd.Wait() // how it ended is no matter: it must not stay a zombie
			close(s.ended)
		}()
	}
	return s, nil
}

// connOf makes a connection of f, which it closes.
func connOf(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("it is no unix socket"), c.Close())
	}
	return uc, nil
}

// Pid of the successor.
func (s *Successor) Pid() int { return s.pid }

// Take gives it the estate and returns when it could serve. From its begin on, this process must leave the node alone. An
// error says that the successor is of no use.
func (s *Successor) Take(ctx context.Context, e Estate) error {
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	m := message{Kind: take, Estate: &e}
	var files []*os.File
	for name, f := range e.Files {
		m.Files = append(m.Files, name)
		files = append(files, f)
	}
	failpoint.Here(failpoint.HandoverParted)
	answer, err := s.askPatiently(m, files, serving, failed)
	switch {
	case err != nil:
		return errors.New("the new daemon " + s.silence(err))
	case answer.Kind == failed:
		return fmt.Errorf("the new daemon failed: %s", answer.Why)
	}
	return nil
}

// Commit leaves the node to the successor for good.
func (s *Successor) Commit() error {
	failpoint.Here(failpoint.HandoverServing)
	if err := send(s.conn, message{Kind: yours}); err != nil {
		return errors.New("the new daemon " + s.silence(err))
	}
	failpoint.Here(failpoint.HandoverGiven)
	if s.ended == nil {
		_ = s.process.Release() // nobody waits for it here
	}
	return s.conn.Close()
}

// Kill ends it and waits for that, but not for ever. Its death must be certain before this process goes on with the node.
func (s *Successor) Kill() {
	_ = s.process.Kill() // it may have ended
	if s.ended != nil {
		<-s.ended
	} else {
		_ = s.conn.SetReadDeadline(time.Now().Add(wordLimit))
		_, _ = io.Copy(io.Discard, s.conn) // ends with the process, which alone has the other end
	}
	_ = s.conn.Close()
}

func (s *Successor) ask(m message, files []*os.File, limit time.Duration, want ...kind) (message, error) {
	if err := send(s.conn, m, files...); err != nil {
		return message{}, err
	}
	answer, more, err := receive(s.conn, limit, want...)
	for _, f := range more {
		f.Close()
	}
	return answer, err
}

// askPatiently is ask for what takes long: as long as the successor gets on, if it says so.
func (s *Successor) askPatiently(m message, files []*os.File, want ...kind) (message, error) {
	if !s.works {
		return s.ask(m, files, s.servingLimit, want...)
	}
	deadline := time.Now().Add(s.servingLimit)
	answer, err := s.ask(m, files, s.stallLimit, append(want, working)...)
	for err == nil && answer.Kind == working {
		var none []*os.File
		answer, none, err = receive(s.conn, min(s.stallLimit, max(time.Until(deadline), 1)), append(want, working)...)
		wire.CloseAll(none)
	}
	return answer, err
}

// silence says why there is no answer.
func (s *Successor) silence(err error) string {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return "has ended without a word (the log may say why)"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "does not answer"
	default:
		return "cannot be spoken with: " + err.Error()
	}
}
