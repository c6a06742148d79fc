//go:build integration

package chaos

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// A drive is one operation that can be killed at a point within it and repeated.
type drive struct {
	name string
	// prepare brings a victim to the state before the operation.
	prepare func(t *testing.T, v *victim)
	// call is the operation as a client does it, also a second time after a kill.
	call func(ctx context.Context, v *victim) error
	// proof fails unless the operation, repeated, has had its result.
	proof func(t *testing.T, v *victim)
}

// A victim is what an operation is done to.
type victim struct {
	rig    *rig
	config *cri.PodSandboxConfig
	pod    *harness.Pod
	app    *harness.Container
	// create is the configuration of a container that a drive creates.
	create *cri.ContainerConfig
	killed who
	// recorded says that the keeper has put the exit on record before it was killed.
	recorded bool
	id       string // what a call returned
	text     string
	image    string
	limit    int64
}

func (v *victim) node() *harness.Node { return v.rig.node }

// run runs the victim's pod.
func (v *victim) run(t *testing.T) {
	t.Helper()
	resp, err := v.node().Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: v.config})
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	v.pod = &harness.Pod{Node: v.node(), ID: resp.PodSandboxId, Config: v.config}
}

func (v *victim) runWith(t *testing.T, script string) {
	t.Helper()
	v.run(t)
	v.app = v.pod.Sh(t, "app", script)
}

// Scripts of victims. What they wait for comes by the kernel, so that each is ready as soon as it says so.
const (
	idleScript     = `echo up; exec sleep 1000`
	tellingScript  = `echo up; echo up >>/ran; exec sleep 1000`
	politeScript   = `trap "echo bye; exit 7" TERM; echo up; while :; do sleep 1000 & wait; done`
	stubbornScript = `trap "" TERM; echo up; while :; do sleep 1000; done`
	endingScript   = `trap "exit 42" USR1; echo up; while :; do sleep 1000 & wait; done`
)

// awaitUp waits until the script has said that it is ready.
func (v *victim) awaitUp(t testing.TB) { awaitText(t, v.app, "up") }

// wantRanOnce waits until the tellingScript has run, and fails if it has run twice. A file says so: its output may have gone
// with the keeper.
func (v *victim) wantRanOnce(t testing.TB) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "the workload", func() error {
		resp, err := v.app.ExecSync(harness.Ctx(t), 0, "cat", "/ran")
		if err == nil && string(resp.Stdout) != "up\n" {
			err = fmt.Errorf("it has written %q and said %q", resp.Stdout, resp.Stderr)
		}
		return err
	})
}

func awaitText(t testing.TB, c *harness.Container, text string) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "the text "+text, func() error {
		data, err := os.ReadFile(c.LogPath())
		if err == nil && !strings.Contains(string(data), " "+text+"\n") {
			err = fmt.Errorf("the log is %q", data)
		}
		return err
	})
}

// sandboxes returns the IDs of the victim's sandboxes.
func (v *victim) sandboxes(t testing.TB) []string {
	t.Helper()
	list, err := v.node().Runtime.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, sb := range list.Items {
		if sb.Metadata.Name == v.config.Metadata.Name {
			ids = append(ids, sb.Id)
		}
	}
	return ids
}

// containers returns the victim's containers.
func (v *victim) containers(t testing.TB) []*cri.Container {
	t.Helper()
	list, err := v.node().Runtime.ListContainers(harness.Ctx(t), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: v.pod.ID}})
	if err != nil {
		t.Fatal(err)
	}
	return list.Containers
}

// end removes what is left of the victim.
func (v *victim) end(t *testing.T) {
	t.Helper()
	for _, id := range v.sandboxes(t) {
		if _, err := v.node().Runtime.StopPodSandbox(harness.Ctx(t), &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Errorf("StopPodSandbox: %v", err)
		}
		if _, err := v.node().Runtime.RemovePodSandbox(harness.Ctx(t), &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Errorf("RemovePodSandbox: %v", err)
		}
	}
	if v.image != "" {
		if _, err := v.node().Images.RemoveImage(harness.Ctx(t), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: v.image}}); err != nil {
			t.Errorf("RemoveImage: %v", err)
		}
	}
}

