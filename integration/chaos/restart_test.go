//go:build integration

package chaos

import (
	"context"
	"syscall"
	"testing"

	"github.com/berth-node/berth/internal/failpoint"
)

func killPid(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }

// startAgainDrive is the start of a daemon that finds a pod half made and another one half removed.
var startAgainDrive = drive{
	name: "recovery",
	prepare: func(t *testing.T, v *victim) {
		half := createDrive("CreateContainer")
		half.prepare(t, v)
		h, ended := v.rig.reach(t, step{point: failpoint.ContainerLaunched, drive: half}, v)
		v.rig.kill(t, daemon)
		h.release()
		<-ended
	},
	call: func(_ context.Context, v *victim) error {
		if v.node().Running() {
			return nil
		}
		return v.node().Start()
	},
	proof: func(t *testing.T, v *victim) {
		if list := v.containers(t); len(list) != 0 {
			t.Errorf("the half-made container is there: %v", list)
		}
		v.pod.Sh(t, "app", idleScript).Exec(t, "true")
	},
}

// adoptDrive is the start of a keeper after the death of another one.
var adoptDrive = drive{
	name:    "adoption",
	prepare: func(t *testing.T, v *victim) { v.runWith(t, idleScript) },
	call: func(_ context.Context, v *victim) error {
		if v.text != "" {
			return nil
		}
		v.text = "killed"
		pid, err := v.rig.findKeeper()
		if err != nil {
			return err
		}
		return killPid(pid)
	},
	proof: func(t *testing.T, v *victim) {
		if got := v.app.Exec(t, "echo", "alive"); got != "alive" {
			t.Errorf("exec: %q", got)
		}
	},
}
