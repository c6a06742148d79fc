// Package nri lets NRI plugins (github.com/containerd/nri) see and change what the runtime does.
//
// The runtime calls one method for each step of a pod and a container, in this order:
//
//	RunPodSandbox                       the sandbox is ready, nobody sees it yet
//	  UpdatePodSandbox PostUpdatePodSandbox   any number of times
//	  CreateContainer PostCreateContainer     before the container is made, and when it is on record
//	  StartContainer PostStartContainer       before and after its process runs
//	  UpdateContainer PostUpdateContainer     any number of times
//	  StopContainer                           when it has ended, by itself or not
//	  RemoveContainer                         before its record goes
//	StopPodSandbox                      all containers are stopped, the sandbox is still there
//	RemovePodSandbox                    before its record goes
//
// An error of a step without Post in its name is a plugin's veto: the runtime undoes what it did and returns it. A plugin
// that is gone, or does not answer in time, is cut off by the library and vetoes nothing.
//
// StopContainer, RemoveContainer and their siblings for pods may be called again, and from several places: plugins are told
// once, and of things only that they know. RemoveContainer and RemovePodSandbox tell the stop first if that is missing; so
// they are all there is to undo a step that failed later.
//
// Updates of other containers that plugins ask for in a step are returned to the caller, who applies them; that one of them
// fails is no failure of the step.
//
// A plugin that connects is synchronized: it is given all that is there. That it sees each thing once, there or by its
// steps, is for the caller to ensure with Block.
//
// A nil *NRI is NRI switched off: its methods do nothing.
package nri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/adaptation"

	"github.com/berth-node/berth/internal/conffile"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Config is what Open needs.
type Config struct {
	// Name and Version are what plugins are told of the runtime.
	Name, Version string
	// SocketPath is where plugins connect; a file that is there is replaced. "" is /var/run/nri/nri.sock.
	SocketPath string
	// PluginPath is the folder with plugins to start ("" is /opt/nri/plugins), PluginConfigPath the one with their
	// configuration ("" is /etc/nri/conf.d). Neither has to exist.
	PluginPath, PluginConfigPath string
	// RegistrationTimeout is how long a new plugin may take to register, RequestTimeout how long one may take to answer
	// each request; 0 is the library's (5 s and 2 s). The library keeps both for the whole process.
	RegistrationTimeout, RequestTimeout time.Duration
	// InjectCDI adds CDI devices, by their qualified names, to the spec of a container; nil means that there are none.
	InjectCDI func(*specs.Spec, []string) error
	Log       *slog.Logger
}

// Callbacks are what plugins may ask of the runtime. None is called with a lock of this package held, but List always and
// Update sometimes while callers of Block wait: neither must wait for one who is about to call Block.
type Callbacks struct {
	// List returns everything that there is, for a plugin that synchronizes.
	List func() ([]Pod, []Container)
	// Update changes containers on a plugin's own initiative and returns those that failed.
	Update func(ctx context.Context, updates []Update) (failed []Update, err error)
	// Evict asks for the end of a container; the runtime stops it. (NRI 0.12 knows evictions but passes none on.)
	Evict func(ctx context.Context, containerID, reason string) error
}

// evictLimit bounds an eviction. It is long enough for a container that ignores its signal.
const evictLimit = 2 * time.Minute

// NRI talks to the plugins.
type NRI struct {
	cfg        Config
	callbacks  Callbacks // set by Start, before anybody can call them
	adaptation *adaptation.Adaptation

	// mu is held while plugins are told something, so that they hear of a thing's steps in their order. The library has a
	// lock of the same extent, which cannot be held over the look at told.
	mu sync.Mutex
	// told has, for each pod and container that plugins know, what they heard last.
	told map[string]stage
}

// A stage is how far plugins followed a pod or a container.
type stage int

const (
	unknown stage = iota // never heard of, or removed
	alive
	stopped
)

// Open prepares NRI; no plugin is let in before Start. Close must be called.
func Open(cfg Config) (*NRI, error) {
	logTo(cfg.Log)
	if cfg.RegistrationTimeout > 0 {
		adaptation.SetPluginRegistrationTimeout(cfg.RegistrationTimeout)
	}
	if cfg.RequestTimeout > 0 {
		adaptation.SetPluginRequestTimeout(cfg.RequestTimeout)
	}
	var options []adaptation.Option
	for _, o := range []struct {
		path string
		with func(string) adaptation.Option
	}{
		{cfg.SocketPath, adaptation.WithSocketPath},
		{cfg.PluginPath, adaptation.WithPluginPath},
		{cfg.PluginConfigPath, adaptation.WithPluginConfigPath},
	} {
		if o.path != "" {
			options = append(options, o.with(o.path))
		}
	}
	plugins, configs := cmp.Or(cfg.PluginPath, adaptation.DefaultPluginPath), cmp.Or(cfg.PluginConfigPath, adaptation.DefaultPluginConfigPath)
	if err := checkFiles(plugins, configs); err != nil {
		return nil, fmt.Errorf("NRI: %w", err)
	}
	n := &NRI{cfg: cfg, told: map[string]stage{}}
	var err error
	if n.adaptation, err = adaptation.New(cfg.Name, cfg.Version, n.synchronize, n.update, options...); err != nil {
		return nil, fmt.Errorf("NRI: %w", err)
	}
	return n, nil
}