// runDrive runs a pod; what it found made already it must return.
func runDrive(name string, change ...func(*cri.PodSandboxConfig)) drive {
	return drive{
		name: name,
		prepare: func(_ *testing.T, v *victim) {
			for _, f := range change {
				f(v.config)
			}
		},
		call: func(ctx context.Context, v *victim) error {
			resp, err := v.node().Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: v.config})
			v.id = resp.GetPodSandboxId()
			return err
		},
		proof: func(t *testing.T, v *victim) {
			if ids := v.sandboxes(t); len(ids) != 1 || ids[0] != v.id {
				t.Fatalf("there are the sandboxes %q, and the call returned %q", ids, v.id)
			}
			v.pod = &harness.Pod{Node: v.node(), ID: v.id, Config: v.config}
			if s := v.pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY || s.Network.GetIp() == "" {
				t.Errorf("the sandbox is %s with the address %q", s.State, s.Network.GetIp())
			}
			if got := v.pod.Sh(t, "app", idleScript).Exec(t, "hostname"); got != v.config.Hostname {
				t.Errorf("a container in it: %q", got)
			}
		},
	}
}

func sharesPID(c *cri.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
}

// createDrive creates a container with limits.
func createDrive(name string, change ...func(*cri.ContainerConfig)) drive {
	return drive{
		name: name,
		prepare: func(t *testing.T, v *victim) {
			v.run(t)
			v.create = harness.ContainerConfig("app", images.Tools, "sh", "-c", idleScript)
			v.create.Linux.Resources = &cri.LinuxContainerResources{CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}
			for _, f := range change {
				f(v.create)
			}
		},
		call: func(ctx context.Context, v *victim) error {
			resp, err := v.node().Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: v.pod.ID, Config: v.create, SandboxConfig: v.config})
			v.id = resp.GetContainerId()
			return err
		},
		proof: func(t *testing.T, v *victim) {
			if list := v.containers(t); len(list) != 1 || list[0].Id != v.id || list[0].State != cri.ContainerState_CONTAINER_CREATED {
				t.Fatalf("there are the containers %v, and the call returned %q", list, v.id)
			}
			v.app = &harness.Container{Pod: v.pod, ID: v.id, Config: v.create}
			v.app.Start(t)
			if got := v.app.Exec(t, "echo", "alive"); got != "alive" {
				t.Errorf("exec: %q", got)
			}
			if got := v.app.Status(t).Resources.GetLinux(); got.GetCpuQuota() != 50000 || got.GetMemoryLimitInBytes() != 64<<20 {
				t.Errorf("limits: %v", got)
			}
		},
	}
}

func withVolume(c *cri.ContainerConfig) {
	c.Mounts = []*cri.Mount{{ContainerPath: "/volume", Image: &cri.ImageSpec{Image: images.Volume}, Readonly: true}}
}

// startDrive starts a container.
var startDrive = drive{
	name: "StartContainer",
	prepare: func(t *testing.T, v *victim) {
		v.run(t)
		v.app = v.pod.Create(t, harness.ContainerConfig("app", images.Tools, "sh", "-c", tellingScript))
	},
	call: func(ctx context.Context, v *victim) error {
		_, err := v.node().Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: v.app.ID})
		return err
	},
	proof: func(t *testing.T, v *victim) {
		if s := v.app.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt < s.CreatedAt {
			t.Errorf("after the start: %v", s)
		}
		v.wantRanOnce(t)
	},
}

