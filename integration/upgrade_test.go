//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// again repeats a call as a kubelet does: when the daemon that it spoke with is gone. Any other error is one. It reports how
// often it had to.
func again(repeated *atomic.Int64, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	for {
		err := call(ctx)
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return err
		}
		repeated.Add(1)
		time.Sleep(10 * time.Millisecond)
	}
}

// mainProcess is the init of a container, with its start time.
func mainProcess(t *testing.T, c *harness.Container) string {
	t.Helper()
	resp, err := c.Pod.Node.Runtime.ContainerStatus(harness.Ctx(t), &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil || info.Pid == 0 {
		t.Fatalf("no pid in %v: %v", resp.Info, err)
	}
	started, alive := harness.StartTime(info.Pid)
	if !alive {
		t.Fatalf("process %d has ended", info.Pid)
	}
	return fmt.Sprintf("%d started at tick %s", info.Pid, started)
}

// A client that repeats what was cut off sees no other failure, whatever it does, through twenty upgrades.
func TestUpgradesUnderLoad(t *testing.T) {
	n := ownNode(t)
	stays := n.RunPod(t, "stays").Sh(t, "counts", counter)
	process, started := mainProcess(t, stays), stays.Status(t).StartedAt
	var repeated, pods, calls atomic.Int64
	done := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 2 {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := podLife(n, fmt.Sprintf("load-%d", i), &repeated); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				pods.Add(1)
			}
		})
	}
	clients.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			err := again(&repeated, func(ctx context.Context) error {
				resp, err := n.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: stays.ID}})
				if err == nil && (len(resp.Containers) != 1 || resp.Containers[0].State != cri.ContainerState_CONTAINER_RUNNING) {
					return fmt.Errorf("the list has %v", resp.Containers)
				}
				return err
			})
			if err != nil {
				t.Errorf("list: %v", err)
				return
			}
			calls.Add(1)
		}
	})

	seen := []int{n.DaemonPid(t)}
	for range 20 {
		before := pods.Load()
		n.Berth(t, "upgrade")
		pid := n.DaemonPid(t)
		if slices.Contains(seen, pid) {
			t.Errorf("process %d has the node, after %v", pid, seen)
		}
		seen = append(seen, pid)
		harness.Eventually(t, 30*time.Second, "the clients to go on", func() error {
			if pods.Load() == before && !t.Failed() {
				return errors.New("no pod was made")
			}
			return nil
		})
	}
	close(done)
	clients.Wait()
	t.Logf("%d pods and %d lists, %d calls repeated", pods.Load(), calls.Load(), repeated.Load())
	if got := mainProcess(t, stays); got != process || stays.Status(t).StartedAt != started {
		t.Errorf("the container was %s and is %s", process, got)
	}
	wantCounted(t, stays, 10)
	wantNoneLingering(t, n)
	if list := podsListed(t, n); len(list) != 1 {
		t.Errorf("%d pods are left", len(list))
	}
}

