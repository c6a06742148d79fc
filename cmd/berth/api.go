package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cri"
	"github.com/berth-node/berth/internal/admin"
	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/stream"
	"github.com/berth-node/berth/kubelet/server"
)

// An api is the doors to the node's own pods.
type api struct {
	sessions *stream.Sessions
	declared *server.Declared
	doors    []*server.Door
}

// kubeconfig is where kubectl finds how to come in: in the run dir, since it names a port.
func kubeconfig(runDir string) string { return filepath.Join(runDir, "kubeconfig") }

// openAPI lets in who asks for the node's own pods.
func (n *node) openAPI() error {
	started := time.Now()
	c := n.cfg.Kubelet
	credentials, err := server.OpenCredentials(filepath.Join(n.cfg.RootDir, "kubelet", "pki"), n.names(), time.Now)
	if err != nil {
		return err
	}
	probes := prometheus.NewRegistry()
	probes.MustRegister(n.self.kubelet.Probes().Collectors()...)
	n.api = &api{
		sessions: stream.NewSessions(stream.Config{IdleTimeout: n.cfg.Streaming.IdleTimeout, Log: n.log}, cri.StreamBackend(n.runtime)),
		declared: server.NewDeclared(n.self.declared, n.taken, n.self.binder.Look, started),
	}
	facts := server.NodeFacts{
		Name: c.NodeName, Version: version, IPs: n.self.spec.IPs, Created: credentials.Since(), Started: started, Capacity: n.self.capacity, Allocatable: n.self.allocatable,
	}
	s := server.New(server.Config{
		NodeName: c.NodeName, Version: version, Kubelet: n.self.kubelet, Objects: n.api.declared, Events: n.self.events,
		Container: n.runtime.Container, Sessions: n.api.sessions, Dir: n.cfg.RootDir,
		Stats: n.podStats, Metrics: n.podMetrics, Descriptors: n.metricDescriptors(),
		Volumes: n.self.volumes.Measure, Files: n.self.kubelet.Files, LogDir: n.self.spec.ContainerLogDir,
		Daemon: n.metrics.Gatherer(), Probes: probes, Configz: n.configz(), Now: time.Now, Log: n.log,
		Node: func() *v1.Node { return n.nodeObject(facts) },
	})
	n.doors.Go(func() { n.api.declared.Run(n.over) })
	path := apiSocket(n.cfg.RunDir)
	local, err := n.sockets.Listen("api", path, func() (net.Listener, error) { return admin.Listen(path) })
	if err != nil {
		return err
	}
	door, err := server.NewDoor(local, s.API(), nil, n.log)
	if err != nil {
		return err
	}
	n.openDoor(door)
	n.openTLS("api-tls", c.APIAddress, func(l net.Listener) error {
		if err := credentials.WriteKubeconfig(kubeconfig(n.cfg.RunDir), l.Addr()); err != nil {
			return errors.Join(err, l.Close())
		}
		return n.secured(server.NewDoor(l, s.API(), credentials, n.log))
	})
	n.openTLS("kubelet", n.portAddress(), func(l net.Listener) error {
		return n.secured(server.NewDoor(l, s.Port(), credentials, n.log))
	})
	return nil
}

func (n *node) secured(d *server.Door, err error) error {
	if err == nil {
		n.openDoor(d)
	}
	return err
}

func (n *node) openDoor(d *server.Door) {
	n.api.doors = append(n.api.doors, d)
	n.door(d.Serve)
}

// openTLS opens a port. That somebody else has it is no reason for pods not to run.
func (n *node) openTLS(name, address string, open func(net.Listener) error) {
	if address == config.MetricsOff {
		return
	}
	l, err := n.sockets.Listen(name, address, func() (net.Listener, error) { return listenTCP(address) })
	if err == nil {
		err = open(l)
	}
	if err != nil {
		n.log.Warn("a port of the node's own pods is not served, ignoring", "address", address, "err", err)
	}
}

// listenTCP takes a free port where the usual one is another node's of this machine: the kubeconfig names it.
func listenTCP(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, unix.EADDRINUSE) && address == config.Default().Kubelet.APIAddress {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	return l, err
}

