//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// limits is what a container sees of its own cgroup, in the words of cgroup v1.
func limits(t *testing.T, c *harness.Container) (memory, quota, shares string) {
	t.Helper()
	read := func(v1, v2 string) string {
		if cgroup2() {
			return c.Exec(t, "cat", "/sys/fs/cgroup/"+v2)
		}
		return c.Exec(t, "cat", "/sys/fs/cgroup/"+v1)
	}
	return read("memory/memory.limit_in_bytes", "memory.max"), read("cpu/cpu.cfs_quota_us", "cpu.max"), read("cpu/cpu.shares", "cpu.weight")
}

// wantLimits checks memory in bytes and CPU quota in microseconds.
func wantLimits(t *testing.T, c *harness.Container, wantMemory, wantQuota int64) {
	t.Helper()
	memory, quota, _ := limits(t, c)
	if quota, _, _ := strings.Cut(quota, " "); memory != fmt.Sprint(wantMemory) || quota != fmt.Sprint(wantQuota) {
		t.Errorf("%s has %s bytes and %s µs, want %d and %d", c.Config.Metadata.Name, memory, quota, wantMemory, wantQuota)
	}
}

// What a plugin wishes is what the container's process finds.
func TestNRIAdjusts(t *testing.T) {
	n := nriNode(t)
	given := t.TempDir()
	if err := os.WriteFile(filepath.Join(given, "greeting"), []byte("from the plugin"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := &plugin{adjust: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("ADDED", "yes")
		a.AddEnv("CHANGED", "by plugin")
		a.RemoveEnv("REMOVED")
		a.AddMount(&api.Mount{Destination: "/given", Source: given, Type: "bind", Options: []string{"rbind", "ro"}})
		a.RemoveMount("/unwanted")
		a.AddAnnotation("note", "from the plugin")
		a.AddRlimit("RLIMIT_NOFILE", 800, 700)
		a.SetLinuxCPUShares(2048)
		a.SetLinuxCPUQuota(70000)
		a.SetLinuxCPUPeriod(100000)
		a.SetLinuxMemoryLimit(48 << 20)
		a.AddDevice(&api.LinuxDevice{Path: "/dev/added", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(0o666)})
		return a, nil
	}}
	p.connect(t, n, "10")
	pod := n.RunPod(t, "adjusted")
	app := pod.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "CHANGED", Value: []byte("by request")}, {Key: "REMOVED", Value: []byte("x")}, {Key: "KEPT", Value: []byte("k")}}
		c.Mounts = []*cri.Mount{{HostPath: given, ContainerPath: "/unwanted"}}
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 100 << 20, CpuShares: 512}
	})
	for command, want := range map[string]string{
		`echo "$ADDED, $CHANGED, ${REMOVED-unset}, $KEPT"`:         "yes, by plugin, unset, k",
		`cat /given/greeting; touch /given/x 2>/dev/null; echo $?`: "from the plugin1",
		`ls -d /unwanted 2>/dev/null; echo none`:                   "none",
		`ulimit -n; ulimit -Hn`:                                    "700\n800",
		`head -c 3 /dev/added | wc -c`:                             "3",
	} {
		if got := app.Exec(t, "sh", "-c", command); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	wantLimits(t, app, 48<<20, 70000)
	if _, _, shares := limits(t, app); shares == "512" || !cgroup2() && shares != "2048" {
		t.Errorf("CPU shares or weight %s", shares)
	}
	started := p.find(t, pod.ID, "StartContainer app").container
	if started.Annotations["note"] != "from the plugin" || started.GetLinux().GetResources().GetMemory().GetLimit().GetValue() != 48<<20 {
		t.Errorf("at the start the plugin is told of %v", started)
	}
}

