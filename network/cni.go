package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"github.com/berth-node/berth/network/netns"
)

// Folders of the ecosystem.
const (
	DefaultCNIConfDir = "/etc/cni/net.d"
	DefaultCNIBinDir  = "/opt/cni/bin"
)

// Upper bounds of what plugins may take for one call, beside the caller's deadline.
const (
	addLimit = 2 * time.Minute
	delLimit = 2 * time.Minute
	// pluginDelLimit bounds the DEL of one plugin of a network: the others have to free what is theirs.
	pluginDelLimit = 20 * time.Second
	// A plugin that a daemon had started which died may run still, and takes away what another one is about to: that one
	// fails, and finds nothing the next time.
	detachTries = 3
	detachPause = 200 * time.Millisecond
	checkLimit  = 30 * time.Second
	// pluginStatusAge is how long the answer of the plugins to STATUS holds: the kubelet asks every few seconds, and the
	// plugins are programs.
	pluginStatusAge = 10 * time.Second
)

// pluginsAtOnce bounds the attachments under way: plugins take locks of their own (RTNL, xtables, host-local's files) and
// more of them at once would wait there, each with a process. One that takes longer than turnLimit waits for something
// else, and keeps no other from its turn.
const (
	pluginsAtOnce = 4
	turnLimit     = 5 * time.Second
)

// CNIConfig says where CNI configuration and plugins are. Only CacheDir is required.
type CNIConfig struct {
	// ConfDir holds the network configuration; the lexically first *.conflist, *.conf or *.json is used. Default
	// DefaultCNIConfDir.
	ConfDir string
	// BinDirs hold the plugins, searched in order. Default DefaultCNIBinDir.
	BinDirs []string
	// CacheDir is this node's own folder for results and for the records of running attachments. It must survive a
	// restart of the host, since what a plugin allocated may do so too.
	CacheDir string
	// ConfTemplate is the path of a template from which UpdatePodCIDR writes a configuration into ConfDir. Empty: none.
	ConfTemplate string
	// OwnNetworks says that nobody but this node attaches anything to its networks. Restore then lets the plugins
	// collect garbage, which removes every attachment that is not this node's.
	OwnNetworks bool
	// Log takes errors that are passed over; nil for slog.Default.
	Log *slog.Logger
}

// CNI attaches sandboxes by running CNI plugins: those of one network, the first in the configuration folder. The folder
// is watched, and looked at again by Status and Attach for as long as it holds nothing usable.
//
// What ADD was called with is recorded before it runs, and DEL is called with that, whatever the configuration says by
// then. The record goes when a DEL has succeeded. The loopback interface is package netns's; no plugin runs for it.
type CNI struct {
	cfg     CNIConfig
	lib     *libcni.CNIConfig
	records attachments
	watch   *confWatch
	slots   chan struct{}
	log     *slog.Logger

	mu      sync.Mutex
	conf    *libcni.NetworkConfigList // nil while confErr says why there is none
	confErr error
	checked time.Time // when STATUS last succeeded, for the present conf
}

// NewCNI starts watching cfg.ConfDir, which need not exist yet. The caller closes it.
func NewCNI(cfg CNIConfig) (*CNI, error) {
	if cfg.CacheDir == "" {
		return nil, fmt.Errorf("CNI cache folder is not set: %w", errdefs.ErrInvalidArgument)
	}
	if cfg.ConfDir == "" {
		cfg.ConfDir = DefaultCNIConfDir
	}
	cfg.ConfDir = filepath.Clean(cfg.ConfDir)
	if len(cfg.BinDirs) == 0 {
		cfg.BinDirs = []string{DefaultCNIBinDir}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	records := attachments{filepath.Join(cfg.CacheDir, "attachments"), cfg.Log}
	if err := records.open(); err != nil {
		return nil, err
	}
	c := &CNI{
		cfg:     cfg,
		lib:     libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, &pluginExec{}),
		records: records,
		slots:   make(chan struct{}, pluginsAtOnce),
		log:     cfg.Log,
	}
	var err error
	if c.watch, err = watchConf(cfg.ConfDir, c.reload); err != nil {
		// Out of inotify instances, likely. Status and Attach then read the folder every time.
		c.log.Warn("cannot watch the CNI configuration folder, ignoring", "dir", cfg.ConfDir, "err", err)
	}
	c.reload()
	return c, nil
}

// reload reads the configuration folder.
func (c *CNI) reload() {
	conf, err := loadConf(c.cfg.ConfDir)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conf, c.confErr, c.checked = conf, err, time.Time{}
}

