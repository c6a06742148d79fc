package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	helper "k8s.io/component-helpers/resource"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
)

// setUpEmptyDir makes an empty folder that everybody may write, on the disk or mounted, and leaves one that is there alone.
func (m *Manager) setUpEmptyDir(pod *v1.Pod, v *v1.Volume) (string, error) {
	dir := m.path(pod.UID, emptyDirKind, v.Name)
	if v.EmptyDir.Medium == v1.StorageMediumDefault {
		return dir, makeDir(dir, func(made string) error { return giveToGroup(made, pod, false) })
	}
	if err := makeDir(dir, nil); err != nil {
		return "", err
	}
	there, err := mounted(dir)
	if there || err != nil { // not after a reboot
		return dir, err
	}
	if err := m.mountEmptyDir(pod, v, dir); err != nil {
		return "", err
	}
	return dir, giveToGroup(dir, pod, false)
}

func (m *Manager) mountEmptyDir(pod *v1.Pod, v *v1.Volume, dir string) error {
	switch medium := v.EmptyDir.Medium; {
	case medium == v1.StorageMediumMemory:
		return mountTmpfs(dir, fmt.Sprintf("size=%d", m.memorySize(pod, v.EmptyDir.SizeLimit)))
	case v1helper.IsHugePageMedium(medium):
		size, err := pageSize(pod, medium)
		if err != nil {
			return err
		}
		return mount("nodev", dir, "hugetlbfs", "pagesize="+size.String())
	default:
		return fmt.Errorf("unknown storage medium %q", medium)
	}
}

// memorySize is what a tmpfs may hold: the volume's limit, the pod's memory or all that pods may have, the least of them.
func (m *Manager) memorySize(pod *v1.Pod, limit *resource.Quantity) int64 {
	size := m.Node.Allocatable.Memory().Value()
	lower := func(to int64) {
		if to > 0 && (size <= 0 || to < size) {
			size = to
		}
	}
	if memory := m.Node.Resources.Pod(pod).Memory; memory.Limit != nil {
		lower(*memory.Limit)
	}
	if limit != nil {
		lower(limit.Value())
	}
	return size // 0, of a node that does not know its memory, is no limit
}

// pageSize is that of the huge pages that the pod requests: of the medium's size, or of the only one.
func pageSize(pod *v1.Pod, medium v1.StorageMedium) (*resource.Quantity, error) {
	var wanted resource.Quantity
	if medium != v1.StorageMediumHugePages {
		var err error
		if wanted, err = v1helper.HugePageSizeFromMedium(medium); err != nil {
			return nil, err
		}
	}
	var found *resource.Quantity
	for name := range helper.PodRequests(pod, helper.PodResourcesOptions{}) {
		if !v1helper.IsHugePageResourceName(name) {
			continue
		}
		size, err := v1helper.HugePageSizeFromResourceName(name)
		if err != nil {
			return nil, err
		}
		switch {
		case !wanted.IsZero() && size.Cmp(wanted) != 0:
		case found != nil && found.Cmp(size) != 0:
			return nil, fmt.Errorf("medium: %s can't be used if container requests multiple huge page sizes", medium)
		default:
			found = &size
		}
	}
	if found == nil {
		return nil, fmt.Errorf("medium %s: hugePages storage requested, but there is no resource request for huge pages", medium)
	}
	return found, nil
}

// mountTmpfs mounts a tmpfs that is never swapped out, where the kernel can do that (Linux 6.4).
func mountTmpfs(dir string, options ...string) error {
	err := mount("tmpfs", dir, "tmpfs", append(slices.Clone(options), "noswap")...)
	if errors.Is(err, unix.EINVAL) {
		err = mount("tmpfs", dir, "tmpfs", options...)
	}
	return err
}

func mount(source, dir, kind string, options ...string) error {
	if err := unix.Mount(source, dir, kind, 0, strings.Join(options, ",")); err != nil {
		return fmt.Errorf("mount %s at %s: %w", kind, dir, err)
	}
	return nil
}

// memorySpace bounds the tmpfs of all Secrets, in bytes: a Secret has a MiB at most, and this is not to be all memory.
const memorySpace = 1 << 30

// inMemory returns the place of a volume in the tmpfs, which is mounted if it is not.
func (m *Manager) inMemory(uid types.UID, name string) (string, error) {
	m.memory.Lock()
	defer m.memory.Unlock()
	if err := os.MkdirAll(m.MemoryDir, 0o700); err != nil {
		return "", err
	}
	there, err := mounted(m.MemoryDir)
	if err == nil && !there {
		err = mountTmpfs(m.MemoryDir, "mode=0700", fmt.Sprintf("size=%d", memorySpace))
	}
	if err != nil {
		return "", err
	}
	dir := filepath.Join(m.MemoryDir, string(uid))
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	return filepath.Join(dir, name), nil
}

// forget removes what the pod has in the tmpfs, and the tmpfs with the last pod.
func (m *Manager) forget(uid types.UID) error {
	m.memory.Lock()
	defer m.memory.Unlock()
	there, err := mounted(m.MemoryDir)
	if err != nil || !there {
		return err
	}
	if err := removeTree(filepath.Join(m.MemoryDir, string(uid))); err != nil {
		return err
	}
	if entries, err := os.ReadDir(m.MemoryDir); err != nil || len(entries) > 0 {
		return err
	}
	if err := unix.Unmount(m.MemoryDir, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount %s: %w", m.MemoryDir, err)
	}
	return nil
}
