// Package server is the keeper of a node: the parent of every container, which holds its stdio, writes its log and keeps
// its exit code, whether or not a daemon is connected.
//
// # How it works
//
// One process per run dir, under a lock file. It is a subreaper: a launcher makes a container and exits, and the
// container's init becomes the keeper's child. There is no thread per container: pidfds, FIFOs and terminals are waited
// for by Go's poller, each by a small goroutine.
//
//	keeper.go    start and end of the keeper               container.go  one container, from intent to exit
//	listener.go  the socket                                create.go     making it, and undoing what is half made
//	conn.go      a daemon's connection                     exec.go       further processes in it
//	requests.go  what a daemon may ask                     stdio.go      FIFOs and terminals
//	launcher.go  the launchers that wait                   pump.go       from the workload to log and attachments
//	reaper.go    exit codes of children                    attach.go     attached clients
//	process.go   a watched process                         record.go     what a next keeper must know
//	exits.go     exits until they are acknowledged         adopt.go      the next keeper, after a crash
//	logfile.go   the keeper's own log                      spare.go      what a daemon holds for the next keeper
//	gate.go      what has to end before a replacement      replace.go    the next keeper, in place of this one
//	enter.go     execs without a launcher                  handover.go   its state      takeover.go  taking it up
//	guard.go     a run dir that somebody empties           lean.go       where launchers are born
//
// The keeper's own executable is not sealed in a memfd, unlike the launcher's: nothing reads it again (the kernel keeps
// the pages of a replaced file), and no process of the keeper's enters a container before it has become a launcher.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/internal/filelock"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// ErrLocked says that another keeper has the run dir.
var ErrLocked = errors.New("another keeper runs here")

// Config is what a keeper needs to know.
type Config struct {
	// RunDir is the keeper's folder, on a tmpfs in production; it exists.
	RunDir string
	// Launch is the path of berth-launch, read once.
	Launch string
	// Launchers wait at a time; 0 is DefaultLaunchers.
	Launchers int
	// Build is the program's version, for the daemon to know.
	Build string
	// Args are the other flags of this program, with which one that replaces it is started.
	Args []string
	// TakeOver is the descriptor with the state of the keeper whose place this one takes by execve; 0 is none.
	TakeOver int
	Log      *slog.Logger
	// Ready is called when the keeper listens; may be nil.
	Ready func()
}

// DefaultLaunchers wait for jobs. A burst of starts drains them and then waits for new ones, about as long as a Go
// program takes to start; more of them cost memory on an idle node.
const DefaultLaunchers = 3

// adoptGrace is how long a new keeper waits for a daemon that may hold the pidfd of a process that has ended meanwhile,
// before it reports the exit code as unknown.
const adoptGrace = 10 * time.Second

// Keeper is the state of the running keeper.
type Keeper struct {
	runDir    string
	build     string
	launchers int
	args      []string
	log       *slog.Logger
	self      keeper.Process
	reaper    *reaper
	pool      *pool
	entry     *entry
	holding   *os.File // the hold program, sealed
	exits     *exitLog
	roster    roster
	// work and flow are what has to end before the keeper can be replaced.
	work, flow gate
	// replacing is held by the one replacement that is under way.
	replacing sync.Mutex

	// stop ends the keeper; it is called when nothing lives any more.
	stop context.CancelFunc
	// restored is closed when a daemon has handed over what it held for a keeper before, or has nothing.
	restored     chan struct{}
	restoredOnce sync.Once

	mu sync.Mutex
	// lock and listener change when their files were taken away.
	lock       *os.File
	listener   *listener
	containers map[string]*container
	conns      map[*conn]struct{}
	closing    bool // no more creates
}

