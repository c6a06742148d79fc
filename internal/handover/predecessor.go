package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
)

// ErrAbandoned says that the daemon that is to be replaced has ended before it had given the node away.
var ErrAbandoned = errors.New("the daemon before this one has ended in the middle of the hand-over")

// A Predecessor is the daemon that has started this process to take its place.
//
//	Inherit → Able → Take → Serving    or Unable or Failed, after which this process ends
type Predecessor struct {
	// Version is that of its program, Folders are the node's.
	Version string
	Folders Folders

	conn *net.UnixConn
	last chan error // its last word

	mu      sync.Mutex // guards what is written to conn, and these
	patient bool       // it does not listen for "working"
	worked  time.Time  // when that was said last
}

// Inherit returns the daemon that has started this process to take its place, nil if none has. Programs that this process
// starts do not see it.
func Inherit() (*Predecessor, error) {
	value, ok := os.LookupEnv(variable)
	if !ok {
		return nil, nil
	}
	if err := os.Unsetenv(variable); err != nil {
		return nil, err
	}
	fd, err := strconv.Atoi(value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	unix.CloseOnExec(fd)
	conn, err := connOf(os.NewFile(uintptr(fd), "predecessor"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	m, _, err := receive(conn, wordLimit, offer)
	if err == nil && m.Folders == nil {
		err = errors.New("no folders are offered")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hand-over: %w", err), conn.Close())
	}
	p := &Predecessor{Version: m.Version, Folders: *m.Folders, conn: conn, last: make(chan error, 1), patient: !m.Working}
	if m.Protocol > protocol {
		err := fmt.Errorf("it hands over by protocol version %d, and this program knows %d at the most: %w", m.Protocol, protocol, errdefs.ErrFailedPrecondition)
		p.Unable(err)
		return nil, err
	}
	return p, nil
}

// Able says that this program, of that version, can serve the node.
func (p *Predecessor) Able(version string) error {
	return p.say(message{Kind: able, Version: version, Working: !p.patient})
}

// Unable says why it cannot.
func (p *Predecessor) Unable(why error) {
	_ = p.say(message{Kind: unable, Why: why.Error()}) // or it hears of this process's end
}

// Failed says why it could not in the end.
func (p *Predecessor) Failed(why error) {
	_ = p.say(message{Kind: failed, Why: why.Error()})
}

// Working says that the work between Take and Serving gets on. It is to be called at each step: a predecessor that hears nothing for a
// while takes this process for one that hangs. Calls may be concurrent.
func (p *Predecessor) Working() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.patient || time.Since(p.worked) < workingPeriod {
		return
	}
	p.worked = time.Now()
	_ = send(p.conn, message{Kind: working}) // that it has ended Take's context says
}

func (p *Predecessor) say(m message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return send(p.conn, m)
}

// Take waits for the estate. The context that it returns ends, with the cause ErrAbandoned, if the predecessor ends before
// Serving has returned.
func (p *Predecessor) Take(ctx context.Context) (context.Context, Estate, error) {
	stop := context.AfterFunc(ctx, func() { p.conn.Close() })
	defer stop()
	m, files, err := receive(p.conn, 0, take)
	if err != nil {
		if ctx.Err() != nil {
			return nil, Estate{}, context.Cause(ctx)
		}
		return nil, Estate{}, fmt.Errorf("%w: %w", ErrAbandoned, err)
	}
	if m.Estate == nil {
		m.Estate = &Estate{}
	}
	m.Estate.Files = map[string]*os.File{}
	for i, f := range files {
		m.Estate.Files[m.Files[i]] = f
	}
	failpoint.Here(failpoint.HandoverTaken)
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		_, _, err := receive(p.conn, 0, yours)
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrAbandoned, err)
			cancel(err)
		}
		p.last <- err
	}()
	return ctx, *m.Estate, nil
}

// Serving says that everything is ready, and returns when the node is this process's own.
func (p *Predecessor) Serving(ctx context.Context) error {
	failpoint.Here(failpoint.HandoverRecovered)
	if err := p.say(message{Kind: serving}); err != nil {
		return fmt.Errorf("%w: %w", ErrAbandoned, err)
	}
	select {
	case err := <-p.last:
		failpoint.Here(failpoint.HandoverOwn)
		return errors.Join(err, p.conn.Close())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
