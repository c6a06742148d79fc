package cri

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// call makes a test of one RPC: it must fail before the runtime, which is not there, is asked.
func call[Req, Resp any](f func(context.Context, *Req, ...grpc.CallOption) (*Resp, error), r *Req) func(context.Context) error {
	return func(ctx context.Context) error { _, err := f(ctx, r); return err }
}

// Every RPC that needs anything refuses the empty request and says what it misses.
func TestEmptyRequests(t *testing.T) {
	s := New(Config{})
	s.SetReady()
	conn := connect(t, s)
	rt, im := cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	const sandbox, container = "pod_sandbox_id: must not be empty", "container_id: must not be empty"
	for name, tc := range map[string]struct {
		call func(context.Context) error
		code codes.Code
		says string
	}{
		"RunPodSandbox":             {call(rt.RunPodSandbox, &cri.RunPodSandboxRequest{}), codes.InvalidArgument, "config: must be set"},
		"StopPodSandbox":            {call(rt.StopPodSandbox, &cri.StopPodSandboxRequest{}), codes.InvalidArgument, sandbox},
		"RemovePodSandbox":          {call(rt.RemovePodSandbox, &cri.RemovePodSandboxRequest{}), codes.InvalidArgument, sandbox},
		"PodSandboxStatus":          {call(rt.PodSandboxStatus, &cri.PodSandboxStatusRequest{}), codes.InvalidArgument, sandbox},
		"UpdatePodSandboxResources": {call(rt.UpdatePodSandboxResources, &cri.UpdatePodSandboxResourcesRequest{}), codes.InvalidArgument, sandbox},
		"CreateContainer":           {call(rt.CreateContainer, &cri.CreateContainerRequest{}), codes.InvalidArgument, sandbox},
		"StartContainer":            {call(rt.StartContainer, &cri.StartContainerRequest{}), codes.InvalidArgument, container},
		"StopContainer":             {call(rt.StopContainer, &cri.StopContainerRequest{}), codes.InvalidArgument, container},
		"RemoveContainer":           {call(rt.RemoveContainer, &cri.RemoveContainerRequest{}), codes.InvalidArgument, container},
		"ContainerStatus":           {call(rt.ContainerStatus, &cri.ContainerStatusRequest{}), codes.InvalidArgument, container},
		"UpdateContainerResources":  {call(rt.UpdateContainerResources, &cri.UpdateContainerResourcesRequest{}), codes.InvalidArgument, container},
		"ReopenContainerLog":        {call(rt.ReopenContainerLog, &cri.ReopenContainerLogRequest{}), codes.InvalidArgument, container},
		"CheckpointContainer":       {call(rt.CheckpointContainer, &cri.CheckpointContainerRequest{}), codes.InvalidArgument, container},
		"ExecSync":                  {call(rt.ExecSync, &cri.ExecSyncRequest{}), codes.InvalidArgument, container},
		"Exec":                      {call(rt.Exec, &cri.ExecRequest{}), codes.InvalidArgument, container},
		"Attach":                    {call(rt.Attach, &cri.AttachRequest{}), codes.InvalidArgument, container},
		"PortForward":               {call(rt.PortForward, &cri.PortForwardRequest{}), codes.InvalidArgument, sandbox},
		"ContainerStats":            {call(rt.ContainerStats, &cri.ContainerStatsRequest{}), codes.InvalidArgument, container},
		"PodSandboxStats":           {call(rt.PodSandboxStats, &cri.PodSandboxStatsRequest{}), codes.InvalidArgument, sandbox},
		"CheckpointPod":             {call(rt.CheckpointPod, &cri.CheckpointPodRequest{}), codes.Unimplemented, "berth does not have"},
		"RestorePod":                {call(rt.RestorePod, &cri.RestorePodRequest{}), codes.Unimplemented, "berth does not have"},
		"PullImage":                 {call(im.PullImage, &cri.PullImageRequest{}), codes.InvalidArgument, "image: must be set"},
		"ImageStatus":               {call(im.ImageStatus, &cri.ImageStatusRequest{}), codes.InvalidArgument, "image: must be set"},
		"RemoveImage":               {call(im.RemoveImage, &cri.RemoveImageRequest{}), codes.InvalidArgument, "image: must be set"},
		// These ask for nothing.
		"Version":               {call(rt.Version, &cri.VersionRequest{}), codes.OK, ""},
		"UpdateRuntimeConfig":   {call(rt.UpdateRuntimeConfig, &cri.UpdateRuntimeConfigRequest{}), codes.OK, ""},
		"ListMetricDescriptors": {call(rt.ListMetricDescriptors, &cri.ListMetricDescriptorsRequest{}), codes.OK, ""},
	} {
		err := tc.call(t.Context())
		if status.Code(err) != tc.code || !strings.Contains(status.Convert(err).Message(), tc.says) {
			t.Errorf("%s: got %v, want %s with %q", name, err, tc.code, tc.says)
		}
	}
}

