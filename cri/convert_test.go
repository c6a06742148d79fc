package cri

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/image"
)

// at is n seconds after some moment.
func at(n int64) time.Time { return time.Unix(1_700_000_000+n, 5) }

func wantProto(t *testing.T, what string, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("%s:\n%v\nwant:\n%v", what, got, want)
	}
}

func testSandbox() runtime.Sandbox {
	return runtime.Sandbox{
		ID: "sb", Handler: "runc", CreatedAt: at(1), Ready: true, NetNS: "/run/netns/sb",
		IPs: []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("fd01::2")},
		Config: &cri.PodSandboxConfig{
			Metadata:    &cri.PodSandboxMetadata{Name: "web", Uid: "u", Namespace: "ns", Attempt: 2},
			Labels:      map[string]string{"io.kubernetes.pod.name": "web"},
			Annotations: map[string]string{"a": ""},
			Linux: &cri.LinuxPodSandboxConfig{
				CgroupParent:    "/kubepods/podu",
				SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
			},
		},
	}
}

func TestToSandboxStatus(t *testing.T) {
	sb := testSandbox()
	wantProto(t, "status", toSandboxStatus(sb), &cri.PodSandboxStatus{
		Id: "sb", Metadata: sb.Config.Metadata, State: cri.PodSandboxState_SANDBOX_READY, CreatedAt: at(1).UnixNano(),
		Network: &cri.PodSandboxNetworkStatus{Ip: "10.1.0.2", AdditionalIps: []*cri.PodIP{{Ip: "fd00::2"}, {Ip: "fd01::2"}}},
		Linux:   &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
		Labels:  sb.Config.Labels, Annotations: sb.Config.Annotations, RuntimeHandler: "runc",
	})
	sb.Ready, sb.IPs = false, nil
	got := toSandboxStatus(sb)
	wantProto(t, "network of the host", got.GetNetwork(), &cri.PodSandboxNetworkStatus{})
	if got.GetState() != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("a stopped sandbox is %s", got.GetState())
	}
	wantProto(t, "list item", toSandbox(sb), &cri.PodSandbox{
		Id: "sb", Metadata: sb.Config.Metadata, State: cri.PodSandboxState_SANDBOX_NOTREADY, CreatedAt: at(1).UnixNano(),
		Labels: sb.Config.Labels, Annotations: sb.Config.Annotations, RuntimeHandler: "runc",
	})
}

func testContainer() runtime.Container {
	return runtime.Container{
		ID: "c1", SandboxID: "sb",
		Config: &cri.ContainerConfig{
			Metadata:    &cri.ContainerMetadata{Name: "app", Attempt: 3},
			Image:       &cri.ImageSpec{Image: "sha256:1234", UserSpecifiedImage: "busybox:1"},
			Labels:      map[string]string{"l": "1"},
			Annotations: map[string]string{"a": "2"},
		},
		Image:       runtime.ContainerImage{ID: "sha256:1234", Ref: "docker.io/library/busybox@sha256:5678", UserSpecified: "busybox:1"},
		State:       runtime.Exited,
		CreatedAt:   at(1),
		StartedAt:   at(2),
		FinishedAt:  at(3),
		ExitCode:    137,
		Reason:      "OOMKilled",
		Message:     "out of memory",
		LogPath:     "/var/log/pods/x/app/3.log",
		Mounts:      []*cri.Mount{{ContainerPath: "/data", HostPath: "/srv", RecursiveReadOnly: true}},
		Resources:   &cri.ContainerResources{Linux: &cri.LinuxContainerResources{CpuShares: 2}},
		User:        &cri.ContainerUser{Linux: &cri.LinuxContainerUser{Uid: 1000, Gid: 100, SupplementalGroups: []int64{5}}},
		StopSignal:  cri.Signal_SIGNAL_SIGQUIT,
		CgroupsPath: "/kubepods/podu/c1",
	}
}