// network returns the configuration in force, or why there is none (ErrUnavailable).
func (c *CNI) network() (*libcni.NetworkConfigList, error) {
	c.mu.Lock()
	stale := c.conf == nil || c.watch == nil
	c.mu.Unlock()
	if stale {
		c.reload()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.confErr != nil {
		return nil, fmt.Errorf("CNI network is not ready: %w: %w", c.confErr, errdefs.ErrUnavailable)
	}
	return c.conf, nil
}

// Attach implements Attacher.
func (c *CNI) Attach(ctx context.Context, req Request) (Result, error) {
	conf, err := c.network()
	if err != nil {
		return Result{}, err
	}
	rt, err := c.runtimeConf(req)
	if err != nil {
		return Result{}, err
	}
	if rt.CapabilityArgs["portMappings"] != nil && !hasCapability(conf, "portMappings") {
		c.log.Warn("the CNI network maps no host ports, ignoring those of the pod", "network", conf.Name,
			"pod", req.Namespace+"/"+req.Name)
	}
	release, err := c.acquire(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("attach sandbox %s: %w", req.SandboxID, err)
	}
	defer release()
	if err := c.records.create(attachment{Request: req, Network: saveNetwork(conf)}); err != nil {
		return Result{}, err
	}
	failpoint.Here(failpoint.CNIRecorded)
	lock, end, err := c.records.begin(req.SandboxID)
	if err != nil {
		return Result{}, err
	}
	res, err := c.add(ctx, conf, rt, lock)
	end()
	failpoint.Here(failpoint.CNIAdded)
	if err != nil {
		// The plugins before the one that failed have done their part, and the caller's time may be over.
		ctx := context.WithoutCancel(ctx)
		return Result{}, errors.Join(fmt.Errorf("attach sandbox %s: %w", req.SandboxID, err), c.del(ctx, req.SandboxID, conf, rt))
	}
	return res, nil
}

// add runs ADD of the network's plugins, which inherit lock.
func (c *CNI) add(ctx context.Context, conf *libcni.NetworkConfigList, rt *libcni.RuntimeConf, lock *os.File) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, addLimit)
	defer cancel()
	lib := libcni.NewCNIConfigWithCacheDir(c.cfg.BinDirs, c.cfg.CacheDir, &pluginExec{inherited: []*os.File{lock}})
	res, err := lib.AddNetworkList(ctx, conf, rt)
	if err != nil {
		return Result{}, fmt.Errorf("CNI ADD of network %s: %w", conf.Name, err)
	}
	return resultOf(res)
}

// del runs DEL of the network's plugins and, when they are done, drops the record of the attachment. One that fails keeps
// none of the others from freeing what is theirs; a repeated del asks all of them again, as the specification allows.
func (c *CNI) del(ctx context.Context, sandboxID string, conf *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	ctx, cancel := context.WithTimeout(ctx, delLimit)
	defer cancel()
	if rt.NetNS != "" && !netns.IsNS(rt.NetNS) {
		// So the specification has it for a namespace that is gone. Plugins then free what is outside of it.
		gone := *rt
		gone.NetNS = ""
		rt = &gone
	}
	each := &eachPlugin{pluginExec: &pluginExec{}, left: len(conf.Plugins)}
	lib := libcni.NewCNIConfigWithCacheDir(c.cfg.BinDirs, c.cfg.CacheDir, each)
	if err := lib.DelNetworkList(ctx, conf, rt); err != nil {
		return fmt.Errorf("CNI DEL of network %s: %w", conf.Name, err)
	}
	failpoint.Here(failpoint.CNIDeleted)
	return c.records.remove(sandboxID)
}

// Detach implements Attacher. A sandbox without a record was detached before, or never attached; only where its namespace
// still stands the plugins are asked nevertheless, since the record may have been lost.
func (c *CNI) Detach(ctx context.Context, req Request) error {
	a, err := c.records.load(req.SandboxID)
	if errors.Is(err, errdefs.ErrNotFound) {
		conf, err := c.network()
		if err != nil || !netns.IsNS(req.NetNS) {
			return nil
		}
		a = attachment{Request: req, Network: saveNetwork(conf)}
	} else if err != nil {
		return err
	}
	if err := c.detach(ctx, a); err != nil {
		return fmt.Errorf("detach sandbox %s: %w", req.SandboxID, err)
	}
	return nil
}

// detach undoes a recorded attachment.
func (c *CNI) detach(ctx context.Context, a attachment) error {
	conf, err := a.Network.load()
	if err != nil {
		return err
	}
	rt, err := c.runtimeConf(a.Request)
	if err != nil {
		return err
	}
	release, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := c.records.awaitOrphans(ctx, a.Request.SandboxID); err != nil {
		if ctx.Err() != nil {
			return err
		}
		c.log.Warn("plugins whose daemon was killed do not end, detaching beside them", "sandbox", a.Request.SandboxID, "err", err)
	}
	for try := 1; ; try++ {
		err = c.del(ctx, a.Request.SandboxID, conf, rt)
		if err == nil || try == detachTries {
			return err
		}
		select {
		case <-time.After(detachPause):
		case <-ctx.Done():
			return err
		}
	}
}

