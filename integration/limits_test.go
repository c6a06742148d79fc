//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// The limits of these tests are read where the container sees them, in its own cgroup, and where that can be had without
// a clock they are run into.

func cgroup2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// needCgroup2 skips a test of what cgroup v1 does not have.
func needCgroup2(t *testing.T, what string) {
	t.Helper()
	if !cgroup2() {
		t.Skipf("cgroup v1 has no %s", what)
	}
}

// systemdDriver says whether systemd makes the cgroups of this node.
func systemdDriver(t *testing.T, n *harness.Node) bool {
	t.Helper()
	resp, err := n.Runtime.RuntimeConfig(harness.Ctx(t), &cri.RuntimeConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetLinux().GetCgroupDriver() == cri.CgroupDriver_SYSTEMD
}

// ownLimit returns a file of the container's own cgroup, as the container sees it: v2 is its name there, v1 its name below
// the folder of its hierarchy.
func ownLimit(t *testing.T, c *harness.Container, v2, v1 string) string {
	t.Helper()
	name := v1
	if cgroup2() {
		name = v2
	}
	return c.Exec(t, "cat", "/sys/fs/cgroup/"+name)
}

// hostCgroup returns the folder of the container's cgroup on the host; on v1 that of the hierarchy pids.
func hostCgroup(t *testing.T, c *harness.Container) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", initPid(t, c)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	prefix, root := "0::", "/sys/fs/cgroup"
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if id, rest, _ := strings.Cut(lines.Text(), ":"); !cgroup2() && strings.HasPrefix(rest, "pids:") {
			prefix, root = id+":pids:", "/sys/fs/cgroup/pids"
		}
		if path, found := strings.CutPrefix(lines.Text(), prefix); found {
			return filepath.Join(root, path)
		}
	}
	t.Fatal("the container is in no cgroup")
	return ""
}

// initPid returns the container's first process by its number on the host.
func initPid(t *testing.T, c *harness.Container) int {
	t.Helper()
	resp, err := c.Pod.Node.Runtime.ContainerStatus(harness.Ctx(t), &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil || info.Pid == 0 {
		t.Fatalf("no pid in %s: %v", resp.Info["info"], err)
	}
	return info.Pid
}

// withResources sets what a container asks for.
func withResources(r *cri.LinuxContainerResources) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Linux.Resources = r }
}

// A busy container meets the end of its share, which is so small that the busiest machine lets it have that much.
func TestCPULimitBinds(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "cpu-limit")
	busy := pod.Sh(t, "busy", "while :; do :; done", withResources(&cri.LinuxContainerResources{CpuQuota: 2000, CpuPeriod: 100000}))
	counts := func() map[string]float64 {
		got := map[string]float64{}
		for line := range strings.Lines(ownLimit(t, busy, "cpu.stat", "cpu/cpu.stat")) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			got[key], _ = strconv.ParseFloat(value, 64)
		}
		return got
	}
	used := func() time.Duration {
		if usec, v2 := counts()["usage_usec"]; v2 {
			return time.Duration(usec) * time.Microsecond
		}
		ns, err := strconv.Atoi(strings.TrimSpace(ownLimit(t, busy, "", "cpuacct/cpuacct.usage")))
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(ns)
	}
	began, usedBefore, before := time.Now(), used(), counts()["nr_throttled"]
	harness.Eventually(t, time.Minute, "it is held up in ten periods", func() error {
		if held := counts()["nr_throttled"] - before; held < 10 {
			return fmt.Errorf("in %v", held)
		}
		return nil
	})
	if share := float64(used()-usedBefore) / float64(time.Since(began)); share > 0.1 {
		t.Errorf("it has %.2f of a processor", share)
	}
}

const forkStorm = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 30 >/dev/null 2>&1 & done; wait"

func wantNoFork(t *testing.T, c *harness.Container) {
	t.Helper()
	resp, err := c.ExecSync(harness.Ctx(t), 0, "sh", "-c", forkStorm)
	if err != nil {
		t.Fatal(err)
	}
	if resp.ExitCode == 0 || !strings.Contains(string(resp.Stderr), "Resource temporarily unavailable") {
		t.Errorf("twelve more processes where eight are allowed: exit code %d, %s", resp.ExitCode, resp.Stderr)
	}
}

func TestPidLimitBinds(t *testing.T) {
	needCgroup2(t, "setting of the CRI for pids.max")
	few := sharedNode(t).RunPod(t, "pids").Idle(t, "few", withResources(&cri.LinuxContainerResources{Unified: map[string]string{"pids.max": "8"}}))
	wantNoFork(t, few)
}