// checkFiles refuses what the library would wait for, or read without end: in the place of a plugin's configuration, and of a plugin,
// into which it looks.
func checkFiles(plugins, configs string) error {
	var errs []error
	files, _ := filepath.Glob(filepath.Join(configs, "*.conf"))
	for _, file := range files {
		if err := conffile.Check(file); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	files, _ = filepath.Glob(filepath.Join(plugins, "*"))
	for _, file := range files {
		if st, err := os.Stat(file); err == nil && !st.Mode().IsRegular() && !st.IsDir() {
			errs = append(errs, fmt.Errorf("plugin %s: it is no program but %s", file, st.Mode()))
		}
	}
	return errors.Join(errs...)
}

// Start runs the plugins in PluginPath, synchronizes them and listens for others. The runtime must know by then all that
// there is. It is called once.
func (n *NRI) Start(callbacks Callbacks) error {
	if n == nil {
		return nil
	}
	n.callbacks = callbacks
	err := n.adaptation.Start()
	if err != nil {
		err = fmt.Errorf("NRI: %w", err)
	}
	if failed := reap(cmp.Or(n.cfg.PluginPath, adaptation.DefaultPluginPath)); failed != nil {
		n.cfg.Log.Warn("NRI plugins that end stay as zombies until this process ends", "err", failed)
	}
	return err
}

// Close stops listening and ends the plugins that Start ran. Others are cut off. Nobody is told anything afterwards.
func (n *NRI) Close() {
	if n == nil {
		return
	}
	n.adaptation.Stop()
	if err := hangUp(cmp.Or(n.cfg.SocketPath, adaptation.DefaultSocketPath)); err != nil {
		n.cfg.Log.Error("NRI plugins could not be cut off: they stay until this process ends", "err", err)
	}
}

// Block keeps plugins from being synchronized until release is called; it waits for a synchronization that runs.
//
// The runtime holds it over each change of what plugins see: from before the step until List shows what the step told.
// Holding it twice in one call chain would wait for ever once a plugin waits in between; nor may it be called with a lock
// held that List or Update need. release may be called more than once.
func (n *NRI) Block() (release func()) {
	if n == nil {
		return func() {}
	}
	return sync.OnceFunc(n.adaptation.BlockPluginSync().Unblock)
}

// synchronize tells new plugins all that is there. The library calls it while nobody holds Block.
func (n *NRI) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	pods, containers := n.callbacks.List()
	var toldPods []*adaptation.PodSandbox
	var toldContainers []*adaptation.Container
	n.mu.Lock()
	for _, p := range pods {
		n.learn(p.ID, p.Stopped)
		toldPods = append(toldPods, p.message())
	}
	for _, c := range containers {
		n.learn(c.ID, c.stopped())
		// Plugins are there for what runs or will; of others they would keep an account that nobody needs.
		if !c.stopped() {
			toldContainers = append(toldContainers, c.message())
		}
	}
	n.mu.Unlock()
	updates, err := tell(ctx, toldPods, toldContainers)
	if err != nil {
		return err
	}
	// The plugin is in, whatever becomes of its wishes: another daemon could not grant them either.
	if _, err := n.update(ctx, updates); err != nil {
		n.cfg.Log.Warn("updates that an NRI plugin asked for at its start failed, ignoring", "err", err)
	}
	return nil
}

// learn enters what was there before a plugin could be told, after a restart of the daemon.
func (n *NRI) learn(id string, isStopped bool) {
	if n.told[id] != unknown {
		return
	}
	n.told[id] = alive
	if isStopped {
		n.told[id] = stopped
	}
}

// evict has containers stopped as plugins wish. It does not wait: the step in which they wish it may be one that stopping
// waits for.
func (n *NRI) evict(ctx context.Context, wishes []*adaptation.ContainerEviction) {
	for _, w := range wishes {
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), evictLimit)
			defer cancel()
			if err := n.callbacks.Evict(ctx, w.GetContainerId(), w.GetReason()); err != nil {
				n.cfg.Log.Warn("eviction by an NRI plugin failed, ignoring", "container", w.GetContainerId(), "err", err)
			}
		}()
	}
}

// update passes on the updates that a plugin asks for unasked.
func (n *NRI) update(ctx context.Context, asked []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
	updates := newUpdates(asked)
	if len(updates) == 0 {
		return nil, nil
	}
	failed, err := n.callbacks.Update(ctx, updates)
	var out []*adaptation.ContainerUpdate
	for _, f := range failed {
		for _, u := range asked {
			if u.GetContainerId() == f.ContainerID {
				out = append(out, u)
			}
		}
	}
	return out, err
}

// veto wraps the error of a step.
func veto(step string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("NRI plugins on %s: %w", step, err)
}

// joinUndo returns the error of a step with that of its undoing.
func joinUndo(err, undo error) error {
	if undo == nil {
		return err
	}
	return errors.Join(err, fmt.Errorf("undo: %w", undo))
}
