// Package runtime runs pod sandboxes and containers: it joins images, network, cgroups and the keeper to what the CRI
// and berth's kubelet call for.
//
// What is true is asked of the kernel and of the keeper; what was asked for and what happened stands in a folder per
// sandbox and per container. Creating, undoing, stopping, removing and recovering are the same idempotent steps, read
// from the record.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/hostpath"
	"github.com/berth-node/berth/internal/metrics"
	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/network"
	"github.com/berth-node/berth/runtime/image"
	"github.com/berth-node/berth/runtime/nri"
)

// Config is what a Runtime is made from. Everything but the durations is required unless it says otherwise.
type Config struct {
	// RootDir keeps what survives a reboot, RunDir (on a tmpfs) what does not. They are this node's alone.
	RootDir, RunDir string
	Images          *image.Store
	Network         network.Attacher
	Cgroups         *cgroups.Host
	// NRI may be nil: no plugins.
	NRI *nri.NRI
	// Keeper reaches the keeper, starting it where it does not run.
	Keeper KeeperConfig
	// Handlers are the names that a RuntimeClass may ask for, beside the default "".
	Handlers map[string]HandlerConfig
	// CDISpecDirs hold the descriptions of CDI devices.
	CDISpecDirs []string
	// UnprivilegedPorts and UnprivilegedPing let every user of a pod with a network of its own bind ports below 1024
	// and send ICMP echo requests, as pods of other runtimes may.
	UnprivilegedPorts, UnprivilegedPing bool
	// AppArmorProfile is the name of the profile of containers that ask for RuntimeDefault.
	AppArmorProfile string
	// SeccompProfile is the path of a profile to use for RuntimeDefault in place of the built-in one; may be empty.
	SeccompProfile string
	// CreateByLibcontainer has libcontainer set up the init of every container, also where package enter could.
	CreateByLibcontainer bool
	// MaxExecOutput caps what ExecSync returns, in bytes a stream.
	MaxExecOutput int
	// ExecDrain is how long the output of an exec is awaited when its process has ended but somebody holds the pipe.
	ExecDrain time.Duration
	// ExecByLibcontainer starts every exec by a launcher, also where package enter could.
	ExecByLibcontainer bool
	// ServedElsewhere returns the executions that earlier daemons, which gave the node to this one, serve at this moment: they
	// are left alone. See Part. Nil: there are none.
	ServedElsewhere func() []string
	// Working is called, also concurrently, when Recover gets on; nil is not.
	Working func()
	// MaxLogLine is the size in bytes at which a line of a container's log is split.
	MaxLogLine int
	// HostPaths looks up what mounts and logs name; nil is one without a helper.
	HostPaths *hostpath.Resolver
	// Metrics counts what this package does; nil does not.
	Metrics *metrics.Metrics
	Log     *slog.Logger
}

// HandlerConfig says what a runtime handler adds.
type HandlerConfig struct {
	// CDIDevices are given to every container of the handler.
	CDIDevices []string
	// PrivilegedWithoutHostDevices withholds the host's devices from privileged containers.
	PrivilegedWithoutHostDevices bool
}

// Runtime runs sandboxes and containers. Its methods may be called concurrently.
//
// A life: New, Recover once, then calls; Close lets go of everything, and whatever runs goes on running. With Part, the
// sessions with clients outlive the rest.
type Runtime struct {
	cfg    Config
	paths  layout
	log    *slog.Logger
	boot   string
	node   nodeFacts
	keeper *keeperLink
	index  *index
	events eventLog
	execs  execTable
	// filters are compiled for execs without a launcher.
	filters filterTable
	exits   exitWaiters
	oom     *cgroups.OOMWatcher
	usage   usageCache

	// flights joins a call that repeats a running one to it.
	flights singleflight.Group

	// life ends with Close. ctx, below it, is that of work which outlives the call that began it: it ends with Part too.
	life, ctx   context.Context
	die, cancel context.CancelFunc
	// parted says that Part was called.
	parted atomic.Bool
	// following is the taking of exits from the keeper, which sessions need to the end.
	following sync.WaitGroup
	// ending is locked while ctx is ended: what begins to work afterwards is seen by nobody who waits for work.
	ending sync.RWMutex
	work   sync.WaitGroup

	// admission lets in what makes sandboxes, until the node is drained.
	admission gate
	// parting says that the keeper was asked to end: nobody is to start another.
	parting atomic.Bool

	// parents is read-locked while a container's cgroup is made, and locked while an empty parent is removed.
	parents sync.RWMutex
	// rooting is held while the root filesystem of pause processes is made.
	rooting sync.Mutex

	records *recordHealth
	// damaged are the files that were set aside, held what runs and cannot be read.
	damaged damagedList
	held    heldTable
	// repairing is held while held things are entered or given up.
	repairing sync.Mutex
}

