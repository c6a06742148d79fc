//go:build integration

package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// must runs a program that has to succeed.
func must(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// askNode makes a call as the kubelet makes it every few seconds.
func askNode(t *testing.T, n *harness.Node) {
	t.Helper()
	if _, err := n.Runtime.Status(harness.Ctx(t), &cri.StatusRequest{}); err != nil {
		t.Errorf("Status: %v", err)
	}
}

// nftables that somebody else flushes or changes come back, with the host ports and the masquerading of all pods: at once,
// without a call.
func TestFlushedRulesComeBack(t *testing.T) {
	const hostPort = 12079
	n := ownNode(t)
	server := n.RunPod(t, "server", func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: hostPort}}
	})
	server.Run(t, web(":80"))
	address := fmt.Sprintf("127.0.0.1:%d", hostPort)
	get(t, address)
	table := tableWith(t, hostPort)
	before := rulesOf(table)
	for name, damage := range map[string][]string{
		"flush of all":         {"flush", "ruleset"},
		"removal of the table": {"delete", "table", "inet", table},
		"flush of the table":   {"flush", "table", "inet", table},
	} {
		t.Run(name, func(t *testing.T) {
			if damage[1] == "ruleset" && !onlyOwnTables(t, table) {
				t.Skip("there are rules of others on this machine")
			}
			must(t, "nft", damage...)
			harness.Eventually(t, 20*time.Second, "the rules", func() error {
				if now := rulesOf(table); now != before {
					return fmt.Errorf("now:\n%s\nbefore:\n%s", now, before)
				}
				return nil
			})
			get(t, address)
		})
	}
}

// rulesOf are the rules of a table, or why there are none.
func rulesOf(table string) string {
	out, err := exec.Command("nft", "-s", "list", "table", "inet", table).Output()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// tableWith is the table that has a host port: that of the node with the pod.
func tableWith(t *testing.T, hostPort int) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		t.Fatal(err)
	}
	table := ""
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSuffix(strings.TrimSpace(line), " {"), "table inet "); ok {
			table = name
		}
		if strings.Contains(line, strconv.Itoa(hostPort)) {
			return table
		}
	}
	t.Fatalf("no table has the host port:\n%s", out)
	return ""
}

func onlyOwnTables(t *testing.T, own string) bool {
	t.Helper()
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, own) {
			return false
		}
	}
	return true
}

// A bridge that somebody deletes is there again when the node is asked; pods that are run from then on have a network. A
// pod whose own interface was deleted ends clean.
func TestDeletedLinks(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "cut-off")
	pod.Run(t, web(":80"))
	ip := pod.IPs(t)[0]
	get(t, net.JoinHostPort(ip, "80"))
	bridge := linkTo(t, ip)

	pid := initPid(t, pod.Idle(t, "sh"))
	must(t, "nsenter", "-t", strconv.Itoa(pid), "-n", "ip", "link", "delete", "eth0")
	pod.Remove(t)

	must(t, "ip", "link", "delete", bridge)
	askNode(t, n)
	next := n.RunPod(t, "next")
	next.Run(t, web(":80"))
	get(t, net.JoinHostPort(next.IPs(t)[0], "80"))
	if now := linkTo(t, next.IPs(t)[0]); now != bridge {
		t.Errorf("the bridge is %s, was %s", now, bridge)
	}
}

// A bridge that is deleted under pods comes back with their interfaces on it.
func TestDeletedBridgeComesBackWithItsPods(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "cut-off")
	pod.Run(t, web(":80"))
	address := net.JoinHostPort(pod.IPs(t)[0], "80")
	get(t, address)
	must(t, "ip", "link", "delete", linkTo(t, pod.IPs(t)[0]))
	askNode(t, n)
	get(t, address)
}

// linkTo is the interface by which the host reaches an address.
func linkTo(t *testing.T, ip string) string {
	t.Helper()
	out, err := exec.Command("ip", "route", "get", ip).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(out), " dev ")
	if !found {
		t.Fatalf("no route: %s", out)
	}
	return strings.Fields(rest)[0]
}

// The file of a pod's network namespace that somebody removes is there again while something of the pod lives: containers
// can be made in it, tools find it. Without any the pod is not ready, and the kubelet makes another.
func TestRemovedNetworkNamespaceFile(t *testing.T) {
	n := ownNode(t)
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			pod := n.RunPod(t, "unpinned")
			if running {
				pod.Idle(t, "app")
			}
			n.NeedImage(t, images.Tools)
			path := netnsFile(t, pod)
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if !running {
				_, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{
					PodSandboxId: pod.ID, Config: harness.ContainerConfig("late", images.Tools, "true"), SandboxConfig: pod.Config})
				// Who is first sees that it is gone, or that somebody has seen it before.
				if status.Code(err) != codes.FailedPrecondition {
					t.Errorf("a container was made: %v", err)
				}
				if s := pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
					t.Errorf("the pod is %s", s.State)
				}
				return
			}
			late := pod.Idle(t, "late")
			if got := late.Exec(t, "ip", "-4", "-o", "addr", "show", "eth0"); !strings.Contains(got, pod.IPs(t)[0]) {
				t.Errorf("the container has another network: %s", got)
			}
			if s := pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY {
				t.Errorf("the pod is %s", s.State)
			}
			var st unix.Statfs_t
			if err := unix.Statfs(path, &st); err != nil || st.Type != unix.NSFS_MAGIC {
				t.Errorf("%s is not there again: %v", path, err)
			}
		})
	}
}

