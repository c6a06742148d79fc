package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/selinux/go-selinux"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet"
	"github.com/berth-node/berth/kubelet/binding"
	"github.com/berth-node/berth/kubelet/event"
	"github.com/berth-node/berth/kubelet/manifest"
	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/kubelet/pull"
	"github.com/berth-node/berth/kubelet/resource"
	"github.com/berth-node/berth/kubelet/rotate"
	"github.com/berth-node/berth/kubelet/server"
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
	volumes  *volume.Manager
	guardian *guardian
	logs     *rotate.Rotator // nil where logs are not rotated
	cgroups  *resource.Manager
	binder   *binding.Binder
	able     podspec.Abilities
	// capacity is the machine's, allocatable what all pods together may request of it.
	capacity, allocatable v1.ResourceList
	room                  *resource.Room

	end  context.CancelFunc
	done chan error // has one value when all has ended
}

// openSelf looks what is declared and what there is, and starts nothing. The runtime has recovered.
func (n *node) openSelf() (*self, error) {
	s, host := &self{}, n.cgroups
	dir, c := filepath.Join(n.cfg.RootDir, "kubelet"), n.cfg.Kubelet
	// What a killed daemon was writing there. The one before this has parted with both.
	if err := errors.Join(atomicfile.Sweep(dir), atomicfile.Sweep(n.cfg.RunDir)); err != nil {
		n.log.Warn("what was half written by an earlier daemon cannot be removed", "error", err)
	}
	var err error
	if s.declared, err = source.Open(source.Config{
		Dir: filepath.Join(dir, "objects"), Paths: n.hostPaths(), Log: n.log, Vet: func(was, is manifest.Object) error { return s.binder.Vet(was, is) },
		Folder: source.Folder{Dir: n.cfg.Manifests, Recursive: n.cfg.ManifestsRecursive, Rescan: n.cfg.ManifestsRescan},
	}); err != nil {
		return nil, err
	}
	if err := n.taken(); err != nil && n.cfg.Manifests != "" {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	s.events = event.Open(event.Config{Node: c.NodeName, File: filepath.Join(dir, "events.json"), Log: n.log, Now: time.Now})
	facts, err := resourceNode(host, c)
	if err != nil {
		return nil, err
	}
	if s.capacity, err = capacity(facts, n.cfg.RootDir, c.MaxPods); err != nil {
		return nil, err
	}
	var usable v1.ResourceList
	if usable, s.allocatable, err = forPods(s.capacity, &c); err != nil {
		return nil, err
	}
	s.room = resource.NewRoom(s.allocatable, s.preempt, s.waits)
	s.cgroups = resource.NewManager(host, c.CgroupRoot, facts, usable, n.log)
	s.able = podspec.Abilities{Sysctls: c.UnsafeSysctls, AppArmor: appArmorEnabled(), SupplementalGroups: true}
	if s.spec, err = n.podSpec(s, facts); err != nil {
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
	s.binder = n.newBinder(s, dir)
	s.volumes = volume.New(volume.Config{
		PodsDir: filepath.Join(dir, "pods"), MemoryDir: filepath.Join(dir, "memory"), ClaimsDir: filepath.Join(dir, "claims"),
		Node: s.spec, Bound: s.binder.Volume, HostPaths: n.hostPaths(), Log: n.log,
	})
	s.kubelet, err = kubelet.New(kubelet.Config{
		Dir: dir, NodeName: c.NodeName, Runtime: kubelet.On(n.runtime), Source: s.declared, Spec: s.spec, Images: images, Volumes: s.volumes,
		Cgroups: s.cgroups, Admit: s.admit, Resize: s.resize, Users: users, Events: s.events,
		Limits: plan.Limits{
			Backoff: c.CrashLoopBackOff.Initial, MaxBackoff: c.CrashLoopBackOff.Max,
			PullBackoff: c.ImagePullBackOff.Initial, MaxPullBackoff: c.ImagePullBackOff.Max, Retry: plan.DefaultLimits.Retry,
		},
		DrainGroups: drainGroups(c), Log: n.log,
	})
	if err != nil {
		return nil, err
	}
	if s.logs, err = n.newRotator(); err != nil {
		return nil, err
	}
	s.guardian, err = n.newGuardian(s, dir)
	return s, err
}

// newBinder makes who says what claims are bound to.
func (n *node) newBinder(s *self, dir string) *binding.Binder {
	name := n.cfg.Kubelet.NodeName
	return binding.Open(binding.Config{
		File: filepath.Join(dir, "bindings.json"), Source: s.declared, Event: s.events.Record, Log: n.log,
		HasFolder: func(namespace, name string) bool {
			_, err := os.Stat(filepath.Join(dir, "claims", namespace, name))
			return err == nil
		},
		Node: &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: server.NodeLabels(name)}},
	})
}

func drainGroups(c config.Kubelet) (all []kubelet.DrainGroup) {
	for _, g := range c.ShutdownByPriority {
		all = append(all, kubelet.DrainGroup{Priority: int32(g.Priority), Grace: time.Duration(g.Seconds) * time.Second})
	}
	return all
}

