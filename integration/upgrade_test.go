//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
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
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", info.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return fmt.Sprintf("%d started at tick %s", info.Pid, fields[19])
}

// lingering are the daemons that have given the node away and serve sessions still.
func lingering(t *testing.T, n *harness.Node) []string {
	t.Helper()
	var s struct {
		Lingering []struct {
			Pid, Sessions int
		}
	}
	out := n.Berth(t, "check", "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var found []string
	for _, l := range s.Lingering {
		found = append(found, fmt.Sprintf("process %d, sessions %d", l.Pid, l.Sessions))
	}
	return found
}

func wantNoneLingering(t *testing.T, n *harness.Node) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "the end of daemons that linger", func() error {
		if found := lingering(t, n); len(found) > 0 {
			return fmt.Errorf("%q", found)
		}
		if left, _ := filepath.Glob(filepath.Join(n.RunDir, "lingering", "*")); len(left) > 0 {
			return fmt.Errorf("left: %q", left)
		}
		return nil
	})
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

// A talk is a session with a program that repeats what it is told.
type talk struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err *bytes.Buffer
}

func converse(t *testing.T, n *harness.Node, args ...string) *talk {
	t.Helper()
	s := &talk{cmd: n.Crictl(harness.Ctx(t), args...), err: &bytes.Buffer{}}
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out, s.cmd.Stderr = bufio.NewReader(out), s.err
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// say sends a line and wants it back.
func (s *talk) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.in, text+"\n"); err != nil {
		t.Errorf("say %q: %v", text, err)
		return
	}
	if got, err := s.out.ReadString('\n'); err != nil || got != "got "+text+"\n" {
		t.Errorf("said %q, heard %q, %v, %s", text, got, err, s.err)
	}
}

// parrot repeats lines and ends at "bye" with exit code 5.
const parrot = `while read -r line; do echo "got $line"; [ "$line" = bye ] && exit 5; done; exit 6`

// Sessions go on in the daemon where they began, and it ends with the last of them.
func TestUpgradeKeepsSessions(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "sessions")
	app := pod.Idle(t, "app")
	attached := pod.Sh(t, "attached", parrot, func(c *cri.ContainerConfig) { c.Stdin = true })
	waitForListener(t, pod.Run(t, web(":8080")), 8080)
	process := mainProcess(t, app)

	talks := map[string]*talk{"attach": converse(t, n, "attach", "-i", attached.ID)}
	for _, transport := range transports {
		talks["exec by "+transport] = converse(t, n, "exec", "-i", "--transport", transport, app.ID, "sh", "-c", parrot)
	}
	for name, s := range talks {
		s.say(t, "before, "+name)
	}
	syncing := make(chan *cri.ExecSyncResponse, 1)
	go func() {
		resp, err := app.ExecSync(context.Background(), 0, "sh", "-c", "echo begun; while [ ! -e /tmp/enough ]; do sleep 0.1; done; echo over; exit 9")
		if err != nil {
			t.Errorf("ExecSync: %v", err)
		}
		syncing <- resp
	}()
	// What a command leaves behind on purpose is not a session; it stays as well.
	app.Exec(t, "sh", "-c", "sleep 12345 >/dev/null 2>&1 &")
	first := n.DaemonPid(t)
	t.Run("upgrades", func(t *testing.T) { // at its end, the forwarding ends
		var forwarded []string
		for _, transport := range transports {
			forwarded = append(forwarded, forward(t, n, transport, pod.ID, 8080))
		}
		for i := range 3 {
			n.Berth(t, "upgrade")
			if pid := n.DaemonPid(t); pid == first {
				t.Fatalf("process %d still has the node", pid)
			}
			for name, s := range talks {
				s.say(t, fmt.Sprintf("after %d, %s", i, name))
			}
			for _, address := range forwarded {
				if err := wantIn(get(t, address), "Hello from pod sessions"); err != nil {
					t.Error(err)
				}
			}
		}
	})
	if found := lingering(t, n); len(found) != 1 || !strings.Contains(found[0], fmt.Sprintf("process %d,", first)) {
		t.Errorf("lingering: %q", found)
	}
	if ps := app.Exec(t, "ps"); !strings.Contains(ps, "sleep 12345") {
		t.Errorf("what an exec left behind is gone:\n%s", ps)
	}

	app.Exec(t, "touch", "/tmp/enough")
	if resp := <-syncing; resp != nil && (resp.ExitCode != 9 || string(resp.Stdout) != "begun\nover\n") {
		t.Errorf("ExecSync: exit code %d, output %q", resp.ExitCode, resp.Stdout)
	}
	for name, s := range talks {
		s.say(t, "bye")
		err := s.cmd.Wait()
		if strings.HasPrefix(name, "exec") && (err == nil || !strings.Contains(s.err.String(), "exit code 5")) {
			t.Errorf("%s: %v, %s", name, err, s.err)
		}
	}
	if s := attached.WaitExit(t); s.ExitCode != 5 {
		t.Errorf("exit code %d of the container that was attached to", s.ExitCode)
	}
	wantNoneLingering(t, n)
	if got := mainProcess(t, app); got != process {
		t.Errorf("the container was %s and is %s", process, got)
	}
}

// A URL that was given out before is good after.
func TestUpgradeWithUnusedURL(t *testing.T) {
	n := ownNode(t)
	app := n.RunPod(t, "url").Idle(t, "app")
	resp, err := n.Runtime.Exec(harness.Ctx(t), &cri.ExecRequest{ContainerId: app.ID, Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	n.Berth(t, "upgrade")
	for _, want := range []int{http.StatusBadRequest, http.StatusNotFound} { // known, but no upgrade is asked for; and then used
		got, err := http.Get(resp.Url)
		if err != nil {
			t.Fatal(err)
		}
		got.Body.Close()
		if got.StatusCode != want {
			t.Errorf("%s, want %d", got.Status, want)
		}
	}
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

// An upgrade replaces the keeper in place if another one is installed, and containers do not notice.
func TestUpgradeReplacesTheKeeper(t *testing.T) {
	installed := filepath.Join(t.TempDir(), "berth-keeper")
	program := built(t, "berth-keeper")
	install(t, installed, program)
	n := ownNode(t, func(o *harness.Options) { o.Flags = []string{"--keeper", installed} })
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

// built is a program as it was built for the tests.
func built(t *testing.T, name string) []byte {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(harness.Root(), "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// A package that brings nothing new but another launcher is noticed too, and containers are made by that one from then on.
func TestUpgradeReplacesTheLaunchers(t *testing.T) {
	installed := filepath.Join(t.TempDir(), "berth-launch")
	launch := built(t, "berth-launch")
	install(t, installed, launch)
	n := ownNode(t, func(o *harness.Options) { o.Flags = []string{"--launch", installed} })
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

// The executions of a daemon that lingers end with it, however it ends.
func TestLingeringDaemonIsKilled(t *testing.T) {
	n := ownNode(t)
	app := n.RunPod(t, "orphaned").Idle(t, "app")
	n.Berth(t, "upgrade") // the one that will linger is not the first process, whose end is the node's to those who watch
	s := converse(t, n, "exec", "-i", app.ID, "sh", "-c", "sleep 54321 & "+parrot)
	s.say(t, "before")
	old := n.DaemonPid(t)
	n.Berth(t, "upgrade")
	s.say(t, "after")
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait()
	harness.Eventually(t, 20*time.Second, "the end of what it executed", func() error {
		if ps := app.Exec(t, "ps"); strings.Contains(ps, "54321") {
			return errors.New(ps)
		}
		return nil
	})
	wantNoneLingering(t, n)
}
