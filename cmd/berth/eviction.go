package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet"
	"github.com/berth-node/berth/kubelet/event"
	"github.com/berth-node/berth/kubelet/evict"
	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/volume"
	"github.com/berth-node/berth/runtime"
)

// A guardian keeps the node alive when something becomes scarce.
type guardian struct {
	node    *node
	manager *evict.Manager
	images  *evict.Images
}

func evictionRules(k *config.Kubelet) ([]evict.Threshold, error) {
	thresholds, err := evict.Rules{
		EvictionHard: k.EvictionHard, EvictionSoft: k.EvictionSoft,
		EvictionSoftGracePeriod: k.EvictionSoftGracePeriod, EvictionMinimumReclaim: k.EvictionMinimumReclaim,
	}.Parse()
	if err != nil {
		return nil, fmt.Errorf("kubelet.%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return thresholds, nil
}

// newGuardian prepares one; s has its kubelet.
func (n *node) newGuardian(s *self, dir string) (*guardian, error) {
	k := &n.cfg.Kubelet
	thresholds, err := evictionRules(k)
	if err != nil {
		return nil, err
	}
	g := &guardian{node: n}
	ofNode := &v1.ObjectReference{Kind: "Node", Name: k.NodeName, APIVersion: "v1"}
	event := func(typ, reason, message string) { s.events.Eventf(ofNode, typ, reason, "%s", message) }
	observe := evict.Node("/proc", dir, filepath.Join(n.cfg.RootDir, "images"))
	g.images = evict.NewImages(evict.ImageConfig{
		High: k.ImageGCHigh, Low: k.ImageGCLow, MinAge: k.ImageMinAge, MaxAge: k.ImageMaxAge,
		Disk: func(ctx context.Context) (evict.Observation, error) {
			all, err := observe(ctx)
			return all[evict.ImageFsAvailable], err
		},
		List: g.list, InUse: func() map[string]bool { return g.inUse(s) },
		Remove: n.images.Remove, Event: event, Now: time.Now, Log: n.log,
	})
	g.manager = evict.New(evict.Config{
		Thresholds: thresholds, MaxGrace: int64(k.EvictionMaxGrace), Transition: k.EvictionTransition,
		Observe: observe, Pods: func() []*v1.Pod { return active(s.kubelet) },
		Use: func(ctx context.Context, pod *v1.Pod) (evict.Use, bool) { return g.use(ctx, s, pod) },
		Reclaim: func(ctx context.Context) error {
			err := s.kubelet.RemoveDead(ctx)
			g.images.RemoveUnused(ctx)
			return err
		},
		Evict:   s.evict,
		Event:   event,
		Changed: s.kubelet.Reconsider, Now: time.Now, Log: n.log,
	})
	return g, nil
}

// admit refuses pods that would make what is scarce scarcer.
func (g *guardian) admit(pod *v1.Pod) *kubelet.Refusal {
	if message := g.manager.Admit(pod); message != "" {
		return &kubelet.Refusal{Reason: plan.Evicted, Message: message}
	}
	return nil
}

// run looks after the node until ctx ends, from its first own pod on: on a node whose pods are all another kubelet's, that is
// the other's work.
func (g *guardian) run(ctx context.Context, k *kubelet.Kubelet) {
	if !awaitPod(ctx, k) {
		return
	}
	go func() {
		for tick := time.NewTicker(evict.ImageInterval); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			if err := g.images.Step(ctx); err != nil && ctx.Err() == nil {
				g.node.log.Warn("images that nobody uses could not be removed", "err", err)
			}
		}
	}()
	g.manager.Run(ctx)
}

// awaitPod returns true when there is a pod, false when ctx has ended.
func awaitPod(ctx context.Context, k *kubelet.Kubelet) bool {
	for {
		pods, version := k.Pods().List()
		if len(pods) > 0 {
			return true
		}
		watch, err := k.Pods().Watch(version)
		if err == nil {
			_, err = watch.Next(ctx)
		}
		if err != nil && !errors.Is(err, errdefs.ErrResourceExhausted) {
			return false
		}
	}
}

// active are the pods that are not over, with what they have been given.
func active(k *kubelet.Kubelet) []*v1.Pod {
	var pods []*v1.Pod
	all, _ := k.Pods().List()
	for _, p := range all {
		if !over(p) {
			pods = append(pods, k.Allocated(p))
		}
	}
	return pods
}

func over(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed }

func (g *guardian) list() []evict.Image {
	var all []evict.Image
	for _, i := range g.node.images.List() {
		all = append(all, evict.Image{ID: i.ID, Size: int64(i.Size), Pulled: i.Pulled, Pinned: i.Pinned})
	}
	return all
}

// inUse are the images of all containers, and those that pods will make containers of.
func (g *guardian) inUse(s *self) map[string]bool {
	used := map[string]bool{}
	for _, c := range g.node.runtime.Containers(runtime.ContainerFilter{}) {
		used[c.Image.ID] = true
	}
	for _, pod := range active(s.kubelet) {
		for _, name := range imagesOf(pod) {
			if i, err := g.node.images.Get(name); err == nil {
				used[i.ID] = true
			}
		}
	}
	return used
}

// imagesOf names the images that a pod is made from, and those that it mounts as volumes.
func imagesOf(pod *v1.Pod) (names []string) {
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		names = append(names, c.Image)
	}
	for _, v := range pod.Spec.Volumes {
		if v.Image != nil && v.Image.Reference != "" {
			names = append(names, v.Image.Reference)
		}
	}
	return names
}