func TestToContainerStatus(t *testing.T) {
	c := testContainer()
	wantProto(t, "status", toContainerStatus(c), &cri.ContainerStatus{
		Id: "c1", Metadata: c.Config.Metadata, State: cri.ContainerState_CONTAINER_EXITED,
		CreatedAt: at(1).UnixNano(), StartedAt: at(2).UnixNano(), FinishedAt: at(3).UnixNano(), ExitCode: 137,
		Image:    &cri.ImageSpec{Image: "busybox:1", UserSpecifiedImage: "busybox:1"},
		ImageRef: "docker.io/library/busybox@sha256:5678", ImageId: "sha256:1234",
		Reason: "OOMKilled", Message: "out of memory",
		Labels: c.Config.Labels, Annotations: c.Config.Annotations, Mounts: c.Mounts, LogPath: c.LogPath,
		Resources: c.Resources, User: c.User, StopSignal: cri.Signal_SIGNAL_SIGQUIT,
	})
	wantProto(t, "list item", toContainer(c), &cri.Container{
		Id: "c1", PodSandboxId: "sb", Metadata: c.Config.Metadata, State: cri.ContainerState_CONTAINER_EXITED,
		CreatedAt: at(1).UnixNano(), Image: c.Config.Image, ImageRef: c.Image.Ref, ImageId: c.Image.ID,
		Labels: c.Config.Labels, Annotations: c.Config.Annotations,
	})
	c.State, c.StartedAt, c.FinishedAt = runtime.Created, time.Time{}, time.Time{}
	if got := toContainerStatus(c); got.GetStartedAt() != 0 || got.GetFinishedAt() != 0 {
		t.Errorf("what has not happened has the times %d and %d, want 0", got.GetStartedAt(), got.GetFinishedAt())
	}
}

func TestContainerStates(t *testing.T) {
	for n := range cri.ContainerState_name {
		st := cri.ContainerState(n)
		if got := toContainerState(fromContainerState(st)); got != st {
			t.Errorf("%s comes back as %s", st, got)
		}
	}
	if got := toContainerState(runtime.State(99)); got != cri.ContainerState_CONTAINER_UNKNOWN {
		t.Errorf("a state of tomorrow is %s", got)
	}
}

func TestFilters(t *testing.T) {
	if f := fromContainerFilter(nil); f.ID != "" || f.SandboxID != "" || f.State != nil || f.Labels != nil {
		t.Errorf("no filter selects by %+v", f)
	}
	f := fromContainerFilter(&cri.ContainerFilter{
		Id: "c", PodSandboxId: "sb", LabelSelector: map[string]string{"a": "b"},
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_CREATED}, // the zero value, yet a filter
	})
	if f.ID != "c" || f.SandboxID != "sb" || f.State == nil || *f.State != runtime.Created || f.Labels["a"] != "b" {
		t.Errorf("container filter %+v", f)
	}
	sf := fromSandboxFilter(&cri.PodSandboxFilter{Id: "s", State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}})
	if sf.ID != "s" || sf.Ready == nil || *sf.Ready {
		t.Errorf("sandbox filter %+v", sf)
	}
}

func TestToEvent(t *testing.T) {
	sb := testSandbox()
	e := toEvent(runtime.Event{
		Type: runtime.EventStopped, At: at(9), ContainerID: "c1", SandboxID: "sb",
		Sandbox: &sb, Containers: []runtime.Container{testContainer()},
	})
	wantProto(t, "event", e, &cri.ContainerEventResponse{
		ContainerId: "c1", ContainerEventType: cri.ContainerEventType_CONTAINER_STOPPED_EVENT, CreatedAt: at(9).UnixNano(),
		PodSandboxStatus: toSandboxStatus(sb), ContainersStatuses: []*cri.ContainerStatus{toContainerStatus(testContainer())},
	})
	if e := toEvent(runtime.Event{Type: runtime.EventDeleted, ContainerID: "sb", SandboxID: "sb"}); e.GetPodSandboxStatus() != nil {
		t.Errorf("a sandbox that is gone has a status: %v", e)
	}
}

func TestImageUser(t *testing.T) {
	for user, want := range map[string]struct {
		uid  int64 // -1: none
		name string
	}{
		"":                  {-1, ""},
		"1002":              {1002, ""},
		"1003:50":           {1003, ""},
		"www-data":          {-1, "www-data"},
		"www-data:www-data": {-1, "www-data"},
		"0":                 {0, ""},
		":100":              {-1, ""},
	} {
		uid, name := imageUser(user)
		if name != want.name || (uid == nil) != (want.uid < 0) || uid != nil && uid.GetValue() != want.uid {
			t.Errorf("imageUser(%q) = %v, %q; want %d, %q", user, uid, name, want.uid, want.name)
		}
	}
}

