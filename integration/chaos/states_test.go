//go:build integration

package chaos

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/internal/failpoint"
)

// The states that the death of a container runtime can leave, by the names that they have in the literature, each brought
// about by a point or by hand, and what the next daemon makes of it.
func TestStatesThatACrashLeaves(t *testing.T) {
	builtin, plugins := newRig(t, false), newRig(t, true)
	builtin.baseline = builtin.inventory(t) // the witnesses of the other one belong there too
	for _, state := range []struct {
		name string
		rig  *rig
		test func(*testing.T, *rig)
	}{
		{"name reserved, nothing else", builtin, stateReserved},
		{"netns file, no CNI", plugins, stateNetns},
		{"CNI ADD issued, result not stored", plugins, stateAdded},
		{"host port rules", builtin, stateRules},
		{"cgroup made, empty", builtin, stateCgroup},
		{"rootfs prepared, mounts made", builtin, stateRootfs},
		{"image volume mounted, container gone", builtin, stateVolume},
		{"init alive, no state.json", builtin, stateInit},
		{"CREATED, exec.fifo present", builtin, stateCreated},
		{"RUNNING, state not yet recorded", builtin, stateRunning},
		{"RUNNING, exited during downtime", builtin, stateExited},
		{"exit recorded, event not published", builtin, stateUnpublished},
		{"StopContainer running", builtin, stateStopping},
		{"exec in flight", builtin, stateExec},
		{"log renamed, not reopened", builtin, stateLog},
		{"layer half unpacked, ref not set", builtin, stateLayer},
		{"record unreadable", builtin, stateUnreadable},
	} {
		t.Run(state.name, func(t *testing.T) {
			state.test(t, state.rig)
			if t.Failed() {
				state.rig.node.DumpLog(t)
			}
			state.rig.wantWitnesses(t)
			state.rig.wantClean(t)
		})
	}
}

// wantWitnesses fails if a state, or its repair, has touched anything else.
func (r *rig) wantWitnesses(t *testing.T) {
	t.Helper()
	r.witnesses.gaps = true
	r.witnesses.verify(t, daemon)
}

// cut drives a victim to a point and kills there.
func (r *rig) cut(t *testing.T, d drive, p failpoint.Point, skip int, w who) *victim {
	t.Helper()
	v := &victim{rig: r, config: r.node.PodConfig("cut"), killed: w}
	d.prepare(t, v)
	h, ended := r.reach(t, step{point: p, drive: d, skip: skip}, v)
	r.kill(t, w)
	h.release()
	<-ended
	return v
}

// start starts the daemon that finds the state.
func (r *rig) start(t *testing.T) {
	t.Helper()
	if err := r.node.Start(); err != nil {
		t.Fatal(err)
	}
}

// files returns what of the node's folders fits a pattern and was not there before.
func (r *rig) files(t *testing.T, elem ...string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	var fresh []string
	for _, path := range found {
		if !r.baseline["file "+path] {
			fresh = append(fresh, path)
		}
	}
	return fresh
}

// wantFiles fails unless there are n of them: a state that is not there proves nothing.
func (r *rig) wantFiles(t *testing.T, n int, elem ...string) []string {
	t.Helper()
	found := r.files(t, elem...)
	if len(found) != n {
		t.Fatalf("%d files fit %s, want %d: %v", len(found), filepath.Join(elem...), n, found)
	}
	return found
}

func stateReserved(t *testing.T, r *rig) {
	v := r.cut(t, runDrive("RunPodSandbox"), failpoint.SandboxRecorded, 0, daemon)
	r.wantFiles(t, 1, r.node.RootDir, "sandboxes", "*")
	r.start(t)
	if ids := v.sandboxes(t); len(ids) != 0 {
		t.Errorf("there are %v", ids)
	}
	v.run(t) // the name is free
	v.end(t)
}

func stateNetns(t *testing.T, r *rig) {
	r.cut(t, runDrive("RunPodSandbox"), failpoint.SandboxNamespaces, 0, daemon)
	r.wantFiles(t, 1, "/run/netns/berth-*")
	r.wantFiles(t, 0, r.node.RootDir, "network", "cni", "attachments", "*")
	r.start(t)
}

