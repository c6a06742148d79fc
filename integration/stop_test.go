//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// reportSignal ends with a code of its own for each signal.
const reportSignal = `trap "exit 15" TERM; trap "exit 10" USR1; trap "exit 12" USR2; echo ready; while :; do sleep 1000 & wait; done`

func TestStopSignal(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "signals")
	for name, c := range map[string]struct {
		image  string
		signal cri.Signal
		want   int32
	}{
		"default":              {images.Tools, cri.Signal_SIGNAL_RUNTIME_DEFAULT, 15},
		"of the image":         {images.StopByUSR1, cri.Signal_SIGNAL_RUNTIME_DEFAULT, 10},
		"request before image": {images.StopByUSR1, cri.Signal_SIGNAL_SIGUSR2, 12},
	} {
		t.Run(name, func(t *testing.T) {
			app := pod.Run(t, harness.ContainerConfig("sig-"+strings.ReplaceAll(name, " ", "-"), c.image, "sh", "-c", reportSignal), func(config *cri.ContainerConfig) {
				config.StopSignal = c.signal
			})
			waitForText(t, app, "stdout", "ready")
			app.Stop(t, harness.Patience(20*time.Second))
			if got := app.Status(t).ExitCode; got != c.want {
				t.Errorf("exit code %d, want %d", got, c.want)
			}
		})
	}
}

func TestStopKillsAtTheDeadline(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "deaf")
	app := pod.Sh(t, "app", `trap "" TERM; (trap "" TERM; sleep 5555) & echo ready; while :; do sleep 1; done`)
	waitForText(t, app, "stdout", "ready")
	begun := time.Now()
	app.Stop(t, 2*time.Second)
	if took := time.Since(begun); took < 2*time.Second || took > harness.Patience(20*time.Second) {
		t.Errorf("the stop took %s with a grace period of 2s", took)
	}
	if s := app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("status %v", s)
	}
	if pids := processesWith("sleep\x005555"); len(pids) != 0 {
		t.Errorf("children live on: %v", pids)
	}
}

// A second stop with a shorter grace period shortens the first.
func TestStopCanBeShortened(t *testing.T) {
	app := sharedNode(t).RunPod(t, "hurry").Sh(t, "app", `trap "" TERM; echo ready; while :; do sleep 1; done`)
	waitForText(t, app, "stdout", "ready")
	var patient sync.WaitGroup
	patient.Go(func() {
		_, err := app.Pod.Node.Runtime.StopContainer(harness.Ctx(t), &cri.StopContainerRequest{ContainerId: app.ID, Timeout: 90})
		if err != nil {
			t.Errorf("the patient call: %v", err)
		}
	})
	begun := time.Now()
	app.Stop(t, 0)
	patient.Wait()
	if took := time.Since(begun); took > harness.Patience(30*time.Second) {
		t.Errorf("both took %s", took)
	}
}

func TestPodStopsItsContainersAtOnce(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "at-once")
	for _, name := range []string{"a", "b", "c"} {
		pod.Sh(t, name, `trap "" TERM; sleep 7777 & while :; do sleep 1; done`)
	}
	pod.Remove(t)
	if pids := processesWith("sleep\x007777"); len(pids) != 0 {
		t.Errorf("still there after RemovePodSandbox: %v", pids)
	}
}

// processesWith returns the /proc folders of processes whose command line begins so.
func processesWith(command string) []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if line, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && strings.HasPrefix(string(line), command) {
			found = append(found, dir)
		}
	}
	return found
}

// A container that is stopped in the moment of its start gets the signal as its workload, not as what becomes it: a shell that
// has no handler is pid 1 and does not hear it, and is killed at the deadline; libcontainer's init would end with status 2.
func TestStopInTheMomentOfTheStart(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "moment")
	var containers []*harness.Container
	for i := range 12 {
		containers = append(containers, pod.Create(t, idleConfig(fmt.Sprintf("app-%d", i))))
	}
	var ended sync.WaitGroup
	for _, c := range containers {
		ended.Go(func() {
			c.Start(t)
			c.Stop(t, time.Second)
			if s := c.Status(t); s.ExitCode != 137 {
				t.Errorf("%s ended with %d, %s", c.Config.Metadata.Name, s.ExitCode, s.Reason)
			}
		})
	}
	ended.Wait()
}