func TestToImage(t *testing.T) {
	img := image.Image{
		ID: "sha256:1", RepoTags: []string{"a:1"}, RepoDigests: []string{"a@sha256:2"}, Size: 7, Pinned: true,
		Annotations: map[string]string{"k": "v"},
	}
	img.Config.Config.User = "5:6"
	wantProto(t, "image", toImage(img), &cri.Image{
		Id: "sha256:1", RepoTags: []string{"a:1"}, RepoDigests: []string{"a@sha256:2"}, Size: 7, Pinned: true,
		Uid: &cri.Int64Value{Value: 5}, Spec: &cri.ImageSpec{Image: "sha256:1", Annotations: map[string]string{"k": "v"}},
	})
}

func TestFromAuth(t *testing.T) {
	for _, none := range []*cri.AuthConfig{nil, {}, {ServerAddress: "example.com"}} {
		if got := fromAuth(none); got != nil {
			t.Errorf("fromAuth(%v) = %+v, want nil", none, got)
		}
	}
	got := fromAuth(&cri.AuthConfig{Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"})
	want := image.Auth{Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"}
	if got == nil || *got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestBatches(t *testing.T) {
	item := func(size int) *cri.Container { return &cri.Container{Id: strings.Repeat("x", size)} }
	for name, sizes := range map[string][]int{
		"none":               {},
		"one":                {10},
		"small":              slices.Repeat([]int{100}, 1000),
		"one larger than it": {10, batchBytes * 2, 10},
		"large":              slices.Repeat([]int{batchBytes/2 + 1}, 5),
	} {
		t.Run(name, func(t *testing.T) {
			var in, out []*cri.Container
			for _, n := range sizes {
				in = append(in, item(n))
			}
			for part := range batches(in) {
				if len(part) == 0 {
					t.Fatal("an empty batch")
				}
				size := 0
				for _, c := range part {
					size += proto.Size(c)
				}
				if size > batchBytes && len(part) > 1 {
					t.Errorf("a batch of %d items and %d bytes", len(part), size)
				}
				out = append(out, part...)
			}
			if !slices.Equal(in, out) { // the same pointers, in order
				t.Errorf("%d items went in, %d came out", len(in), len(out))
			}
		})
	}
}

func TestToStatusResponse(t *testing.T) {
	resp := toStatusResponse(runtime.NodeStatus{
		Network:  errors.New("no CNI configuration"),
		State:    errors.New("the disk is full"),
		Handlers: []runtime.Handler{{Name: "runc", UserNamespaces: true}, {Name: "", RecursiveReadOnlyMounts: true}, {Name: "nvidia"}},
		Features: runtime.Features{SupplementalGroupsPolicy: true, MountOptions: true},
	})
	wantProto(t, "status", resp, &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			{Type: "RuntimeReady", Status: true},
			{Type: "NetworkReady", Reason: "NetworkPluginNotReady", Message: "no CNI configuration"},
			{Type: "StateWritable", Reason: "StateNotWritable", Message: "the disk is full"},
		}},
		RuntimeHandlers: []*cri.RuntimeHandler{
			{Name: "", Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}},
			{Name: "nvidia", Features: &cri.RuntimeHandlerFeatures{}},
			{Name: "runc", Features: &cri.RuntimeHandlerFeatures{UserNamespaces: true}},
		},
		Features: &cri.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	})
}

func TestStatusInfo(t *testing.T) {
	s := New(Config{RootDir: "/var/lib/berth", StateDir: "/run/berth", Settings: map[string]any{"network": "builtin"}})
	info, err := s.statusInfo(runtime.NodeStatus{Limitations: []string{"no swap"}, Info: map[string]any{"cni": map[string]any{"n": 1}}})
	if err != nil {
		t.Fatal(err)
	}
	for topic, want := range map[string]string{
		"config":      `{"network":"builtin","rootDir":"/var/lib/berth","stateDir":"/run/berth"}`,
		"limitations": `["no swap"]`,
		"damaged":     `[]`,
		"cni":         `{"n":1}`,
	} {
		if info[topic] != want {
			t.Errorf("info[%q] = %s, want %s", topic, info[topic], want)
		}
	}
}