// slowStartDrive starts a container whose init gets to nothing until the start is asked for again.
var slowStartDrive = drive{
	name: "StartContainer of a slow init",
	prepare: func(t *testing.T, v *victim) {
		startDrive.prepare(t, v)
		v.limit = int64(look(t, v.app).pid)
		if err := syscall.Kill(int(v.limit), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	},
	call: func(ctx context.Context, v *victim) error {
		if v.text != "" {
			if err := syscall.Kill(int(v.limit), syscall.SIGCONT); err != nil {
				return err
			}
		}
		v.text = "asked"
		return startDrive.call(ctx, v)
	},
	proof: func(t *testing.T, v *victim) {
		if err := syscall.Kill(int(v.limit), syscall.SIGCONT); err != nil { // a daemon that lived has had its answer of the next keeper
			t.Error(err)
		}
		startDrive.proof(t, v)
	},
}

// execDrive runs a command.
var execDrive = drive{
	name:    "ExecSync",
	prepare: func(t *testing.T, v *victim) { v.runWith(t, idleScript) },
	call: func(ctx context.Context, v *victim) error {
		// Of an earlier call nothing may be left, neither its process nor its cgroup.
		resp, err := v.app.ExecSync(ctx, harness.Patience(30*time.Second), "sh", "-c", `echo hello; exit 3`)
		if err == nil {
			v.text = fmt.Sprintf("%q %d", resp.Stdout, resp.ExitCode)
		}
		return err
	},
	proof: func(t *testing.T, v *victim) {
		if v.text != `"hello\n" 3` {
			t.Errorf("exec: %s", v.text)
		}
		harness.Eventually(t, 10*time.Second, "the cgroups of execs to go", func() error {
			for thing := range v.rig.inventory(t) {
				if strings.HasPrefix(thing, "cgroup ") && strings.Contains(thing, "/exec-") {
					return fmt.Errorf("%s", thing)
				}
			}
			return nil
		})
	},
}

// reopenDrive rotates a log.
var reopenDrive = drive{
	name: "ReopenContainerLog",
	prepare: func(t *testing.T, v *victim) {
		v.runWith(t, `echo up; trap "echo again" USR1; while :; do sleep 1000 & wait; done`)
		v.awaitUp(t)
		if err := os.Rename(v.app.LogPath(), v.app.LogPath()+".1"); err != nil {
			t.Fatal(err)
		}
	},
	call: func(ctx context.Context, v *victim) error {
		_, err := v.node().Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: v.app.ID})
		return err
	},
	proof: func(t *testing.T, v *victim) {
		if err := syscall.Kill(look(t, v.app).pid, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		awaitText(t, v.app, "again")
		if lines, err := harness.ReadLog(v.app.LogPath() + ".1"); err != nil || len(lines) != 1 {
			t.Errorf("the log before: %v, %v", lines, err)
		}
	},
}

// updateDrive changes limits.
var updateDrive = drive{
	name:    "UpdateContainerResources",
	prepare: func(t *testing.T, v *victim) { v.runWith(t, idleScript) },
	call: func(ctx context.Context, v *victim) error {
		_, err := v.node().Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{
			ContainerId: v.app.ID, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 77 << 20},
		})
		return err
	},
	proof: func(t *testing.T, v *victim) {
		if got := v.app.Status(t).Resources.GetLinux().GetMemoryLimitInBytes(); got != 77<<20 {
			t.Errorf("the status says %d", got)
		}
		got := v.app.Exec(t, "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max")
		if got != fmt.Sprint(77<<20) {
			t.Errorf("the cgroup says %s", got)
		}
	},
}

// stopDrive stops a container. The repeated call has a grace that no test waits for: only the deadline of the first one,
// on record since, makes it return.
func stopDrive(name, script string, code int32, grace time.Duration) drive {
	repeated := map[*victim]bool{}
	return drive{
		name:    name,
		prepare: func(t *testing.T, v *victim) { v.runWith(t, script); v.awaitUp(t) },
		call: func(ctx context.Context, v *victim) error {
			timeout := int64(harness.Patience(grace).Seconds())
			if repeated[v] {
				timeout = 100_000
			}
			repeated[v] = true
			_, err := v.node().Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: v.app.ID, Timeout: timeout})
			return err
		},
		proof: func(t *testing.T, v *victim) {
			delete(repeated, v)
			v.wantEnd(t, code)
		},
	}
}

// wantEnd fails unless the container has ended with this code, or with an honest "unknown" where nobody could have known.
func (v *victim) wantEnd(t testing.TB, code int32) {
	t.Helper()
	s := v.app.Status(t)
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.FinishedAt < s.StartedAt {
		t.Errorf("it is %v", s)
		return
	}
	reason := "Error"
	if code == 0 {
		reason = "Completed"
	}
	if s.ExitCode == code && s.Reason == reason {
		return
	}
	unknown := s.ExitCode == 255 && s.Reason == "Unknown"
	if !unknown || v.killed == daemon || v.recorded || v.killed == keeper && kernelTells() {
		t.Errorf("it ended with %d %s, want %d; killed was the %s", s.ExitCode, s.Reason, code, v.killed)
	}
}

// kernelTells says whether the kernel still has the exit code of a process that its parent has reaped (Linux 6.15).
var kernelTells = sync.OnceValue(func() bool {
	pidfd := -1
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if cmd.Run() != nil || pidfd < 0 {
		return false
	}
	defer unix.Close(pidfd)
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	return unix.IoctlPidfdInfo(pidfd, &info) == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0
})

