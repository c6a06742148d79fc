//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// rawCodec sends and receives messages as they are on the wire.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// rawClient calls a node's socket with requests that no library would send.
func rawClient(t *testing.T, n *harness.Node) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// invoke calls a method with a request on the wire, and returns the last answer. Of a stream it reads what comes at once.
func invoke(ctx context.Context, conn *grpc.ClientConn, m protoreflect.MethodDescriptor, request []byte) (answer []byte, err error) {
	name := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	if !m.IsStreamingServer() {
		err := conn.Invoke(ctx, name, &request, &answer)
		return answer, err
	}
	ctx, cancel := context.WithTimeout(ctx, harness.Patience(200*time.Millisecond)) // events go on for ever
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, name)
	if err == nil {
		err = s.SendMsg(&request)
	}
	if err == nil {
		err = s.CloseSend()
	}
	for err == nil {
		err = s.RecvMsg(&answer)
	}
	if err == io.EOF || ctx.Err() != nil {
		err = nil
	}
	return answer, err
}

// sane are the codes that say what is wrong with a request, or that the node is as it is. Internal and Unknown say that
// berth did not know.
var sane = []codes.Code{
	codes.OK, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Unimplemented,
	codes.ResourceExhausted, codes.OutOfRange, codes.PermissionDenied, codes.DeadlineExceeded,
}

// insane says what is wrong with the answer to a request.
func insane(err error) error {
	code := status.Code(err)
	text := status.Convert(err).Message()
	// Two words of the kubelet's, which it looks for in an error of code Unknown.
	if code == codes.Unknown && (strings.HasPrefix(text, "ImageVolumeMountFailed") || strings.HasPrefix(text, "RegistryUnavailable") ||
		strings.HasPrefix(text, "RROUnsupported")) {
		return nil
	}
	// The gRPC library's own answer to what is no message; its table of codes has Internal for that.
	if code == codes.Internal && strings.HasPrefix(text, "grpc: failed to unmarshal the received message") {
		return nil
	}
	if !slices.Contains(sane, code) {
		return fmt.Errorf("code %s: %.300s", code, text)
	}
	return nil
}

// inContainer says whether libcontainer has refused a path below /proc: that it leads to nothing to be worked in, masked or
// mounted over, only the container's init finds out.
func inContainer(err error) bool {
	return strings.Contains(status.Convert(err).Message(), "error during container init")
}

// hostileWorld is a node with a pod that the requests of a test are about.
type hostileWorld struct {
	node    *harness.Node
	pod     *harness.Pod
	app     *harness.Container // runs
	created *harness.Container // does not
	serial  atomic.Int64
}

// hostileNode starts a node for requests that may leave it in any state. Registries that are not the test's do not answer.
func hostileNode(t *testing.T) *hostileWorld {
	t.Helper()
	hosts := filepath.Join(t.TempDir(), "certs.d")
	if err := os.CopyFS(hosts, os.DirFS(world.hostsDir)); err != nil {
		t.Fatal(err)
	}
	nobody := "server = \"http://127.0.0.1:1\"\n"
	if err := errors.Join(os.Mkdir(filepath.Join(hosts, "_default"), 0o755), os.WriteFile(filepath.Join(hosts, "_default", "hosts.toml"), []byte(nobody), 0o644)); err != nil {
		t.Fatal(err)
	}
	n := ownNode(t, func(o *harness.Options) { o.HostsDir = hosts })
	w := &hostileWorld{node: n}
	w.renew(t)
	return w
}

// renew makes the pod again where a request has ended it: that is what some requests are for.
func (w *hostileWorld) renew(t *testing.T) {
	t.Helper()
	ctx := harness.Ctx(t)
	if w.pod != nil {
		app, err := w.node.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: w.app.ID})
		made, err2 := w.node.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: w.created.ID})
		if err == nil && err2 == nil && app.Status.State == cri.ContainerState_CONTAINER_RUNNING && made.Status.State == cri.ContainerState_CONTAINER_CREATED {
			return
		}
		_, _ = w.node.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: w.pod.ID})
	}
	config := w.node.PodConfig("hostile")
	resp, err := w.node.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	w.pod = &harness.Pod{Node: w.node, ID: resp.PodSandboxId, Config: config}
	w.app = w.pod.Idle(t, "app")
	w.created = w.pod.Create(t, harness.ContainerConfig("created", images.Tools, "true"))
	w.node.NeedImage(t, images.Volume)
}