// Requests that are complete but for one thing.
func TestBadRequests(t *testing.T) {
	s := New(Config{})
	s.SetReady()
	conn := connect(t, s)
	rt, im := cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	filter := &cri.ContainerFilter{State: &cri.ContainerStateValue{State: 99}}
	for says, do := range map[string]func(context.Context) error{
		"timeout: -1 is negative":           call(rt.StopContainer, &cri.StopContainerRequest{ContainerId: "c", Timeout: -1}),
		"timeout: -2 is negative":           call(rt.ExecSync, &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"id"}, Timeout: -2}),
		"cmd: must name a command":          call(rt.ExecSync, &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{""}}),
		"cmd[1]: must not contain a NUL":    call(rt.ExecSync, &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"a", "b\x00c"}}),
		"stderr: must be false with tty":    call(rt.Exec, &cri.ExecRequest{ContainerId: "c", Cmd: []string{"id"}, Tty: true, Stdout: true, Stderr: true}),
		"stdin, stdout, stderr: one of":     call(rt.Exec, &cri.ExecRequest{ContainerId: "c", Cmd: []string{"id"}}),
		"stderr: must be false":             call(rt.Attach, &cri.AttachRequest{ContainerId: "c", Tty: true, Stdin: true, Stderr: true}),
		"one of them must be true":          call(rt.Attach, &cri.AttachRequest{ContainerId: "c", Tty: true}),
		"port[1]: 65536 is not in":          call(rt.PortForward, &cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{80, 65536}}),
		"port[0]: 0 is not in":              call(rt.PortForward, &cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{0}}),
		"linux: must be set":                call(rt.UpdateContainerResources, &cri.UpdateContainerResourcesRequest{ContainerId: "c"}),
		"location: must not be empty":       call(rt.CheckpointContainer, &cri.CheckpointContainerRequest{ContainerId: "c"}),
		`location: "a/b" is not an absolut`: call(rt.CheckpointContainer, &cri.CheckpointContainerRequest{ContainerId: "c", Location: "a/b"}),
		"timeout: -3 is negative":           call(rt.CheckpointContainer, &cri.CheckpointContainerRequest{ContainerId: "c", Location: "/x", Timeout: -3}),
		"container_id: \"a/b\" cannot be":   call(rt.StartContainer, &cri.StartContainerRequest{ContainerId: "a/b"}),
		"pod_sandbox_id: is 254 bytes long": call(rt.StopPodSandbox, &cri.StopPodSandboxRequest{PodSandboxId: strings.Repeat("a", 254)}),
		"filter.state: 99 is not known":     call(rt.ListContainers, &cri.ListContainersRequest{Filter: filter}),
		"filter.state: 98 is not known": call(rt.ListPodSandbox, &cri.ListPodSandboxRequest{
			Filter: &cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: 98}}}),
		"image.image: must not be empty": call(im.PullImage, &cri.PullImageRequest{Image: &cri.ImageSpec{}}),
		"image.image: is 1025 bytes":     call(im.RemoveImage, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: strings.Repeat("a", 1025)}}),
		"pod_cidr: \"10.0.0.0/8,nine\"": call(rt.UpdateRuntimeConfig, &cri.UpdateRuntimeConfigRequest{
			RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.0.0.0/8,nine"}}}),
	} {
		err := do(t.Context())
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), says) {
			t.Errorf("got %v, want InvalidArgument with %q", err, says)
		}
	}
}