func stateAdded(t *testing.T, r *rig) {
	addresses := func() int { return len(r.files(t, r.network.ConfDir, "..", "ipam", "berthchaos0", "*.*.*.*")) }
	before := addresses()
	r.cut(t, runDrive("RunPodSandbox"), failpoint.CNIAdded, 0, daemon)
	if addresses() != before+1 {
		t.Fatalf("the plugins have given %d addresses, and %d before", addresses(), before)
	}
	r.start(t)
	if addresses() != before {
		t.Errorf("DEL left %d addresses given, there were %d", addresses(), before)
	}
}

func stateRules(t *testing.T, r *rig) {
	r.kill(t, daemon)
	if len(r.tables) != 1 || !strings.HasPrefix(r.tables[0], "inet berth") {
		t.Fatalf("the tables of the node: %v", r.tables)
	}
	element := strings.Fields("nft add element " + r.tables[0] + " hostports4")
	if out, err := exec.Command(element[0], append(element[1:], "{ tcp . 12399 : 10.99.99.99 . 80 }")...).CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	r.start(t)
}

// stateCgroup is what libcontainer leaves when it dies just after it has made the cgroups of a container.
func stateCgroup(t *testing.T, r *rig) {
	v := r.cut(t, createDrive("CreateContainer"), failpoint.ContainerBundled, 0, both)
	id := filepath.Base(r.wantFiles(t, 1, r.node.RootDir, "containers", "*")[0])
	made := 0
	for thing := range r.baseline {
		dir, ok := strings.CutPrefix(thing, "cgroup ")
		if !ok || !strings.Contains(filepath.Base(dir), r.witnesses.counter.ID) {
			continue
		}
		dir = filepath.Join(filepath.Dir(dir), strings.ReplaceAll(filepath.Base(dir), r.witnesses.counter.ID, id))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		made++
	}
	if made == 0 {
		t.Fatal("no cgroup of a witness was found")
	}
	r.start(t)
	v.end(t)
}

func stateRootfs(t *testing.T, r *rig) {
	v := r.cut(t, createDrive("CreateContainer"), failpoint.ContainerMounted, 0, daemon)
	if root := r.wantFiles(t, 1, r.node.RunDir, "containers", "*", "rootfs")[0]; !isMount(root) {
		t.Fatalf("%s is no mount", root)
	}
	r.start(t)
	v.end(t)
}

func stateVolume(t *testing.T, r *rig) {
	v := r.cut(t, createDrive("CreateContainer", withVolume), failpoint.ContainerVolume, 0, daemon)
	mounts := 0
	for thing := range r.inventory(t) {
		if !r.baseline[thing] && strings.HasPrefix(thing, "mount "+r.node.RunDir) {
			mounts++
		}
	}
	if mounts < 2 {
		t.Fatalf("%d mounts below the run dir, want the root filesystem and the volume", mounts)
	}
	r.start(t)
	v.end(t)
}

// stateInit has an init, frozen at that, of which libcontainer's state says nothing.
func stateInit(t *testing.T, r *rig) {
	v := r.cut(t, createDrive("CreateContainer"), failpoint.KeeperJobDone, 0, both)
	state := r.find(t, r.node.RunDir, "state.json")
	if len(state) != 1 {
		t.Fatalf("libcontainer's states: %v", state)
	}
	if err := os.Remove(state[0]); err != nil {
		t.Fatal(err)
	}
	id := filepath.Base(filepath.Dir(state[0]))
	frozen := 0
	for thing := range r.inventory(t) {
		dir, ok := strings.CutPrefix(thing, "cgroup ")
		if !ok || !strings.Contains(filepath.Base(dir), id) {
			continue
		}
		for file, word := range map[string]string{"freezer.state": "FROZEN", "cgroup.freeze": "1"} {
			if os.WriteFile(filepath.Join(dir, file), []byte(word), 0) == nil {
				frozen++
			}
		}
	}
	if frozen == 0 {
		t.Error("nothing could be frozen")
	}
	r.start(t)
	if list := v.containers(t); len(list) != 0 {
		t.Errorf("there is %v", list)
	}
	v.end(t)
}

