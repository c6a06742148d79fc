// Package userns gives pods with a user namespace of their own a range of the node's user and group IDs, each pod another
// one, so that what gets out of one pod is nobody in the next.
//
// It keeps nothing on disk: the range of a pod is in the configuration of its sandbox, from which a restarted daemon
// learns it again by [Allocator.Adopt].
package userns

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// PerPod is how many IDs a pod gets: those that 16 bits can name, as upstream has it.
const PerPod = 1 << 16

// user owns the IDs that the node's administrator has set aside for pods, in /etc/subuid and /etc/subgid. The name is
// upstream's, so that a node can change over.
const user = "kubelet"

// An Allocator knows which ranges are taken. Its methods are safe for concurrent use.
type Allocator struct {
	first uint32 // the number of the first range: its first ID is first*PerPod
	count uint32

	mu     sync.Mutex
	next   uint32 // where the search begins, so that a range rests before it is used again
	ranges map[uint32]types.UID
	pods   map[types.UID]uint32
}

// New returns an allocator of the IDs that are set aside for pods, or without such of all but the first 65536.
func New() (*Allocator, error) {
	uids, err := setAside("/etc/subuid")
	if err != nil {
		return nil, err
	}
	gids, err := setAside("/etc/subgid")
	if err != nil {
		return nil, err
	}
	if uids != gids {
		return nil, fmt.Errorf("/etc/subuid and /etc/subgid differ for user %s: %w", user, errdefs.ErrInvalidArgument)
	}
	return of(uids)
}

// ids are count IDs from first on.
type ids struct{ first, count uint64 }

func of(i ids) (*Allocator, error) {
	if i.first%PerPod != 0 || i.count%PerPod != 0 || i.first == 0 || i.count == 0 || i.first+i.count > math.MaxUint32+1 {
		return nil, fmt.Errorf("the IDs of user %s, %d from %d on, are not as many times %d and do not begin at such a multiple above 0: %w",
			user, i.count, i.first, PerPod, errdefs.ErrInvalidArgument)
	}
	return &Allocator{
		first: uint32(i.first / PerPod), count: uint32(i.count / PerPod),
		ranges: map[uint32]types.UID{}, pods: map[types.UID]uint32{},
	}, nil
}

// setAside reads the lines user:first:count of a file.
func setAside(path string) (ids, error) {
	all := ids{PerPod, math.MaxUint32 + 1 - PerPod}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return ids{}, err
	}
	defer f.Close()
	found := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, numbers, _ := strings.Cut(lines.Text(), ":")
		if name != user {
			continue
		}
		if found {
			return ids{}, fmt.Errorf("%s has more than one line for %s: %w", path, user, errdefs.ErrInvalidArgument)
		}
		first, count, _ := strings.Cut(numbers, ":")
		var err1, err2 error
		all.first, err1 = strconv.ParseUint(first, 10, 32)
		all.count, err2 = strconv.ParseUint(count, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return ids{}, fmt.Errorf("%s: the line for %s: %w: %w", path, user, err, errdefs.ErrInvalidArgument)
		}
		found = true
	}
	return all, lines.Err()
}

// Get returns the user namespace of a pod, taking a range for it if it has none; the node's for a pod that wants none.
func (a *Allocator) Get(pod *v1.Pod) (*cri.UserNamespace, error) {
	if h := pod.Spec.HostUsers; h == nil || *h {
		return &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if r, ok := a.pods[pod.UID]; ok {
		return mapping(r), nil
	}
	for range a.count {
		r := a.first + a.next
		a.next = (a.next + 1) % a.count
		if _, taken := a.ranges[r]; !taken {
			a.ranges[r], a.pods[pod.UID] = pod.UID, r
			return mapping(r), nil
		}
	}
	return nil, fmt.Errorf("could not find an empty slot to allocate a user namespace: %w", errdefs.ErrResourceExhausted)
}

func mapping(r uint32) *cri.UserNamespace {
	all := []*cri.IDMapping{{HostId: r * PerPod, Length: PerPod}}
	return &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: all, Gids: all}
}

// Adopt takes the range of a sandbox that is there already, whoever made it.
func (a *Allocator) Adopt(pod types.UID, sandbox *cri.PodSandboxConfig) {
	user := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if user.GetMode() != cri.NamespaceMode_POD {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range user.GetUids() {
		// Every range that the mapping touches is taken; the one that is the pod's is the first.
		for r := m.HostId / PerPod; uint64(r)*PerPod < uint64(m.HostId)+uint64(m.Length); r++ {
			a.ranges[r] = pod
			if _, known := a.pods[pod]; !known && m.HostId%PerPod == 0 && m.Length == PerPod {
				a.pods[pod] = r
			}
		}
	}
}

// Release gives the ranges of a pod back.
func (a *Allocator) Release(pod types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pods, pod)
	for r, of := range a.ranges {
		if of == pod {
			delete(a.ranges, r)
		}
	}
}