func goodSandboxConfig() *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "web", Uid: "u-1", Namespace: "default"},
		Hostname:     "web",
		LogDirectory: "/var/log/pods/default_web_u-1",
		PortMappings: []*cri.PortMapping{{ContainerPort: 80, HostPort: 8080, HostIp: "::1"}, {ContainerPort: 81}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/podu-1",
			Sysctls:      map[string]string{"net.ipv4.ip_local_port_range": "1024 65000"},
		},
	}
}

func TestCheckSandboxConfig(t *testing.T) {
	if err := checkSandboxConfig("config", goodSandboxConfig()); err != nil {
		t.Fatalf("a good configuration: %v", err)
	}
	for says, spoil := range map[string]func(*cri.PodSandboxConfig){
		"config.metadata: must be set":                    func(c *cri.PodSandboxConfig) { c.Metadata = nil },
		"config.metadata.name: must not":                  func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" },
		"config.metadata.name: is 300":                    func(c *cri.PodSandboxConfig) { c.Metadata.Name = strings.Repeat("x", 300) },
		`config.metadata.name: ".." cannot`:               func(c *cri.PodSandboxConfig) { c.Metadata.Name = ".." },
		"config.metadata.namespace: ":                     func(c *cri.PodSandboxConfig) { c.Metadata.Namespace = "a/b" },
		"config.metadata.uid: ":                           func(c *cri.PodSandboxConfig) { c.Metadata.Uid = "a\nb" },
		"config.hostname: is 65":                          func(c *cri.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) },
		`config.hostname: "a b"`:                          func(c *cri.PodSandboxConfig) { c.Hostname = "a b" },
		"config.log_directory: ":                          func(c *cri.PodSandboxConfig) { c.LogDirectory = "var/log" },
		"config.port_mappings[1].container_port: 0":       func(c *cri.PodSandboxConfig) { c.PortMappings[1].ContainerPort = 0 },
		"config.port_mappings[0].host_port: -1":           func(c *cri.PodSandboxConfig) { c.PortMappings[0].HostPort = -1 },
		"config.port_mappings[0].host_ip: ":               func(c *cri.PodSandboxConfig) { c.PortMappings[0].HostIp = "localhost" },
		"config.port_mappings[0].protocol: 9":             func(c *cri.PodSandboxConfig) { c.PortMappings[0].Protocol = 9 },
		"config.linux.cgroup_parent: ":                    func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../b" },
		"config.linux.sysctls: ":                          func(c *cri.PodSandboxConfig) { c.Linux.Sysctls["a/../b"] = "1" },
		"config.linux.security_context.namespace_options": func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext = namespaces(77) },
		"config.linux.security_context.seccomp.localhost_ref": func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext = &cri.LinuxSandboxSecurityContext{Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost}}
		},
	} {
		c := goodSandboxConfig()
		spoil(c)
		wantInvalid(t, checkSandboxConfig("config", c), says)
	}
}

func namespaces(pid cri.NamespaceMode) *cri.LinuxSandboxSecurityContext {
	return &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: pid}}
}

func wantInvalid(t *testing.T, err error, says string) {
	t.Helper()
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.HasPrefix(fmt.Sprint(err), says) {
		t.Errorf("got %v, want an invalid argument that begins with %q", err, says)
	}
}

func goodContainerConfig() *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata:   &cri.ContainerMetadata{Name: "app"},
		Image:      &cri.ImageSpec{Image: "busybox"},
		Command:    []string{"sh", "-c"},
		LogPath:    "app/0.log",
		Envs:       []*cri.KeyValue{{Key: "A.b-C", Value: []byte{0xff}}},
		Mounts:     []*cri.Mount{{ContainerPath: "/data", HostPath: "/srv"}, {ContainerPath: "/i", Image: &cri.ImageSpec{Image: "x"}}},
		Devices:    []*cri.Device{{HostPath: "/dev/null"}},
		CDIDevices: []*cri.CDIDevice{{Name: "a.b/c=d"}},
	}
}