func TestVerboseInfo(t *testing.T) {
	sb, c := testSandbox(), testContainer()
	c.State, c.Pid = runtime.Running, 42
	decode := func(info map[string]any) map[string]any {
		t.Helper()
		text, err := verbose(info)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(text["info"]), &got); err != nil || len(text) != 1 {
			t.Fatalf("%q: %v", text, err)
		}
		return got
	}
	got := decode(sandboxInfo(sb, []runtime.Container{c}, map[string]any{"runtimeSpec": map[string]any{"ociVersion": "1"}}))
	if got["pid"] != 42.0 || got["netNamespace"] != "/run/netns/sb" || got["runtimeSpec"] == nil || got["config"] == nil {
		t.Errorf("sandbox info %v", got)
	}
	// What the runtime says stands.
	got = decode(containerInfo(c, map[string]any{"pid": 43, "rootfs": "/r"}))
	if got["pid"] != 43.0 || got["sandboxID"] != "sb" || got["rootfs"] != "/r" || got["config"] == nil {
		t.Errorf("container info %v", got)
	}
	if pid := sandboxPid(sb, nil); pid != 0 {
		t.Errorf("an empty sandbox has the pid %d", pid)
	}
	sb.PausePid = 7
	if pid := sandboxPid(sb, []runtime.Container{c}); pid != 7 {
		t.Errorf("pid %d, want that of the pause process", pid)
	}
}

func TestToContainerStats(t *testing.T) {
	st := runtime.ContainerStats{Container: testContainer(), Stats: runtime.Stats{
		At:     at(10),
		Rootfs: runtime.FsUsage{Mountpoint: "/var/lib/berth", Bytes: 5, Inodes: 6, At: at(8)},
		Cgroup: &cgroups.Stats{
			CPU: &cgroups.CPUStats{Usage: 3 * time.Second},
			Memory: &cgroups.MemoryStats{
				Usage: 100, WorkingSet: 80, RSS: 60, Faults: 9, MajorFaults: 1, Limit: 128,
				SwapCounted: true, Swap: 4, SwapLimit: 10,
			},
			PSI: cgroups.PSIStats{
				CPU: &cgroups.Pressure{Some: cgroups.PressureLine{Total: time.Second, Avg10: 1.5}},
				IO:  &cgroups.Pressure{Full: cgroups.PressureLine{Total: 2 * time.Microsecond, Avg300: 0.1}},
			},
		},
	}}
	c := st.Container
	want := &cri.ContainerStats{
		Attributes: &cri.ContainerAttributes{Id: "c1", Metadata: c.Config.Metadata, Labels: c.Config.Labels, Annotations: c.Config.Annotations},
		Cpu: &cri.CpuUsage{
			Timestamp: at(10).UnixNano(), UsageCoreNanoSeconds: number(3e9),
			Psi: &cri.PsiStats{Full: &cri.PsiData{}, Some: &cri.PsiData{Total: 1e9, Avg10: 1.5}},
		},
		Memory: &cri.MemoryUsage{
			Timestamp: at(10).UnixNano(), UsageBytes: number(100), WorkingSetBytes: number(80), RssBytes: number(60),
			PageFaults: number(9), MajorPageFaults: number(1), AvailableBytes: number(48),
		},
		Swap: &cri.SwapUsage{Timestamp: at(10).UnixNano(), SwapUsageBytes: number(4), SwapAvailableBytes: number(6)},
		Io: &cri.IoUsage{
			Timestamp: at(10).UnixNano(), Psi: &cri.PsiStats{Full: &cri.PsiData{Total: 2000, Avg300: 0.1}, Some: &cri.PsiData{}},
		},
		WritableLayer: &cri.FilesystemUsage{
			Timestamp: at(8).UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: "/var/lib/berth"},
			UsedBytes: number(5), InodesUsed: number(6),
		},
	}
	rates := newCPURates()
	wantProto(t, "stats", toContainerStats(st, rates), want)

	// Two seconds and one second of CPU time later, without limits and without swap.
	st.At, st.Cgroup.CPU.Usage = at(12), 4*time.Second
	st.Cgroup.Memory.Limit, st.Cgroup.Memory.SwapCounted = cgroups.Unlimited, false
	got := toContainerStats(st, rates)
	wantProto(t, "nano cores", got.GetCpu().GetUsageNanoCores(), number(500_000_000))
	if got.GetMemory().GetAvailableBytes() != nil || got.GetSwap() != nil {
		t.Errorf("without limit and swap: %v", got)
	}

	// No cgroup: times, no numbers.
	st.Cgroup = nil
	wantProto(t, "no cgroup", toContainerStats(st, rates), &cri.ContainerStats{
		Attributes: want.Attributes, WritableLayer: want.WritableLayer,
		Cpu: &cri.CpuUsage{Timestamp: at(12).UnixNano()}, Memory: &cri.MemoryUsage{Timestamp: at(12).UnixNano()},
	})
}

