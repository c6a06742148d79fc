// Package feed is a table of objects whose changes can be followed, which is what a list and a watch of the Kubernetes API
// are. It has no goroutines of its own.
package feed

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/berth-node/berth/internal/errdefs"
)

// An Object has a name, a namespace ("" for none) and a resource version.
type Object interface {
	metav1.Object
	runtime.Object
}

// A Change is what became of one object. Its object carries the version of the change, also where it was deleted.
type Change[T Object] struct {
	Version uint64
	Type    watch.EventType
	Object  T
	// Before is what the object was; nothing for one that was added.
	Before T
}

// A Feed is the table. Objects in it are never changed: a newer one takes the place of an older one.
type Feed[T Object] struct {
	mu      sync.Mutex
	version uint64
	objects map[types.NamespacedName]T
	// history are the last changes, the oldest first, and forgotten is the version before the first of them.
	history   []Change[T]
	forgotten uint64
	keep      int
	changed   chan struct{}
}

// New returns an empty table. Versions begin above first: with a clock's reading there, whoever comes back with a version of
// an earlier process is refused instead of being told half of what happened. keep is how many changes are remembered.
func New[T Object](first uint64, keep int) *Feed[T] {
	return &Feed[T]{version: first, forgotten: first, objects: map[types.NamespacedName]T{}, keep: keep, changed: make(chan struct{})}
}

// Put adds an object or replaces the one of its name, and gives it its resource version. It must not be touched afterwards.
func (f *Feed[T]) Put(object T) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := name(object)
	kind := watch.Added
	before, known := f.objects[key]
	if known {
		kind = watch.Modified
	}
	f.version++
	object.SetResourceVersion(strconv.FormatUint(f.version, 10))
	f.objects[key] = object
	f.note(kind, object, before)
}

// Delete removes the object of that name, if there is one.
func (f *Feed[T]) Delete(namespace, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := types.NamespacedName{Namespace: namespace, Name: name}
	before, known := f.objects[key]
	if !known {
		return
	}
	delete(f.objects, key)
	f.version++
	last := before.DeepCopyObject().(T)
	last.SetResourceVersion(strconv.FormatUint(f.version, 10))
	f.note(watch.Deleted, last, before)
}

func (f *Feed[T]) note(kind watch.EventType, object, before T) {
	f.history = append(f.history, Change[T]{Version: f.version, Type: kind, Object: object, Before: before})
	// Twice as many are let in before the older half goes, so that they are not moved up at each change.
	if len(f.history) >= 2*f.keep {
		cut := len(f.history) - f.keep
		f.forgotten = f.history[cut-1].Version
		f.history = slices.Clone(f.history[cut:])
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// Get returns the object of that name.
func (f *Feed[T]) Get(namespace, name string) (object T, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	object, ok = f.objects[types.NamespacedName{Namespace: namespace, Name: name}]
	return object, ok
}

// List returns all objects, sorted by namespace and name, and the version of the table.
func (f *Feed[T]) List() ([]T, uint64) {
	f.mu.Lock()
	all := make([]T, 0, len(f.objects))
	for _, o := range f.objects {
		all = append(all, o)
	}
	version := f.version
	f.mu.Unlock()
	slices.SortFunc(all, func(a, b T) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return all, version
}

// A Watch delivers changes in their order, without a gap. It is for one reader, and needs no end.
type Watch[T Object] struct {
	feed  *Feed[T]
	after uint64
}

// Watch delivers what changes after a version that List or a change told; 0 is now. errdefs.ErrResourceExhausted says that
// this is not known any more: begin again with List.
func (f *Feed[T]) Watch(after uint64) (*Watch[T], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if after == 0 {
		after = f.version
	}
	if err := f.knows(after); err != nil {
		return nil, err
	}
	return &Watch[T]{f, after}, nil
}

func (f *Feed[T]) knows(version uint64) error {
	if version < f.forgotten || version > f.version {
		return fmt.Errorf("too old resource version: %d (%d): %w", version, f.forgotten, errdefs.ErrResourceExhausted)
	}
	return nil
}

// Next waits for changes and returns all that there are. A reader who is too far behind gets errdefs.ErrResourceExhausted.
func (w *Watch[T]) Next(ctx context.Context) ([]Change[T], error) {
	for {
		changes, changed, err := w.look()
		if err != nil || len(changes) > 0 {
			return changes, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (w *Watch[T]) look() ([]Change[T], <-chan struct{}, error) {
	f := w.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.knows(w.after); err != nil {
		return nil, nil, err
	}
	i, _ := slices.BinarySearchFunc(f.history, w.after+1, func(c Change[T], v uint64) int { return cmp.Compare(c.Version, v) })
	news := slices.Clone(f.history[i:])
	w.after = f.version
	return news, f.changed, nil
}

func name(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}
