//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// killBoth ends daemon and keeper without warning, under all that run.
func killBoth(t *testing.T, n *harness.Node, running ...*target) {
	t.Helper()
	keeper := keeperPid(t, n)
	for _, tg := range running {
		tg.keepersKilled++
	}
	n.Kill9(t)
	if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "the keeper to end", func() error {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/", keeper)); err == nil {
			return errors.New("it lives")
		}
		return nil
	})
}

// The keeper's own record of a container is damaged, and with it all that knew of it dies: the next keeper takes the
// container over by what the daemon knows.
func TestDamagedRecordOfTheKeeper(t *testing.T) {
	n := ownNode(t)
	var all []*target
	for _, d := range damages {
		if d.name == "of a newer version" {
			continue // it has no version
		}
		all = append(all, newTarget(t, n, d.name))
	}
	shared := newTarget(t, n, "pause process", sharePID)
	killBoth(t, n, append(all, shared)...)
	for _, tg := range all {
		d := damages[slices.IndexFunc(damages, func(d damage) bool { return d.name == tg.name })]
		if err := d.do(filepath.Join(n.RunDir, "containers", tg.app.ID, "keeper.json")); err != nil {
			t.Fatal(tg.name, err)
		}
	}
	for _, id := range []string{shared.app.ID, shared.pod.ID} {
		if err := os.Truncate(filepath.Join(n.RunDir, "containers", id, "keeper.json"), 5); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	for _, tg := range append(all, shared) {
		tg.wantAlive(t)
		lines := len(harness.Texts(tg.app.Log(t), "stdout"))
		harness.Eventually(t, 20*time.Second, tg.name+": the log to go on", func() error {
			if now := len(harness.Texts(tg.app.Log(t), "stdout")); now <= lines {
				return fmt.Errorf("%d lines", now)
			}
			return nil
		})
	}
	all[0].app.Stop(t, 0)
	if s := all[0].app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("a stopped container that was taken over: %v", s)
	}
	killBoth(t, n, append(all[1:], shared)...) // what was taken over is on record again
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	for _, tg := range append(all[1:], shared) {
		tg.wantAlive(t)
	}
}

// fewDamages are one of each kind, for files that are damaged one start at a time.
func fewDamages() []damage {
	return slices.DeleteFunc(slices.Clone(damages), func(d damage) bool {
		return !slices.Contains([]string{"empty", "cut in the middle", "garbage", "of another ID", "a folder", "a pipe", "missing"}, d.name)
	})
}

func sharePID(config *cri.PodSandboxConfig) {
	config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
}

// Files that are read only when they are needed: the container runs on, what needs them says so, and it ends as others do.
func TestDamagedFilesOfTheRunDir(t *testing.T) {
	n := ownNode(t)
	for _, d := range damages {
		if d.name == "of a newer version" || d.name == "of another ID" || d.name == "an empty object" {
			continue // they have neither, and libcontainer's has no field that must be there
		}
		state, spec := newTarget(t, n, "state: "+d.name), newTarget(t, n, "bundle: "+d.name)
		n.Kill9(t)
		statePath := filepath.Join(n.RunDir, "libcontainer", state.app.ID, "state.json")
		specPath := filepath.Join(n.RunDir, "containers", spec.app.ID, "config.json")
		if err := errors.Join(d.do(statePath), d.do(specPath)); err != nil {
			t.Fatal(d.name, err)
		}
		if err := n.Start(); err != nil {
			t.Fatal(d.name, err)
		}
		for _, tg := range []*target{state, spec} {
			if s := tg.app.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || containerPid(t, tg.app) != tg.pid {
				t.Errorf("%s: %v", tg.name, s)
			}
			wantCounted(t, tg.app, 0)
		}
		for _, path := range []string{statePath, specPath} {
			if d.name == "of another type" || d.name == "missing" {
				continue // it is JSON: whoever reads it finds out; and there is nothing to look at
			}
			harness.Eventually(t, 10*time.Second, "berth check to tell of "+path, func() error {
				if said := check(t, n); !strings.Contains(said, path) {
					return errors.New(said)
				}
				return nil
			})
		}
		for _, tg := range []*target{state, spec} {
			tg.app.Stop(t, 0)
			tg.pod.Remove(t)
		}
	}
}

