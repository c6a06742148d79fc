package binding

import (
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// choose finds the volume for a claim that has none. If there is none, folder says whether a folder of the node will do, and the
// complaint why not.
func (b *Binder) choose(c *v1.PersistentVolumeClaim, now *state) (v *v1.PersistentVolume, folder bool, why complaint) {
	if c.Spec.VolumeName != "" {
		v, why = b.named(c, now)
		return v, false, why
	}
	if v, missing := b.hadBefore(c, now); v != nil || missing {
		return v, false, complaint{}
	}
	if b.isFolder(c) {
		return nil, true, complaint{}
	}
	v, reserved := b.match(c, now)
	class := claimClass(c)
	switch {
	case v != nil && (b.broken == nil || reserved):
		return v, false, complaint{}
	case b.broken != nil:
		return nil, false, failed("what claims are bound to cannot be read any more: name the volume, or remove %s and start berth again", b.File)
	case reserved:
		return nil, false, failed("the volume that is reserved for this claim does not satisfy it")
	case class != nil && *class != "" && now.classes[*class]:
		return nil, false, failed("no persistent volumes available for this claim in storage class %q", *class)
	case c.Spec.Selector != nil, class != nil && now.classes[*class]:
		return nil, false, complaint{v1.EventTypeNormal, "FailedBinding", "no persistent volumes available for this claim and no storage class is set"}
	}
	return nil, true, complaint{}
}

// hadBefore is the volume that a claim of this name had before it was declared anew, if it still does; missing says that it may yet
// be declared.
func (b *Binder) hadBefore(c *v1.PersistentVolumeClaim, now *state) (v *v1.PersistentVolume, missing bool) {
	for _, name := range slices.Sorted(maps.Keys(b.holders)) {
		if !b.holders[name].is(c) {
			continue
		}
		if v = now.volumes[name]; v != nil && mayHave(v, c) && suits(v, c) {
			return v, false
		}
		missing = missing || v == nil && !now.heard
	}
	return nil, missing
}

// suits says that a volume is what a claim asks for.
func suits(v *v1.PersistentVolume, c *v1.PersistentVolumeClaim) bool {
	return unfit(v, c) == "" && selects(c, v)
}

// taken says that a volume is, or was, that of another claim.
func (b *Binder) taken(v *v1.PersistentVolume, c *v1.PersistentVolumeClaim) bool {
	h, held := b.holders[v.Name]
	return held && !h.is(c) || !mayHave(v, c)
}

func failed(format string, args ...any) complaint {
	return complaint{v1.EventTypeWarning, "FailedBinding", fmt.Sprintf(format, args...)}
}

// named is the volume that a claim asks for by name.
func (b *Binder) named(c *v1.PersistentVolumeClaim, now *state) (*v1.PersistentVolume, complaint) {
	v := now.volumes[c.Spec.VolumeName]
	if v == nil {
		return nil, failed("persistentvolume %q not found", c.Spec.VolumeName)
	}
	if b.taken(v, c) {
		return nil, failed("volume %q already bound to a different claim.", v.Name)
	}
	if v.Spec.ClaimRef == nil {
		if wrong := unfit(v, c); wrong != "" {
			return nil, complaint{v1.EventTypeWarning, "VolumeMismatch", fmt.Sprintf("Cannot bind to requested volume %q: %s", v.Name, wrong)}
		}
	}
	return v, complaint{}
}

// unfit is upstream's checkVolumeSatisfyClaim.
func unfit(v *v1.PersistentVolume, c *v1.PersistentVolumeClaim) string {
	has := size(v.Spec.Capacity)
	switch class := claimClass(c); {
	case has.Cmp(size(c.Spec.Resources.Requests)) < 0:
		return "requested PV is too small"
	case volumeClass(v) != deref(class):
		return "storageClassName does not match"
	case !offers(v, c):
		return "incompatible accessMode"
	}
	return ""
}

// match finds the volume that is reserved for a claim, or else the smallest that will do. reserved says that there is one of the
// first kind, even if it will not do.
func (b *Binder) match(c *v1.PersistentVolumeClaim, now *state) (best *v1.PersistentVolume, reserved bool) {
	class, want := deref(claimClass(c)), size(c.Spec.Resources.Requests)
	for _, v := range now.volumes {
		if b.taken(v, c) {
			continue
		}
		has := size(v.Spec.Capacity)
		does := has.Cmp(want) >= 0 && offers(v, c) && b.fitsNode(v)
		if v.Spec.ClaimRef != nil {
			if reserved = true; does {
				return v, true
			}
			continue
		}
		if does && selects(c, v) && volumeClass(v) == class && (best == nil || better(v, best)) {
			best = v
		}
	}
	if reserved {
		return nil, true
	}
	return best, false
}

// better is what is smaller, and of the same size what has the first name.
func better(v, best *v1.PersistentVolume) bool {
	a := size(v.Spec.Capacity)
	if order := a.Cmp(size(best.Spec.Capacity)); order != 0 {
		return order < 0
	}
	return v.Name < best.Name
}

// mayHave says that a volume is not reserved for another claim.
func mayHave(v *v1.PersistentVolume, c *v1.PersistentVolumeClaim) bool {
	r := v.Spec.ClaimRef
	return r == nil || r.Namespace == c.Namespace && r.Name == c.Name && (r.UID == "" || r.UID == c.UID)
}

// offers says that a volume has all the access modes that a claim wants.
func offers(v *v1.PersistentVolume, c *v1.PersistentVolumeClaim) bool {
	has := map[v1.PersistentVolumeAccessMode]bool{}
	for _, mode := range v.Spec.AccessModes {
		has[mode] = true
	}
	for _, mode := range c.Spec.AccessModes {
		if !has[mode] {
			return false
		}
	}
	return true
}

// selects says that a volume has the labels that a claim wants.
func selects(c *v1.PersistentVolumeClaim, v *v1.PersistentVolume) bool {
	selector, err := metav1.LabelSelectorAsSelector(c.Spec.Selector)
	return c.Spec.Selector == nil || err == nil && selector.Matches(labels.Set(v.Labels))
}

func size(list v1.ResourceList) resource.Quantity { return list[v1.ResourceStorage] }

// claimClass is the class that a claim names; nil: none. An annotation says it in old manifests.
func claimClass(c *v1.PersistentVolumeClaim) *string {
	if class, ok := c.Annotations[v1.BetaStorageClassAnnotation]; ok {
		return &class
	}
	return c.Spec.StorageClassName
}

func volumeClass(v *v1.PersistentVolume) string {
	if class, ok := v.Annotations[v1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return v.Spec.StorageClassName
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// shownClaim is a claim as its user sees it. A folder can be had at any time, so that nobody has to wait for it.
func (b *Binder) shownClaim(c *v1.PersistentVolumeClaim, now *state) *v1.PersistentVolumeClaim {
	out := c.DeepCopy()
	volume, folder := b.has(c, now)
	switch v := now.volumes[volume]; {
	case folder:
		out.Spec.VolumeName = "pvc-" + string(c.UID)
		out.Status = v1.PersistentVolumeClaimStatus{
			Phase: v1.ClaimBound, AccessModes: c.Spec.AccessModes, Capacity: v1.ResourceList{v1.ResourceStorage: size(c.Spec.Resources.Requests)},
		}
	case volume == "":
		out.Status = v1.PersistentVolumeClaimStatus{Phase: v1.ClaimPending}
	case v == nil || !mayHave(v, c):
		out.Spec.VolumeName = volume
		out.Status = v1.PersistentVolumeClaimStatus{Phase: v1.ClaimLost}
	default:
		out.Spec.VolumeName = volume
		out.Status = v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound, AccessModes: v.Spec.AccessModes, Capacity: v.Spec.Capacity}
	}
	return out
}

// shownVolume is a volume as its user sees it.
func (b *Binder) shownVolume(v *v1.PersistentVolume, now *state) *v1.PersistentVolume {
	out := v.DeepCopy()
	out.Status = v1.PersistentVolumeStatus{Phase: v1.VolumeAvailable}
	h, held := b.holders[v.Name]
	if !held {
		return out
	}
	out.Spec.ClaimRef = &v1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: h.Namespace, Name: h.Name, UID: h.UID}
	out.Status.Phase = v1.VolumeReleased
	if c := now.claims[types.NamespacedName{Namespace: h.Namespace, Name: h.Name}]; c != nil && c.UID == h.UID {
		out.Status.Phase = v1.VolumeBound
	}
	return out
}
