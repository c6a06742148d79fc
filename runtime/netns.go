package runtime

import (
	"fmt"
	"time"

	"github.com/berth-node/berth/internal/procfs"
	"github.com/berth-node/berth/network/netns"
	"github.com/berth-node/berth/runtime/sandboxns"
)

// holdNetNS makes sure that the network namespace of a ready sandbox is where its record says. Somebody may have removed
// the file: as long as a process of the pod is in the namespace, it is bound again. Without one the namespace is gone, with
// the pod's addresses; the sandbox is not ready any more, which makes the kubelet run another, and the error is that of a
// sandbox that is not ready.
func (r *Runtime) holdNetNS(sb *sandbox) error {
	path := sb.factsNow().Anchors.NetNS
	if path == "" || netns.IsNS(path) {
		return nil
	}
	sb.pinning.Lock()
	defer sb.pinning.Unlock()
	if netns.IsNS(path) {
		return nil // another call was faster
	}
	f := sb.factsNow()
	for _, p := range r.membersOf(sb) {
		if p.Alive() && sandboxns.Repin(path, f.NetInode, p.Pid) == nil {
			r.log.Warn("the file of a network namespace was removed, and is there again", "sandbox", sb.record.ID, "path", path)
			return nil
		}
	}
	if sb.ready() {
		r.log.Warn("sandbox has lost its network namespace, it is not ready any more", "sandbox", sb.record.ID, "path", path)
		now := time.Now()
		if err := sb.update(func(f *sandboxFacts) { f.StoppedAt = now }); err != nil {
			return err
		}
		r.announce(EventStopped, sb.record.ID, "", now)
	}
	return fmt.Errorf("its network namespace %s is gone: %w", path, sb.notReady())
}

// membersOf are the first processes of what is in the sandbox.
func (r *Runtime) membersOf(sb *sandbox) []procfs.Process {
	all := []procfs.Process{sb.factsNow().Pause}
	for _, c := range r.index.containersOf(sb.record.ID) {
		if f := c.factsNow(); f.state() != Exited {
			all = append(all, f.Process)
		}
	}
	return all
}