// valid returns a request of a method that the node serves.
func (w *hostileWorld) valid(m protoreflect.MethodDescriptor) proto.Message {
	id := w.app.ID
	image := &cri.ImageSpec{Image: images.Volume}
	name := fmt.Sprintf("mutant-%d", w.serial.Add(1))
	switch m.Name() {
	case "RunPodSandbox":
		return &cri.RunPodSandboxRequest{Config: w.richPod(name)}
	case "CreateContainer":
		return &cri.CreateContainerRequest{PodSandboxId: w.pod.ID, Config: w.richContainer(name), SandboxConfig: w.pod.Config}
	case "StopPodSandbox":
		return &cri.StopPodSandboxRequest{PodSandboxId: w.pod.ID}
	case "RemovePodSandbox":
		return &cri.RemovePodSandboxRequest{PodSandboxId: w.pod.ID}
	case "PodSandboxStatus":
		return &cri.PodSandboxStatusRequest{PodSandboxId: w.pod.ID, Verbose: true}
	case "StartContainer":
		return &cri.StartContainerRequest{ContainerId: w.created.ID}
	case "StopContainer":
		return &cri.StopContainerRequest{ContainerId: id, Timeout: 1}
	case "RemoveContainer":
		return &cri.RemoveContainerRequest{ContainerId: w.created.ID}
	case "ContainerStatus":
		return &cri.ContainerStatusRequest{ContainerId: id, Verbose: true}
	case "UpdateContainerResources":
		return &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{CpuShares: 100}}
	case "ReopenContainerLog":
		return &cri.ReopenContainerLogRequest{ContainerId: id}
	case "ExecSync":
		return &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 5}
	case "Exec":
		return &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true}
	case "Attach":
		return &cri.AttachRequest{ContainerId: id, Stdout: true}
	case "PortForward":
		return &cri.PortForwardRequest{PodSandboxId: w.pod.ID, Port: []int32{80}}
	case "ContainerStats":
		return &cri.ContainerStatsRequest{ContainerId: id}
	case "PodSandboxStats":
		return &cri.PodSandboxStatsRequest{PodSandboxId: w.pod.ID}
	case "CheckpointContainer": // of one that does not run: what criu makes of the rest is not the question
		return &cri.CheckpointContainerRequest{ContainerId: w.created.ID, Location: filepath.Join(w.node.Dir, "checkpoint.tar"), Timeout: 1}
	case "UpdatePodSandboxResources":
		return &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: w.pod.ID, Resources: &cri.LinuxContainerResources{CpuShares: 100}}
	case "ImageStatus":
		return &cri.ImageStatusRequest{Image: image, Verbose: true}
	case "PullImage":
		return &cri.PullImageRequest{Image: image}
	case "RemoveImage":
		return &cri.RemoveImageRequest{Image: image}
	}
	// The rest has filters, or nothing, in its requests.
	kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		panic(err)
	}
	return kind.New().Interface()
}

// richPod says something in each part of a sandbox's configuration.
func (w *hostileWorld) richPod(name string) *cri.PodSandboxConfig {
	c := w.node.PodConfig(name)
	c.DnsConfig = &cri.DNSConfig{Servers: []string{"127.0.0.1"}, Searches: []string{"berth.test"}, Options: []string{"ndots:2"}}
	c.PortMappings = []*cri.PortMapping{{ContainerPort: 80}}
	c.Annotations = map[string]string{"berth.test/note": "one"}
	c.Linux.Sysctls = map[string]string{"net.ipv4.ip_default_ttl": "70"}
	return c
}

// richContainer says something in each part of a container's configuration.
func (w *hostileWorld) richContainer(name string) *cri.ContainerConfig {
	c := harness.ContainerConfig(name, images.Tools, "true")
	c.Args = []string{"one"}
	c.WorkingDir = "/tmp"
	c.Envs = []*cri.KeyValue{{Key: "ONE", Value: []byte("1")}}
	c.Mounts = []*cri.Mount{{HostPath: w.node.Dir, ContainerPath: "/mnt", Readonly: true}}
	c.Devices = []*cri.Device{{HostPath: "/dev/full", ContainerPath: "/dev/full2", Permissions: "r"}}
	c.Labels = map[string]string{"test": "mutant"}
	c.Annotations = map[string]string{"berth.test/note": "one"}
	c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 64 << 20}
	c.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{
		Capabilities: &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"KILL"}},
		RunAsUser:    &cri.Int64Value{Value: 1}, SupplementalGroups: []int64{7},
		MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
	}
	return c
}

