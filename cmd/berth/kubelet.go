package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/kubelet"
	"github.com/berth-node/berth/kubelet/event"
	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/kubelet/pull"
	"github.com/berth-node/berth/kubelet/resource"
	"github.com/berth-node/berth/kubelet/source"
	"github.com/berth-node/berth/kubelet/userns"
	"github.com/berth-node/berth/kubelet/volume"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/image"
)

// A self is the part of a node that runs pods of its own, from manifests and from "berth apply".
type self struct {
	declared *source.Store
	events   *event.Store
	kubelet  *kubelet.Kubelet
	spec     *podspec.Node
	tree     resource.Tree
	volumes  *volume.Manager
	guardian *guardian

	end  context.CancelFunc
	done chan error // has one value when all has ended
}

// openSelf looks what is declared and what there is, and starts nothing. The runtime has recovered.
func (n *node) openSelf() (*self, error) {
	s, host := &self{}, n.cgroups
	dir, c := filepath.Join(n.cfg.RootDir, "kubelet"), n.cfg.Kubelet
	var err error
	if s.declared, err = source.Open(source.Config{
		Dir: filepath.Join(dir, "objects"), Log: n.log,
		Folder: source.Folder{Dir: n.cfg.Manifests, Recursive: n.cfg.ManifestsRecursive, Rescan: n.cfg.ManifestsRescan},
	}); err != nil {
		return nil, err
	}
	s.events = event.New(event.Config{Node: c.NodeName, Log: n.log, Now: time.Now}, nil)
	s.tree = resource.Tree{Root: c.CgroupRoot, Driver: host.Driver}
	if s.spec, err = n.podSpec(s.tree, s.events); err != nil {
		return nil, err
	}
	images, err := n.puller(filepath.Join(dir, "images"), s.events)
	if err != nil {
		return nil, err
	}
	users, err := userns.New()
	if err != nil {
		return nil, err
	}
	for _, sb := range n.runtime.Sandboxes(runtime.SandboxFilter{}) {
		users.Adopt(uidOf(sb), sb.Config)
	}
	s.volumes = volume.New(volume.Config{
		PodsDir: filepath.Join(dir, "pods"), MemoryDir: filepath.Join(dir, "memory"), ClaimsDir: filepath.Join(dir, "claims"),
		Node: s.spec, HostPaths: n.hostPaths(), Log: n.log,
	})
	s.kubelet, err = kubelet.New(kubelet.Config{
		Dir: dir, NodeName: c.NodeName, Runtime: n.runtime, Source: s.declared, Spec: s.spec, Images: images, Volumes: s.volumes,
		Admit:   func(pod *v1.Pod, _ []*v1.Pod) *kubelet.Refusal { return s.guardian.admit(pod) },
		Cgroups: podCgroups{host, s.spec.CgroupParent}, Users: users, Events: s.events,
		Limits: plan.Limits{
			Backoff: c.CrashLoopBackOff.Initial, MaxBackoff: c.CrashLoopBackOff.Max,
			PullBackoff: c.ImagePullBackOff.Initial, MaxPullBackoff: c.ImagePullBackOff.Max, Retry: plan.DefaultLimits.Retry,
		},
		Log: n.log,
	})
	if err != nil {
		return nil, err
	}
	s.guardian, err = n.newGuardian(s, dir)
	return s, err
}

// run starts it all.
func (s *self) run() {
	var ctx context.Context
	ctx, s.end = context.WithCancel(context.Background())
	s.done = make(chan error, 1)
	sources := make(chan error, 1)
	go func() { sources <- s.declared.Run(ctx) }()
	guarded := make(chan struct{})
	go func() {
		s.guardian.run(ctx, s.kubelet)
		close(guarded)
	}()
	go func() {
		err := errors.Join(s.kubelet.Run(ctx), <-sources)
		<-guarded
		s.done <- err
	}()
}

// stopSelf ends the looking after pods; they run on.
func (n *node) stopSelf() {
	if n.self == nil || n.self.end == nil {
		return
	}
	n.self.end()
	n.self.end = nil
	if err := <-n.self.done; err != nil {
		n.log.Error("the pods of this node itself", "err", err)
	}
}

