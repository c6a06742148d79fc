//go:build integration

package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/internal/failpoint"
)

// A step is a point and the way to it.
type step struct {
	point failpoint.Point
	drive drive
	skip  int // of those who come to the point, as many go on
}

func at(d drive, points ...failpoint.Point) []step {
	var out []step
	for _, p := range points {
		out = append(out, step{point: p, drive: d})
	}
	return out
}

func join(all ...[]step) (out []step) {
	for _, s := range all {
		out = append(out, s...)
	}
	return out
}

// builtinSteps are driven on the built-in network, cniSteps on that of the reference plugins.
var builtinSteps = join(
	at(runDrive("RunPodSandbox"), failpoint.SandboxRecorded, failpoint.SandboxFiles, failpoint.SandboxNamespaces,
		failpoint.NetworkLeased, failpoint.NetworkConnected, failpoint.SandboxAttached, failpoint.SandboxComplete, failpoint.SandboxReady),
	[]step{{failpoint.NamespaceBound, runDrive("RunPodSandbox"), 1}},
	at(runDrive("RunPodSandbox with a port", withPort(drivenPort)), failpoint.NetworkPortsMapped),
	at(runDrive("RunPodSandbox with a shared PID namespace", sharesPID), failpoint.SandboxPause),
	at(createDrive("CreateContainer"), failpoint.ContainerRecorded, failpoint.ContainerMounted, failpoint.ContainerBundled,
		failpoint.KeeperJobRecorded, failpoint.LaunchJobTaken, failpoint.LaunchJobDone, failpoint.KeeperJobDone, failpoint.KeeperCreated,
		failpoint.ContainerLaunched, failpoint.ContainerLimited, failpoint.ContainerMade),
	at(createDrive("CreateContainer with a volume", withVolume), failpoint.ContainerVolume),
	at(startDrive, failpoint.StartAsked, failpoint.KeeperLetGo, failpoint.KeeperOpened, failpoint.KeeperStarted, failpoint.StartDone, failpoint.StartRecorded),
	at(slowStartDrive, failpoint.KeeperLetGo),
	at(execDrive, failpoint.ExecGrouped, failpoint.KeeperExecMade, failpoint.ExecRunning, failpoint.ExecEnded),
	at(reopenDrive, failpoint.LogReopening, failpoint.KeeperLogReopened),
	at(updateDrive, failpoint.UpdateWritten, failpoint.UpdateRecorded),
	at(stopDrive("StopContainer", politeScript, 7, 60*time.Second), failpoint.StopRecorded, failpoint.StopSignaled),
	at(stopDrive("StopContainer at the deadline", stubbornScript, 137, time.Second), failpoint.StopDeadline, failpoint.StopKilled),
	at(exitDrive, failpoint.KeeperExitSeen, failpoint.KeeperLogWritten, failpoint.KeeperExitRecorded, failpoint.ExitHeard,
		failpoint.ExitRecorded, failpoint.ExitPublished, failpoint.KeeperAcked, failpoint.CgroupKilled, failpoint.DismantleUngrouped,
		failpoint.KeeperDeleted, failpoint.DismantleForgotten, failpoint.DismantleUnmounted, failpoint.Released),
	at(removeDrive, failpoint.ContainerRemoving, failpoint.ContainerErased),
	at(stopPodDrive("StopPodSandbox"), failpoint.SandboxStopping, failpoint.SandboxKilled, failpoint.SandboxDetached,
		failpoint.SandboxUnpinned, failpoint.SandboxDismantled),
	at(stopPodDrive("StopPodSandbox with a port", withPort(drivenPort)), failpoint.NetworkPortsUnmapped),
	at(removePodDrive, failpoint.SandboxRemoving, failpoint.SandboxEmptied, failpoint.SandboxErased),
	at(pullDrive, failpoint.ImageResolved, failpoint.LayerBegun, failpoint.LayerUnpacked, failpoint.LayerDescribed,
		failpoint.LayerCommitted, failpoint.ImageFetched, failpoint.ImageRecorded),
	[]step{{failpoint.LayerHalf, pullDrive, 20}},
	at(removeImageDrive, failpoint.ImageForgotten, failpoint.ImageReleased, failpoint.ImageUnlayered, failpoint.LayerForgotten),
	at(startAgainDrive, failpoint.RecoverLoaded, failpoint.RecoverResumed, failpoint.RecoverConnected, failpoint.RecoverFinished,
		failpoint.RecoverSwept),
	at(adoptDrive, failpoint.KeeperAdopted),
)

var cniSteps = join(
	at(runDrive("RunPodSandbox"), failpoint.SandboxNamespaces, failpoint.CNIRecorded, failpoint.CNIAdded, failpoint.SandboxAttached,
		failpoint.SandboxReady),
	at(stopPodDrive("StopPodSandbox with a port", withPort(drivenPort)), failpoint.SandboxKilled, failpoint.CNIDeleted,
		failpoint.SandboxDetached, failpoint.SandboxDismantled),
)

// afterRecord are the points of an exit from which on a record has it.
var afterRecord = map[failpoint.Point]bool{
	failpoint.KeeperExitRecorded: true, failpoint.ExitHeard: true, failpoint.ExitRecorded: true, failpoint.ExitPublished: true,
	failpoint.KeeperAcked: true, failpoint.CgroupKilled: true, failpoint.DismantleUngrouped: true, failpoint.KeeperDeleted: true,
	failpoint.DismantleForgotten: true, failpoint.DismantleUnmounted: true, failpoint.Released: true,
}