func TestToSandboxStats(t *testing.T) {
	st := runtime.SandboxStats{
		Sandbox: testSandbox(), Stats: runtime.Stats{At: at(1)}, Processes: 3,
		Interfaces: []runtime.InterfaceStats{
			{Name: "eth0", RxBytes: 1, RxErrors: 2, TxBytes: 3, TxErrors: 4, RxPackets: 9},
			{Name: "net1", RxBytes: 5},
		},
		Containers: []runtime.ContainerStats{{Container: testContainer(), Stats: runtime.Stats{At: at(1)}}},
	}
	got := toSandboxStats(st, newCPURates())
	wantProto(t, "network", got.GetLinux().GetNetwork(), &cri.NetworkUsage{
		Timestamp: at(1).UnixNano(),
		DefaultInterface: &cri.NetworkInterfaceUsage{
			Name: "eth0", RxBytes: number(1), RxErrors: number(2), TxBytes: number(3), TxErrors: number(4),
		},
		Interfaces: []*cri.NetworkInterfaceUsage{
			{Name: "net1", RxBytes: number(5), RxErrors: number(0), TxBytes: number(0), TxErrors: number(0)},
		},
	})
	wantProto(t, "processes", got.GetLinux().GetProcess(), &cri.ProcessUsage{Timestamp: at(1).UnixNano(), ProcessCount: number(3)})
	if len(got.GetLinux().GetContainers()) != 1 || got.GetAttributes().GetMetadata().GetUid() != "u" {
		t.Errorf("stats %v", got)
	}
	st.Interfaces = nil
	if got := toSandboxStats(st, newCPURates()).GetLinux().GetNetwork(); got != nil {
		t.Errorf("host networking has %v", got)
	}
}

func TestCPURates(t *testing.T) {
	for name, steps := range map[string][]struct {
		at    time.Duration
		usage time.Duration
		rate  uint64
		known bool
	}{
		"half a core, then two": {
			{0, 0, 0, false},
			{2 * time.Second, time.Second, 5e8, true},
			{3 * time.Second, 3 * time.Second, 2e9, true},
		},
		"asked too often": {
			{0, 0, 0, false},
			{100 * time.Millisecond, 50 * time.Millisecond, 0, false},
			{time.Second, time.Second, 1e9, true}, // since the first
			{1100 * time.Millisecond, 5 * time.Second, 1e9, true},
			{2 * time.Second, time.Second, 0, true}, // idle since 1 s
		},
		"counter began anew": {
			{0, 9 * time.Second, 0, false},
			{2 * time.Second, time.Second, 0, false},
			{4 * time.Second, 3 * time.Second, 1e9, true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newCPURates()
			for _, s := range steps {
				if rate, known := r.add("c", at(0).Add(s.at), s.usage); rate != s.rate || known != s.known {
					t.Errorf("at %v with %v: %d, %v; want %d, %v", s.at, s.usage, rate, known, s.rate, s.known)
				}
			}
		})
	}
}

func TestCPURatesBounded(t *testing.T) {
	r := newCPURates()
	id := func(n int) string { return strings.Repeat("x", n%97) + string(rune('a'+n/97%26)) + string(rune(n)) }
	for n := range rateMax + 100 {
		r.add(id(n), at(int64(n)), 0)
		if len(r.last) > rateMax {
			t.Fatalf("%d containers are remembered", len(r.last))
		}
	}
	if _, ok := r.last[id(0)]; ok {
		t.Error("what is old and unused was not dropped first")
	}
}