// exitDrive ends a container from inside.
var exitDrive = drive{
	name: "exit",
	prepare: func(t *testing.T, v *victim) {
		v.runWith(t, endingScript)
		v.awaitUp(t)
		v.limit = int64(look(t, v.app).pid)
	},
	call: func(ctx context.Context, v *victim) error {
		if v.limit != 0 {
			if err := syscall.Kill(int(v.limit), unix.SIGUSR1); err != nil {
				return err
			}
			v.limit = 0
		}
		for {
			resp, err := v.node().Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: v.app.ID})
			if err != nil || resp.Status.State == cri.ContainerState_CONTAINER_EXITED {
				return err
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	},
	proof: func(t *testing.T, v *victim) { v.wantEnd(t, 42) },
}

// removeDrive removes a container that runs.
var removeDrive = drive{
	name:    "RemoveContainer",
	prepare: func(t *testing.T, v *victim) { v.runWith(t, idleScript) },
	call: func(ctx context.Context, v *victim) error {
		_, err := v.node().Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: v.app.ID})
		return err
	},
	proof: func(t *testing.T, v *victim) {
		if list := v.containers(t); len(list) != 0 {
			t.Errorf("there is %v", list)
		}
	},
}

// stopPodDrive stops a pod.
func stopPodDrive(name string, change ...func(*cri.PodSandboxConfig)) drive {
	return drive{
		name: name,
		prepare: func(t *testing.T, v *victim) {
			for _, f := range change {
				f(v.config)
			}
			v.runWith(t, idleScript)
		},
		call: func(ctx context.Context, v *victim) error {
			_, err := v.node().Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: v.pod.ID})
			return err
		},
		proof: func(t *testing.T, v *victim) {
			if s := v.pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("the sandbox is %s", s.State)
			}
			v.wantEnd(t, 137)
			netns, err := filepath.Glob("/run/netns/berth-" + v.pod.ID[:24])
			if err != nil || len(netns) > 0 {
				t.Errorf("network namespaces: %v, %v", netns, err)
			}
		},
	}
}

// removePodDrive removes a pod that was stopped.
var removePodDrive = drive{
	name:    "RemovePodSandbox",
	prepare: func(t *testing.T, v *victim) { v.runWith(t, idleScript) },
	call: func(ctx context.Context, v *victim) error {
		_, err := v.node().Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: v.pod.ID})
		return err
	},
	proof: func(t *testing.T, v *victim) {
		if ids := v.sandboxes(t); len(ids) != 0 {
			t.Errorf("there are %v", ids)
		}
	},
}

// pullDrive pulls an image of layers that no other image has.
var pullDrive = drive{
	name:    "PullImage",
	prepare: func(_ *testing.T, v *victim) { v.image = images.Layered },
	call: func(ctx context.Context, v *victim) error {
		_, err := v.node().Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: v.image}})
		return err
	},
	proof: func(t *testing.T, v *victim) {
		v.run(t)
		app := v.pod.Create(t, harness.ContainerConfig("app", v.image, "none"), withTools)
		if err := wholeImage(t, v, app); err != nil {
			t.Error(err)
		}
	},
}

// wholeImage looks at the root filesystem of a container of the image Layered from outside.
func wholeImage(t *testing.T, v *victim, app *harness.Container) error {
	t.Helper()
	root := filepath.Join(v.node().RunDir, "containers", app.ID, "rootfs")
	for _, dir := range []string{"a", "b", "c"} {
		for i := range 64 {
			st, err := os.Stat(filepath.Join(root, dir, fmt.Sprint(i)))
			if err != nil {
				return err
			}
			if st.Size() != 64<<10 {
				return fmt.Errorf("%s/%d has %d bytes", dir, i, st.Size())
			}
		}
	}
	return nil
}

func withTools(c *cri.ContainerConfig) {
	c.Mounts = []*cri.Mount{{ContainerPath: "/tools", Image: &cri.ImageSpec{Image: images.Tools}, Readonly: true}}
	c.Command = []string{"/tools/bin/busybox", "sleep", "1000"}
}

// removeImageDrive removes an image.
var removeImageDrive = drive{
	name: "RemoveImage",
	prepare: func(t *testing.T, v *victim) {
		v.image = images.Layered
		v.node().NeedImage(t, v.image)
	},
	call: func(ctx context.Context, v *victim) error {
		_, err := v.node().Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: v.image}})
		return err
	},
	proof: func(t *testing.T, v *victim) {
		resp, err := v.node().Images.ImageStatus(harness.Ctx(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: v.image}})
		if err != nil || resp.Image != nil {
			t.Errorf("the image: %v, %v", resp.GetImage(), err)
		}
	},
}