// The kubelet limits the processes of a pod by the pod's cgroup, in which its containers are.
func TestPodLimitBinds(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "pod-pids", func(c *cri.PodSandboxConfig) {
		c.Linux.CgroupParent = "/berthtestpids"
		if systemdDriver(t, n) {
			c.Linux.CgroupParent = "/berthtestpids.slice"
		}
	})
	app := pod.Idle(t, "app")
	parent := filepath.Dir(hostCgroup(t, app))
	if !strings.HasPrefix(filepath.Base(parent), "berthtestpids") {
		t.Fatalf("the container's cgroup is in %s", parent)
	}
	if err := os.WriteFile(filepath.Join(parent, "pids.max"), []byte("8"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantNoFork(t, app)
	pod.Remove(t)
	if _, err := os.Stat(parent); !os.IsNotExist(err) {
		t.Errorf("the pod's cgroup is left behind: %s (%v)", parent, err)
	}
}

func TestMemoryAndSwap(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "swap")
	const mib = 1 << 20
	for name, tc := range map[string]struct {
		asked        *cri.LinuxContainerResources
		memory, swap string
	}{
		"no-limit":  {&cri.LinuxContainerResources{}, "max", "max"},
		"no-swap":   {&cri.LinuxContainerResources{MemoryLimitInBytes: 64 * mib}, "67108864", "0"},
		"same":      {&cri.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 64 * mib}, "67108864", "0"},
		"some-swap": {&cri.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 80 * mib}, "67108864", "16777216"},
		"all-swap":  {&cri.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: -1}, "67108864", "max"},
	} {
		t.Run(name, func(t *testing.T) {
			needCgroup2(t, "limit of swap alone")
			app := pod.Idle(t, name, withResources(tc.asked))
			if memory := ownLimit(t, app, "memory.max", ""); memory != tc.memory {
				t.Errorf("memory.max is %s, want %s", memory, tc.memory)
			}
			swap, err := app.ExecSync(harness.Ctx(t), 0, "cat", "/sys/fs/cgroup/memory.swap.max")
			if err != nil {
				t.Fatal(err)
			}
			if swap.ExitCode != 0 {
				t.Skip("this kernel does not count swap")
			}
			if got := strings.TrimSpace(string(swap.Stdout)); got != tc.swap {
				t.Errorf("memory.swap.max is %s, want %s", got, tc.swap)
			}
		})
	}
}

func TestUpdateResources(t *testing.T) {
	n := sharedNode(t)
	app := n.RunPod(t, "resize").Idle(t, "app", withResources(&cri.LinuxContainerResources{
		CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 100 << 20, CpusetCpus: "0",
	}))
	weight := func() int {
		w, err := strconv.Atoi(ownLimit(t, app, "cpu.weight", "cpu/cpu.shares"))
		if err != nil {
			t.Error(err)
		}
		return w
	}
	quota := func() string { return strings.Fields(ownLimit(t, app, "cpu.max", "cpu/cpu.cfs_quota_us"))[0] }
	memory := func() string { return ownLimit(t, app, "memory.max", "memory/memory.limit_in_bytes") }
	if quota() != "50000" || memory() != "104857600" || ownLimit(t, app, "cpuset.cpus", "cpuset/cpuset.cpus") != "0" {
		t.Errorf("quota %s, memory %s, as created", quota(), memory())
	}
	before := weight()
	change := func(r *cri.LinuxContainerResources) {
		t.Helper()
		if _, err := n.Runtime.UpdateContainerResources(harness.Ctx(t), &cri.UpdateContainerResourcesRequest{ContainerId: app.ID, Linux: r}); err != nil {
			t.Fatal(err)
		}
	}

	change(&cri.LinuxContainerResources{CpuShares: 2048, CpuQuota: 80000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20})
	if quota() != "80000" || memory() != "67108864" || weight() <= before {
		t.Errorf("quota %s, memory %s, weight %d (it was %d)", quota(), memory(), weight(), before)
	}
	got := app.Status(t).GetResources().GetLinux()
	if got.GetCpuQuota() != 80000 || got.GetMemoryLimitInBytes() != 64<<20 || got.GetCpuShares() != 2048 {
		t.Errorf("status tells of %v", got)
	}

	// What is not named stays.
	change(&cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20})
	if quota() != "80000" || memory() != "134217728" {
		t.Errorf("after a change of memory alone: quota %s, memory %s", quota(), memory())
	}
	change(&cri.LinuxContainerResources{CpuQuota: -1})
	if want := map[bool]string{true: "max", false: "-1"}[cgroup2()]; quota() != want || memory() != "134217728" {
		t.Errorf("after the end of the quota: quota %s, memory %s", quota(), memory())
	}

	// A limit may be changed before the start as well.
	waiting := app.Pod.Create(t, idleConfig("waiting"), withResources(&cri.LinuxContainerResources{CpuQuota: 50000, CpuPeriod: 100000}))
	app = waiting
	change(&cri.LinuxContainerResources{CpuQuota: 30000, CpuPeriod: 100000, MemoryLimitInBytes: 32 << 20})
	waiting.Start(t)
	if quota() != "30000" || memory() != "33554432" {
		t.Errorf("changed before the start: quota %s, memory %s", quota(), memory())
	}
}

