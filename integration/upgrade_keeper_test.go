//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// An upgrade replaces the keeper in place if another one is installed, and containers do not notice.
func TestUpgradeReplacesTheKeeper(t *testing.T) {
	n, installed, program := installedNode(t, "keeper")
	pod := n.RunPod(t, "kept")
	app := pod.Sh(t, "counts", counter)
	idle := pod.Idle(t, "idle")
	process := mainProcess(t, app)
	s := converse(t, n, "exec", "-i", idle.ID, "sh", "-c", parrot)
	s.say(t, "before")
	if said := n.Berth(t, "upgrade"); strings.Contains(said, "keeper") {
		t.Errorf("the same keeper is installed: %s", said)
	}
	install(t, installed, append(program, "another version"...)) // what follows the sections of a program is not read
	if err := wantIn(n.Berth(t, "upgrade"), "the keeper is berth-keeper"); err != nil {
		t.Error(err)
	}
	s.say(t, "after")
	if said := n.Berth(t, "upgrade"); strings.Contains(said, "keeper") {
		t.Errorf("it is replaced again: %s", said)
	}
	if got := mainProcess(t, app); got != process {
		t.Errorf("the container was %s and is %s", process, got)
	}
	if got := idle.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
	s.say(t, "bye")
	if err := s.cmd.Wait(); err == nil || !strings.Contains(s.err.String(), "exit code 5") {
		t.Errorf("the session: %v, %s", err, s.err)
	}
	fresh := pod.Sh(t, "fresh", "exit 4")
	if status := fresh.WaitExit(t); status.ExitCode != 4 {
		t.Errorf("exit code %d", status.ExitCode)
	}
	wantCounted(t, app, 5)
	install(t, installed, []byte("#!/bin/sh\nexit 1\n"))
	if err := wantIn(upgradeFails(t, n), "the keeper goes on as it was"); err != nil {
		t.Error(err)
	}
	if got := idle.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
	install(t, installed, program)
}

// install puts a program where another one may be executed at this moment, as a package manager does.
func install(t *testing.T, path string, program []byte) {
	t.Helper()
	err := os.WriteFile(path+".new", program, 0o755)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// installedNode starts a node whose keeper, or launch, is a file that can be replaced by install: at first the program as
// it was built for the tests.
func installedNode(t *testing.T, which string) (n *harness.Node, path string, program []byte) {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(harness.Root(), "bin", "berth-"+which))
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "berth-"+which)
	install(t, path, program)
	return ownNode(t, func(o *harness.Options) { o.Flags = []string{"--" + which, path} }), path, program
}

// A package that brings nothing new but another launcher is noticed too, and containers are made by that one from then on.
func TestUpgradeReplacesTheLaunchers(t *testing.T) {
	n, installed, launch := installedNode(t, "launch")
	pod := n.RunPod(t, "launched")
	app := pod.Sh(t, "counts", counter)
	process := mainProcess(t, app)
	if said := n.Berth(t, "upgrade"); strings.Contains(said, "keeper") {
		t.Errorf("the same launcher is installed: %s", said)
	}
	// Nothing can be made by this one, so that its use shows.
	install(t, installed, []byte("#!/bin/false\n"))
	if err := wantIn(n.Berth(t, "upgrade"), "the keeper is berth-keeper"); err != nil {
		t.Error(err)
	}
	config := harness.ContainerConfig("unmade", images.Tools, "true")
	created, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
	if err == nil {
		_, err = n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: created.ContainerId})
	}
	if err == nil {
		t.Error("a container was made by the launcher before")
	}
	install(t, installed, append(launch, "another version"...)) // what follows the sections of a program is not read
	if err := wantIn(n.Berth(t, "upgrade"), "the keeper is berth-keeper"); err != nil {
		t.Error(err)
	}
	fresh := pod.Sh(t, "fresh", "exit 4")
	if status := fresh.WaitExit(t); status.ExitCode != 4 {
		t.Errorf("exit code %d", status.ExitCode)
	}
	if said := n.Berth(t, "upgrade"); strings.Contains(said, "keeper") {
		t.Errorf("it is replaced again: %s", said)
	}
	if got := mainProcess(t, app); got != process {
		t.Errorf("the container was %s and is %s", process, got)
	}
	wantCounted(t, app, 5)
}
