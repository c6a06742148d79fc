// Package binding says which PersistentVolume a claim has: what a cluster's volume controller does, with this node as its only one.
//
// A claim that is bound stays bound, also when a better volume comes. A volume that a claim has had is given to no claim of another
// name: there is data in it. This is on disk before any pod is told of it. A claim that no volume is declared for is a folder of
// the node, and stays one.
package binding

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/manifest"
	"github.com/berth-node/berth/kubelet/source"
)

// Config of a Binder.
type Config struct {
	// File is where bindings are kept.
	File string
	// Source has the claims and the volumes.
	Source interface {
		List(manifest.Kind) []source.Entry
		Ready() <-chan struct{}
	}
	// HasFolder reports whether there is a folder with the data of a claim.
	HasFolder func(namespace, name string) bool
	// Node is what the affinity of volumes is held against: its name and labels.
	Node *v1.Node
	// Event records what the owner of a claim should know.
	Event func(about *v1.ObjectReference, eventType, reason, message string)
	Log   *slog.Logger
}

// A Binder knows what claims are bound to. Its methods may be called concurrently; each looks first at what is declared now.
type Binder struct {
	Config

	mu      sync.Mutex
	holders map[string]holder             // of volumes, by their names
	broken  error                         // why the holders of before cannot be read; nil if they can
	folders map[types.NamespacedName]bool // claims of which a pod was told that they are folders
	told    map[types.UID]complaint       // the last event about each claim
}

// A holder is the claim that has, or had, a volume.
type holder struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	VolumeUID types.UID `json:"volumeUID"`
}

func (h holder) is(c *v1.PersistentVolumeClaim) bool {
	return h.Namespace == c.Namespace && h.Name == c.Name
}

// A complaint is why a claim is not bound, as an event.
type complaint struct{ kind, reason, message string }

// Open reads the bindings of before. If they are damaged claims get no volume but one that they name, or that names them: any other
// may have been another claim's.
func Open(c Config) *Binder {
	b := &Binder{Config: c, holders: map[string]holder{}, folders: map[types.NamespacedName]bool{}, told: map[types.UID]complaint{}}
	if err := atomicfile.ReadJSON(c.File, &b.holders); err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.holders, b.broken = map[string]holder{}, err
		c.Log.Error("what claims are bound to cannot be read: until the file is removed, and berth started again, none gets a volume that it does not name",
			"file", c.File, "error", err)
	}
	return b
}

// Volume is the volume that a pod gets for a claim; nil is the claim's folder. It stays so.
func (b *Binder) Volume(namespace, name string) (*v1.PersistentVolume, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, err := b.sync()
	if err != nil {
		return nil, err
	}
	key := types.NamespacedName{Namespace: namespace, Name: name}
	c := now.claims[key]
	if c == nil {
		return nil, fmt.Errorf("persistentvolumeclaim %q not found", name)
	}
	volume, folder := b.has(c, now)
	v := now.volumes[volume]
	switch {
	case folder:
		b.folders[key] = true
		return nil, nil
	case v == nil || !mayHave(v, c):
		return nil, fmt.Errorf("error processing PVC %s/%s: PVC is not bound: %w", namespace, name, errdefs.ErrUnavailable)
	case !b.fitsNode(v):
		return nil, fmt.Errorf("MountVolume.NodeAffinity check failed for volume %q : no matching NodeSelectorTerms", v.Name)
	}
	return v, nil
}

// Look returns all claims and volumes with their status.
func (b *Binder) Look() (claims []*v1.PersistentVolumeClaim, volumes []*v1.PersistentVolume) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, err := b.sync()
	if err != nil {
		b.Log.Warn("claims stay unbound: what they are bound to cannot be kept", "error", err)
	}
	for _, c := range now.inOrder() {
		claims = append(claims, b.shownClaim(c, now))
	}
	for _, name := range slices.Sorted(maps.Keys(now.volumes)) {
		volumes = append(volumes, b.shownVolume(now.volumes[name], now))
	}
	return claims, volumes
}

// Vet returns why a claim cannot become another one of its name, besides what its fields say: it is bound already.
func (b *Binder) Vet(was, is manifest.Object) error {
	if was.Claim == nil || is.Claim == nil {
		return nil
	}
	b.mu.Lock()
	volume := b.volumeOf(was.Claim)
	folder := volume == "" && b.isFolder(was.Claim)
	b.mu.Unlock()
	want, before := is.Claim.Spec.VolumeName, size(was.Claim.Spec.Resources.Requests)
	switch {
	case want != "" && want != volume && (volume != "" || folder):
		return fmt.Errorf("%s: delete it first: spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims", is.Key)
	case volume != "" && before.Cmp(size(is.Claim.Spec.Resources.Requests)) < 0:
		return fmt.Errorf("persistentvolumeclaims %q is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize", is.Name)
	}
	return nil
}

// state is what is declared.
type state struct {
	claims  map[types.NamespacedName]*v1.PersistentVolumeClaim
	volumes map[string]*v1.PersistentVolume
	// lost are claims and volumes, by their keys, that are declared and cannot be read.
	lost map[manifest.Key]bool
	// classes are those that some volume has.
	classes map[string]bool
	heard   bool // everybody who declares has been heard
}