// Run is the keeper: it returns nil after a Shutdown request or when ctx ends, and not at all when it is replaced in place.
// Only one Keeper may run in a process, and the process must have no other children: the keeper waits for all of them.
func Run(ctx context.Context, cfg Config) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	k, err := newKeeper(cfg, stop)
	if err != nil {
		return err
	}
	var begin func(context.Context)
	if cfg.TakeOver != 0 {
		begin, err = k.takeOver(cfg)
	} else {
		begin, err = k.setUp(cfg)
	}
	if err != nil {
		return err
	}
	guard := make(chan struct{})
	defer func() { <-guard }() // last of all: the kernel takes milliseconds to close an inotify, and a next keeper wants the lock
	defer func() { k.lock.Close() }()
	defer func() { k.listening().close() }()
	defer context.AfterFunc(ctx, func() { k.listening().file.Close() })() // ends accept

	go k.reaper.run(ctx)
	launchers := make(chan struct{})
	go func() { k.pool.run(ctx); close(launchers) }()
	go k.obey(ctx)
	begin(ctx)
	if cfg.Ready != nil {
		cfg.Ready()
	}
	go func() { k.guard(ctx); close(guard) }()
	k.accept(ctx)
	stop()
	<-launchers
	return nil
}

// newKeeper returns a keeper that has nothing yet.
func newKeeper(cfg Config, stop context.CancelFunc) (*Keeper, error) {
	// Orphans of launchers and containers come to us, not to pid 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become a subreaper: %w", err)
	}
	self, err := readProcess(os.Getpid())
	if err != nil {
		return nil, err
	}
	entry, err := newEntry()
	if err != nil {
		return nil, err
	}
	holding, err := newHoldProgram()
	if err != nil {
		return nil, err
	}
	return &Keeper{
		runDir:     cfg.RunDir,
		build:      cfg.Build,
		launchers:  cmp.Or(cfg.Launchers, DefaultLaunchers),
		args:       cfg.Args,
		log:        cfg.Log,
		self:       self,
		reaper:     newReaper(),
		entry:      entry,
		holding:    holding,
		exits:      newExitLog(),
		roster:     roster{all: make(map[*viewer]struct{})},
		stop:       stop,
		restored:   make(chan struct{}),
		containers: make(map[string]*container),
		conns:      make(map[*conn]struct{}),
	}, nil
}

// setUp makes k the keeper of its run dir, after none or one that has died. begin adopts what that has left; the socket
// listens already, and nobody is answered before begin returns.
func (k *Keeper) setUp(cfg Config) (begin func(context.Context), err error) {
	if k.lock, err = takeLock(filepath.Join(k.runDir, keeper.LockName)); err != nil {
		return nil, err
	}
	binary, err := seal(cfg.Launch)
	if err != nil {
		return nil, fmt.Errorf("launcher %s: %w", cfg.Launch, err)
	}
	k.pool = newPool(binary, k.runDir, k.launchers, k.reaper, k.log)
	for _, dir := range []string{keeper.ContainersDir, keeper.LibcontainerDir} {
		if err := os.MkdirAll(filepath.Join(k.runDir, dir), 0o700); err != nil {
			return nil, err
		}
	}
	if k.listener, err = listen(k.socketPath()); err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		k.adopt(ctx)
		failpoint.Here(failpoint.KeeperAdopted)
		k.log.Info("keeper listens", "runDir", k.runDir, "containers", len(k.containers))
	}, nil
}

func (k *Keeper) socketPath() string { return filepath.Join(k.runDir, keeper.SocketName) }

// takeLock makes this process the one keeper of a run dir until it ends. The file stays: removing it would let two
// keepers hold a lock of two files with the same name.
func takeLock(path string) (*os.File, error) {
	lock, err := filelock.Acquire(path)
	if errors.Is(err, filelock.ErrLocked) {
		return nil, fmt.Errorf("%s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, err
	}
	return lock.File(), nil
}

// container returns the container of that ID, made or not.
func (k *Keeper) container(id string) (*container, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
}

// all returns all containers, also those that are being made.
func (k *Keeper) all() []*container {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Values(k.containers))
}

// busy says what keeps the keeper from ending; "" if nothing does, and then nothing new begins any more.
func (k *Keeper) busy() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, c := range k.containers {
		if why := c.living(); why != "" {
			return fmt.Sprintf("container %s %s", id, why)
		}
	}
	k.closing = true
	return ""
}

// obey is for SIGTERM: the keeper ends if nothing lives. Otherwise it stays, since its end would cost exit codes; an init
// system that wants it gone all the same has SIGKILL.
func (k *Keeper) obey(ctx context.Context) {
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	defer signal.Stop(term)
	for {
		select {
		case <-term:
		case <-ctx.Done():
			return
		}
		if why := k.busy(); why != "" {
			k.log.Warn("told to end, ignoring", "why", why)
			continue
		}
		k.stop()
	}
}