func TestCheckContainerConfig(t *testing.T) {
	if err := checkContainerConfig("config", goodContainerConfig()); err != nil {
		t.Fatalf("a good configuration: %v", err)
	}
	wantInvalid(t, checkContainerConfig("config", nil), "config: must be set")
	for says, spoil := range map[string]func(*cri.ContainerConfig){
		"config.metadata: must be set":            func(c *cri.ContainerConfig) { c.Metadata = nil },
		"config.metadata.name: must not be":       func(c *cri.ContainerConfig) { c.Metadata.Name = "" },
		"config.image: must be set":               func(c *cri.ContainerConfig) { c.Image = nil },
		"config.image.image: must not":            func(c *cri.ContainerConfig) { c.Image.Image = "" },
		"config.command[1]: ":                     func(c *cri.ContainerConfig) { c.Command[1] = "\x00" },
		`config.log_path: "../x"`:                 func(c *cri.ContainerConfig) { c.LogPath = "../x" },
		`config.log_path: "/x"`:                   func(c *cri.ContainerConfig) { c.LogPath = "/x" },
		`config.log_path: "a/.."`:                 func(c *cri.ContainerConfig) { c.LogPath = "a/.." },
		`config.envs[0].key: "A=B"`:               func(c *cri.ContainerConfig) { c.Envs[0].Key = "A=B" },
		"config.envs[0].value: of A.b-C":          func(c *cri.ContainerConfig) { c.Envs[0].Value = []byte("a\x00") },
		"config.mounts[0].container_path: ":       func(c *cri.ContainerConfig) { c.Mounts[0].ContainerPath = "" },
		"config.mounts[0].host_path: ":            func(c *cri.ContainerConfig) { c.Mounts[0].HostPath = "" },
		"config.mounts[1].propagation: 7":         func(c *cri.ContainerConfig) { c.Mounts[1].Propagation = 7 },
		"config.devices[0].host_path: ":           func(c *cri.ContainerConfig) { c.Devices[0].HostPath = "" },
		"config.CDI_devices[0].name: ":            func(c *cri.ContainerConfig) { c.CDIDevices[0].Name = "" },
		"config.stop_signal: 66":                  func(c *cri.ContainerConfig) { c.StopSignal = 66 },
		"config.linux.security_context.namespace": func(c *cri.ContainerConfig) { c.Linux = targeting("") },
	} {
		c := goodContainerConfig()
		spoil(c)
		wantInvalid(t, checkContainerConfig("config", c), says)
	}
	c := proto.CloneOf(goodContainerConfig())
	c.Linux = targeting("c1")
	if err := checkContainerConfig("config", c); err != nil {
		t.Errorf("a container in another's PID namespace: %v", err)
	}
}

func targeting(id string) *cri.LinuxContainerConfig {
	return &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: id},
	}}
}

func TestSeconds(t *testing.T) {
	for in, want := range map[int64]time.Duration{0: 0, 30: 30 * time.Second, math.MaxInt64: math.MaxInt64, 1 << 40: math.MaxInt64} {
		if got := seconds(in); got != want {
			t.Errorf("seconds(%d) = %v, want %v", in, got, want)
		}
	}
}

func TestCheckResources(t *testing.T) {
	for text, r := range map[string]*cri.LinuxContainerResources{
		"":                           {CpuPeriod: 100_000, CpuQuota: -1, CpuShares: 2, MemoryLimitInBytes: 15 << 20, MemorySwapLimitInBytes: -1, CpusetCpus: "0-3,7"},
		"cpu_period: 1 ":             {CpuPeriod: 1},
		"cpu_quota: 999 ":            {CpuQuota: 999},
		"cpu_shares: 1 ":             {CpuShares: 1},
		"memory_limit_in_bytes: 1 ":  {MemoryLimitInBytes: 1},
		"memory_limit_in_bytes: -2 ": {MemoryLimitInBytes: -2},
		"cpuset_cpus: \"3-1\"":       {CpusetCpus: "3-1"},
		"cpuset_cpus: \"0,\\n\"":     {CpusetCpus: "0,\n"},
		"cpuset_mems: \" \"":         {CpusetMems: " "},
	} {
		err := checkResources("r", r)
		if text == "" && err != nil || text != "" && (!errors.Is(err, errdefs.ErrInvalidArgument) || !strings.HasPrefix(err.Error(), "r."+text)) {
			t.Errorf("%v: %v, want %q", r, err, text)
		}
	}
}
