//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// fill takes what is left of a file system, bytes or inodes, until the function that it returns is called.
func fill(t *testing.T, dir, what string) (free func()) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	if err := os.Mkdir(ballast, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; err == nil; i++ {
		data := make([]byte, 4096)
		if what == "inodes" {
			data = nil
		}
		err = os.WriteFile(filepath.Join(ballast, strconv.Itoa(i)), data, 0o600)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill %s: %v", dir, err)
	}
	return func() {
		if err := os.RemoveAll(ballast); err != nil {
			t.Error(err)
		}
	}
}

// wantExhausted fails unless err says to a kubelet and to a person what is full.
func wantExhausted(t *testing.T, call string, err error, path string) {
	t.Helper()
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("%s: %v; want ResourceExhausted with %s", call, err, path)
	}
}

// tryPull pulls an image that shares a layer with the tools' and has more.
func tryPull(t *testing.T, n *harness.Node) error {
	t.Helper()
	_, err := pull(t, n, images.Whiteouts, nil)
	return err
}

// stateWritable is what the node's own condition says.
func stateWritable(t *testing.T, n *harness.Node) (bool, string) {
	t.Helper()
	resp, err := n.Runtime.Status(harness.Ctx(t), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Status.Conditions {
		if c.Type == "StateWritable" {
			return c.Status, c.Message
		}
	}
	t.Fatal("no condition StateWritable")
	return false, ""
}

// On a full disk of images pulls fail and say why, what runs runs on, images can be removed, the daemon starts; with room
// again the pull succeeds.
func TestFullDiskOfImages(t *testing.T) {
	for _, what := range []string{"bytes", "inodes"} {
		t.Run(what, func(t *testing.T) {
			n := ownNode(t, func(o *harness.Options) {
				o.Tmpfs = []harness.Tmpfs{{Path: "root/images", Options: "size=96m,nr_inodes=6000"}}
			})
			tg := newTarget(t, n, "running")
			n.NeedImage(t, images.ToolsZstd)
			dir := filepath.Join(n.RootDir, "images")
			free := fill(t, dir, what)
			err := tryPull(t, n)
			wantExhausted(t, "PullImage", err, dir)
			tg.wantAlive(t)
			n.Restart(t)
			tg.wantAlive(t)
			wantExhausted(t, "PullImage after a restart", tryPull(t, n), dir)
			if list, err := n.Images.ListImages(harness.Ctx(t), &cri.ListImagesRequest{}); err != nil || len(list.Images) == 0 {
				t.Errorf("ListImages: %v, %v", list, err)
			}
			removeImage(t, n, images.ToolsZstd) // the same layers as those of the running container
			tg.wantAlive(t)
			free()
			if err := tryPull(t, n); err != nil {
				t.Errorf("with room again: %v", err)
			}
			free = fill(t, dir, what)
			defer free()
			removeImage(t, n, images.Whiteouts) // which makes room
			if err := os.WriteFile(filepath.Join(dir, "probe"), []byte("x"), 0o600); err != nil {
				t.Errorf("a removed image gave back no room: %v", err)
			}
		})
	}
}

// On a full root dir nothing new is made, and what is there is used, stopped and removed as ever; what happens then is
// still known after a restart of the daemon.
func TestFullDiskOfState(t *testing.T) {
	for _, what := range []string{"bytes", "inodes"} {
		t.Run(what, func(t *testing.T) {
			n := ownNode(t, func(o *harness.Options) {
				o.Tmpfs = []harness.Tmpfs{{Path: "root", Options: "size=4m,nr_inodes=600"}, {Path: "root/images", Options: "size=96m"}}
			})
			stays, stops, goes := newTarget(t, n, "stays"), newTarget(t, n, "stops"), newTarget(t, n, "goes")
			waits := n.RunPod(t, "p").Create(t, harness.ContainerConfig("late", images.Tools, "sh", "-c", counter))
			ends := n.RunPod(t, "p").Sh(t, "ends", `until [ -e /dev/shm/end ]; do sleep 0.1; done; exit 42`)
			free := fill(t, n.RootDir, what)

			config := n.PodConfig("new")
			_, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config})
			wantExhausted(t, "RunPodSandbox", err, n.RootDir)
			_, err = n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{
				PodSandboxId: stays.pod.ID, SandboxConfig: stays.pod.Config, Config: harness.ContainerConfig("more", images.Tools, "true"),
			})
			wantExhausted(t, "CreateContainer", err, n.RootDir)
			if ok, why := stateWritable(t, n); ok || !strings.Contains(why, n.RootDir) {
				t.Errorf("StateWritable: %v %s", ok, why)
			}
			if said := check(t, n); !strings.Contains(said, n.RootDir+" is full") && !strings.Contains(said, "no space left") {
				t.Errorf("berth check does not say that the disk is full:\n%s", said)
			}

			waits.Start(t)
			stops.app.Stop(t, 0)
			goes.pod.Remove(t)
			ends.Exec(t, "touch", "/dev/shm/end")
			if s := ends.WaitExit(t); s.ExitCode != 42 {
				t.Errorf("exit code %d", s.ExitCode)
			}
			for range 2 {
				stays.wantAlive(t)
				if s := stops.app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
					t.Errorf("the stopped container: %v", s)
				}
				if s := waits.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
					t.Errorf("the container that was started late: %v", s)
				}
				if s := ends.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 42 || s.Reason != "Error" {
					t.Errorf("the container that ended: %v", s)
				}
				if _, err := n.Runtime.PodSandboxStatus(harness.Ctx(t), &cri.PodSandboxStatusRequest{PodSandboxId: goes.pod.ID}); status.Code(err) != codes.NotFound {
					t.Errorf("the removed pod: %v", err)
				}
				n.Kill9(t)
				if err := n.Start(); err != nil {
					t.Fatal(err)
				}
			}

			free()
			fresh := newTarget(t, n, "with room again")
			fresh.wantAlive(t)
			harness.Eventually(t, 10*time.Second, "the state to be written", func() error {
				if ok, why := stateWritable(t, n); !ok {
					return errors.New(why)
				}
				return nil
			})
			// What was known to the run dir alone is in the root dir now: a reboot would not lose it.
			facts, err := os.ReadFile(filepath.Join(n.RootDir, "containers", ends.ID, "facts.json"))
			if err != nil || !strings.Contains(string(facts), `"exitCode":42`) {
				t.Errorf("the facts on disk: %s, %v", facts, err)
			}
		})
	}
}