func TestEveryPointIsDriven(t *testing.T) {
	driven := map[failpoint.Point]bool{}
	for _, s := range join(builtinSteps, cniSteps) {
		driven[s.point] = true
	}
	for _, p := range slices.Concat(handoverPoints, replacementPoints) {
		driven[p] = true
	}
	for _, p := range failpoint.Points {
		if !driven[p] {
			t.Errorf("no step leads to %s", p)
		}
	}
}

// Killed at every step of every operation, daemon, keeper and both lose nothing and leave nothing.
func TestKilledAtEveryStep(t *testing.T) { everyStep(t, false, builtinSteps) }

// The same with CNI plugins, for what they have a part in.
func TestKilledAtEveryStepOfCNI(t *testing.T) { everyStep(t, true, cniSteps) }

func everyStep(t *testing.T, cni bool, steps []step) {
	r := newRig(t, cni)
	for _, s := range steps {
		t.Run(fmt.Sprintf("%s/%s", s.drive.name, s.point), func(t *testing.T) {
			for _, w := range everybody {
				t.Run(string(w), func(t *testing.T) { r.killAt(t, s, w) })
			}
			if s.point == failpoint.LaunchJobTaken || s.point == failpoint.LaunchJobDone {
				t.Run(string(launcher), func(t *testing.T) { r.killAt(t, s, launcher) })
			}
		})
	}
	r.witnesses.wantStarted(t)
}

// launcher is who is killed where a launcher is at work: the daemon says that the call failed, and that is all.
const launcher who = "launcher"

// killAt is one kill and everything that must hold after it.
func (r *rig) killAt(t *testing.T, s step, w who) {
	v := &victim{rig: r, config: r.node.PodConfig("victim"), killed: w, recorded: afterRecord[s.point]}
	defer r.mend(t, v)
	away := r.newAway(t)
	away.adopted = s.drive.name == adoptDrive.name
	s.drive.prepare(t, v)
	keeperBefore := r.keeperPid(t)

	h, ended := r.reach(t, s, v)
	for tries := 1; h == nil; tries++ {
		if tries == 3 {
			t.Fatalf("%s came to its end %d times without having been at %s", s.drive.name, tries, s.point)
		}
		v.end(t)
		*v = victim{rig: r, config: r.node.PodConfig("victim"), killed: w, recorded: afterRecord[s.point]}
		s.drive.prepare(t, v)
		h, ended = r.reach(t, s, v)
	}
	if w == launcher {
		if err := killPid(h.pid); err != nil {
			t.Fatal(err)
		}
	} else {
		r.kill(t, w)
	}
	away.end(t)
	h.release()
	answer := <-ended
	if w != launcher {
		r.recover(t, keeperBefore)
	}
	away.verify(t, w, s.drive.name == startAgainDrive.name)
	r.witnesses.verify(t, w)
	if answer != nil { // the client does what clients do, once
		if err := s.drive.call(harness.Ctx(t), v); err != nil {
			t.Fatalf("repeated: %v; the first answer was: %v", err, answer)
		}
	}
	s.drive.proof(t, v)
	v.end(t)
	away.remove(t)
	r.wantClean(t)
}

// mend lets the next kill begin from a clean node whatever became of this one.
func (r *rig) mend(t *testing.T, v *victim) {
	t.Helper()
	if !t.Failed() {
		return
	}
	r.askWhereItHangs(t)
	r.node.DumpLog(t)
	if !r.node.Running() {
		if err := r.node.Start(); err != nil {
			t.Fatal(err)
		}
	}
	v.end(t)
	r.baseline = r.inventory(t)
}

// askWhereItHangs ends a daemon that does not serve, with all its goroutines in the log.
func (r *rig) askWhereItHangs(t *testing.T) {
	t.Helper()
	if !r.node.Running() {
		return
	}
	if _, err := r.node.Runtime.Version(harness.Ctx(t), &cri.VersionRequest{}); err == nil {
		if _, err := r.node.Runtime.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{}); err == nil {
			return
		}
	}
	pid := r.node.DaemonPid(t)
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		t.Error(err)
		return
	}
	r.awaitGone(t, pid)
	harness.Eventually(t, 10*time.Second, "the end of the daemon", func() error {
		if r.node.Running() {
			return errors.New("it lives on")
		}
		return nil
	})
}

// overtaken are points that an operation may miss, though seldom: a container that has exited is removed from the keeper at once, and
// if that is quicker than the acknowledgement of the exit there is nothing to acknowledge.
var overtaken = map[failpoint.Point]bool{failpoint.KeeperAcked: true}

// reach begins the operation and returns when it is held at the point; nil if it was overtaken.
func (r *rig) reach(t *testing.T, s step, v *victim) (*held, <-chan error) {
	t.Helper()
	tr := r.trap(s.point, s.skip)
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	go func() {
		defer cancel()
		ended <- s.drive.call(ctx, v)
	}()
	limit := time.NewTimer(harness.Patience(30 * time.Second))
	defer limit.Stop()
	select {
	case h := <-tr.sprung:
		return h, ended
	case <-limit.C:
	}
	r.disarm(s.point)
	if overtaken[s.point] && len(ended) > 0 {
		return nil, nil
	}
	select {
	case err := <-ended:
		t.Fatalf("%s ended (%v) and never came to %s", s.drive.name, err, s.point)
	default:
		t.Fatalf("%s never came to %s", s.drive.name, s.point)
	}
	return nil, nil
}
