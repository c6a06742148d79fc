package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/filelock"
	"github.com/berth-node/berth/internal/handover"
	"github.com/berth-node/berth/internal/stream"
	"github.com/berth-node/berth/runtime"
)

// A berth is the process of "berth serve": it has the node's folders, and serves it until it is told to end, the node is
// drained, or another daemon has taken over.
type berth struct {
	cfg config.Config
	log *slog.Logger
	// exe is this program's path.
	exe string
	// program is what an upgrade that names none starts: the one of the service, which another may stand in for.
	program string
	// before is the daemon that this one is to replace, nil after that.
	before *handover.Predecessor
	// watched says that the process which somebody watches is another one. See guard.
	watched bool

	locks   map[string]*filelock.Lock // by the name that they have in an estate
	sockets *handover.Sockets
	pending json.RawMessage // see handover.Estate

	// exclusive is held by an upgrade and by a drain.
	exclusive sync.Mutex
	requests  chan *request
	ended     chan struct{} // closed when run takes no more requests
	gone      atomic.Bool   // another daemon has the node

	// lingering are nodes of this very process whose hand-over failed.
	lingering sync.WaitGroup
}

// A request is an upgrade to a successor that has said that it is able.
type request struct {
	successor *handover.Successor
	lingering *handover.Lingering
	done      chan error // capacity 1
}

// newDaemon finds out whether this program can serve the node, and touches nothing yet.
func newDaemon(ctx context.Context, set *pflag.FlagSet, exe string, before *handover.Predecessor) (*berth, error) {
	c, err := configure(set, exe)
	if err != nil {
		return nil, err
	}
	log, err := logger(c.Log, os.Stderr)
	if err != nil {
		return nil, err
	}
	if before != nil {
		if err := ableToTakeOver(ctx, c, before.Folders); err != nil {
			return nil, err
		}
	}
	stream.RouteKlog(log)
	return &berth{
		cfg: c, log: log, exe: exe, program: exe, before: before, locks: map[string]*filelock.Lock{},
		requests: make(chan *request), ended: make(chan struct{}),
	}, nil
}