// drainSelf ends the node's own pods, and removes the cgroups that all of them had in common.
func (n *node) drainSelf(ctx context.Context, limit time.Duration, tell func(string)) error {
	if n.self == nil {
		return nil
	}
	if err := n.self.kubelet.Drain(ctx, limit, tell); err != nil {
		return err
	}
	for _, class := range []v1.PodQOSClass{v1.PodQOSBestEffort, v1.PodQOSBurstable} {
		if err := n.cgroups.RemoveParentIfEmpty(ctx, n.self.tree.Class(class)); err != nil {
			return err
		}
	}
	return n.cgroups.RemoveParentIfEmpty(ctx, n.self.tree.Node())
}

// podSpec says what pods are told of the node.
func (n *node) podSpec(tree resource.Tree, events *event.Store) (*podspec.Node, error) {
	c := n.cfg.Kubelet
	ips, err := nodeIPs(c.NodeIPs)
	if err != nil {
		return nil, err
	}
	servers, err := parseAddrs(c.ClusterDNS)
	if err != nil {
		return nil, err
	}
	return &podspec.Node{
		IPs: ips, LogDir: c.PodLogsDir, DNS: podspec.DNS{Servers: servers, Domain: c.ClusterDomain, ResolvConf: c.ResolvConf},
		SeccompRoot: c.SeccompDir, SeccompDefault: c.SeccompDefault, RecursiveReadOnly: true,
		Resources:    &resource.Node{LimitedSwap: c.LimitedSwap, PodPids: int64(c.PodPidsLimit)},
		CgroupParent: func(pod *v1.Pod) string { return tree.Pod(pod.UID, resource.Class(pod)) },
		Warn: func(pod *v1.Pod, reason, message string) {
			events.Eventf(event.About(pod), v1.EventTypeWarning, reason, "%s", message)
		},
	}, nil
}

func (n *node) puller(dir string, events *event.Store) (*pull.Puller, error) {
	c := pull.Config{
		Get: n.images.Get, Dir: dir, Now: time.Now,
		Pull: func(ctx context.Context, ref string, auth *image.Auth) (image.Image, error) {
			return n.images.Pull(ctx, ref, auth, image.PullOptions{})
		},
		Event: func(pod *v1.Pod, c *v1.Container, typ, reason, message string) {
			events.Eventf(event.AboutContainer(pod, c.Name), typ, reason, "%s", message)
		},
	}
	if k := n.cfg.Kubelet; k.CredentialConfig != "" {
		var err error
		if c.Plugins, err = pull.LoadPlugins(k.CredentialConfig, k.CredentialBinDir, time.Now); err != nil {
			return nil, fmt.Errorf("kubelet.imageCredentialProviderConfig: %w", err)
		}
	}
	return pull.New(c)
}

func parseAddrs(list []string) (all []netip.Addr, err error) {
	for _, text := range list {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		all = append(all, addr)
	}
	return all, nil
}

// nodeIPs are the addresses that are configured, or those with which the machine would reach others, IPv4 first.
func nodeIPs(configured []string) ([]netip.Addr, error) {
	if len(configured) > 0 {
		return parseAddrs(configured)
	}
	var all []netip.Addr
	for network, elsewhere := range map[string]string{"udp4": "192.0.2.1:9", "udp6": "[2001:db8::1]:9"} {
		conn, err := net.Dial(network, elsewhere) // which sends nothing
		if err != nil {
			continue
		}
		addr := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
		conn.Close()
		if network == "udp4" {
			all = append([]netip.Addr{addr}, all...)
		} else {
			all = append(all, addr)
		}
	}
	return all, nil
}

func uidOf(s runtime.Sandbox) types.UID { return types.UID(s.Config.GetMetadata().GetUid()) }

// podCgroups are the pods' cgroups, which the runtime makes as the parents of its own.
type podCgroups struct {
	host *cgroups.Host
	path func(*v1.Pod) string
}

func (podCgroups) EnsurePod(context.Context, *v1.Pod) error { return nil }

func (g podCgroups) RemovePod(ctx context.Context, pod *v1.Pod) error {
	group, err := g.host.OpenParent(g.path(pod))
	if err != nil {
		return err
	}
	return group.Remove(ctx)
}