// use adds up what a pod takes. What of it cannot be read counts as nothing; a pod without a sandbox has no numbers.
func (g *guardian) use(ctx context.Context, s *self, pod *v1.Pod) (evict.Use, bool) {
	id, err := s.kubelet.SandboxID(pod.Namespace, pod.Name)
	if err != nil {
		return evict.Use{}, false
	}
	stats, err := g.node.runtime.SandboxStats(ctx, id)
	if err != nil {
		return evict.Use{}, false
	}
	u := evict.Use{Processes: int64(stats.Processes), Containers: map[string]evict.ContainerUse{}, Volumes: map[string]evict.FsUse{}}
	if c := stats.Cgroup; c != nil && c.Memory != nil {
		u.Memory = int64(c.Memory.WorkingSet)
	}
	for _, c := range stats.Containers {
		name := c.Container.Config.GetMetadata().GetName()
		cu := evict.ContainerUse{Rootfs: evict.FsUse{Bytes: int64(c.Rootfs.Bytes), Inodes: int64(c.Rootfs.Inodes)}}
		if c.Cgroup != nil && c.Cgroup.Memory != nil {
			cu.Memory = int64(c.Cgroup.Memory.WorkingSet)
		}
		if logs, err := volume.MeasureFolder(s.spec.ContainerLogDir(pod, name)); err == nil {
			cu.Logs = evict.FsUse{Bytes: int64(logs.Bytes), Inodes: int64(logs.Inodes)}
		}
		u.Containers[name] = cu
	}
	volumes, err := s.volumes.Usage(pod.UID)
	if err != nil {
		g.node.log.Debug("volumes could not be measured", "pod", pod.Name, "err", err)
	}
	for _, v := range volumes {
		if !v.Mounted {
			u.Volumes[v.Name] = evict.FsUse{Bytes: int64(v.Bytes), Inodes: int64(v.Inodes)}
		}
	}
	if files, err := s.kubelet.Files(pod); err == nil {
		u.Other = evict.FsUse{Bytes: int64(files.Bytes), Inodes: int64(files.Inodes)}
	}
	return u, true
}

const (
	// cleanUpLimit is how long it may take until an evicted pod's volumes are gone, beside its grace; cleanUpLook how often
	// that is looked at. Both are upstream's.
	cleanUpLimit = 30 * time.Second
	cleanUpLook  = 100 * time.Millisecond
)

// evict ends a pod and waits until its volumes are gone: who looks before sees no more room than there was.
func (s *self) evict(ctx context.Context, pod *v1.Pod, o evict.Order) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(o.Grace)*time.Second+cleanUpLimit)
	defer cancel()
	disruption := ""
	if o.Disrupted {
		disruption = o.Message
	}
	s.events.Eventf(event.About(pod), v1.EventTypeWarning, plan.Evicted, "%s", o.Message)
	if err := s.kubelet.Evict(pod.UID, plan.Evicted, o.Message, disruption, &o.Grace); err != nil {
		return err
	}
	for {
		if p, ok := s.kubelet.Pods().Get(pod.Namespace, pod.Name); !ok || p.UID != pod.UID || over(p) && !runs(p) {
			if used, err := s.volumes.Usage(pod.UID); err != nil || len(used) == 0 {
				return err
			}
		}
		select {
		case <-time.After(cleanUpLook):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func runs(pod *v1.Pod) bool {
	return slices.ContainsFunc(slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses), func(s v1.ContainerStatus) bool { return s.State.Running != nil })
}