// undo removes what a request has made.
func (w *hostileWorld) undo(ctx context.Context, m protoreflect.MethodDescriptor, answer []byte) error {
	switch m.Name() {
	case "RunPodSandbox":
		var made cri.RunPodSandboxResponse
		if err := proto.Unmarshal(answer, &made); err != nil {
			return err
		}
		_, err := w.node.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: made.PodSandboxId})
		return err
	case "CreateContainer":
		var made cri.CreateContainerResponse
		if err := proto.Unmarshal(answer, &made); err != nil {
			return err
		}
		if made.ContainerId == w.created.ID {
			return nil // the request of another container, again
		}
		_, startErr := w.node.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
		_, err := w.node.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: made.ContainerId})
		if status.Code(startErr) == codes.Internal { // that a command cannot be executed is another matter
			err = errors.Join(err, fmt.Errorf("start: %w", startErr))
		}
		return err
	}
	return nil
}

// TestMutatedRequests calls every method of the CRI with a request that is right, and then with each of its fields changed
// in turn. Each is served or refused with a code that says why, and nothing is left of those that were refused.
//
// The two methods with the large requests have thousands: BERTH_TEST_EXHAUSTIVE=1 sends them all, else some.
func TestMutatedRequests(t *testing.T) {
	w := hostileNode(t)
	conn := rawClient(t, w.node)
	outside := watchOutside(t)
	for _, m := range criMethods() {
		t.Run(string(m.Name()), func(t *testing.T) {
			all := mutations(w.valid(m))
			step := 1
			if len(all) > 600 && os.Getenv("BERTH_TEST_EXHAUSTIVE") == "" {
				step = len(all)/600 + 1
			}
			sent := 0
			for i := 0; i < len(all); i += step {
				mut := all[i]
				ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(20*time.Second))
				answer, err := invoke(ctx, conn, m, mut.data)
				if bad := insane(err); bad != nil && !(strings.HasSuffix(mut.what, "proc") && inContainer(err)) {
					t.Errorf("%s: %v", mut.what, bad)
				}
				if err == nil {
					if err := w.undo(ctx, m, answer); err != nil {
						t.Errorf("%s: after it: %v", mut.what, err)
					}
				}
				cancel()
				sent++
				if !w.node.Running() {
					t.Fatalf("%s: the daemon has ended", mut.what)
				}
				if destructive(m) {
					w.renew(t)
				}
			}
			t.Logf("%d of %d requests", sent, len(all))
			w.renew(t)
		})
	}
	if got := w.app.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("the pod beside: %q", got)
	}
	if list := podsListed(t, w.node); len(list) != 1 {
		t.Errorf("%d sandboxes are left, want the one", len(list))
	}
	list, err := w.node.Runtime.ListContainers(harness.Ctx(t), &cri.ListContainersRequest{})
	if err != nil || len(list.Containers) != 2 {
		t.Errorf("containers left: %v, %v", list.GetContainers(), err)
	}
	outside(t)
}

// destructive says whether a method ends what other requests are about.
func destructive(m protoreflect.MethodDescriptor) bool {
	return slices.Contains([]protoreflect.Name{
		"StopPodSandbox", "RemovePodSandbox", "StartContainer", "StopContainer", "RemoveContainer", "RemoveImage", "UpdateContainerResources",
		"UpdatePodSandboxResources",
	}, m.Name())
}

// watchOutside looks at the folders that names with too many ".." lead to, and returns a check that nothing came there.
func watchOutside(t *testing.T) func(*testing.T) {
	t.Helper()
	look := func() []string {
		var all []string
		for _, dir := range []string{"/", "/run", "/etc", "/root", "/var", "/var/lib"} {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if !strings.HasPrefix(e.Name(), "berth-test-") { // nodes come and go
					all = append(all, filepath.Join(dir, e.Name()))
				}
			}
		}
		if _, err := os.Lstat("/tmp/berth-escape"); err == nil {
			all = append(all, "/tmp/berth-escape")
		}
		return all
	}
	before := look()
	return func(t *testing.T) {
		t.Helper()
		for _, p := range look() {
			if !slices.Contains(before, p) {
				t.Errorf("came into being outside of the node's folders: %s", p)
			}
		}
	}
}