func idleConfig(name string) *cri.ContainerConfig {
	return harness.ContainerConfig(name, images.Tools, "sleep", "1000")
}

func TestHugePageLimit(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "huge-pages")
	app := pod.Idle(t, "app", withResources(&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}}))
	file := "hugetlb.2MB.max"
	if !cgroup2() {
		file = "hugetlb/hugetlb.2MB.limit_in_bytes"
	}
	resp, err := app.ExecSync(harness.Ctx(t), 0, "cat", "/sys/fs/cgroup/"+file)
	if err != nil {
		t.Fatal(err)
	}
	if resp.ExitCode != 0 {
		t.Skipf("no limits on huge pages here: %s", resp.Stderr)
	}
	if got := strings.TrimSpace(string(resp.Stdout)); got != "4194304" {
		t.Errorf("%s is %s", file, got)
	}

	// The size is a part of the file's name: one that leads elsewhere would limit the memory of the container beside.
	before := ownLimit(t, app, "memory.max", "memory/memory.limit_in_bytes")
	for _, size := range []string{"", "3MB", "/../../" + filepath.Base(hostCgroup(t, app)) + "/memory"} {
		bad := &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: size, Limit: 512 << 20}}}
		config := idleConfig("bad")
		config.Linux.Resources = bad
		_, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("huge pages of size %q, created: %v", size, err)
		}
		_, err = n.Runtime.UpdateContainerResources(harness.Ctx(t), &cri.UpdateContainerResourcesRequest{ContainerId: app.ID, Linux: bad})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("huge pages of size %q, updated: %v", size, err)
		}
	}
	if after := ownLimit(t, app, "memory.max", "memory/memory.limit_in_bytes"); after != before {
		t.Errorf("the memory limit was %s and is %s", before, after)
	}
}

func TestUnifiedSettings(t *testing.T) {
	needCgroup2(t, "unified settings")
	n := sharedNode(t)
	pod := n.RunPod(t, "unified")
	app := pod.Idle(t, "app", withResources(&cri.LinuxContainerResources{
		MemoryLimitInBytes: 64 << 20,
		Unified:            map[string]string{"memory.high": "50331648", "memory.low": "1048576", "memory.oom.group": "1", "pids.max": "77", "cpu.weight": "42"},
	}))
	for file, want := range map[string]string{
		"memory.max": "67108864", "memory.high": "50331648", "memory.low": "1048576", "memory.oom.group": "1", "pids.max": "77", "cpu.weight": "42",
	} {
		if got := ownLimit(t, app, file, ""); got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
	}
	update := &cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}
	if _, err := n.Runtime.UpdateContainerResources(harness.Ctx(t), &cri.UpdateContainerResourcesRequest{ContainerId: app.ID, Linux: update}); err != nil {
		t.Fatal(err)
	}
	if got := ownLimit(t, app, "memory.high", ""); got != "max" {
		t.Errorf("memory.high is %s after its update", got)
	}
	if got := ownLimit(t, app, "memory.low", ""); got != "1048576" {
		t.Errorf("memory.low is %s after the update of another", got)
	}
	for _, key := range []string{".", "..", "memory."} {
		bad := &cri.LinuxContainerResources{Unified: map[string]string{key: "1"}}
		_, err := n.Runtime.UpdateContainerResources(harness.Ctx(t), &cri.UpdateContainerResourcesRequest{ContainerId: app.ID, Linux: bad})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("update of the setting %s: %v", key, err)
		}
	}
	for _, key := range []string{"no.such", "../memory.max", "..", "memory."} {
		config := idleConfig("bad")
		config.Linux.Resources = &cri.LinuxContainerResources{Unified: map[string]string{key: "1"}}
		resp, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
		if err == nil {
			t.Errorf("the setting %s was taken: %s", key, resp.ContainerId)
		}
	}
}