// Check asks the plugins whether an attached sandbox is as they left it (CNI CHECK). Configurations that know no CHECK, or
// switch it off, find nothing wrong.
func (c *CNI) Check(ctx context.Context, req Request) error {
	a, err := c.records.load(req.SandboxID)
	if err != nil {
		return err
	}
	conf, err := a.Network.load()
	if err != nil {
		return err
	}
	rt, err := c.runtimeConf(a.Request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	err = c.lib.CheckNetworkList(ctx, conf, rt)
	if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
		return fmt.Errorf("CNI CHECK of sandbox %s: %w", req.SandboxID, err)
	}
	return nil
}

// Restore implements Attacher. Host ports are the plugins' own and still there; what remains is to detach the sandboxes
// that went while the daemon was away.
func (c *CNI) Restore(ctx context.Context, live []Request) error {
	recorded, err := c.records.all()
	if err != nil {
		return err
	}
	lives := make(map[string]bool, len(live))
	for _, req := range live {
		lives[req.SandboxID] = true
	}
	var (
		mu   sync.Mutex
		errs error
		wg   sync.WaitGroup
	)
	for _, id := range recorded {
		if lives[id] {
			_, _ = c.records.load(id) // a damaged one is set aside, and the operator told, before it is needed
			continue
		}
		wg.Go(func() { // detach bounds how many run
			err := c.Detach(ctx, Request{SandboxID: id})
			mu.Lock()
			defer mu.Unlock()
			errs = errors.Join(errs, err)
		})
	}
	wg.Wait()
	if c.cfg.OwnNetworks {
		errs = errors.Join(errs, c.collect(ctx, lives))
	}
	return errs
}

// collect lets the plugins remove every attachment but those of living sandboxes (CNI GC).
func (c *CNI) collect(ctx context.Context, lives map[string]bool) error {
	conf, err := c.network()
	if err != nil {
		return nil // nothing to collect from
	}
	var args libcni.GCArgs
	for id := range lives {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: InterfaceName})
	}
	ctx, cancel := context.WithTimeout(ctx, delLimit)
	defer cancel()
	if err := c.lib.GCNetworkList(ctx, conf, &args); err != nil {
		return fmt.Errorf("CNI GC of network %s: %w", conf.Name, err)
	}
	return nil
}

// Status implements Attacher: there is a configuration, its plugins are installed, and do not say in answer to STATUS
// (CNI 1.1) that they cannot serve.
func (c *CNI) Status() error {
	conf, err := c.network()
	if err != nil {
		return err
	}
	for _, p := range conf.Plugins {
		if _, err := invoke.FindInPath(p.Network.Type, c.cfg.BinDirs); err != nil {
			return fmt.Errorf("CNI network %s: %w: %w", conf.Name, err, errdefs.ErrUnavailable)
		}
	}
	c.mu.Lock()
	fresh := time.Since(c.checked) < pluginStatusAge
	c.mu.Unlock()
	if fresh {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkLimit)
	defer cancel()
	if err := c.lib.GetStatusNetworkList(ctx, conf); err != nil {
		return fmt.Errorf("CNI network %s: %w: %w", conf.Name, err, errdefs.ErrUnavailable)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conf == conf {
		c.checked = time.Now()
	}
	return nil
}

// Warnings implements Attacher.
func (c *CNI) Warnings() []string {
	conf, err := c.network()
	if err != nil || hasCapability(conf, "portMappings") {
		return nil
	}
	return []string{fmt.Sprintf("the CNI network %s has no plugin with the capability portMappings: host ports do nothing", conf.Name)}
}

// Damaged implements Attacher.
func (c *CNI) Damaged() []string { return damagedIn(c.cfg.CacheDir, c.records.dir) }

// Close implements Attacher.
func (c *CNI) Close() error {
	if c.watch == nil {
		return nil
	}
	return c.watch.close()
}

// acquire waits for one of the places at the plugins. The caller calls release in the end.
func (c *CNI) acquire(ctx context.Context) (release func(), err error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for CNI plugins at work: %w", ctx.Err())
	}
	once := sync.OnceFunc(func() { <-c.slots })
	timer := time.AfterFunc(turnLimit, once)
	return func() { timer.Stop(); once() }, nil
}

// hasCapability says whether a plugin of the network takes the runtime configuration of that name.
func hasCapability(conf *libcni.NetworkConfigList, name string) bool {
	return slices.ContainsFunc(conf.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[name] })
}
