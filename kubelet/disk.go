package kubelet

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/kubelet/volume"
	"github.com/berth-node/berth/runtime"
)

// RemoveDead removes containers that have ended and are kept to be looked at only, with their logs: those of pods that are over, and
// those that have a successor.
func (k *Kubelet) RemoveDead(ctx context.Context) error {
	var failed error
	pods, _ := k.pods.List()
	for _, pod := range pods {
		over := pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
		seen := map[string]bool{}
		for _, c := range k.containers(pod) {
			name := c.Config.GetMetadata().GetName()
			if c.State == runtime.Exited && (over || seen[name]) {
				failed = errors.Join(failed, k.removeContainer(ctx, pod, c.ID, false))
			}
			seen[name] = true
		}
	}
	return failed
}

// containers of a pod, the newest first.
func (k *Kubelet) containers(pod *v1.Pod) (all []runtime.Container) {
	for _, s := range k.sandboxes(pod.UID) {
		all = append(all, k.cfg.Runtime.SandboxContainers(s.ID)...)
	}
	slices.SortStableFunc(all, func(a, b runtime.Container) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return all
}

// Files is the space that a pod's files take beside layers, logs and volumes: its /etc/hosts and its last words, to both of which it
// can write what it likes.
func (k *Kubelet) Files(pod *v1.Pod) (volume.Usage, error) {
	dir := k.store.podDir(pod.UID)
	u, err := volume.MeasureFolder(podspec.TerminationDir(dir, ""))
	hosts, missing := os.Stat(filepath.Join(dir, podspec.HostsFile))
	if missing != nil {
		if !errors.Is(missing, fs.ErrNotExist) {
			err = errors.Join(err, missing)
		}
		return u, err
	}
	u.Inodes++
	u.Bytes += uint64(hosts.Sys().(*syscall.Stat_t).Blocks) * 512
	return u, err
}