// The first plugin's wishes are what the second sees; two that wish different things fail the container.
func TestNRIPluginsTakeTurns(t *testing.T) {
	n := nriNode(t)
	shares := func(value uint64) func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		return func(c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
			a := &api.ContainerAdjustment{}
			if c.Name == "contested" || value == 1000 {
				a.SetLinuxCPUShares(value)
			}
			return a, nil
		}
	}
	first, second := &plugin{adjust: shares(1000)}, &plugin{adjust: shares(2000)}
	second.connect(t, n, "20")
	first.connect(t, n, "10")
	pod := n.RunPod(t, "turns")
	pod.Idle(t, "app")
	if got := second.find(t, pod.ID, "CreateContainer app").container.GetLinux().GetResources().GetCpu().GetShares().GetValue(); got != 1000 {
		t.Errorf("the second plugin sees %d CPU shares", got)
	}
	_, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{
		PodSandboxId: pod.ID, Config: harness.ContainerConfig("contested", images.Tools, "true"), SandboxConfig: pod.Config,
	})
	if err == nil || !strings.Contains(err.Error(), "10-test") || !strings.Contains(err.Error(), "20-test") {
		t.Errorf("two plugins disagree: %v", err)
	}
	if list := containersListed(t, pod); len(list) != 1 {
		t.Errorf("listed: %q", list)
	}
}

// limit is the wish to change the limits of a container.
func limit(id string, memory, quota int64) *api.ContainerUpdate {
	u := &api.ContainerUpdate{}
	u.SetContainerId(id)
	u.SetLinuxMemoryLimit(memory)
	u.SetLinuxCPUQuota(quota)
	u.SetLinuxCPUPeriod(100000)
	return u
}

// Plugins change the limits of containers that run: unasked, when another is created, when the kubelet resizes one, and
// when they come in.
func TestNRIUpdates(t *testing.T) {
	n := nriNode(t)
	var app *harness.Container
	p := &plugin{}
	p.adjust = func(c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		switch c.Name {
		case "second":
			return nil, []*api.ContainerUpdate{limit(app.ID, 50<<20, 50000)}
		case "third": // unasked, while it is asked something else
			failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{limit(app.ID, 55<<20, 55000), limit("no-such", 5<<20, 5000)})
			if err != nil || len(failed) != 0 {
				t.Errorf("failed %v, %v", failed, err)
			}
		}
		return nil, nil
	}
	p.update = func(c *api.Container, asked *api.LinuxResources) []*api.ContainerUpdate {
		return []*api.ContainerUpdate{limit(c.Id, asked.GetMemory().GetLimit().GetValue()+10<<20, 35000)}
	}
	p.connect(t, n, "10")
	pod := n.RunPod(t, "updated")
	app = pod.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 100 << 20, CpuQuota: 90000, CpuPeriod: 100000}
	})
	wantLimits(t, app, 100<<20, 90000)

	failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{limit(app.ID, 60<<20, 60000)})
	if err != nil || len(failed) != 0 {
		t.Errorf("failed %v, %v", failed, err)
	}
	wantLimits(t, app, 60<<20, 60000)

	pod.Idle(t, "second")
	wantLimits(t, app, 50<<20, 50000)

	pod.Idle(t, "third")
	wantLimits(t, app, 55<<20, 55000)

	_, err = n.Runtime.UpdateContainerResources(harness.Ctx(t), &cri.UpdateContainerResourcesRequest{
		ContainerId: app.ID, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 70 << 20, CpuQuota: 70000, CpuPeriod: 100000},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantLimits(t, app, 80<<20, 35000)
	if story := p.story(pod.ID); !slices.Equal(story[len(story)-2:], []string{"UpdateContainer app", "PostUpdateContainer app"}) {
		t.Errorf("told %q", story)
	}

	late := &plugin{onSync: func(context.Context) []*api.ContainerUpdate {
		return []*api.ContainerUpdate{limit(app.ID, 40<<20, 40000)}
	}}
	late.connect(t, n, "20")
	harness.Eventually(t, 10*time.Second, "the update at the end of the synchronization", func() error {
		if memory, _, _ := limits(t, app); memory != fmt.Sprint(40<<20) {
			return fmt.Errorf("memory %s", memory)
		}
		return nil
	})
	wantLimits(t, app, 40<<20, 40000)
}

