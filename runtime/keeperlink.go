package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/runtime/keeper"
)

// KeeperConfig says how the keeper is reached.
type KeeperConfig struct {
	// RunDir is the node's.
	RunDir string
	// Binary and Launch are the paths of berth-keeper and berth-launch. With an empty Binary the keeper is not started:
	// somebody else does it.
	Binary, Launch string
}

// keeperLink is the connection to the keeper, made anew whenever it is lost.
type keeperLink struct {
	cfg KeeperConfig
	log *slog.Logger

	mu      sync.Mutex
	current *keeper.Client
	changed chan struct{} // closed at the next change of current
	closed  bool
}

func newKeeperLink(cfg KeeperConfig, log *slog.Logger) *keeperLink {
	return &keeperLink{cfg: cfg, log: log, changed: make(chan struct{})}
}

// client returns the connection, waiting for one until ctx ends.
func (l *keeperLink) client(ctx context.Context) (*keeper.Client, error) {
	for {
		l.mu.Lock()
		current, changed, closed := l.current, l.changed, l.closed
		l.mu.Unlock()
		if closed {
			return nil, errEnding
		}
		if current != nil && current.Err() == nil {
			return current, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("keeper does not answer: %w: %w", errdefs.ErrUnavailable, ctx.Err())
		}
	}
}

// connect reaches the keeper, starting it if nobody answers.
func (l *keeperLink) connect(ctx context.Context) (*keeper.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	l.mu.Lock()
	lost := l.current
	l.mu.Unlock()
	dial := func() (*keeper.Client, error) {
		if lost != nil {
			return lost.Redial(ctx)
		}
		return keeper.Dial(ctx, filepath.Join(l.cfg.RunDir, keeper.SocketName))
	}
	c, err := dial()
	if errors.Is(err, errdefs.ErrUnavailable) && l.cfg.Binary != "" {
		if err = keeper.Start(ctx, l.cfg.Binary, l.cfg.Launch, l.cfg.RunDir, l.log); err == nil {
			c, err = dial()
		}
	}
	if err != nil {
		return nil, err
	}
	l.set(c)
	return c, nil
}

// connected reports whether there is a keeper at the moment.
func (l *keeperLink) connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current != nil && l.current.Err() == nil
}

func (l *keeperLink) set(c *keeper.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.Close()
		return
	}
	l.current = c
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *keeperLink) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	close(l.changed)
	l.changed = make(chan struct{})
	if l.current == nil {
		return nil
	}
	return l.current.Close()
}

// follow takes exits from the keeper for the life of the Runtime, and connects again when the keeper is lost.
func (r *Runtime) follow(k *keeper.Client) {
	for {
		for e := range k.Exits() {
			taken := r.onExit(e)
			failpoint.Here(failpoint.ExitPublished)
			if taken {
				k.Ack(e.Seq)
			}
		}
		if r.life.Err() != nil || r.parting.Load() {
			return
		}
		r.log.Error("the keeper is lost, connecting again", "err", k.Err())
		r.execs.lost()
		if r.parted.Load() {
			return // the next daemon is in charge of a next keeper
		}
		if k = r.reconnect(); k == nil {
			return
		}
	}
}

// reconnect tries until there is a keeper; nil at the end of the Runtime's work.
func (r *Runtime) reconnect() *keeper.Client {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		k, err := r.keeper.connect(r.ctx)
		if err == nil {
			err = r.compare(r.ctx, k)
		}
		if err == nil {
			return k
		}
		if r.ctx.Err() != nil {
			return nil
		}
		r.log.Error("no keeper, trying again", "err", err, "wait", wait)
		select {
		case <-time.After(wait):
		case <-r.ctx.Done():
			return nil
		}
	}
}

// compare finds what ended while nobody could tell, and records it as such.
func (r *Runtime) compare(ctx context.Context, k *keeper.Client) error {
	// Before the list: what is made after it is not missing in it.
	containers, sandboxes := r.index.allContainers(), r.index.allSandboxes()
	states, err := k.List(ctx)
	if err != nil {
		return err
	}
	known := map[string]keeper.State{}
	for _, s := range states {
		known[s.ID] = s
	}
	r.adoptMissing(ctx, k, containers, sandboxes, known)
	for _, c := range containers {
		if _, mayLive := c.factsNow().process(); mayLive && !has(known, c.id()) {
			r.lost(c)
		}
	}
	for _, sb := range sandboxes {
		if pause := sb.factsNow().Pause; pause.Pid != 0 && !has(known, sb.record.ID) {
			r.pauseExited(sb, time.Now())
		}
	}
	return nil
}

func has(known map[string]keeper.State, id string) bool {
	_, ok := known[id]
	return ok
}