func ableToTakeOver(ctx context.Context, c config.Config, node handover.Folders) error {
	if mine := (handover.Folders{Root: c.RootDir, Run: c.RunDir}); mine != node {
		return fmt.Errorf("the folders are %s and %s by now, which is another node than that in %s and %s: stop the daemon and start it again: %w",
			mine.Root, mine.Run, node.Root, node.Run, errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return errors.Join(runtime.CheckRecords(c.RootDir), runtime.CheckKeeper(ctx, c.RunDir))
}

// run returns when this process has no more to do.
func (b *berth) run(ctx context.Context) error {
	stay := ctx
	if b.before != nil {
		if err := b.before.Able(version); err != nil {
			return err
		}
		within, estate, err := b.before.Take(ctx)
		if err != nil {
			return err
		}
		ctx = within // until the node is our own
		b.inherit(estate)
	}
	if err := b.lock(); err != nil {
		return b.failed(err)
	}
	if b.sockets == nil {
		b.sockets = handover.NewSockets(handover.Estate{})
	}
	for ctx.Err() == nil {
		n := &node{cfg: b.cfg, log: b.log, sockets: b.sockets}
		if b.before != nil {
			n.working = b.before.Working
		}
		if err := b.start(ctx, n); err != nil {
			return b.failed(errors.Join(err, n.end()))
		}
		ctx = stay
		unguard := b.guardFolders(n)
		r, err := b.await(ctx, n)
		unguard()
		if r == nil {
			return b.stop(ctx, n, err)
		}
		if err = b.handOver(ctx, n, r); err == nil {
			b.gone.Store(true)
			close(b.ended)
			r.done <- nil
			return b.linger(ctx, n, r.lingering)
		}
		b.log.Error("the hand-over failed, this daemon goes on", "err", err)
		r.done <- err
		b.lingerHere(ctx, n, r.lingering)
	}
	close(b.ended)
	b.letGo()
	return nil
}

// inherit takes over what the daemon before leaves.
func (b *berth) inherit(e handover.Estate) {
	b.program, b.watched, b.pending = e.Program, e.Watched, e.Pending
	b.sockets = handover.NewSockets(e)
	for name, path := range b.lockPaths() {
		f := e.Files[name]
		if f == nil {
			continue // it will be found locked
		}
		l, err := filelock.Adopt(f, path)
		if err != nil {
			b.log.Error("a lock was not handed over", "err", err)
			continue
		}
		b.locks[name] = l
	}
}

// The names of the locks in an estate.
const (
	rootLock = "lock-root"
	runLock  = "lock-run"
)

func (b *berth) lockPaths() map[string]string {
	return map[string]string{rootLock: lockPath(b.cfg.RootDir), runLock: lockPath(b.cfg.RunDir)}
}

func lockPath(dir string) string { return filepath.Join(dir, "berth.lock") }

// lock makes sure that no other daemon uses the folders, before anything in them is touched.
func (b *berth) lock() error {
	for _, name := range []string{rootLock, runLock} {
		if b.locks[name] != nil {
			continue
		}
		path := b.lockPaths()[name]
		if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
			return fmt.Errorf("%s: %w", map[string]string{rootLock: "rootDir", runLock: "runDir"}[name], err)
		}
		l, err := filelock.Acquire(path)
		if err != nil {
			return fmt.Errorf("is another berth using %s? %w", filepath.Dir(path), err)
		}
		b.locks[name] = l
	}
	return nil
}

// unlock gives up the run dir last: who waits for that finds all of the node free.
func (b *berth) unlock() {
	for _, name := range []string{rootLock, runLock} {
		if l := b.locks[name]; l != nil {
			_ = l.Release() // a close of a file that was only locked
			delete(b.locks, name)
		}
	}
}

// failed is the end of a daemon that could not start. The sockets are left to the one before, which may want to go on.
func (b *berth) failed(err error) error {
	if b.before != nil {
		if b.sockets != nil {
			b.sockets.Leave()
		}
		b.before.Failed(err)
	} else if b.sockets != nil {
		b.sockets.Remove()
	}
	b.unlock()
	return err
}

// start makes n serve. Where the sockets have been there before, nobody is let in until all is recovered and the daemon before
// has let go for good: who connects meanwhile waits.
func (b *berth) start(ctx context.Context, n *node) error {
	began, first := time.Now(), b.sockets.Empty()
	if err := n.build(); err != nil {
		return err
	}
	if b.pending != nil {
		if err := n.streams.TakeOver(b.pending); err != nil {
			b.log.Warn("streaming URLs that were not used yet are lost", "err", err)
		}
	}
	backend := b.backend(n)
	if first {
		if err := n.open(backend); err != nil {
			return err
		}
	}
	if err := n.recover(ctx); err != nil {
		return err
	}
	n.cri.SetReady()
	if b.before != nil {
		if err := b.before.Serving(ctx); err != nil {
			return err
		}
		b.before = nil
	}
	if !first {
		if err := n.open(backend); err != nil {
			return err
		}
	}
	b.pending = nil
	n.doors.Go(func() { n.giveBack(n.over) })
	if err := n.runSelf(); err != nil {
		return err
	}
	n.sockets.RemoveUnused()
	b.awaitLingerers(n)
	b.ready(ctx, n, time.Since(began))
	return nil
}

func (b *berth) ready(ctx context.Context, n *node, took time.Duration) {
	status := n.runtime.Status(ctx)
	for _, l := range append(status.Limitations, n.lacks...) {
		b.log.Warn("limitation of this node", "what", l)
	}
	b.log.Info("berth is ready", "version", version, "criSocket", b.cfg.CRISocket, "network", b.cfg.Network.Mode,
		"cgroupDriver", status.CgroupDriver, "sandboxes", len(n.runtime.Sandboxes(runtime.SandboxFilter{})),
		"recovery", took.Round(time.Millisecond))
	b.notify(daemon.SdNotifyReady) // under systemd, the unit counts as started from here on
}

// notify tells systemd, if it is there.
func (b *berth) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		b.log.Warn("systemd could not be told, ignoring", "err", err)
	}
}

// await returns when n has to end: for an upgrade, or because ctx has ended, n was drained or one of its doors broke.
func (b *berth) await(ctx context.Context, n *node) (*request, error) {
	select {
	case r := <-b.requests:
		return r, nil
	case err := <-n.broken:
		return nil, err
	case <-n.drained:
	case <-ctx.Done():
	}
	return nil, nil
}

// stop ends the node's daemon, and those that linger for it.
func (b *berth) stop(ctx context.Context, n *node, why error) error {
	close(b.ended)
	b.notify(daemon.SdNotifyStopping)
	for _, l := range handover.Lingerers(b.cfg.RunDir) {
		if !l.Dead && l.Pid != os.Getpid() {
			_ = unix.Kill(l.Pid, unix.SIGTERM) // it holds its lock, so it is the one that we mean
		}
	}
	n.stop()
	err := errors.Join(why, n.end())
	b.log.Info("berth has ended", "sandboxes", len(n.runtime.Sandboxes(runtime.SandboxFilter{})))
	b.letGo()
	return err
}

// letGo is the last that a daemon does.
func (b *berth) letGo() {
	b.lingering.Wait()
	b.sockets.Remove()
	b.unlock()
}