// podLife makes a pod, executes something in it and removes it.
func podLife(n *harness.Node, name string, repeated *atomic.Int64) error {
	config := n.PodConfig(name)
	container := harness.ContainerConfig("app", images.Tools, "sh", "-c", `trap "exit 0" TERM; touch /ready; while :; do sleep 1000 & wait; done`)
	var pod, app string
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"RunPodSandbox", func(ctx context.Context) error {
			resp, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
			pod = resp.GetPodSandboxId()
			return err
		}},
		{"CreateContainer", func(ctx context.Context) error {
			resp, err := n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: container, SandboxConfig: config})
			app = resp.GetContainerId()
			return err
		}},
		{"StartContainer", func(ctx context.Context) error {
			_, err := n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: app})
			return err
		}},
		{"ExecSync", func(ctx context.Context) error {
			resp, err := n.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: app, Cmd: []string{"sh", "-c", "until [ -e /ready ]; do sleep 0.01; done; hostname; exit 7"}})
			if err == nil && (string(resp.Stdout) != name+"\n" || resp.ExitCode != 7) {
				return fmt.Errorf("exit code %d, output %q", resp.ExitCode, resp.Stdout)
			}
			return err
		}},
		{"StopContainer", func(ctx context.Context) error {
			_, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: app, Timeout: 60})
			return err
		}},
		{"ContainerStatus", func(ctx context.Context) error {
			resp, err := n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: app})
			if s := resp.GetStatus(); err == nil && (s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 0) {
				log, _ := os.ReadFile(filepath.Join(config.LogDirectory, container.LogPath))
				return fmt.Errorf("the container is %s, exit code %d (%s): %s", s.State, s.ExitCode, s.Reason, log)
			}
			return err
		}},
		{"StopPodSandbox", func(ctx context.Context) error {
			_, err := n.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		}},
		{"RemovePodSandbox", func(ctx context.Context) error {
			_, err := n.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		}},
	}
	for _, step := range steps {
		if err := again(repeated, step.do); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// What takes long is cut off and goes on where it was: the stop with what is left of its grace, the pull with its layers.
func TestUpgradeCutsWhatWaits(t *testing.T) {
	n := ownNode(t)
	c := n.RunPod(t, "stubborn").Sh(t, "app", `trap "echo told" TERM; echo ready; while :; do sleep 0.1; done`)
	waitForText(t, c, "stdout", "ready")
	events, err := n.Runtime.GetContainerEvents(t.Context(), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Header(); err != nil {
		t.Fatal(err)
	}
	grace := harness.Patience(6 * time.Second)
	var repeated atomic.Int64
	begun, stopped := time.Now(), make(chan error, 1)
	go func() {
		stopped <- again(&repeated, func(ctx context.Context) error {
			_, err := n.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: int64(grace / time.Second)})
			return err
		})
	}()
	waitForText(t, c, "stdout", "told")
	n.Berth(t, "upgrade")
	if _, err := events.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the events end with %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("StopContainer: %v", err)
	}
	if repeated.Load() == 0 {
		t.Error("the stop was not cut off")
	}
	if s := c.Status(t); s.ExitCode != 137 || time.Since(begun) < grace {
		t.Errorf("exit code %d after %s, with a grace of %s", s.ExitCode, time.Since(begun), grace)
	} else if finished := time.Unix(0, s.FinishedAt); finished.Sub(begun) > grace+harness.Patience(3*time.Second) {
		t.Errorf("it was killed after %s, with a grace of %s", finished.Sub(begun), grace)
	}
}