// Nothing runs into a log disk that is full: the workload writes on, what is lost is counted and said in the log, and the
// log goes on when there is room.
func TestFullDiskOfLogs(t *testing.T) {
	n := ownNode(t, func(o *harness.Options) { o.Tmpfs = []harness.Tmpfs{{Path: "logs", Options: "size=1m"}} })
	c := n.RunPod(t, "p").Sh(t, "app", `i=0; while :; do i=$((i+1)); echo $i; echo $i >/dev/shm/i; done`)
	progress := func() int {
		i, _ := strconv.Atoi(c.Exec(t, "cat", "/dev/shm/i"))
		return i
	}
	harness.Eventually(t, 20*time.Second, "a first line", func() error { _, err := os.Stat(c.LogPath()); return err })
	logs := filepath.Join(n.Dir, "logs")
	free := fill(t, logs, "bytes")
	harness.Eventually(t, 20*time.Second, "loss of output", func() error {
		if said := check(t, n); !strings.Contains(said, c.LogPath()) {
			return fmt.Errorf("berth check does not say it:\n%s", said)
		}
		return nil
	})
	before := progress()
	harness.Eventually(t, 20*time.Second, "the workload to go on", func() error {
		if now := progress(); now < before+100 {
			return fmt.Errorf("it was at %d and is at %d", before, now)
		}
		return nil
	})
	_, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{
		PodSandboxId: c.Pod.ID, SandboxConfig: c.Pod.Config,
		Config: func() *cri.ContainerConfig {
			cfg := harness.ContainerConfig("more", images.Tools, "true")
			cfg.LogPath = strings.Repeat("folder/", 20) + "more.log"
			return cfg
		}(),
	})
	if err != nil { // tmpfs has room for a folder, other file systems do not
		wantExhausted(t, "CreateContainer", err, logs)
	}
	free()
	before = progress()
	// The workload writes as fast as it can: stop it before it fills the disk a second time.
	harness.Eventually(t, 20*time.Second, "the log to go on", func() error {
		data, err := os.ReadFile(c.LogPath())
		if err == nil && !notice.Match(data) {
			err = errors.New("no word of what is missing")
		}
		return err
	})
	c.Stop(t, 0)
	c.WaitExit(t)
	wantNumbersButThoseMissing(t, c.LogPath())
}

