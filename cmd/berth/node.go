package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/cri"
	"github.com/berth-node/berth/internal/admin"
	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/handover"
	"github.com/berth-node/berth/internal/hostpath"
	"github.com/berth-node/berth/internal/metrics"
	"github.com/berth-node/berth/internal/stream"
	"github.com/berth-node/berth/network"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/image"
	"github.com/berth-node/berth/runtime/nri"
	"github.com/berth-node/berth/runtime/spec"
)

// A node is the parts that serve, wired together. A daemon has one at a time.
//
//	build → recover, open → stop or handOver, after which the sessions may go on → end
type node struct {
	cfg     config.Config
	log     *slog.Logger
	sockets *handover.Sockets
	working func() // is told that recover gets on
	images  *image.Store
	network network.Attacher
	builtin *network.Builtin // the network if it is the built-in one, else nil
	nri     *nri.NRI
	runtime *runtime.Runtime
	streams *stream.Server
	metrics *metrics.Metrics
	cri     *cri.Server
	cgroups *cgroups.Host
	self    *self          // the pods of the node itself; nil before recovery, and where there is no place for their records
	api     *api           // the doors to them; nil before they are open
	lacks   []string       // limitations beside the runtime's
	started chan struct{}  // closed when self, api and lacks are what they stay
	close   []func() error // what was opened, the runtime and the doors excepted

	server   *grpc.Server
	operator *admin.Server
	over     context.Context // ends when no more calls are taken
	leave    context.CancelFunc
	doors    sync.WaitGroup
	broken   chan error    // why a door broke
	drained  chan struct{} // closed by a drain
	calls    <-chan struct{}
}

// shut closes what was opened, the last first.
func (n *node) shut() error {
	var failed error
	for i := len(n.close) - 1; i >= 0; i-- {
		failed = errors.Join(failed, n.close[i]())
	}
	n.close = nil
	return failed
}

func (n *node) onClose(f func() error) { n.close = append(n.close, f) }

// build opens all parts; nothing is done yet, and nobody let in. end undoes it, also where it failed.
func (n *node) build() error {
	n.metrics = metrics.New(version)
	n.broken, n.drained, n.started = make(chan error, 4), make(chan struct{}), make(chan struct{})
	n.over, n.leave = context.WithCancel(context.Background())
	host, err := n.openCgroups()
	if err != nil {
		return err
	}
	n.cgroups = host
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
	if err := n.openStreams(); err != nil {
		return err
	}
	n.cri = cri.New(cri.Config{
		Runtime: n.runtime, Images: n.images, Streams: n.streams, Cgroups: host, Version: version,
		RootDir: n.cfg.RootDir, StateDir: n.cfg.RunDir, Log: n.log, Metrics: n.metrics, OwnPods: n.ownPods,
	})
	return nil
}

// openStreams needs the runtime, and the CRI needs it: it gives out URLs.
func (n *node) openStreams() error {
	address := net.JoinHostPort(n.cfg.Streaming.Address, strconv.Itoa(n.cfg.Streaming.Port))
	l, err := n.sockets.Listen("stream", address, func() (net.Listener, error) { return stream.Listen(address) })
	if err != nil {
		return err
	}
	n.streams, err = stream.New(stream.Config{IdleTimeout: n.cfg.Streaming.IdleTimeout, Log: n.log}, l, cri.StreamBackend(n.runtime))
	return err
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

// hostPaths looks up what may hang, in a process of its own.
func (n *node) hostPaths() *hostpath.Resolver { return &hostpath.Resolver{Program: "/proc/self/exe"} }

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
		CreateByLibcontainer: n.cfg.Container.Libcontainer,
		MaxExecOutput:        n.cfg.Exec.MaxOutput, ExecDrain: n.cfg.Exec.DrainTimeout, ExecByLibcontainer: n.cfg.Exec.Libcontainer,
		HostPaths:       n.hostPaths(),
		Working:         n.working,
		ServedElsewhere: func() []string { return servedByLingerers(n.cfg.RunDir) },
		MaxLogLine:      n.cfg.Log.MaxContainerLogLineSize, Metrics: n.metrics, Log: n.log,
	}
}

// recover finds what was there before.
func (n *node) recover(ctx context.Context) error {
	if err := n.runtime.Recover(ctx); err != nil {
		if n.cfg.Keeper == config.KeeperExternal && errors.Is(err, errdefs.ErrUnavailable) {
			return fmt.Errorf("no keeper answers in %s, and keeper is %q: start berth-keeper first: %w", n.cfg.RunDir, n.cfg.Keeper, err)
		}
		return fmt.Errorf("recover: %w", err)
	}
	if err := n.runtime.StartPlugins(); err != nil {
		return err
	}
	var err error
	if n.self, err = n.openSelf(); err != nil {
		n.self = nil
		return n.goWithout("pods of the node itself are not looked after until berth is started again", err)
	}
	return nil
}

