//go:build integration

package integration

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// Requests that cannot be served, each with the code that its client acts on.
func TestBadInput(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "input")
	app := pod.Idle(t, "app")
	created := pod.Create(t, harness.ContainerConfig("created", images.Tools, "true"))
	r := n.Runtime

	sandbox := func(change func(*cri.PodSandboxConfig)) func(context.Context) error {
		return func(ctx context.Context) error {
			config := n.PodConfig("bad")
			change(config)
			resp, err := r.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
			if err == nil {
				_, _ = r.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: resp.PodSandboxId})
			}
			return err
		}
	}
	container := func(change func(*cri.ContainerConfig)) func(context.Context) error {
		return func(ctx context.Context) error {
			config := harness.ContainerConfig("bad", images.Tools, "true")
			change(config)
			resp, err := r.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
			if err == nil {
				_, _ = r.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: resp.ContainerId})
			}
			return err
		}
	}
	usernsOf := func(u *cri.UserNamespace) func(*cri.PodSandboxConfig) {
		return func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u }
	}
	for name, c := range map[string]struct {
		want codes.Code
		call func(context.Context) error
	}{
		"no sandbox config": {codes.InvalidArgument, func(ctx context.Context) error {
			_, err := r.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{})
			return err
		}},
		"no metadata":         {codes.InvalidArgument, sandbox(func(c *cri.PodSandboxConfig) { c.Metadata = nil })},
		"name with a slash":   {codes.InvalidArgument, sandbox(func(c *cri.PodSandboxConfig) { c.Metadata.Name = "../x" })},
		"relative log folder": {codes.InvalidArgument, sandbox(func(c *cri.PodSandboxConfig) { c.LogDirectory = "logs" })},
		"host port too high": {codes.InvalidArgument, sandbox(func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 70000}}
		})},
		"cgroup outside":      {codes.InvalidArgument, sandbox(func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/../.." })},
		"sysctl of the node":  {codes.InvalidArgument, sandbox(func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} })},
		"userns of container": {codes.InvalidArgument, sandbox(usernsOf(&cri.UserNamespace{Mode: cri.NamespaceMode_CONTAINER}))},
		"userns without ids":  {codes.InvalidArgument, sandbox(usernsOf(&cri.UserNamespace{Mode: cri.NamespaceMode_POD}))},
		"unknown handler": {codes.InvalidArgument, func(ctx context.Context) error {
			_, err := r.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: n.PodConfig("bad"), RuntimeHandler: "no-such"})
			return err
		}},
		"container without an image": {codes.InvalidArgument, container(func(c *cri.ContainerConfig) { c.Image = nil })},
		"image that is not here":     {codes.NotFound, container(func(c *cri.ContainerConfig) { c.Image.Image = images.Registry + "/never:pulled" })},
		"group without a user": {codes.InvalidArgument, container(func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 5}
		})},
		"NUL in an argument":          {codes.InvalidArgument, container(func(c *cri.ContainerConfig) { c.Args = []string{"a\x00b"} })},
		"log path outside its folder": {codes.InvalidArgument, container(func(c *cri.ContainerConfig) { c.LogPath = "../../x.log" })},
		"mount of a relative path":    {codes.InvalidArgument, container(func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{{ContainerPath: "/v", HostPath: "no/such"}} })},
		"container in no sandbox": {codes.NotFound, func(ctx context.Context) error {
			_, err := r.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: "nope", Config: harness.ContainerConfig("x", images.Tools), SandboxConfig: pod.Config})
			return err
		}},
		"start of nothing": {codes.NotFound, func(ctx context.Context) error {
			_, err := r.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: "nope"})
			return err
		}},
		"start of nobody": {codes.InvalidArgument, func(ctx context.Context) error {
			_, err := r.StartContainer(ctx, &cri.StartContainerRequest{})
			return err
		}},
		"second start": {codes.FailedPrecondition, func(ctx context.Context) error {
			_, err := r.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: app.ID})
			return err
		}},
		"exec in nothing": {codes.NotFound, func(ctx context.Context) error {
			_, err := r.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: "nope", Cmd: []string{"true"}})
			return err
		}},
		"exec of nothing": {codes.InvalidArgument, func(ctx context.Context) error {
			_, err := r.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: app.ID})
			return err
		}},
		"exec before the start": {codes.FailedPrecondition, func(ctx context.Context) error {
			_, err := r.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: created.ID, Cmd: []string{"true"}})
			return err
		}},
		"negative timeout": {codes.InvalidArgument, func(ctx context.Context) error {
			_, err := r.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: app.ID, Cmd: []string{"true"}, Timeout: -1})
			return err
		}},
		"terminal with error output": {codes.InvalidArgument, func(ctx context.Context) error {
			_, err := r.Exec(ctx, &cri.ExecRequest{ContainerId: app.ID, Cmd: []string{"sh"}, Tty: true, Stderr: true, Stdout: true})
			return err
		}},
		"attach to nothing": {codes.NotFound, func(ctx context.Context) error {
			_, err := r.Attach(ctx, &cri.AttachRequest{ContainerId: "nope", Stdout: true})
			return err
		}},
		"port forward into nothing": {codes.NotFound, func(ctx context.Context) error {
			_, err := r.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: "nope", Port: []int32{80}})
			return err
		}},
		"stats of nothing": {codes.NotFound, func(ctx context.Context) error {
			_, err := r.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: "nope"})
			return err
		}},
		"status of nothing": {codes.NotFound, func(ctx context.Context) error {
			_, err := r.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: "nope"})
			return err
		}},
		"stop of no sandbox is done": {codes.OK, func(ctx context.Context) error {
			_, err := r.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: "nope"})
			return err
		}},
		"removal of no sandbox is done": {codes.OK, func(ctx context.Context) error {
			_, err := r.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: "nope"})
			return err
		}},
		"stop of no container is done": {codes.OK, func(ctx context.Context) error {
			_, err := r.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: "nope"})
			return err
		}},
		"removal of no container is one": {codes.OK, func(ctx context.Context) error {
			_, err := r.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: "nope"})
			return err
		}},
		"status of no image is no image": {codes.OK, func(ctx context.Context) error {
			_, err := n.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: images.Registry + "/none:1"}})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.call(harness.Ctx(t))
			if status.Code(err) != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "panic") {
				t.Errorf("a panic: %v", err)
			}
		})
	}
	// All of that has done the pod no harm, and left no other.
	if got := app.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("got %q", got)
	}
	list, err := r.ListPodSandbox(harness.Ctx(t), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: map[string]string{"test": "bad"}}})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("left behind: %v, %v", list.GetItems(), err)
	}
}