// Deadlines of work that outlives its caller. They are far beyond what the work takes on a node that is well.
const (
	createLimit   = 4 * time.Minute
	teardownLimit = 2 * time.Minute
	releaseLimit  = time.Minute
)

// New prepares a Runtime. It changes nothing but the folders that it makes; Recover begins its work.
func New(cfg Config) (*Runtime, error) {
	boot, err := procfs.BootID()
	if err != nil {
		return nil, fmt.Errorf("boot ID: %w", err)
	}
	l := layout{root: cfg.RootDir, run: cfg.RunDir}
	if err := l.makeFolders(); err != nil {
		return nil, err
	}
	if cfg.HostPaths == nil {
		cfg.HostPaths = &hostpath.Resolver{}
	}
	oom, err := cgroups.NewOOMWatcher(cfg.Cgroups, cfg.Log)
	if err != nil {
		return nil, err
	}
	r := &Runtime{cfg: cfg, paths: l, log: cfg.Log, boot: boot, index: newIndex(), oom: oom}
	r.life, r.die = context.WithCancel(context.Background())
	r.ctx, r.cancel = context.WithCancel(r.life)
	r.records = &recordHealth{run: r.background}
	r.node = probeNode(cfg)
	r.keeper = newKeeperLink(cfg.Keeper, cfg.Log)
	return r, nil
}

func (l layout) makeFolders() error {
	for _, dir := range []string{l.sandboxes(), l.containers(), l.runSandboxes(), l.runContainers(), l.sandboxCopies(), l.containerCopies()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	// A process in a user namespace walks through these to its root filesystem: it needs x, and r gives nothing away.
	for _, dir := range []string{l.root, l.containers(), l.run, l.runSandboxes(), l.runContainers()} {
		if err := permit(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// permit gives a folder this mode if it has another one: a read-only root dir has had it since it was made.
func permit(dir string, mode fs.FileMode) error {
	st, err := os.Stat(dir)
	if err == nil && st.Mode().Perm() == mode {
		return nil
	}
	return os.Chmod(dir, mode)
}

// Close ends all waiting and lets go of the keeper. Containers run on.
func (r *Runtime) Close() error {
	r.end()
	r.die()
	err := r.keeper.close()
	r.following.Wait()
	r.work.Wait()
	if r.parted.Load() {
		return err
	}
	return errors.Join(err, r.oom.Close())
}

// detached returns a context for work that must not end with its caller, only with its own limit or with Close.
func (r *Runtime) detached(limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.ctx, limit)
}

// end ends all work. What it leaves half done the next daemon finds on record.
func (r *Runtime) end() {
	r.ending.Lock()
	defer r.ending.Unlock()
	r.cancel()
}

// begin counts a piece of work, for which Close then waits; r.work.Done ends it. It is false after the end of the Runtime.
func (r *Runtime) begin() bool {
	r.ending.RLock()
	defer r.ending.RUnlock()
	if r.ctx.Err() != nil {
		return false
	}
	r.work.Add(1)
	return true
}

// background runs fn as part of the Runtime, and not at all after its end.
func (r *Runtime) background(fn func()) {
	if r.begin() {
		go func() {
			defer r.work.Done()
			fn()
		}()
	}
}

// errEnding is for who asks a Runtime that has ended; the next daemon will answer.
var errEnding = fmt.Errorf("this daemon is stopping: %w", errdefs.ErrUnavailable)

// join runs fn once for all concurrent callers of the same key, and lets each of them leave when its context ends. A panic of
// fn is the error of all of them.
func join[T any](ctx context.Context, r *Runtime, key string, fn func() (T, error)) (T, error) {
	ch := r.flights.DoChan(key, func() (_ any, err error) {
		if !r.begin() {
			return nil, errEnding
		}
		defer r.work.Done()
		defer errdefs.Recover(&err)
		return fn()
	})
	var zero T
	select {
	case res := <-ch:
		if res.Err != nil {
			return zero, res.Err
		}
		return res.Val.(T), nil
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// joinErr is join for work that has no result but its error.
func joinErr(ctx context.Context, r *Runtime, key string, fn func() error) error {
	_, err := join(ctx, r, key, func() (struct{}, error) { return struct{}{}, fn() })
	return err
}