// A plugin is told of what holds now, also by a daemon that did not make it so.
func TestNRITellsOfLimitsThatHold(t *testing.T) {
	n := nriNode(t)
	first := &plugin{}
	first.connect(t, n, "10")
	pod := n.RunPod(t, "known")
	app := pod.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 100 << 20, CpuQuota: 90000, CpuPeriod: 100000, CpuShares: 333}
	})
	wantTold := func(when string, p *plugin, memory, quota int64, shares uint64) {
		t.Helper()
		i := slices.IndexFunc(p.containers, func(c *api.Container) bool { return c.Id == app.ID })
		if i < 0 {
			t.Fatalf("%s not told of the container", when)
		}
		r := p.containers[i].GetLinux().GetResources()
		if r.GetMemory().GetLimit().GetValue() != memory || r.GetCpu().GetQuota().GetValue() != quota || r.GetCpu().GetShares().GetValue() != shares {
			t.Errorf("%s told of %v, want %d bytes, %d µs and %d shares", when, r, memory, quota, shares)
		}
	}
	if _, err := first.stub.UpdateContainers([]*api.ContainerUpdate{limit(app.ID, 60<<20, 60000)}); err != nil {
		t.Fatal(err)
	}
	second := &plugin{}
	second.connect(t, n, "20")
	wantTold("after an update", second, 60<<20, 60000, 333)
	n.Restart(t)
	third := &plugin{}
	third.connect(t, n, "30")
	wantTold("after a restart", third, 60<<20, 60000, 333)
}

// A container in a cgroup of a plugin's choice is limited, measured and ended there.
func TestNRIMovesCgroup(t *testing.T) {
	n := nriNode(t)
	driver, err := n.Runtime.RuntimeConfig(harness.Ctx(t), &cri.RuntimeConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if driver.GetLinux().GetCgroupDriver() != cri.CgroupDriver_CGROUPFS {
		t.Skip("the path is one of the driver cgroupfs")
	}
	var path string
	p := &plugin{adjust: func(c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		path = filepath.Join(filepath.Dir(c.GetLinux().GetCgroupsPath()), "elsewhere-"+c.Id)
		a.SetLinuxCgroupsPath(path)
		return a, nil
	}}
	p.connect(t, n, "10")
	pod := n.RunPod(t, "moved")
	app := pod.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 100 << 20, CpuQuota: 90000, CpuPeriod: 100000}
	})
	wantLimits(t, app, 100<<20, 90000)
	dir := filepath.Join("/sys/fs/cgroup", path)
	if !cgroup2() {
		dir = filepath.Join("/sys/fs/cgroup/memory", path)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	n.Kill9(t)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	resp, err := n.Runtime.ContainerStats(harness.Ctx(t), &cri.ContainerStatsRequest{ContainerId: app.ID})
	if err != nil || resp.GetStats().GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("statistics: %v, %v", resp, err)
	}
	pod.Remove(t)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

// A plugin that does not answer is cut off, and what it was told of goes on without it.
func TestNRIPluginThatHangs(t *testing.T) {
	n := ownNode(t, func(o *harness.Options) {
		o.Config = fmt.Sprintf("nri: {requestTimeout: %s}\n", harness.Patience(500*time.Millisecond))
	})
	g := newGate(t)
	p := &plugin{on: func(_ context.Context, e event) error {
		g.hold(context.Background(), e) // past every deadline
		return nil
	}}
	synced, ended := p.begin(t, n, "10")
	<-synced
	app := n.RunPod(t, "patient").Idle(t, "app")
	if got := app.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
	select {
	case <-ended:
	case <-harness.Ctx(t).Done():
		t.Error("the plugin was not cut off")
	}
	if len(p.told()) != 1 {
		t.Errorf("it was told %v", p.told())
	}
}
