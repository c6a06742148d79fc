package kubelet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/berth-node/berth/internal/errdefs"
)

// A Change is one pod that came, changed or went. The pod is shared: read it only.
type Change struct {
	Type watch.EventType // Added, Modified or Deleted
	Pod  *v1.Pod
	// Version is the pod's resourceVersion, and counts up from change to change.
	Version uint64
}

// history is how many changes a watcher may be behind.
const history = 512

// podName is what a pod is known by: of two with the same name, the later one comes when the first is gone.
type podName struct{ namespace, name string }

// A board is where the workers put up what their pods look like, for everybody to see. What stands on it never changes:
// a change is another pod.
type board struct {
	mu      sync.Mutex
	pods    map[podName]*v1.Pod
	version uint64
	// oldest is the version after which all changes are in changes.
	oldest  uint64
	changes []Change
	// changed is closed at the next change.
	changed chan struct{}
}

// newBoard begins with a version that no board of an earlier daemon came to: what a client kept of those is too old.
func newBoard(now time.Time) *board {
	version := uint64(now.UnixMicro())
	return &board{pods: map[podName]*v1.Pod{}, version: version, oldest: version, changed: make(chan struct{})}
}

func (b *board) list() ([]*v1.Pod, uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	pods := make([]*v1.Pod, 0, len(b.pods))
	for _, p := range b.pods {
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b *v1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return pods, b.version
}

func (b *board) pod(namespace, name string) (*v1.Pod, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.pods[podName{namespace, name}]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("pod %s/%s: %w", namespace, name, errdefs.ErrNotFound)
}

// put shows a pod as it is now; it takes the pod over and gives it its version.
func (b *board) put(p *v1.Pod) {
	b.mu.Lock()
	defer b.mu.Unlock()
	typ := watch.Modified
	if b.pods[podName{p.Namespace, p.Name}] == nil {
		typ = watch.Added
	}
	b.pods[podName{p.Namespace, p.Name}] = p
	b.note(typ, p)
}

// remove takes a pod down that is gone; its last looks are told to watchers.
func (b *board) remove(p *v1.Pod) {
	b.mu.Lock()
	defer b.mu.Unlock()
	name := podName{p.Namespace, p.Name}
	if b.pods[name] == nil || b.pods[name].UID != p.UID {
		return
	}
	last := *p
	delete(b.pods, name)
	b.note(watch.Deleted, &last)
}

func (b *board) note(typ watch.EventType, p *v1.Pod) {
	b.version++
	p.ResourceVersion = strconv.FormatUint(b.version, 10)
	if len(b.changes) == history {
		b.oldest = b.changes[0].Version
		b.changes = slices.Delete(b.changes, 0, 1)
	}
	b.changes = append(b.changes, Change{typ, p, b.version})
	close(b.changed)
	b.changed = make(chan struct{})
}

// A Watch delivers changes in their order, without a gap. It is for one reader, and needs no end.
type Watch struct {
	board *board
	after uint64
}

func (b *board) watch(after uint64) (*Watch, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if after == 0 {
		after = b.version
	}
	if err := b.knows(after); err != nil {
		return nil, err
	}
	return &Watch{b, after}, nil
}

func (b *board) knows(version uint64) error {
	if version < b.oldest {
		return fmt.Errorf("too old resource version: %d (%d): %w", version, b.oldest, errdefs.ErrResourceExhausted)
	}
	return nil
}

// Next waits for changes and returns all that there are. A watcher who is too far behind gets errdefs.ErrResourceExhausted.
func (w *Watch) Next(ctx context.Context) ([]Change, error) {
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

func (w *Watch) look() ([]Change, <-chan struct{}, error) {
	w.board.mu.Lock()
	defer w.board.mu.Unlock()
	if err := w.board.knows(w.after); err != nil {
		return nil, nil, err
	}
	i, _ := slices.BinarySearchFunc(w.board.changes, w.after+1, func(c Change, v uint64) int { return cmp.Compare(c.Version, v) })
	news := slices.Clone(w.board.changes[i:])
	if len(news) > 0 {
		w.after = news[len(news)-1].Version
	}
	return news, w.board.changed, nil
}