// goWithout passes an error on, unless it is that the root dir is full or read-only. That is no reason not to serve the CRI, by which
// all that runs can be seen and ended: what is lacking is reported.
func (n *node) goWithout(what string, err error) error {
	if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("pods of the node itself: %w", err)
	}
	n.lacks = append(n.lacks, fmt.Sprintf("%s: %v", what, err))
	return nil
}

// open lets callers in at all doors. The CRI tells them to wait until SetReady.
func (n *node) open(backend admin.Backend) error {
	listener, err := n.sockets.Listen("cri", n.cfg.CRISocket, func() (net.Listener, error) { return cri.Listen(n.cfg.CRISocket, n.cfg.CRISocketGroup) })
	if err == nil {
		err = cri.Permit(n.cfg.CRISocket, n.cfg.CRISocketGroup) // another daemon's configuration may have been another
	}
	if err != nil {
		return err
	}
	path := adminSocket(n.cfg.RunDir)
	operator, err := n.sockets.Listen("admin", path, func() (net.Listener, error) { return admin.Listen(path) })
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	n.server, n.operator = cri.NewGRPCServer(n.cri), admin.NewServer(backend, n.log)
	n.door(func() error {
		if err := n.server.Serve(listener); !errors.Is(err, grpc.ErrServerStopped) { // stopped before it had begun
			return err
		}
		return nil
	})
	n.door(n.streams.Serve)
	n.door(func() error { return n.operator.Serve(operator) })
	n.openMetrics()
	return nil
}

func (n *node) openMetrics() {
	address := n.cfg.Metrics.Address
	if address == config.MetricsOff {
		return
	}
	l, err := n.sockets.Listen("metrics", address, func() (net.Listener, error) { return metrics.Listen(address) })
	if err != nil {
		n.log.Error("no metrics, ignoring", "err", err)
		return
	}
	n.door(func() error { return n.metrics.Serve(n.over, l, n.cfg.Metrics.Pprof) })
}

// door serves until the end of n; an end before is a fault of the node.
func (n *node) door(serve func() error) {
	n.doors.Go(func() {
		if err := serve(); err != nil && n.over.Err() == nil {
			n.broken <- err
		}
	})
}

// stop ends all calls and sessions.
func (n *node) stop() {
	n.leave()
	_ = n.closeAPI() // end does it once more, and says what is wrong
	n.stopSelf()
	if n.server != nil {
		stopServer(n.server)
		n.operator.Close()
		<-n.operator.Done()
	}
}

// stopServer lets short calls end and cuts off the rest: whoever waits for events or for a slow stop asks again.
func stopServer(server *grpc.Server) {
	const grace = 3 * time.Second
	timer := time.AfterFunc(grace, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
}

// end closes everything; sessions that are left are cut off. Pods run on.
func (n *node) end() error {
	n.leave()
	failed := n.closeAPI()
	n.stopSelf()
	if n.server != nil {
		n.server.Stop()
		n.operator.Close()
	}
	if n.streams != nil {
		failed = errors.Join(failed, n.streams.Close())
	}
	if n.runtime != nil {
		failed = errors.Join(failed, n.runtime.Close())
	}
	n.doors.Wait()
	return errors.Join(failed, n.shut())
}

// How long hand-overs wait.
const (
	callsLimit = 10 * time.Second // for calls that do not take long
	workLimit  = 30 * time.Second // for work to end that was told to
)

// handOver lets no more callers in and gives up everything but the sessions. What it returns is for the next daemon. After an
// error n is of no more use either.
func (n *node) handOver(ctx context.Context, l *handover.Lingering) (pending json.RawMessage, err error) {
	n.leave()
	short, cancel := context.WithTimeout(ctx, callsLimit)
	defer cancel()
	var operator sync.WaitGroup
	operator.Go(func() { n.operator.HandOver(short) })
	operator.Go(func() { n.handOverAPI(short) })
	n.calls = n.cri.HandOver(short, n.server)
	operator.Wait()
	n.stopSelf()
	if pending, err = n.streams.HandOver(ctx); err != nil {
		return nil, err
	}
	work, cancel := context.WithTimeout(ctx, workLimit)
	defer cancel()
	if err := n.runtime.Part(work, l.TellExecs); err != nil {
		return nil, err
	}
	return pending, errors.Join(l.TellSessions(n.sessions()), n.shut())
}

// sessions is how many a node still serves after handOver.
func (n *node) sessions() int { return n.streams.Sessions() + n.cri.Sessions() + n.apiSessions() }

// linger returns when the sessions have ended after handOver, or ctx has.
func (n *node) linger(ctx context.Context, l *handover.Lingering) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for n.sessions() > 0 {
		if err := l.TellSessions(n.sessions()); err != nil {
			n.log.Warn("the number of sessions could not be noted, ignoring", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	if n.calls == nil {
		return // the hand-over had not come that far
	}
	// The last answers are on their way.
	for _, last := range []<-chan struct{}{n.calls, n.operator.Done()} {
		select {
		case <-last:
		case <-ctx.Done():
			return
		}
	}
}
