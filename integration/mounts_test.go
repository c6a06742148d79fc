//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// tree makes a folder with a tmpfs mounted below it.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("test", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(sub, 0); err != nil {
			t.Errorf("a container still holds the mount: %v", err)
		}
	})
	return dir
}

func TestReadOnlyMounts(t *testing.T) {
	n := sharedNode(t)
	needFeature(t, n, "recursive read-only mounts", (*cri.RuntimeHandlerFeatures).GetRecursiveReadOnlyMounts)
	for name, c := range map[string]struct {
		recursive bool
		want      string // of writing to the mount, and below it
	}{"plain": {false, "ro rw"}, "recursive": {true, "ro ro"}} {
		t.Run(name, func(t *testing.T) {
			mount := &cri.Mount{ContainerPath: "/v", HostPath: tree(t), Readonly: true, RecursiveReadOnly: c.recursive}
			app := n.RunPod(t, "rro").Idle(t, "app", func(config *cri.ContainerConfig) { config.Mounts = []*cri.Mount{mount} })
			if got := app.Exec(t, "sh", "-c", "for d in /v /v/sub; do touch $d/f 2>/dev/null && echo rw || echo ro; done | xargs"); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			mounts := app.Status(t).Mounts
			if len(mounts) != 1 || mounts[0].RecursiveReadOnly != c.recursive || mounts[0].HostPath != mount.HostPath || !mounts[0].Readonly {
				t.Errorf("status tells of %v", mounts)
			}
			app.Pod.Remove(t)
		})
	}
}

func TestImageVolumes(t *testing.T) {
	n := sharedNode(t)
	n.NeedImage(t, images.Volume)
	volume := func(path, sub string) *cri.Mount {
		return &cri.Mount{ContainerPath: path, Image: &cri.ImageSpec{Image: images.Volume}, ImageSubPath: sub, Readonly: true}
	}
	pod := n.RunPod(t, "volumes")
	app := pod.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{volume("/whole", ""), volume("/part", "dir")}
	})
	if got := app.Exec(t, "cat", "/whole/top", "/whole/dir/inner", "/part/inner"); got != "top of the volume\ninner file\ninner file" {
		t.Errorf("contents: %q", got)
	}
	if got := app.Exec(t, "sh", "-c", "touch /whole/x 2>&1 || true"); !strings.Contains(got, "Read-only") {
		t.Errorf("a write: %q", got)
	}
	for _, m := range app.Status(t).Mounts {
		if m.GetImage().GetImage() == "" || m.HostPath != "" {
			t.Errorf("status tells of %v", m)
		}
	}
	for name, m := range map[string]*cri.Mount{"missing sub path": volume("/v", "no/such"), "sub path that leaves the image": volume("/v", "../..")} {
		config := harness.ContainerConfig("bad", images.Tools, "true")
		config.Mounts = []*cri.Mount{m}
		resp, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
		if err == nil {
			_, err = n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: resp.ContainerId})
		}
		if err == nil || !strings.Contains(err.Error(), "ImageVolumeMountFailed") {
			t.Errorf("%s: %v", name, err)
		}
		_, _ = n.Runtime.RemoveContainer(harness.Ctx(t), &cri.RemoveContainerRequest{ContainerId: resp.GetContainerId()})
	}
}

func TestMountOptions(t *testing.T) {
	n := sharedNode(t)
	resp, err := n.Runtime.Status(harness.Ctx(t), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.GetFeatures().GetMountOptions() {
		t.Skip("the node says that it does not have mount options")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	app := n.RunPod(t, "options").Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{ContainerPath: "/v", HostPath: dir, MountOptions: []string{"noexec"}}}
	})
	if got := app.Exec(t, "sh", "-c", "/v/script 2>&1 || true"); !strings.Contains(got, "Permission denied") {
		t.Errorf("a program on a noexec mount: %q", got)
	}
}

// What is mounted on the host reaches containers as they asked for it, whatever the mounts of the host are to each other:
// here those around the volume are private, and only the volume itself is shared.
func TestMountPropagation(t *testing.T) {
	n := sharedNode(t)
	dir := t.TempDir()
	mount := func(name string) (unmount func()) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("test", path, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		var once sync.Once
		unmount = func() { once.Do(func() { _ = syscall.Unmount(path, syscall.MNT_DETACH) }) }
		t.Cleanup(unmount)
		if err := os.WriteFile(filepath.Join(path, "file"), []byte(name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return unmount
	}
	pod := n.RunPod(t, "propagation", func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.Privileged = true
	})
	mount("v") // after the launchers that wait were started
	if err := syscall.Mount("", filepath.Join(dir, "v"), "none", syscall.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	mount("v/before")
	app := pod.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Privileged = true
		c.Mounts = []*cri.Mount{
			{ContainerPath: "/private", HostPath: filepath.Join(dir, "v")},
			{ContainerPath: "/slave", HostPath: filepath.Join(dir, "v"), Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			{ContainerPath: "/shared", HostPath: filepath.Join(dir, "v"), Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		}
	})
	seen := func(name string) string {
		t.Helper()
		return app.Exec(t, "sh", "-c", "for d in private slave shared; do [ -e /$d/"+name+"/file ] && echo $d; done | xargs")
	}
	if got := seen("before"); got != "private slave shared" {
		t.Errorf("what was mounted before is seen in %q", got)
	}
	unmount := mount("v/after")
	if got := seen("after"); got != "slave shared" {
		t.Errorf("what was mounted afterwards is seen in %q", got)
	}
	unmount()
	if got := seen("after"); got != "" {
		t.Errorf("what is mounted no more is seen in %q", got)
	}
	app.Exec(t, "sh", "-c", "mkdir /shared/out /slave/in && mount -t tmpfs test /shared/out && touch /shared/out/file && mount -t tmpfs test /slave/in && touch /slave/in/file")
	if _, err := os.Stat(filepath.Join(dir, "v/out/file")); err != nil {
		t.Errorf("a mount of the container does not reach the host: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "v/in/file")); err == nil {
		t.Error("a mount of the container reaches the host by a slave")
	}
	pod.Remove(t)
	if _, err := os.Stat(filepath.Join(dir, "v/out/file")); err != nil {
		t.Errorf("with the container its mount on the host is gone: %v", err)
	}
	if err := syscall.Unmount(filepath.Join(dir, "v/out"), 0); err != nil {
		t.Error(err)
	}
}