func (b *Binder) state() *state {
	s := &state{
		claims: map[types.NamespacedName]*v1.PersistentVolumeClaim{}, volumes: map[string]*v1.PersistentVolume{},
		lost: map[manifest.Key]bool{}, classes: map[string]bool{},
	}
	select {
	case <-b.Source.Ready():
		s.heard = true
	default:
	}
	for _, e := range append(b.Source.List(manifest.Claim), b.Source.List(manifest.Volume)...) {
		switch {
		case e.Lost != nil:
			s.lost[e.Key] = true
		case e.Claim != nil:
			s.claims[types.NamespacedName{Namespace: e.Namespace, Name: e.Name}] = e.Claim
		case e.Volume != nil:
			s.volumes[e.Name] = e.Volume
			s.classes[volumeClass(e.Volume)] = true
		}
	}
	return s
}

// inOrder are the claims in the order in which they came, which is that in which they choose.
func (s *state) inOrder() []*v1.PersistentVolumeClaim {
	return slices.SortedFunc(maps.Values(s.claims), func(a, b *v1.PersistentVolumeClaim) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

// sync binds what can be bound, and forgets what nobody has any more.
func (b *Binder) sync() (*state, error) {
	before, now := maps.Clone(b.holders), b.state()
	b.forget(now)
	for _, c := range now.inOrder() {
		if b.volumeOf(c) != "" {
			continue
		}
		v, _, why := b.choose(c, now)
		if v != nil {
			b.holders[v.Name] = holder{Namespace: c.Namespace, Name: c.Name, UID: c.UID, VolumeUID: v.UID}
		}
		b.tell(c, why)
	}
	if b.broken != nil || maps.Equal(before, b.holders) {
		return now, nil
	}
	if err := b.save(); err != nil {
		b.holders = before
		return now, err
	}
	for name, h := range b.holders {
		if before[name].UID != h.UID {
			b.Log.Info("claim is bound", "claim", h.Namespace+"/"+h.Name, "volume", name)
		}
	}
	return now, nil
}

// volumeOf is the volume that a claim has; empty: none.
func (b *Binder) volumeOf(c *v1.PersistentVolumeClaim) string {
	for name, h := range b.holders {
		if h.UID == c.UID && h.is(c) {
			return name
		}
	}
	return ""
}

// isFolder says that there is data of a claim in its folder, or will be.
func (b *Binder) isFolder(c *v1.PersistentVolumeClaim) bool {
	return b.folders[types.NamespacedName{Namespace: c.Namespace, Name: c.Name}] || b.HasFolder(c.Namespace, c.Name)
}

// has is what a claim is bound to.
func (b *Binder) has(c *v1.PersistentVolumeClaim, now *state) (volume string, folder bool) {
	if volume = b.volumeOf(c); volume == "" {
		_, folder, _ = b.choose(c, now)
	}
	return volume, folder
}

// forget drops the holders of volumes that were given back and then declared anew, which is how their owner says that they may be
// used again, and of claims that are gone with their volumes.
func (b *Binder) forget(now *state) {
	for name, h := range b.holders {
		if !now.heard || now.lost[manifest.Key{Kind: manifest.Volume, Name: name}] || now.lost[manifest.Key{Kind: manifest.Claim, Namespace: h.Namespace, Name: h.Name}] {
			continue
		}
		v, c := now.volumes[name], now.claims[types.NamespacedName{Namespace: h.Namespace, Name: h.Name}]
		again := v != nil && v.UID != h.VolumeUID // the volume is declared anew
		switch {
		case c == nil && v != nil && !again, c != nil && v == nil && c.UID == h.UID:
		case c == nil, v == nil, again && c.UID != h.UID && !suits(v, c):
			delete(b.holders, name)
		case again:
			h.VolumeUID = v.UID
			b.holders[name] = h
		}
	}
	there := map[types.UID]bool{}
	for _, c := range now.claims {
		there[c.UID] = true
	}
	maps.DeleteFunc(b.told, func(uid types.UID, _ complaint) bool { return !there[uid] })
	maps.DeleteFunc(b.folders, func(key types.NamespacedName, _ bool) bool { return now.claims[key] == nil })
}

// tell records once why a claim is not bound.
func (b *Binder) tell(c *v1.PersistentVolumeClaim, why complaint) {
	if why == (complaint{}) || b.told[c.UID] == why {
		return
	}
	b.told[c.UID] = why
	b.Event(&v1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID}, why.kind, why.reason, why.message)
}

// save has the records on disk, so that not even a power cut gives a volume to another claim.
func (b *Binder) save() error {
	text, err := json.Marshal(b.holders)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(b.File, text, 0o600); err != nil {
		return err
	}
	return errors.Join(syncPath(b.File), syncPath(filepath.Dir(b.File)))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (b *Binder) fitsNode(v *v1.PersistentVolume) bool {
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return true
	}
	selector, err := nodeaffinity.NewNodeSelector(v.Spec.NodeAffinity.Required)
	return err == nil && selector.Match(b.Node)
}