// ownPods reports whether this node runs, or is to run, pods of its own. The CRI answers when all has been opened.
func (n *node) ownPods() bool {
	return n.cfg.Manifests != "" || n.self != nil && len(n.self.declared.List(manifest.Pod)) > 0
}

// taken returns why the node can have no pods of its own: a kubelet that uses the CRI has pods that run.
func (n *node) taken() error {
	ready := true
	for _, sb := range n.runtime.Sandboxes(runtime.SandboxFilter{Ready: &ready}) {
		if sb.Owner == runtime.OwnerCRI && sb.Config.GetLabels()[podspec.PodUIDLabel] != "" {
			return fmt.Errorf("pods of a kubelet run on this node (%s/%s), which would end the node's own: take them off the node first: %w",
				sb.Config.GetMetadata().GetNamespace(), sb.Config.GetMetadata().GetName(), errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// runSelf begins to look after the node's own pods, and lets in who asks for them.
func (n *node) runSelf() error {
	defer close(n.started)
	if n.self == nil {
		return nil
	}
	n.self.run()
	if err := n.openAPI(); err != nil {
		return n.goWithout("nobody is let in to the pods of the node itself", err)
	}
	return nil
}

// run starts it all.
func (s *self) run() {
	var ctx context.Context
	ctx, s.end = context.WithCancel(context.Background())
	s.done = make(chan error, 1)
	sources := make(chan error, 1)
	go func() { sources <- s.declared.Run(ctx) }()
	var beside sync.WaitGroup
	beside.Go(func() { s.guardian.run(ctx, s.kubelet) })
	if s.logs != nil {
		beside.Go(func() { s.logs.Run(ctx) })
	}
	go func() {
		err := errors.Join(s.kubelet.Run(ctx), <-sources)
		beside.Wait()
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
	n.self.events.Close()
}

// drainSelf ends the node's own pods.
func (n *node) drainSelf(ctx context.Context, limit time.Duration, tell func(string)) error {
	if n.self == nil {
		return nil
	}
	return n.self.kubelet.Drain(ctx, limit, tell)
}

// admit refuses what the node cannot do, what it has no room for at the moment, and what does not fit beside the others.
func (s *self) admit(pod *v1.Pod, others []*v1.Pod) *kubelet.Refusal {
	if r := s.able.Check(pod); r != nil {
		return &kubelet.Refusal{Reason: r.Reason, Message: r.Message}
	}
	if r := s.guardian.admit(pod); r != nil {
		return r
	}
	if o := s.room.Ask(pod, others); o != nil {
		return &kubelet.Refusal{Reason: o.Reason, Message: o.Message}
	}
	return nil
}

// resize refuses other resources to a pod that runs: what the node cannot change, and what there is no room for at the moment.
// Nobody is ended for it.
func (s *self) resize(have, want *v1.Pod, others []*v1.Pod) *kubelet.Refusal {
	if message := s.spec.Resources.Infeasible(have, want); message != "" {
		return &kubelet.Refusal{Reason: v1.PodReasonInfeasible, Message: message}
	}
	if !resource.Grows(have, want) {
		return nil
	}
	if r := s.guardian.admit(want); r != nil {
		return r
	}
	if o := s.room.Look(want, others); o != nil {
		return &kubelet.Refusal{Reason: o.Reason, Message: o.Message}
	}
	return nil
}

// waits says that the pod of a name is declared and not let in.
func (s *self) waits(name types.NamespacedName) bool {
	_, declared := s.declared.Get(manifest.Key{Kind: manifest.Pod, Namespace: name.Namespace, Name: name.Name})
	p, there := s.kubelet.Pods().Get(name.Namespace, name.Name)
	return declared && (!there || p.Status.Phase == v1.PodFailed)
}

// preempt ends a pod for a more important one, in upstream's words.
func (s *self) preempt(victim *v1.Pod) {
	const message = "Preempted in order to admit critical pod"
	s.events.Eventf(event.About(victim), v1.EventTypeWarning, plan.Preempting, message)
	// One that is not there any more has gone by itself.
	_ = s.kubelet.Evict(victim.UID, plan.Preempting, message, "Pod was preempted by Kubelet to accommodate a critical pod.", nil)
}

// appArmorEnabled says whether the kernel has AppArmor switched on.
func appArmorEnabled() bool {
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(data), "Y")
}

// podSpec says what pods are told of the node.
func (n *node) podSpec(s *self, facts *resource.Node) (*podspec.Node, error) {
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
		IPs: ips, LogDir: c.PodLogsDir, LinkDir: c.LogLinks(), DNS: podspec.DNS{Servers: servers, Domain: c.ClusterDomain, ResolvConf: c.ResolvConf},
		SeccompRoot: c.SeccompDir, SeccompDefault: c.SeccompDefault, SELinux: selinux.GetEnabled(), RecursiveReadOnly: true,
		Allocatable: s.allocatable, Resources: facts, CgroupParent: s.cgroups.Parent,
		Warn: func(pod *v1.Pod, reason, message string) {
			s.events.Eventf(event.About(pod), v1.EventTypeWarning, reason, "%s", message)
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