// program writes an executable script.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "berth")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// upgradeFails runs berth upgrade, which has to fail, and returns what it says.
func upgradeFails(t *testing.T, n *harness.Node, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(harness.Ctx(t), filepath.Join(harness.Root(), "bin", "berth"), append([]string{"upgrade", "--run-dir", n.RunDir}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("berth upgrade %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// agrees is a program that says that it is able to take over, and then does what the script says.
func agrees(t *testing.T, then string) string {
	t.Helper()
	return program(t, `printf '\0\0\0\017{"kind":"able"}' >&3; `+then)
}

// A new daemon that hangs when it has the node in its hands is given up before a kubelet gives up its calls (after two minutes), and the
// old one serves again. Calls that were made meanwhile get their answers from it.
func TestUpgradeToWhatHangs(t *testing.T) {
	n := ownNode(t)
	app := n.RunPod(t, "patient").Sh(t, "app", counter)
	process, pid, said := mainProcess(t, app), n.DaemonPid(t), make(chan string)
	taken := filepath.Join(t.TempDir(), "taken")
	const word = "dd bs=64k count=1 <&3 >/dev/null; "
	hangs := program(t, word+`printf '\0\0\0\036{"kind":"able","working":true}' >&3; `+word+"touch "+taken+"; sleep 1000")
	go func() { said <- upgradeFails(t, n, "--program", hangs) }()
	harness.Eventually(t, 60*time.Second, "the new daemon to have the node", func() error {
		_, err := os.Stat(taken)
		return err
	})
	var repeated atomic.Int64
	ctx, cancel := context.WithTimeout(harness.Ctx(t), harness.Patience(time.Minute))
	defer cancel()
	err := again(&repeated, func(context.Context) error {
		_, err := n.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
		return err
	})
	if err != nil {
		t.Errorf("a call that was made meanwhile: %v", err)
	}
	if err := wantIn(<-said, "the new daemon does not answer"); err != nil {
		t.Error(err)
	}
	if got := n.DaemonPid(t); got != pid {
		t.Errorf("process %d has the node, not %d", got, pid)
	}
	if got := mainProcess(t, app); got != process {
		t.Errorf("the container was %s and is %s", process, got)
	}
	wantCounted(t, app, 3)
	wantNoneLingering(t, n)
}

// A program that cannot take over changes nothing.
func TestUpgradeToWhatCannot(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "unmoved")
	app := pod.Idle(t, "app")
	s := converse(t, n, "exec", "-i", app.ID, "sh", "-c", parrot)
	s.say(t, "hello")
	pid := n.DaemonPid(t)
	berth := filepath.Join(harness.Root(), "bin", "berth")
	newer := filepath.Join(n.RootDir, "containers", app.ID, "record.json")
	record, err := os.ReadFile(newer)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(n.Dir, "config.yaml")
	good, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	notExecutable := filepath.Join(t.TempDir(), "berth")
	if err := os.WriteFile(notExecutable, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	write := func(path string, text []byte) func() {
		return func() {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		program string
		before  func()
		after   func()
		want    string
	}{
		"not there":         {program: "/no/such/berth", want: "no such file"},
		"not executable":    {program: notExecutable, want: "permission denied"},
		"ends at once":      {program: program(t, "exit 3"), want: "has ended without a word"},
		"ends well":         {program: "/bin/true", want: "has ended without a word"},
		"another language":  {program: program(t, "echo hello >&3; sleep 1000"), want: "cannot be spoken with"},
		"bad configuration": {program: berth, before: write(config, append(slices.Clone(good), "nonsense: 1\n"...)), after: write(config, good), want: "nonsense"},
		"other folders":     {program: program(t, "exec "+berth+` "$@" --root-dir /tmp/elsewhere`), want: "another node"},
		"records of a newer version": {program: berth, before: write(newer, bytes.Replace(record, []byte(`"version":1`), []byte(`"version":99`), 1)),
			after: write(newer, record), want: "version 99"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.before != nil {
				c.before()
				defer c.after()
			}
			if err := wantIn(upgradeFails(t, n, "--program", c.program), c.want); err != nil {
				t.Error(err)
			}
			if got := n.DaemonPid(t); got != pid {
				t.Errorf("process %d has the node, not %d", got, pid)
			}
			s.say(t, name)
			if got := app.Exec(t, "echo", "well"); got != "well" {
				t.Errorf("got %q", got)
			}
		})
	}
	s.say(t, "bye")
	_ = s.cmd.Wait()
	if found := lingering(t, n); len(found) > 0 {
		t.Errorf("lingering: %q", found)
	}
}

// One upgrade at a time.
func TestTwoUpgradesAtOnce(t *testing.T) {
	n := ownNode(t)
	app := n.RunPod(t, "twice").Idle(t, "app")
	begun := filepath.Join(t.TempDir(), "begun")
	berth := filepath.Join(harness.Root(), "bin", "berth")
	slow := program(t, fmt.Sprintf("touch %s; sleep %g; exec %s \"$@\"", begun, harness.Patience(2*time.Second).Seconds(), berth))
	first := make(chan string, 1)
	go func() { first <- n.Berth(t, "upgrade", "--program", slow) }()
	harness.Eventually(t, 20*time.Second, "the first upgrade", func() error {
		_, err := os.Stat(begun)
		return err
	})
	if err := wantIn(upgradeFails(t, n), "an upgrade or a drain is under way"); err != nil {
		t.Error(err)
	}
	if err := wantIn(<-first, "has taken over"); err != nil {
		t.Error(err)
	}
	if got := app.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
	// The service's own program comes back with the next upgrade.
	n.Berth(t, "upgrade")
	exe, err := os.Readlink("/proc/" + strconv.Itoa(n.DaemonPid(t)) + "/exe")
	if err != nil || exe != berth {
		t.Errorf("the daemon runs %s, %v", exe, err)
	}
}

// Whoever watches the first process of a node sees the node's end in its end, and ends the node by it.
func TestUpgradedNodeIsWatchedByItsFirstProcess(t *testing.T) {
	n := ownNode(t)
	app := n.RunPod(t, "watched").Idle(t, "app")
	first := n.Pid()
	n.Berth(t, "upgrade")
	n.Berth(t, "upgrade")
	if pid := n.DaemonPid(t); pid == first || !n.Running() {
		t.Fatalf("process %d has the node, running: %t", pid, n.Running())
	}
	// SIGHUP to the first process reaches the daemon.
	before := n.DaemonPid(t)
	if err := syscall.Kill(first, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "an upgrade by a signal", func() error {
		if n.DaemonPid(t) == before {
			return errors.New("the same process has the node")
		}
		return nil
	})
	n.Restart(t) // SIGTERM to the first one
	if n.Pid() == first {
		t.Error("the same process")
	}
	n.Berth(t, "upgrade")
	n.Kill9(t) // the daemon; the first process then ends
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if got := app.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
}

// successorOf waits for the daemon that another one has started to take its place, and returns 0 if none comes.
func successorOf(parent int, within time.Duration) int {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, path := range stats {
			text, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			var pid, ppid int
			end := bytes.LastIndexByte(text, ')')
			name := string(text[bytes.IndexByte(text, '(')+1 : end])
			if fields := strings.Fields(string(text[end+1:])); len(fields) > 1 && name == "berth" {
				pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
				ppid, _ = strconv.Atoi(fields[1])
			}
			if pid != 0 && ppid == parent {
				return pid
			}
		}
	}
	return 0
}

// Whoever is killed at whatever moment of a hand-over: there is one daemon afterwards, or the next start makes one, and pods
// do not notice.
func TestKilledInAnUpgrade(t *testing.T) {
	n := ownNode(t)
	app := n.RunPod(t, "survivor").Sh(t, "counts", counter)
	process := mainProcess(t, app)
	step := harness.Patience(12 * time.Millisecond)
	outcomes := map[string]int{}
	for _, victim := range []string{"old", "new"} {
		for i := range 10 {
			old := n.DaemonPid(t)
			cmd := exec.Command(filepath.Join(harness.Root(), "bin", "berth"), "upgrade", "--run-dir", n.RunDir)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pid := old
			if next := successorOf(old, harness.Patience(10*time.Second)); next == 0 {
				t.Fatal("no successor was started")
			} else if victim == "new" {
				pid = next
			}
			time.Sleep(time.Duration(i) * step)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
			upgraded := cmd.Wait() == nil
			outcomes[fmt.Sprintf("%s killed, upgraded %t", victim, upgraded)]++
			revive(t, n)
			if got := app.Exec(t, "echo", "well"); got != "well" {
				t.Errorf("%s killed after %d steps: got %q", victim, i, got)
			}
			if got := mainProcess(t, app); got != process {
				t.Fatalf("the container was %s and is %s", process, got)
			}
			wantNoneLingering(t, n)
		}
	}
	t.Logf("%v", outcomes)
	for _, want := range []string{"old killed, upgraded false", "new killed, upgraded false"} {
		if outcomes[want] == 0 {
			t.Errorf("it never came to: %s (%v)", want, outcomes)
		}
	}
	wantCounted(t, app, 10)
}

// revive has the node served by a daemon that the harness has started, whatever became of the one before.
func revive(t *testing.T, n *harness.Node) {
	t.Helper()
	lock := filepath.Join(n.RunDir, "berth.lock")
	held := func() bool { return exec.Command("flock", "-n", "-s", lock, "true").Run() != nil }
	// Those who give up do it by themselves, and soon.
	var err error
	for deadline := time.Now().Add(harness.Patience(20 * time.Second)); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if !held() {
			break
		}
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(2*time.Second))
		_, err = n.Runtime.Version(ctx, &cri.VersionRequest{})
		cancel()
		if err == nil {
			break
		}
	}
	if held() && err != nil {
		t.Fatalf("somebody has the node and does not serve: %v", err)
	}
	if held() && !n.Running() { // a daemon whose first process was killed
		if err := syscall.Kill(n.DaemonPid(t), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, 20*time.Second, "the end of the daemon", func() error {
			if held() {
				return errors.New("it has its lock")
			}
			return nil
		})
	}
	if !held() {
		harness.Eventually(t, 20*time.Second, "the end of the first process", func() error {
			if n.Running() {
				return errors.New("it lives on")
			}
			return nil
		})
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
}
