package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/cri"
	"github.com/berth-node/berth/internal/admin"
	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/filelock"
	"github.com/berth-node/berth/internal/hostpath"
	"github.com/berth-node/berth/internal/metrics"
	"github.com/berth-node/berth/internal/stream"
	"github.com/berth-node/berth/network"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/image"
	"github.com/berth-node/berth/runtime/nri"
	"github.com/berth-node/berth/runtime/spec"
)

// A node is the daemon's parts, wired together.
type node struct {
	cfg     config.Config
	log     *slog.Logger
	images  *image.Store
	network network.Attacher
	builtin *network.Builtin // the network if it is the built-in one, else nil
	nri     *nri.NRI
	runtime *runtime.Runtime
	streams *stream.Server
	metrics *metrics.Metrics
	cri     *cri.Server
	close   []func() error
}

// run is the node: it returns nil when ctx has ended, or a drain has, and all that it serves has stopped. Pods run on.
func run(ctx context.Context, cfg config.Config, log *slog.Logger) (err error) {
	n := &node{cfg: cfg, log: log}
	defer func() { err = errors.Join(err, n.shut()) }()
	if err := n.build(); err != nil {
		return err
	}
	return n.serve(ctx)
}

// shut closes what was opened, the last first.
func (n *node) shut() error {
	var failed error
	for i := len(n.close) - 1; i >= 0; i-- {
		failed = errors.Join(failed, n.close[i]())
	}
	return failed
}

func (n *node) onClose(f func() error) { n.close = append(n.close, f) }

func (n *node) build() error {
	stream.RouteKlog(n.log)
	n.metrics = metrics.New(version)
	if err := n.lock(); err != nil {
		return err
	}
	host, err := n.openCgroups()
	if err != nil {
		return err
	}
	if n.images, err = image.Open(image.Config{
		Dir: filepath.Join(n.cfg.RootDir, "images"), Log: n.log,
		HostsDirs: n.cfg.Image.RegistryHostsDirs, MaxParallelLayers: n.cfg.Image.MaxParallelLayers,
		ProgressTimeout: n.cfg.Image.PullProgressTimeout, Pinned: n.cfg.Image.Pinned,
	}); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	n.onClose(func() error { n.images.Close(); return nil })
	if err := n.openNetwork(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	n.onClose(n.network.Close)
	if err := n.openNRI(); err != nil {
		return err
	}
	if n.runtime, err = runtime.New(n.runtimeConfig(host)); err != nil {
		return fmt.Errorf("runtime: %w", err)
	}
	n.onClose(n.runtime.Close)
	if n.streams, err = stream.Listen(stream.Config{
		Address:     net.JoinHostPort(n.cfg.Streaming.Address, strconv.Itoa(n.cfg.Streaming.Port)),
		IdleTimeout: n.cfg.Streaming.IdleTimeout, Log: n.log,
	}, cri.StreamBackend(n.runtime)); err != nil {
		return err
	}
	n.cri = cri.New(cri.Config{
		Runtime: n.runtime, Images: n.images, Streams: n.streams, Cgroups: host, Version: version,
		RootDir: n.cfg.RootDir, StateDir: n.cfg.RunDir, Log: n.log, Metrics: n.metrics,
	})
	return nil
}

// lock makes sure that no other daemon uses the folders, before anything in them is touched.
func (n *node) lock() error {
	for _, dir := range []string{n.cfg.RootDir, n.cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		release, err := filelock.Acquire(filepath.Join(dir, "berth.lock"))
		if err != nil {
			return fmt.Errorf("is another berth using %s? %w", dir, err)
		}
		n.onClose(release)
	}
	return nil
}

func (n *node) openCgroups() (*cgroups.Host, error) {
	driver := cgroups.Driver(n.cfg.Cgroup.Driver)
	if driver == config.CgroupAuto {
		driver = ""
	}
	host, err := cgroups.Probe(driver, n.log)
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	if n.cfg.Cgroup.DefaultParent != "" {
		host.DefaultParent = n.cfg.Cgroup.DefaultParent
	}
	return host, nil
}

func (n *node) openNetwork() (err error) {
	state := filepath.Join(n.cfg.RootDir, "network")
	c := n.cfg.Network
	if c.Mode == config.NetworkCNI {
		n.network, err = network.NewCNI(network.CNIConfig{
			ConfDir: c.CNIConfDir, BinDirs: c.CNIBinDirs, CacheDir: filepath.Join(state, "cni"),
			ConfTemplate: c.CNIConfTemplate, OwnNetworks: c.CNIOwnNetworks, Log: n.log,
		})
		return err
	}
	// With the default rootDir this is network.DefaultStateDir: bridge and table have their plain names.
	b := network.BuiltinConfig{Bridge: c.Builtin.Bridge, MTU: c.Builtin.MTU, StateDir: state, Log: n.log}
	if c.Builtin.IPv4Pool != "" {
		if b.IPv4, err = netip.ParsePrefix(c.Builtin.IPv4Pool); err != nil {
			return fmt.Errorf("network.builtin.ipv4Pool: %w", err)
		}
	}
	if c.Builtin.IPv6Prefix != "" {
		if b.IPv6, err = netip.ParsePrefix(c.Builtin.IPv6Prefix); err != nil {
			return fmt.Errorf("network.builtin.ipv6Prefix: %w", err)
		}
	}
	if n.builtin, err = network.NewBuiltin(b); err != nil {
		return err
	}
	n.network = n.builtin
	return nil
}

func (n *node) openNRI() (err error) {
	c := n.cfg.NRI
	if !c.Enable {
		return nil
	}
	n.nri, err = nri.Open(nri.Config{
		Name: "berth", Version: version, SocketPath: c.SocketPath, PluginPath: c.PluginPath, PluginConfigPath: c.PluginConfigPath,
		RegistrationTimeout: c.RegistrationTimeout, RequestTimeout: c.RequestTimeout, Log: n.log,
		InjectCDI: func(s *specs.Spec, devices []string) error {
			return spec.ApplyCDI(s, devices, n.cfg.Container.CDISpecDirs)
		},
	})
	if err != nil {
		return err
	}
	n.onClose(func() error { n.nri.Close(); return nil })
	return nil
}

func (n *node) runtimeConfig(host *cgroups.Host) runtime.Config {
	handlers := map[string]runtime.HandlerConfig{}
	for name, h := range n.cfg.RuntimeHandlers {
		handlers[name] = runtime.HandlerConfig{CDIDevices: h.CDIDevices, PrivilegedWithoutHostDevices: h.PrivilegedWithoutHostDevices}
	}
	keeper := runtime.KeeperConfig{RunDir: n.cfg.RunDir, Binary: n.cfg.Keeper, Launch: n.cfg.Launch}
	if keeper.Binary == config.KeeperExternal {
		keeper.Binary = ""
	}
	return runtime.Config{
		RootDir: n.cfg.RootDir, RunDir: n.cfg.RunDir, Images: n.images, Network: n.network, Cgroups: host, NRI: n.nri,
		Keeper: keeper, Handlers: handlers, CDISpecDirs: n.cfg.Container.CDISpecDirs,
		UnprivilegedPorts: n.cfg.Container.EnableUnprivilegedPorts, UnprivilegedPing: n.cfg.Container.EnableUnprivilegedICMP,
		AppArmorProfile: n.cfg.Container.AppArmorProfile, SeccompProfile: n.cfg.Container.SeccompProfile,
		MaxExecOutput: n.cfg.Exec.MaxOutput, ExecDrain: n.cfg.Exec.DrainTimeout, ExecByLibcontainer: n.cfg.Exec.Libcontainer,
		HostPaths:  &hostpath.Resolver{Program: "/proc/self/exe"},
		MaxLogLine: n.cfg.Log.MaxContainerLogLineSize, Metrics: n.metrics, Log: n.log,
	}
}

// serve opens the doors, recovers what was there before, and then lets callers in.
func (n *node) serve(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	listener, err := cri.Listen(n.cfg.CRISocket, n.cfg.CRISocketGroup)
	if err != nil {
		return err
	}
	operator, err := admin.Listen(adminSocket(n.cfg.RunDir))
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := cri.NewGRPCServer(n.cri)
	doors, ctx := errgroup.WithContext(ctx)
	doors.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, grpc.ErrServerStopped) { // stopped before it had begun
			return err
		}
		return nil
	})
	doors.Go(n.streams.Serve)
	doors.Go(func() error { return admin.Serve(ctx, operator, n.backend(stop), n.log) })
	n.serveMetrics(ctx, doors)
	doors.Go(func() error {
		<-ctx.Done()
		_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
		stopServer(server)
		return n.streams.Close()
	})
	if err := n.recover(ctx); err != nil {
		stop()
		return errors.Join(err, doors.Wait())
	}
	return doors.Wait()
}