// portAddress is where the kubelet's port is. A node without manifests leaves it to a kubelet that uses the CRI socket.
func (n *node) portAddress() string {
	switch c := n.cfg.Kubelet; {
	case c.Address != "":
		return c.Address
	case n.cfg.Manifests != "":
		return "[::]:10250"
	default:
		return config.MetricsOff
	}
}

// names are those that clients of this machine and of others call it by.
func (n *node) names() []string {
	all := []string{"localhost", "127.0.0.1", "::1", n.cfg.Kubelet.NodeName}
	for _, ip := range n.self.spec.IPs {
		all = append(all, ip.String())
	}
	return all
}

func (n *node) nodeObject(f server.NodeFacts) *v1.Node {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s := n.runtime.Status(ctx)
	f.NotReady, f.Pressure = errors.Join(s.Runtime, s.Network), n.self.guardian.manager.Conditions()
	for _, img := range n.images.List() {
		f.Images = append(f.Images, v1.ContainerImage{Names: append(append([]string{}, img.RepoDigests...), img.RepoTags...), SizeBytes: int64(img.Size)})
	}
	if a, err := netip.ParseAddrPort(n.portAddress()); err == nil {
		f.KubeletPort = int32(a.Port())
	}
	return server.NodeObject(f)
}

func (n *node) podStats(ctx context.Context) ([]*criapi.PodSandboxStats, error) {
	r, err := n.cri.ListPodSandboxStats(ctx, &criapi.ListPodSandboxStatsRequest{})
	return r.GetStats(), err
}

func (n *node) podMetrics(ctx context.Context) ([]*criapi.PodSandboxMetrics, error) {
	r, err := n.cri.ListPodSandboxMetrics(ctx, &criapi.ListPodSandboxMetricsRequest{})
	return r.GetPodMetrics(), err
}

func (n *node) metricDescriptors() []*criapi.MetricDescriptor {
	r, err := n.cri.ListMetricDescriptors(context.Background(), &criapi.ListMetricDescriptorsRequest{})
	if err != nil {
		return nil // it has none to give
	}
	return r.GetDescriptors()
}

// configz is what of the configuration upstream's kubelet has too, in its words.
func (n *node) configz() map[string]any {
	c := n.cfg.Kubelet
	return map[string]any{
		"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
		"staticPodPath": n.cfg.Manifests, "fileCheckFrequency": metav1.Duration{Duration: n.cfg.ManifestsRescan}, "address": n.portAddress(),
		"clusterDNS": c.ClusterDNS, "clusterDomain": c.ClusterDomain, "resolvConf": c.ResolvConf, "podLogsDir": c.PodLogsDir,
		"seccompDefault": c.SeccompDefault, "cgroupRoot": c.CgroupRoot, "cgroupDriver": string(n.cgroups.Driver), "podPidsLimit": c.PodPidsLimit,
		"kubeReserved": c.KubeReserved, "systemReserved": c.SystemReserved, "evictionHard": c.EvictionHard,
		"shutdownGracePeriodByPodPriority": shutdownGroups(c), "maxPods": c.MaxPods, "authentication": map[string]any{"anonymous": map[string]any{"enabled": false}}, "readOnlyPort": 0,
		"crashLoopBackOff":         map[string]any{"maxContainerRestartPeriod": metav1.Duration{Duration: c.CrashLoopBackOff.Max}},
		"containerRuntimeEndpoint": fmt.Sprintf("unix://%s", n.cfg.CRISocket),
	}
}

func shutdownGroups(c config.Kubelet) []map[string]int {
	all := []map[string]int{}
	for _, g := range c.ShutdownByPriority {
		all = append(all, map[string]int{"priority": g.Priority, "shutdownGracePeriodSeconds": g.Seconds})
	}
	return all
}

// apiSessions is how many the doors serve.
func (n *node) apiSessions() int {
	if n.api == nil {
		return 0
	}
	return n.api.sessions.Count()
}

// handOverAPI lets nobody else in, and leaves sessions be.
func (n *node) handOverAPI(ctx context.Context) {
	if n.api == nil {
		return
	}
	for _, d := range n.api.doors {
		d.HandOver(ctx)
	}
}

// closeAPI ends everything at the doors.
func (n *node) closeAPI() (failed error) {
	if n.api == nil {
		return nil
	}
	for _, d := range n.api.doors {
		failed = errors.Join(failed, d.Close())
	}
	return failed
}