var notice = regexp.MustCompile(`^berth: (\d+) records of the output \((\d+) bytes\) are missing here: no space left on device$|stderr F berth: \d+ records`)

// wantNumbersButThoseMissing fails unless the log has 1, 2, 3… with gaps only where it says so, of as many lines as it says.
func wantNumbersButThoseMissing(t *testing.T, path string) {
	t.Helper()
	lines, err := harness.ReadLog(path)
	if err != nil {
		t.Fatal(err)
	}
	next, notices := 1, 0
	for _, l := range lines {
		if l.Stream == "stderr" {
			m := notice.FindStringSubmatch(l.Text)
			if m == nil {
				t.Fatalf("stderr has %q", l.Text)
			}
			missing, _ := strconv.Atoi(m[1])
			next += missing
			notices++
			continue
		}
		if got, err := strconv.Atoi(l.Text); err != nil || got != next {
			t.Fatalf("the log has %q where %d should be", l.Text, next)
		}
		next++
	}
	if notices == 0 {
		t.Error("nothing is missing: the disk was not full")
	}
}

// On a root dir that is read-only the daemon starts and serves what needs no record.
func TestReadOnlyRoot(t *testing.T) {
	n := ownNode(t, func(o *harness.Options) {
		o.Tmpfs = []harness.Tmpfs{{Path: "root", Options: "size=96m"}}
	})
	tg, stops := newTarget(t, n, "running"), newTarget(t, n, "stopped")
	n.Kill9(t)
	remount(t, n.RootDir, syscall.MS_RDONLY)
	t.Cleanup(func() {
		if !n.Running() {
			remount(t, n.RootDir, 0)
		}
	})
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	tg.wantAlive(t)
	if ok, why := stateWritable(t, n); ok || !strings.Contains(why, "read-only file system") {
		t.Errorf("StateWritable: %v %s", ok, why)
	}
	if said := check(t, n); !strings.Contains(said, "read-only file system") {
		t.Errorf("berth check does not say it:\n%s", said)
	}
	_, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: n.PodConfig("new")})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), n.RootDir) {
		t.Errorf("RunPodSandbox: %v", err)
	}
	stops.app.Stop(t, 0)
	if _, err := n.Runtime.StopPodSandbox(harness.Ctx(t), &cri.StopPodSandboxRequest{PodSandboxId: stops.pod.ID}); err != nil {
		t.Errorf("StopPodSandbox: %v", err)
	}
	n.Restart(t)
	if s := stops.app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("the stopped container: %v", s)
	}
	if s := stops.pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the stopped sandbox: %v", s)
	}
	// The same where no berth before had made the folder of the node's own pods.
	const without = "pods of the node itself are not looked after until berth is started again"
	n.Kill9(t)
	remount(t, n.RootDir, 0)
	if err := os.RemoveAll(filepath.Join(n.RootDir, "kubelet")); err != nil {
		t.Fatal(err)
	}
	remount(t, n.RootDir, syscall.MS_RDONLY)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	tg.wantAlive(t)
	if said := check(t, n); !strings.Contains(said, without) {
		t.Errorf("berth check does not say it:\n%s", said)
	}
	n.Kill9(t)
	remount(t, n.RootDir, 0)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	tg.wantAlive(t)
	newTarget(t, n, "new").wantAlive(t)
	if ok, why := stateWritable(t, n); !ok {
		t.Errorf("StateWritable: %s", why)
	}
	if said := check(t, n); strings.Contains(said, without) {
		t.Errorf("berth check still says:\n%s", said)
	}
}

// remount makes a mount read-only or writable again, which fails while somebody writes there.
func remount(t *testing.T, at string, flags uintptr) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "the remount of "+at, func() error {
		return syscall.Mount("", at, "", syscall.MS_REMOUNT|syscall.MS_BIND|flags, "")
	})
}