// wantExecCgroup looks from the node at where an exec in the container is: below the container's cgroup.
func wantExecCgroup(t *testing.T, c *harness.Container, cgroup string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := c.ExecSync(harness.Ctx(t), 0, "sh", "-c", "touch /tmp/go; until [ -e /tmp/stop ]; do sleep 0.05; done; rm /tmp/stop /tmp/go")
		done <- err
	}()
	list := "cgroup.procs"
	if cgroup2() {
		list = "cgroup.threads" // a threaded one does not tell its processes
	}
	harness.Eventually(t, 10*time.Second, "a process in the exec's cgroup", func() error {
		files, err := filepath.Glob(filepath.Join(cgroup, "exec-*", list))
		for _, file := range files {
			if procs, err := os.ReadFile(file); err == nil && len(procs) > 0 {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("none in %v", files))
	})
	c.Exec(t, "touch", "/tmp/stop")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// An exec is in a cgroup of its own below the container's, which goes with it.
func TestExecHasACgroup(t *testing.T) {
	pod := sharedNode(t).RunPod(t, "exec-cgroup")
	app := pod.Idle(t, "app")
	wantExecCgroup(t, app, hostCgroup(t, app))
	left := func() error {
		found, err := filepath.Glob(filepath.Join(hostCgroup(t, app), "exec-*"))
		if err == nil && len(found) > 0 {
			err = fmt.Errorf("there is still %v", found)
		}
		return err
	}
	harness.Eventually(t, 10*time.Second, "the end of the exec's cgroup", left)

	if !cgroup2() {
		return
	}
	// A container that manages its own cgroups, as one with systemd in it does, has no processes in its uppermost one.
	manager := pod.Sh(t, "manager", `mount -o remount,bind,rw /sys/fs/cgroup && mkdir /sys/fs/cgroup/init &&
		echo 1 > /sys/fs/cgroup/init/cgroup.procs && echo +memory +pids > /sys/fs/cgroup/cgroup.subtree_control &&
		echo ready && exec sleep 1000`, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	})
	waitForText(t, manager, "stdout", "ready")
	wantExecCgroup(t, manager, filepath.Dir(hostCgroup(t, manager)))
	manager.Stop(t, 0)
}

// A container that makes the root of threaded cgroups of its own takes an exec, and the end of all that came of it, as any other:
// by spreading the threads of its programs, as libvirt does, or by a controller for those below, with its processes left in it.
func TestExecBesideThreadedCgroups(t *testing.T) {
	needCgroup2(t, "threaded cgroups")
	pod := sharedNode(t).RunPod(t, "threaded")
	for name, change := range map[string]string{
		"threads":    "mkdir threads && echo threaded > threads/cgroup.type && echo 1 > threads/cgroup.threads",
		"controller": "echo +pids > cgroup.subtree_control",
	} {
		t.Run(name, func(t *testing.T) {
			script := "mount -o remount,bind,rw /sys/fs/cgroup && cd /sys/fs/cgroup && " + change + " && echo ready && exec sleep 1000"
			app := pod.Sh(t, name, script, func(c *cri.ContainerConfig) {
				c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
				c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
			})
			waitForText(t, app, "stdout", "ready")
			cgroup := hostCgroup(t, app)
			if filepath.Base(cgroup) == "threads" {
				cgroup = filepath.Dir(cgroup)
			}
			wantExecCgroup(t, app, cgroup)
			_, err := app.ExecSync(harness.Ctx(t), time.Second, "sh", "-c", "sleep 1000 & sleep 1000")
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("a command that outlives its time: %v", err)
			}
			harness.Eventually(t, 10*time.Second, "the end of the execs' cgroups", func() error {
				left, err := filepath.Glob(filepath.Join(cgroup, "exec-*"))
				if err == nil && len(left) > 0 {
					err = fmt.Errorf("there is still %v", left)
				}
				return err
			})
			app.Stop(t, 0)
			if s := app.Status(t); s.ExitCode != 137 {
				t.Errorf("stopped: %v", s)
			}
		})
	}
}

// Whichever launcher makes a container or enters it, and whatever that has done before: none gets limits but the daemon's own
// and what it asks for.
func TestLimitsOfProcessesAreTheSameForAll(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "alike")
	locked := func(limits string) string {
		for line := range strings.Lines(limits) {
			if strings.HasPrefix(line, "Max locked memory") {
				return strings.Join(strings.Fields(line), " ")
			}
		}
		t.Fatalf("no limit of locked memory in:\n%s", limits)
		return ""
	}
	daemon, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", n.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		c := pod.Idle(t, fmt.Sprintf("c%d", i))
		for _, process := range []string{"1", "self"} {
			if got, want := locked(c.Exec(t, "cat", "/proc/"+process+"/limits")), locked(string(daemon)); got != want {
				t.Errorf("container %d, process %s: %s; the daemon: %s", i, process, got, want)
			}
		}
	}
}
