package runtime

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// index is what is known in memory. It holds nothing that disk and kernel do not, and only finished things: a sandbox
// or a container enters when its creation has succeeded and leaves when nothing of it is left.
type index struct {
	mu         sync.RWMutex
	sandboxes  map[string]*sandbox
	containers map[string]*container
	// making are containers in the making: nobody sees them, but their exits must find them.
	making  map[string]*container
	byKey   map[string]string // sandboxKey and containerKey to ID
	members map[string]map[string]*container
}

func newIndex() *index {
	return &index{
		sandboxes:  map[string]*sandbox{},
		containers: map[string]*container{},
		making:     map[string]*container{},
		byKey:      map[string]string{},
		members:    map[string]map[string]*container{},
	}
}

// sandboxKey names one attempt at one pod.
func sandboxKey(m *cri.PodSandboxMetadata) string {
	return fmt.Sprintf("pod %q %q %q %d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

// containerKey names one attempt at one container of a sandbox.
func containerKey(sandboxID string, m *cri.ContainerMetadata) string {
	return fmt.Sprintf("container %s %q %d", sandboxID, m.GetName(), m.GetAttempt())
}

func (x *index) addSandbox(sb *sandbox) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sandboxes[sb.record.ID] = sb
	x.byKey[sandboxKey(sb.config.Metadata)] = sb.record.ID
}

func (x *index) dropSandbox(sb *sandbox) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.sandboxes, sb.record.ID)
	if key := sandboxKey(sb.config.Metadata); x.byKey[key] == sb.record.ID {
		delete(x.byKey, key)
	}
}

func (x *index) addContainer(c *container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.containers[c.record.ID] = c
	x.byKey[containerKey(c.record.SandboxID, c.config.Metadata)] = c.record.ID
	if x.members[c.record.SandboxID] == nil {
		x.members[c.record.SandboxID] = map[string]*container{}
	}
	x.members[c.record.SandboxID][c.record.ID] = c
}

func (x *index) dropContainer(c *container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.containers, c.record.ID)
	if key := containerKey(c.record.SandboxID, c.config.Metadata); x.byKey[key] == c.record.ID {
		delete(x.byKey, key)
	}
	delete(x.members[c.record.SandboxID], c.record.ID)
	if len(x.members[c.record.SandboxID]) == 0 {
		delete(x.members, c.record.SandboxID)
	}
}

func (x *index) addMaking(c *container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.making[c.record.ID] = c
}

func (x *index) dropMaking(c *container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.making, c.record.ID)
}

// anyContainer returns the container of this ID, also one in the making.
func (x *index) anyContainer(id string) *container {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if c := x.containers[id]; c != nil {
		return c
	}
	return x.making[id]
}

// sandbox returns the sandbox of exactly this ID, nil if there is none.
func (x *index) sandbox(id string) *sandbox {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.sandboxes[id]
}

func (x *index) container(id string) *container {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.containers[id]
}

func (x *index) sandboxByKey(key string) *sandbox {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.sandboxes[x.byKey[key]]
}

func (x *index) containerByKey(key string) *container {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.containers[x.byKey[key]]
}

// findSandbox returns the sandbox that has this ID or, alone, an ID that begins so.
func (x *index) findSandbox(id string) (*sandbox, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return find(x.sandboxes, "sandbox", id)
}

func (x *index) findContainer(id string) (*container, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return find(x.containers, "container", id)
}

func find[T any](all map[string]*T, kind, id string) (*T, error) {
	if v, ok := all[id]; ok {
		return v, nil
	}
	if id == "" {
		return nil, fmt.Errorf("%s ID is empty: %w", kind, errdefs.ErrInvalidArgument)
	}
	var found *T
	for full, v := range all {
		if !strings.HasPrefix(full, id) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s ID %q fits more than one: %w", kind, id, errdefs.ErrInvalidArgument)
		}
		found = v
	}
	if found == nil {
		return nil, fmt.Errorf("%s %q: %w", kind, id, errdefs.ErrNotFound)
	}
	return found, nil
}

// madeParent reports whether a sandbox made this cgroup: whoever shares it may be the last one in it.
func (x *index) madeParent(cgroupParent string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, sb := range x.sandboxes {
		if a := sb.record.Anchors; a.MadeParent && a.CgroupParent == cgroupParent {
			return true
		}
	}
	return false
}

func (x *index) allSandboxes() []*sandbox {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Collect(maps.Values(x.sandboxes))
}

func (x *index) allContainers() []*container {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Collect(maps.Values(x.containers))
}

// containersOf returns the containers of a sandbox, oldest first.
func (x *index) containersOf(sandboxID string) []*container {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.SortedFunc(maps.Values(x.members[sandboxID]), func(a, b *container) int {
		return a.record.CreatedAt.Compare(b.record.CreatedAt)
	})
}
