package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/feed"
	"github.com/berth-node/berth/kubelet/manifest"
	"github.com/berth-node/berth/kubelet/source"
)

// Declared is the Objects of a store.
type Declared struct {
	store   *source.Store
	taken   func() error
	maps    *feed.Feed[*v1.ConfigMap]
	secrets *feed.Feed[*v1.Secret]
	claims  *feed.Feed[*v1.PersistentVolumeClaim]
	volumes *feed.Feed[*v1.PersistentVolume]
	bound   func() ([]*v1.PersistentVolumeClaim, []*v1.PersistentVolume)
}

// remembered is how many changes of a kind a watch may be behind.
const remembered = 128

// NewDeclared returns the Objects of a store; Run keeps them. taken returns why no pod can be applied to this node, if it is
// another kubelet's, and bound all claims and PersistentVolumes with their status.
func NewDeclared(s *source.Store, taken func() error, bound func() ([]*v1.PersistentVolumeClaim, []*v1.PersistentVolume), now time.Time) *Declared {
	first := uint64(now.UnixMicro())
	return &Declared{
		store: s, taken: taken, bound: bound, maps: feed.New[*v1.ConfigMap](first, remembered), secrets: feed.New[*v1.Secret](first, remembered),
		claims: feed.New[*v1.PersistentVolumeClaim](first, remembered), volumes: feed.New[*v1.PersistentVolume](first, remembered),
	}
}

// ConfigMaps are those that are declared.
func (d *Declared) ConfigMaps() *feed.Feed[*v1.ConfigMap] { return d.maps }

// Secrets are those that are declared.
func (d *Declared) Secrets() *feed.Feed[*v1.Secret] { return d.secrets }

// Claims are those that are declared.
func (d *Declared) Claims() *feed.Feed[*v1.PersistentVolumeClaim] { return d.claims }

// Volumes are those that are declared.
func (d *Declared) Volumes() *feed.Feed[*v1.PersistentVolume] { return d.volumes }

// Run follows the store until ctx ends.
func (d *Declared) Run(ctx context.Context) {
	s := d.store.Subscribe()
	defer s.Close()
	for {
		binding := false
		for _, key := range s.Take() {
			d.show(key)
			binding = binding || key.Kind == manifest.Claim || key.Kind == manifest.Volume
		}
		if binding { // each may change what becomes of the others
			claims, volumes := d.bound()
			replace(d.claims, claims)
			replace(d.volumes, volumes)
		}
		select {
		case <-s.C():
		case <-ctx.Done():
			return
		}
	}
}

func (d *Declared) show(key manifest.Key) {
	e, there := d.store.Get(key)
	there = there && e.Lost == nil
	switch key.Kind {
	case manifest.ConfigMap:
		put(d.maps, key, there, func() *v1.ConfigMap { return e.ConfigMap.DeepCopy() })
	case manifest.Secret:
		put(d.secrets, key, there, func() *v1.Secret { return e.Secret.DeepCopy() })
	}
}

// replace shows all objects of a kind, and those that are not there any more no longer. What is as it was is not told again.
func replace[T feed.Object](f *feed.Feed[T], all []T) {
	there := map[types.NamespacedName]bool{}
	for _, o := range all {
		there[types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}] = true
		if was, ok := f.Get(o.GetNamespace(), o.GetName()); ok {
			o.SetResourceVersion(was.GetResourceVersion())
			if equality.Semantic.DeepEqual(was, o) {
				continue
			}
		}
		f.Put(o)
	}
	shown, _ := f.List()
	for _, o := range shown {
		if !there[types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}] {
			f.Delete(o.GetNamespace(), o.GetName())
		}
	}
}

func put[T feed.Object](f *feed.Feed[T], key manifest.Key, there bool, object func() T) {
	if there {
		f.Put(object())
	} else {
		f.Delete(key.Namespace, key.Name)
	}
}

// Apply declares what is in the documents, all of it or nothing.
func (d *Declared) Apply(_ context.Context, r ApplyRequest) (ApplyResult, error) {
	var objects []manifest.Object
	var faults []error
	for _, doc := range r.Documents {
		found, err := manifest.Decode(doc.File, doc.Data)
		faults = append(faults, err)
		objects = append(objects, found...)
	}
	seen := map[manifest.Key]manifest.Object{}
	for _, o := range objects {
		if r.Namespace != "" && o.Kind.Namespaced() && o.Namespace != r.Namespace {
			faults = append(faults, fmt.Errorf("the namespace from the provided object %q does not match the namespace %q: %s:%d: pass '--namespace=%s' to perform this operation: %w",
				o.Namespace, r.Namespace, o.File, o.Line, o.Namespace, errdefs.ErrInvalidArgument))
		}
		if first, twice := seen[o.Key]; twice {
			faults = append(faults, fmt.Errorf("%s:%d: %s is declared in %s:%d already: %w", o.File, o.Line, o.Key, first.File, first.Line, errdefs.ErrInvalidArgument))
		}
		seen[o.Key] = o
	}
	if err := errors.Join(faults...); err != nil {
		return ApplyResult{}, err
	}
	if len(objects) == 0 {
		return ApplyResult{}, fmt.Errorf("no objects passed to apply: %w", errdefs.ErrInvalidArgument)
	}
	if slices.ContainsFunc(objects, func(o manifest.Object) bool { return o.Kind == manifest.Pod }) {
		if err := d.taken(); err != nil {
			return ApplyResult{}, err
		}
	}
	if r.DryRun {
		return d.wouldApply(objects), nil
	}
	applied, err := d.store.Apply(objects)
	var result ApplyResult
	for _, a := range applied {
		result.add(a.Key, a.Result, a.Warnings)
	}
	return result, err
}

// wouldApply says what applying would do.
func (d *Declared) wouldApply(objects []manifest.Object) (result ApplyResult) {
	for _, o := range objects {
		e, there := d.store.Get(o.Key)
		action := "created"
		switch {
		case there && e.Hash == o.Hash && e.Origin.File == "":
			action = "unchanged"
		case there:
			action = "configured"
		}
		result.add(o.Key, action, o.Warnings)
	}
	return result
}

func (r *ApplyResult) add(k manifest.Key, action string, warnings []string) {
	r.Applied = append(r.Applied, Applied{Kind: string(k.Kind), Namespace: k.Namespace, Name: k.Name, Action: action})
	r.Warnings = append(r.Warnings, warnings...)
}

// Delete takes back what was applied.
func (d *Declared) Delete(_ context.Context, kind, namespace, name string) error {
	return d.store.Delete(manifest.Key{Kind: manifest.Kind(kind), Namespace: namespace, Name: name})
}