func (n *node) recover(ctx context.Context) error {
	began := time.Now()
	if err := n.runtime.Recover(ctx); err != nil {
		if n.cfg.Keeper == config.KeeperExternal && errors.Is(err, errdefs.ErrUnavailable) {
			return fmt.Errorf("no keeper answers in %s, and keeper is %q: start berth-keeper first: %w", n.cfg.RunDir, n.cfg.Keeper, err)
		}
		return fmt.Errorf("recover: %w", err)
	}
	if err := n.runtime.StartPlugins(); err != nil {
		return err
	}
	n.cri.SetReady()
	status := n.runtime.Status(ctx)
	for _, l := range status.Limitations {
		n.log.Warn("limitation of this node", "what", l)
	}
	n.log.Info("berth is ready", "version", version, "criSocket", n.cfg.CRISocket, "network", n.cfg.Network.Mode,
		"cgroupDriver", status.CgroupDriver, "sandboxes", len(n.runtime.Sandboxes(runtime.SandboxFilter{})),
		"recovery", time.Since(began).Round(time.Millisecond))
	// Under systemd, the unit counts as started from here on.
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		n.log.Warn("systemd could not be told, ignoring", "err", err)
	}
	return nil
}

// stopServer lets short calls end and cuts off the rest: whoever waits for events or for a slow stop asks again.
func stopServer(server *grpc.Server) {
	const grace = 3 * time.Second
	timer := time.AfterFunc(grace, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
}

func (n *node) serveMetrics(ctx context.Context, doors *errgroup.Group) {
	if n.cfg.Metrics.Address == config.MetricsOff {
		return
	}
	l, err := metrics.Listen(n.cfg.Metrics.Address)
	if err != nil {
		n.log.Error("no metrics, ignoring", "err", err)
		return
	}
	doors.Go(func() error { return n.metrics.Serve(ctx, l, n.cfg.Metrics.Pprof) })
}