// find returns the files of a name below a folder that were not there before.
func (r *rig) find(t *testing.T, dir, name string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == name && !r.baseline["file "+path] {
			found = append(found, path)
		}
		if err == nil && d.IsDir() && path != dir && isMount(path) {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func stateCreated(t *testing.T, r *rig) {
	v := &victim{rig: r, config: r.node.PodConfig("cut")}
	startDrive.prepare(t, v)
	before := look(t, v.app)
	r.kill(t, both)
	r.start(t)
	if after := look(t, v.app); after != before || after.state != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("it was %+v and is %+v", before, after)
	}
	v.app.Start(t)
	v.awaitUp(t)
	v.end(t)
}

func stateRunning(t *testing.T, r *rig) {
	v := r.cut(t, startDrive, failpoint.StartDone, 0, both)
	r.start(t)
	if s := v.app.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt == 0 {
		t.Errorf("it is %v", s)
	}
	v.wantRanOnce(t)
	v.end(t)
}

// stateExited has two containers end while the daemon is away: by themselves, and for want of memory.
func stateExited(t *testing.T, r *rig) {
	ends, starves := r.newAway(t), r.newStarving(t)
	r.kill(t, daemon)
	ends.end(t)
	starves.end(t)
	r.start(t)
	ends.verify(t, daemon, false)
	if s := starves.app.WaitExit(t); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("what ended for want of memory: %v", s)
	}
	ends.remove(t)
	starves.remove(t)
}

func stateUnpublished(t *testing.T, r *rig) {
	v := r.cut(t, exitDrive, failpoint.ExitRecorded, 0, daemon)
	v.recorded = true
	r.start(t)
	v.wantEnd(t, 42) // who missed the event has lost the stream with it, and looks
	v.end(t)
}

func stateStopping(t *testing.T, r *rig) {
	v := r.cut(t, stopDrive("StopContainer", stubbornScript, 137, 2*time.Second), failpoint.StopRecorded, 0, daemon)
	r.start(t)
	v.app.WaitExit(t) // nobody asks again
	v.wantEnd(t, 137)
	v.end(t)
}

func stateExec(t *testing.T, r *rig) {
	v := r.cut(t, execDrive, failpoint.ExecRunning, 0, daemon)
	if groups := r.execGroups(t); len(groups) == 0 {
		t.Fatal("the exec has no cgroup")
	}
	r.start(t)
	harness.Eventually(t, 10*time.Second, "the exec to go", func() error {
		if groups := r.execGroups(t); len(groups) > 0 {
			return fmt.Errorf("%v", groups)
		}
		return nil
	})
	v.end(t)
}

// execGroups returns the cgroups of execs.
func (r *rig) execGroups(t *testing.T) []string {
	t.Helper()
	var found []string
	for thing := range r.inventory(t) {
		if strings.HasPrefix(thing, "cgroup ") && strings.Contains(thing, "/exec-") {
			found = append(found, thing)
		}
	}
	return found
}

func stateLog(t *testing.T, r *rig) {
	v := r.cut(t, reopenDrive, failpoint.LogReopening, 0, both)
	r.start(t)
	if err := reopenDrive.call(harness.Ctx(t), v); err != nil {
		t.Errorf("repeated: %v", err)
	}
	reopenDrive.proof(t, v)
	v.end(t)
}

func stateLayer(t *testing.T, r *rig) {
	v := r.cut(t, pullDrive, failpoint.LayerHalf, 20, daemon)
	r.start(t)
	r.wantFiles(t, 0, r.node.RootDir, "images", "layers", "ingest", "*")
	if err := pullDrive.call(harness.Ctx(t), v); err != nil {
		t.Errorf("repeated: %v", err)
	}
	pullDrive.proof(t, v)
	v.end(t)
}

// stateUnreadable is of a record that is written anew from what else is known; the integration tests damage everything else.
func stateUnreadable(t *testing.T, r *rig) {
	v := &victim{rig: r, config: r.node.PodConfig("cut")}
	v.runWith(t, idleScript)
	before := look(t, v.app)
	r.kill(t, daemon)
	record := filepath.Join(r.node.RootDir, "containers", v.app.ID, "record.json")
	if err := os.WriteFile(record, []byte(`{"version": 1, "id`), 0o600); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	if after := look(t, v.app); after != before {
		t.Errorf("it was %+v and is %+v", before, after)
	}
	aside := r.wantFiles(t, 1, r.node.RootDir, "damaged", "*")
	status, err := r.node.Runtime.Status(harness.Ctx(t), &cri.StatusRequest{Verbose: true})
	if err != nil || !strings.Contains(fmt.Sprint(status.Info), filepath.Base(aside[0])) {
		t.Errorf("the status says nothing of %s: %v, %v", aside[0], status.GetInfo(), err)
	}
	if err := os.RemoveAll(filepath.Join(r.node.RootDir, "damaged")); err != nil {
		t.Fatal(err)
	}
	v.end(t)
}