// What the built-in network keeps on disk: the daemon starts, pods keep their addresses, and nobody gets one of them.
func TestDamagedFilesOfTheNetwork(t *testing.T) {
	n := ownNode(t)
	all := []*target{newTarget(t, n, "first"), newTarget(t, n, "second")}
	for _, d := range fewDamages() {
		for _, file := range []string{"ranges.json", "sysctls.json", "boot", "leases/" + all[0].ips[0], "leases/last"} {
			path := filepath.Join(n.RootDir, "network", file)
			if _, err := os.Stat(path); err != nil {
				continue // no settings had to be changed on this machine
			}
			n.Kill9(t)
			if err := d.do(path); err != nil {
				t.Fatal(file, d.name, err)
			}
			if err := n.Start(); err != nil {
				t.Fatal(file, d.name, err)
			}
			for _, tg := range all {
				tg.wantAlive(t)
			}
		}
		fresh := newTarget(t, n, "fresh")
		for _, tg := range all {
			if slices.Contains(tg.ips, fresh.ips[0]) {
				t.Errorf("%s: %v is given twice", d.name, fresh.ips)
			}
		}
		if got := all[0].app.Exec(t, "ping", "-c", "1", "-W", "5", fresh.ips[0]); !strings.Contains(got, "1 packets received") {
			t.Errorf("%s: ping: %s", d.name, got)
		}
		fresh.pod.Remove(t)
	}
	if said := check(t, n); !strings.Contains(said, "ranges.json.damaged") {
		t.Errorf("berth check says nothing of the ranges:\n%s", said)
	}
}

// The record of an image, or of a layer: the daemon starts, containers run on from the layers, and the image can be pulled
// again.
func TestDamagedImage(t *testing.T) {
	n := ownNode(t)
	tg := newTarget(t, n, "running")
	for _, d := range fewDamages() {
		for _, pattern := range []string{"images/*.json", "layers/layers/*/layer.json"} {
			n.Kill9(t)
			paths, err := filepath.Glob(filepath.Join(n.RootDir, "images", pattern))
			if err != nil || len(paths) == 0 {
				t.Fatal(pattern, err)
			}
			for _, path := range paths {
				if strings.Contains(path, ".damaged") {
					continue
				}
				if err := d.do(path); err != nil {
					t.Fatal(d.name, err)
				}
			}
			if err := n.Start(); err != nil {
				t.Fatal(d.name, err)
			}
			tg.wantAlive(t)
			if imageStatus(t, n, images.Tools) != nil {
				t.Errorf("%s of %s: the image is there", d.name, pattern)
			}
			n.NeedImage(t, images.Tools)
			tg.wantAlive(t)
			again := newTarget(t, n, "from the image that was pulled again")
			again.wantAlive(t)
			again.pod.Remove(t)
		}
	}
	if said := check(t, n); !strings.Contains(said, ".damaged") {
		t.Errorf("berth check says nothing of it:\n%s", said)
	}
}

// The record of a CNI attachment: the pod is detached by what else is known.
func TestDamagedAttachment(t *testing.T) {
	dir := t.TempDir()
	cni, err := harness.NewCNI(dir, "berthtest2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cni.Close(); err != nil {
			t.Error(err)
		}
	})
	n := ownNode(t, func(o *harness.Options) { o.CNI = cni })
	var all []*target
	for _, d := range damages {
		all = append(all, newTarget(t, n, d.name))
	}
	n.Kill9(t)
	for i, tg := range all {
		if err := damages[i].do(filepath.Join(n.RootDir, "network", "cni", "attachments", tg.pod.ID+".json")); err != nil {
			t.Fatal(tg.name, err)
		}
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	for _, tg := range all {
		tg.wantAlive(t)
		tg.pod.Remove(t)
	}
	// Every address was given back.
	left, err := filepath.Glob(filepath.Join(dir, "ipam", "*", "*.*.*.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("addresses that are still taken: %v, %v", left, err)
	}
}
