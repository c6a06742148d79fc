package nri

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func show(v any) string {
	out, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

func TestMessages(t *testing.T) {
	n := newNode(t).start(t)
	var pod *api.PodSandbox
	var c *api.Container
	p := &plugin{onCreate: func(po *api.PodSandbox, co *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		pod, c = po, co
		return nil, nil, nil
	}}
	n.connect(t, p)
	_, _, err := n.CreateContainer(t.Context(), testPod(), testContainer("c1"))
	must(t, err)
	for name, tt := range map[string]struct {
		got  any
		want string
	}{
		"pod": {[]any{pod.Id, pod.Name, pod.Uid, pod.Namespace, pod.Labels, pod.Annotations, pod.RuntimeHandler, pod.Pid, pod.Ips},
			`["p1","web","u1","shop",{"l":"1"},{"a":"2"},"runc",42,["10.1.0.5","fd00::5"]]`},
		"pod on Linux": {[]any{pod.Linux.CgroupParent, pod.Linux.Namespaces, pod.Linux.PodOverhead.Cpu.Shares, pod.Linux.PodResources},
			`["/kubepods/p1",[{"type":"network","path":"/run/netns/x"}],{"value":7},null]`},
		"container": {[]any{c.Id, c.PodSandboxId, c.Name, c.State, c.Labels, c.Annotations, c.Pid, c.CreatedAt, c.StartedAt},
			`["c1","p1","app",1,{"l":"1"},{"a":"2","s":"3"},43,5000000006,0]`},
		"process": {[]any{c.Args, c.Env, c.User, c.Rlimits, c.Linux.OomScoreAdj},
			`[["/app"],["A=1","B=2"],{"uid":1,"gid":2,"additional_gids":[2,3]},[{"type":"RLIMIT_NOFILE","hard":20,"soft":10}],{"value":5}]`},
		"mounts": {c.Mounts, `[{"destination":"/data","type":"bind","source":"/src","options":["rbind","rw"]}]`},
		"linux": {[]any{c.Linux.CgroupsPath, c.Linux.Namespaces, c.Linux.Devices[0].Path, c.Linux.Resources.Memory.Limit},
			`["/kubepods/p1/c1",[{"type":"pid"}],"/dev/kvm",{"value":1000}]`},
		"profile":  {c.Linux.SeccompProfile, `{"profile_type":2,"localhost_ref":"/p"}`},
		"the rest": {[]any{c.CDIDevices, c.Image}, `[[{"name":"v.com/gpu=1"}],{"name":"img","config_digest":"sha256:1"}]`},
	} {
		if got := show(tt.got); got != tt.want {
			t.Errorf("%s is\n\t%s, want\n\t%s", name, got, tt.want)
		}
	}
}

func TestContainerWithoutSpec(t *testing.T) {
	for state, want := range map[string]api.ContainerState{
		"created": api.ContainerState_CONTAINER_CREATED, "running": api.ContainerState_CONTAINER_RUNNING,
		"exited": api.ContainerState_CONTAINER_STOPPED, "?": api.ContainerState_CONTAINER_UNKNOWN,
	} {
		if m := (Container{ID: "c", State: state}).message(); m.State != want || m.Linux == nil {
			t.Errorf("%s: %v", state, m)
		}
	}
}

func TestAdjustments(t *testing.T) {
	tests := map[string]struct {
		wish func(*api.ContainerAdjustment)
		get  func(*specs.Spec) any
		want string
	}{
		"env": {func(a *api.ContainerAdjustment) { a.AddEnv("B", "9"); a.AddEnv("C", "3"); a.RemoveEnv("A") },
			func(s *specs.Spec) any { return s.Process.Env }, `["B=9","C=3"]`},
		"env removed only": {func(a *api.ContainerAdjustment) { a.RemoveEnv("B") }, func(s *specs.Spec) any { return s.Process.Env }, `["A=1"]`},
		"device replaced": {func(a *api.ContainerAdjustment) {
			a.RemoveDevice("/dev/kvm")
			a.AddDevice(&api.LinuxDevice{Path: "/dev/kvm", Type: "c", Major: 7})
		}, func(s *specs.Spec) any { return s.Linux.Devices }, `[{"path":"/dev/kvm","type":"c","major":7,"minor":0}]`},
		"args": {func(a *api.ContainerAdjustment) { a.SetArgs([]string{"x"}) }, func(s *specs.Spec) any { return s.Process.Args }, `["x"]`},
		"annotations": {func(a *api.ContainerAdjustment) { a.AddAnnotation("n", "4"); a.RemoveAnnotation("s") },
			func(s *specs.Spec) any { return s.Annotations }, `{"n":"4"}`},
		"mounts": {func(a *api.ContainerAdjustment) {
			a.RemoveMount("/data")
			a.AddMount(&api.Mount{Destination: "/m", Source: "/s", Type: "bind", Options: []string{"ro"}})
		}, func(s *specs.Spec) any { return s.Mounts }, `[{"destination":"/m","type":"bind","source":"/s","options":["ro"]}]`},
		"rlimits": {func(a *api.ContainerAdjustment) {
			a.AddRlimit("RLIMIT_NOFILE", 50, 40)
			a.AddRlimit("RLIMIT_NPROC", 2, 1)
		},
			func(s *specs.Spec) any { return s.Process.Rlimits },
			`[{"type":"RLIMIT_NOFILE","hard":50,"soft":40},{"type":"RLIMIT_NPROC","hard":2,"soft":1}]`},
		"hooks": {func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/hook", Args: []string{"hook", "x"}}}})
		}, func(s *specs.Spec) any { return s.Hooks }, `{"createRuntime":[{"path":"/hook","args":["hook","x"]}]}`},
		"devices": {func(a *api.ContainerAdjustment) {
			a.RemoveDevice("/dev/kvm")
			a.AddDevice(&api.LinuxDevice{Path: "/dev/x", Type: "c", Major: 1, Minor: 2})
		}, func(s *specs.Spec) any { return []any{s.Linux.Devices, s.Linux.Resources.Devices} },
			`[[{"path":"/dev/x","type":"c","major":1,"minor":2}],[{"allow":true,"type":"c","major":1,"minor":2,"access":"rw"}]]`},
		"CDI": {func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "v.com/gpu=2"}) },
			func(s *specs.Spec) any { return s.Process.Env }, `["A=1","B=2","CDI=v.com/gpu=2"]`},
		"resources": {func(a *api.ContainerAdjustment) {
			a.SetLinuxCPUShares(77)
			a.SetLinuxMemoryLimit(88)
			a.SetLinuxPidLimits(9)
		},
			func(s *specs.Spec) any {
				return []any{s.Linux.Resources.CPU.Shares, s.Linux.Resources.Memory.Limit, s.Linux.Resources.Pids.Limit}
			}, `[77,88,9]`},
		"memory": {func(a *api.ContainerAdjustment) {
			a.SetLinuxMemoryLimit(88)
			a.SetLinuxMemorySwap(99)
			a.SetLinuxMemoryReservation(11)
		}, func(s *specs.Spec) any { return s.Linux.Resources.Memory }, `{"limit":88,"reservation":11,"swap":99}`},
		"memory without swap": {func(a *api.ContainerAdjustment) { a.SetLinuxMemoryLimit(88) },
			func(s *specs.Spec) any { return s.Linux.Resources.Memory }, `{"limit":88}`},
		"oom score": {func(a *api.ContainerAdjustment) { score := -3; a.SetLinuxOomScoreAdj(&score) },
			func(s *specs.Spec) any { return s.Process.OOMScoreAdj }, `-3`},
		"cgroup": {func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/else") }, func(s *specs.Spec) any { return s.Linux.CgroupsPath }, `"/else"`},
		"RDT":    {func(a *api.ContainerAdjustment) { a.SetLinuxRDTClass("gold") }, func(s *specs.Spec) any { return s.Linux.IntelRdt }, `{"closID":"gold"}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t).start(t)
			n.connect(t, &plugin{onCreate: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
				a := &api.ContainerAdjustment{}
				tt.wish(a)
				return a, nil, nil
			}})
			c := testContainer("c1")
			before := show(c.Spec)
			s, _, err := n.CreateContainer(t.Context(), testPod(), c)
			must(t, err)
			if got := show(tt.get(s)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if show(c.Spec) != before {
				t.Errorf("the given spec changed: %s", show(c.Spec))
			}
		})
	}
}

// What a plugin wishes and the node does not have fails the container, and plugins hear that it is gone.
func TestAdjustmentThatFails(t *testing.T) {
	n := newNode(t).start(t)
	p := &plugin{onCreate: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.SetLinuxBlockIOClass("fast")
		return a, nil, nil
	}}
	n.connect(t, p)
	_, _, err := n.CreateContainer(t.Context(), testPod(), testContainer("c1"))
	if err == nil || !strings.Contains(err.Error(), `"fast"`) {
		t.Errorf("error is %v", err)
	}
	wantEvents(t, p, "create c1", "stop c1", "remove c1")
}

func TestWishless(t *testing.T) {
	none := &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Cpu: &api.LinuxCPU{}}}, Hooks: &api.Hooks{}}
	if !wishless(none.ProtoReflect()) {
		t.Error("frames alone are no wish")
	}
	// Emptying a class is one.
	none.Linux.Resources.RdtClass = api.String("")
	if wishless(none.ProtoReflect()) {
		t.Error("the wish for no class is one")
	}
}