// netnsFile is where the pod's network namespace is bound.
func netnsFile(t *testing.T, pod *harness.Pod) string {
	t.Helper()
	found, err := filepath.Glob("/run/netns/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		if strings.Contains(pod.ID, strings.TrimPrefix(filepath.Base(path), "berth-")) {
			return path
		}
	}
	t.Fatalf("no file of pod %s among %v", pod.ID, found)
	return ""
}

// A container that was moved out of its cgroup, which then was removed, is stopped and removed all the same, and the
// statistics of others come.
func TestCgroupRemovedFromOutside(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "moved")
	other := n.RunPod(t, "other").Idle(t, "app")
	app := pod.Sh(t, "app", `sleep 4567 & trap "" TERM; while :; do sleep 1; done`)
	group := hostCgroup(t, app)
	away := filepath.Join(filepath.Dir(filepath.Dir(group)), "berth-test-away")
	if err := os.Mkdir(away, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(away); err != nil {
			t.Error(err)
		}
	})
	harness.Eventually(t, 10*time.Second, "the move", func() error {
		pids, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if err != nil {
			return err
		}
		for _, pid := range strings.Fields(string(pids)) {
			if err := os.WriteFile(filepath.Join(away, "cgroup.procs"), []byte(pid), 0o644); err != nil {
				return err
			}
		}
		return os.Remove(group)
	})
	if _, err := n.Runtime.ListContainerStats(harness.Ctx(t), &cri.ListContainerStatsRequest{}); err != nil {
		t.Errorf("statistics of all: %v", err)
	}
	if _, err := n.Runtime.ListPodSandboxStats(harness.Ctx(t), &cri.ListPodSandboxStatsRequest{}); err != nil {
		t.Errorf("statistics of all pods: %v", err)
	}
	if got := other.Exec(t, "echo", "alive"); got != "alive" {
		t.Errorf("the other container says %q", got)
	}
	app.Stop(t, time.Second)
	if s := app.Status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("after the stop: %v", s)
	}
	wantGone(t, "sleep\x004567")
	pod.Remove(t)
}

// A daemon or a keeper without descriptors says so and harms nothing that runs; when there are some again, all goes on.
func TestOutOfDescriptors(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "steady")
	app := pod.Sh(t, "app", counter)
	n.NeedImage(t, images.Tools)
	for name, pid := range map[string]int{"daemon": n.Pid(), "keeper": keeperPid(t, n)} {
		t.Run(name, func(t *testing.T) {
			var was unix.Rlimit
			if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
				t.Fatal(err)
			}
			low := was
			low.Cur = uint64(countFiles(t, fmt.Sprintf("/proc/%d/fd", pid)))
			if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &low, nil); err != nil {
				t.Fatal(err)
			}
			restore := func() {
				if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
					t.Error(err)
				}
			}
			defer restore()
			cpu := cpuTicks(t, pid)
			config := n.PodConfig("starved")
			failed := false
			for i := range 3 {
				config.Metadata.Attempt = uint32(i)
				resp, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config})
				if err == nil {
					_, err = n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{
						PodSandboxId: resp.PodSandboxId, Config: harness.ContainerConfig("app", images.Tools, "true"), SandboxConfig: config})
					t.Cleanup(func() {
						if _, err := n.Runtime.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: resp.PodSandboxId}); err != nil && t.Context().Err() == nil {
							t.Error(err)
						}
					})
				}
				if err != nil {
					failed = true
					if !strings.Contains(err.Error(), "too many open files") && !strings.Contains(err.Error(), "no launcher") {
						t.Errorf("the error does not say why: %v", err)
					}
				}
			}
			if !failed {
				t.Errorf("everything was made with %d descriptors", low.Cur)
			}
			time.Sleep(2 * time.Second) // in which one that spins would be seen
			if used := cpuTicks(t, pid) - cpu; used > 150 {
				t.Errorf("it used %d ticks of CPU", used)
			}
			restore()
			harness.Eventually(t, 30*time.Second, "pods to be made again", func() error {
				config.Metadata.Attempt++
				resp, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config})
				if err != nil {
					return err
				}
				p := &harness.Pod{Node: n, ID: resp.PodSandboxId, Config: config}
				defer p.Remove(t)
				c, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{
					PodSandboxId: p.ID, Config: harness.ContainerConfig("app", images.Tools, "true"), SandboxConfig: config})
				if err == nil {
					_, err = n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: c.ContainerId})
				}
				return err
			})
			if s := app.Status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the container that ran is %s", s.State)
			}
			wantCounted(t, app, 10)
			if got := app.Exec(t, "echo", "alive"); got != "alive" {
				t.Errorf("the container says %q", got)
			}
		})
	}
	pod.Remove(t)
}

// cpuTicks is the CPU time that a process has used.
func cpuTicks(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return user + system
}
