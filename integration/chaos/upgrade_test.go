//go:build integration

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/internal/failpoint"
)

// handoverPoints are those of one daemon that takes the place of another, replacementPoints those of a keeper that is replaced
// in place after that.
var (
	handoverPoints = []failpoint.Point{
		failpoint.HandoverAble, failpoint.HandoverParted, failpoint.HandoverTaken, failpoint.HandoverRecovered,
		failpoint.HandoverServing, failpoint.HandoverGiven, failpoint.HandoverOwn,
	}
	replacementPoints = []failpoint.Point{failpoint.KeeperReplacing, failpoint.KeeperReplaced, failpoint.KeeperTakenOver}
)

// Those who take part in an upgrade, who has the node when it begins and who is to have it.
const (
	older who = "old daemon"
	newer who = "new daemon"
)

// upgradeVictims are killed together. Those without the keeper come first: nothing of a log may be lost until one with it.
var upgradeVictims = [][]who{{older}, {newer}, {older, newer}, {keeper}, {older, newer, keeper}}

// Killed at every step of an upgrade, daemons and keeper lose nothing, and one daemon has the node in the end.
func TestKilledInAnUpgrade(t *testing.T) {
	installed := filepath.Join(t.TempDir(), "berth-keeper")
	u := &upgrades{installed: installed}
	u.install(t)
	u.rig = newRig(t, false, "--keeper", installed)
	for _, victims := range upgradeVictims {
		for _, p := range slices.Concat(handoverPoints, replacementPoints) {
			t.Run(fmt.Sprintf("%s/%s", victims, p), func(t *testing.T) { u.killAt(t, p, victims) })
		}
	}
	u.rig.witnesses.wantStarted(t)
}

// upgrades are those of one node, whose keeper is another program every time.
type upgrades struct {
	rig       *rig
	installed string
	versions  int
}

// install installs a keeper that is none of those before. What follows the sections of a program is not read.
func (u *upgrades) install(t *testing.T) {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(harness.Root(), "bin", "failpoints", "berth-keeper"))
	if err != nil {
		t.Fatal(err)
	}
	u.versions++
	if err := os.WriteFile(u.installed+".new", fmt.Appendf(program, "version %d", u.versions), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(u.installed+".new", u.installed); err != nil {
		t.Fatal(err)
	}
}

// killAt is one upgrade that is held at a point, where the victims are killed, and everything that must hold after it.
func (u *upgrades) killAt(t *testing.T, p failpoint.Point, victims []who) {
	r := u.rig
	u.install(t)
	v := &victim{rig: r, config: r.node.PodConfig("victim")}
	defer r.mend(t, v)
	v.runWith(t, idleScript)
	list, began := r.list(t), look(t, v.app)
	known, old, oldKeeper := r.daemons(t), r.node.DaemonPid(t), r.keeperPid(t)

	tr, ended := r.trap(p, 0), make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(time.Minute))
	defer cancel()
	go func() {
		out, err := exec.CommandContext(ctx, filepath.Join(harness.Root(), "bin", "failpoints", "berth"), "upgrade", "--run-dir", r.node.RunDir).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		ended <- err
	}()
	var h *held
	select {
	case h = <-tr.sprung:
	case err := <-ended:
		t.Fatalf("the upgrade ended (%v) and never came to %s", err, p)
	}
	fresh := slices.DeleteFunc(r.daemons(t), func(pid int) bool { return slices.Contains(known, pid) })
	if len(fresh) != 1 {
		t.Fatalf("the new daemons are %v", fresh)
	}
	for _, w := range victims {
		r.end(t, map[who]int{older: old, newer: fresh[0], keeper: oldKeeper}[w])
	}
	h.release()
	answer := <-ended
	if ctx.Err() != nil {
		t.Errorf("the upgrade has not ended by itself: %v", answer)
	}
	r.settle(t)

	if got := r.list(t); got != list {
		t.Errorf("listed before:\n%s\nand after:\n%s", list, got)
	}
	if got := look(t, v.app); got != began {
		t.Errorf("it was %+v and is %+v", began, got)
	}
	lost := daemon
	if slices.Contains(victims, keeper) {
		lost = keeper
	}
	r.witnesses.verify(t, lost)
	v.end(t)
	r.wantClean(t)
}

// list is what the CRI lists, with everything that may not change.
func (r *rig) list(t *testing.T) string {
	t.Helper()
	var lines []string
	pods, err := r.node.Runtime.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		lines = append(lines, fmt.Sprintf("pod %s %s %s %d", p.Id, p.Metadata.Name, p.State, p.CreatedAt))
	}
	containers, err := r.node.Runtime.ListContainers(harness.Ctx(t), &cri.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers.Containers {
		lines = append(lines, fmt.Sprintf("container %s %s %s %s %d", c.Id, c.PodSandboxId, c.Metadata.Name, c.State, c.CreatedAt))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// daemons returns the living processes of "berth serve" for this node: who has it, who will, and who watches.
func (r *rig) daemons(t testing.TB) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, dir := range dirs {
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // gone
		}
		args := strings.Split(string(command), "\x00")
		if len(args) < 2 || filepath.Base(args[0]) != "berth" || args[1] != "serve" || !slices.Contains(args, r.node.RunDir) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// end kills a process, if it lives, and waits for its end.
func (r *rig) end(t *testing.T, pid int) {
	t.Helper()
	if err := killPid(pid); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
	r.awaitGone(t, pid)
}

// settle waits until somebody serves the node or nobody has it, and then has the harness's own daemon serve it.
func (r *rig) settle(t *testing.T) {
	t.Helper()
	serves := false
	harness.Eventually(t, 40*time.Second, "one who serves the node, or nobody", func() error {
		if !r.taken(t) {
			serves = false
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(2*time.Second))
		defer cancel()
		_, err := r.node.Runtime.Version(ctx, &cri.VersionRequest{})
		serves = err == nil
		return err
	})
	if serves && r.node.Running() {
		if err := r.node.AwaitReady(); err != nil {
			t.Fatal(err)
		}
		return
	}
	if serves { // the one that the harness has started is dead, which nobody but the harness minds
		if err := syscall.Kill(r.node.DaemonPid(t), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, 20*time.Second, "the end of all daemons", func() error {
		if pids := r.daemons(t); len(pids) > 0 || r.node.Running() {
			return fmt.Errorf("there are %v", pids)
		}
		return nil
	})
	if err := r.node.Start(); err != nil {
		t.Fatal(err)
	}
}

// taken reports whether a process has the node's lock.
func (r *rig) taken(t *testing.T) bool {
	t.Helper()
	f, err := os.Open(filepath.Join(r.node.RunDir, "berth.lock"))
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}
