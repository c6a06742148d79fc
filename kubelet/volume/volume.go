// Package volume makes the volumes of pods: folders, files with the content of ConfigMaps, Secrets and of the pod itself,
// paths of the host, claims and network file systems. What is kept of a pod is below its folder,
//
//	<uid>/volumes/kubernetes.io~<kind>/<name>
//	<uid>/volume-subpaths/<volume>/<container>/<mount>
//
// and what must not touch a disk in one tmpfs for all pods. Nothing is remembered that is not there: each step looks at what
// is, and can be repeated after any interruption.
//
// Containers write into their volumes while we look at them. So nothing is reached by a path through what they can change:
// everything goes down from an open folder, no symbolic link leads out of it, and no mount is crossed.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/hostpath"
	"github.com/berth-node/berth/kubelet/podspec"
)

// Config of a Manager. All folders are absolute and the kubelet's own.
type Config struct {
	// PodsDir has a folder for each pod, by its UID.
	PodsDir string
	// MemoryDir is where the tmpfs with Secrets is mounted, while there are any.
	MemoryDir string
	// ClaimsDir has a folder for the data of each claim, <namespace>/<name>. They stay when pods go.
	ClaimsDir string
	// Node is what pods can be told of it by downwardAPI volumes.
	Node *podspec.Node
	// Bound is the PersistentVolume that a claim is bound to; nil is its folder in ClaimsDir.
	Bound func(namespace, claim string) (*v1.PersistentVolume, error)
	// HostPaths looks up what may hang.
	HostPaths *hostpath.Resolver
	Log       *slog.Logger
}

// A Manager makes volumes and takes them away. Its methods are safe for concurrent use, but for those about one pod, which
// come one after the other.
type Manager struct {
	Config
	memory sync.Mutex // guards the coming and going of the tmpfs
}

// New returns the manager of the volumes below the folders of c.
func New(c Config) *Manager {
	if c.HostPaths == nil {
		c.HostPaths = &hostpath.Resolver{}
	}
	if c.Bound == nil {
		c.Bound = func(string, string) (*v1.PersistentVolume, error) { return nil, nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{Config: c}
}

// Inputs are the objects that a pod's volumes are made of.
type Inputs struct {
	// ConfigMap, Secret and Claim return the objects of the pod's namespace, nil if there is none of the name.
	ConfigMap func(name string) *v1.ConfigMap
	Secret    func(name string) *v1.Secret
	Claim     func(name string) *v1.PersistentVolumeClaim
	// Images are the IDs of the images of volumes of this kind, by the volume's name.
	Images map[string]string
	// IPs of the sandbox.
	IPs []netip.Addr
}

// Error is why one volume could not be made. Its text is the message of upstream's event FailedMount.
type Error struct {
	Volume string
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Errors returns the errors of single volumes in what Setup or Refresh returned.
func Errors(err error) []*Error {
	var one *Error
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*Error
		for _, e := range joined.Unwrap() {
			all = append(all, Errors(e)...)
		}
		return all
	}
	if errors.As(err, &one) {
		return []*Error{one}
	}
	return nil
}

// Setup makes the volumes that the pod's containers use, those that are there already included: it brings their content up
// to date. If some cannot be made, all others are, and the error joins an [Error] for each.
func (m *Manager) Setup(ctx context.Context, pod *v1.Pod, in Inputs) (map[string]podspec.Volume, error) {
	out := map[string]podspec.Volume{}
	var failed []error
	used := usedVolumes(pod)
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !used[v.Name] {
			continue
		}
		made, err := m.setUp(ctx, pod, v, in)
		if err != nil {
			failed = append(failed, &Error{Volume: v.Name, Err: err})
			continue
		}
		out[v.Name] = made
	}
	return out, errors.Join(failed...)
}

// Refresh brings the content of ConfigMaps, Secrets and the pod's own data up to date. What cannot be had any more stays as
// it is, with an [Error] for it.
func (m *Manager) Refresh(pod *v1.Pod, in Inputs) error {
	var failed []error
	used := usedVolumes(pod)
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !used[v.Name] || !hasContent(v) {
			continue
		}
		if _, err := m.setUpContent(pod, v, in); err != nil {
			failed = append(failed, &Error{Volume: v.Name, Err: err})
		}
	}
	return errors.Join(failed...)
}

// usedVolumes are those that some container mounts or takes a variable from. The others are not made: that what they name
// is not there keeps no pod from running.
func usedVolumes(pod *v1.Pod) map[string]bool {
	used := map[string]bool{}
	podutil.VisitContainers(&pod.Spec, podutil.AllContainers, func(c *v1.Container, _ podutil.ContainerType) bool {
		for _, m := range c.VolumeMounts {
			used[m.Name] = true
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.FileKeyRef != nil {
				used[e.ValueFrom.FileKeyRef.VolumeName] = true
			}
		}
		return true
	})
	return used
}

func (m *Manager) setUp(ctx context.Context, pod *v1.Pod, v *v1.Volume, in Inputs) (podspec.Volume, error) {
	switch {
	case v.EmptyDir != nil:
		path, err := m.setUpEmptyDir(pod, v)
		return podspec.Volume{Path: path, Relabel: true}, err
	case hasContent(v):
		path, err := m.setUpContent(pod, v, in)
		return podspec.Volume{Path: path, ReadOnly: true, Relabel: true}, err
	case v.HostPath != nil:
		return podspec.Volume{Path: v.HostPath.Path}, m.checkHostPath(ctx, v.HostPath)
	case v.PersistentVolumeClaim != nil:
		return m.setUpClaim(ctx, pod, v, in)
	case v.NFS != nil:
		path, err := m.setUpNFS(ctx, pod, v.Name, v.NFS, nil)
		return podspec.Volume{Path: path, ReadOnly: v.NFS.ReadOnly}, err
	case v.Image != nil:
		id := in.Images[v.Name]
		if id == "" {
			return podspec.Volume{}, fmt.Errorf("image %q is not there", v.Image.Reference)
		}
		return podspec.Volume{ReadOnly: true, Image: &cri.ImageSpec{Image: id, UserSpecifiedImage: v.Image.Reference}}, nil
	}
	return podspec.Volume{}, fmt.Errorf("its kind is not known here: %w", errdefs.ErrInvalidArgument)
}

// The kinds of volumes that have a folder of the pod's, by upstream's names.
const (
	emptyDirKind  = "empty-dir"
	configMapKind = "configmap"
	nfsKind       = "nfs"
	localKind     = "local-volume"
)

func (m *Manager) podDir(uid types.UID) string { return filepath.Join(m.PodsDir, string(uid)) }

// path is where a volume of the pod is, on a disk or mounted.
func (m *Manager) path(uid types.UID, kind, name string) string {
	return filepath.Join(m.podDir(uid), "volumes", "kubernetes.io~"+kind, name)
}

// UIDs are the pods of which something is left.
func (m *Manager) UIDs() ([]types.UID, error) {
	seen := map[types.UID]bool{}
	var all []types.UID
	for _, dir := range []string{m.PodsDir, m.MemoryDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if uid := types.UID(e.Name()); e.IsDir() && !seen[uid] {
				seen[uid] = true
				all = append(all, uid)
			}
		}
	}
	return all, nil
}