// criMethods are all methods of both services.
func criMethods() []protoreflect.MethodDescriptor {
	var all []protoreflect.MethodDescriptor
	services := new(cri.VersionRequest).ProtoReflect().Descriptor().ParentFile().Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			all = append(all, services.Get(i).Methods().Get(j))
		}
	}
	return all
}

// TestHugeRequests sends what fills gRPC's limit: it is refused or served, and the node lives on without keeping it all.
func TestHugeRequests(t *testing.T) {
	w := hostileNode(t)
	before := memoryOf(t, w.node)
	const limit = 16 << 20 // of a request
	note := func(size int) map[string]string {
		return map[string]string{"berth.test/huge": strings.Repeat("x", size)}
	}
	for name, c := range map[string]struct {
		call func(context.Context) error
		want []codes.Code
	}{
		"sandbox at the limit": {func(ctx context.Context) error {
			config := w.richPod("huge")
			config.Annotations = note(limit - 64<<10)
			made, err := w.node.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
			if err == nil {
				_, err = w.node.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: made.PodSandboxId})
			}
			return err
		}, []codes.Code{codes.OK, codes.InvalidArgument, codes.ResourceExhausted}},
		"container at the limit": {func(ctx context.Context) error {
			config := w.richContainer("huge")
			config.Annotations = note(limit - 64<<10)
			made, err := w.node.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: w.pod.ID, Config: config, SandboxConfig: w.pod.Config})
			if err == nil {
				_, err = w.node.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: made.ContainerId})
			}
			return err
		}, []codes.Code{codes.OK, codes.InvalidArgument, codes.ResourceExhausted}},
		"environment at the limit": {func(ctx context.Context) error {
			config := w.richContainer("huge-env")
			for i := range 100_000 {
				config.Envs = append(config.Envs, &cri.KeyValue{Key: fmt.Sprint("KEY", i), Value: []byte(strings.Repeat("v", 100))})
			}
			made, err := w.node.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: w.pod.ID, Config: config, SandboxConfig: w.pod.Config})
			if err == nil {
				_, err = w.node.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: made.ContainerId})
			}
			return err
		}, []codes.Code{codes.OK, codes.InvalidArgument, codes.ResourceExhausted}},
		"command at the limit": {func(ctx context.Context) error {
			_, err := w.app.ExecSync(ctx, harness.Patience(5*time.Second), "echo", strings.Repeat("x", limit-64<<10))
			return err
		}, []codes.Code{codes.OK, codes.InvalidArgument, codes.ResourceExhausted}},
		"above the limit": {func(ctx context.Context) error {
			_, err := w.node.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: strings.Repeat("x", limit)})
			return err
		}, []codes.Code{codes.ResourceExhausted}},
	} {
		t.Run(name, func(t *testing.T) {
			for range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(30*time.Second))
				err := c.call(ctx)
				cancel()
				if !slices.Contains(c.want, status.Code(err)) {
					t.Errorf("%.300v, want one of %v", err, c.want)
				}
			}
		})
	}
	if got := w.app.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("the pod beside: %q", got)
	}
	// Go gives memory back some minutes later; what must not be is a copy kept for each request.
	if after := memoryOf(t, w.node); after > before+memoryFor(400<<20) {
		t.Errorf("the daemon has %d MiB after it, and had %d before", after>>20, before>>20)
	}
}

// memoryOf returns what a node's daemon has of memory, in bytes.
func memoryOf(t *testing.T, n *harness.Node) int64 {
	t.Helper()
	return residentOf(t, n.Pid())
}

// residentOf returns the memory of a process, in bytes.
func residentOf(t *testing.T, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(data), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

// memoryFor scales a bound as Patience does: slow programs are the ones that were built with the race detector, which has
// shadows of all memory.
func memoryFor(bytes int64) int64 { return int64(harness.Patience(time.Duration(bytes))) }
