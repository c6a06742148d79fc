package launch_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// pin makes a user namespace with others inside it and binds them to files, as a sandbox does. It returns the folder.
func pin(t *testing.T) (dir string, mapping []specs.LinuxIDMapping) {
	t.Helper()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}}
	dir = pinAll(t, &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: ids, GidMappings: ids,
	}, "user", "net", "ipc", "uts")
	return dir, []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
}

// pinAll binds those namespaces to files in a folder that a process with these attributes has.
func pinAll(t *testing.T, attr *syscall.SysProcAttr, names ...string) (dir string) {
	t.Helper()
	prog, err := workload()
	if err != nil {
		t.Skipf("the workload needs gcc and static libraries: %v", err)
	}
	helper := exec.Command(prog, "pause")
	helper.SysProcAttr = attr
	if err := helper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = helper.Process.Kill()
		_ = helper.Wait()
	}()
	dir = t.TempDir()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(filepath.Join("/proc", itoa(helper.Process.Pid), "ns", name), path, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", path, err)
			}
		})
	}
	return dir
}

func TestUserNamespaceOfASandbox(t *testing.T) {
	n := newNode(t)
	dir, mapping := pin(t)
	names := []string{"user", "net", "ipc", "uts"}
	var want []string
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		want = append(want, name+":["+itoa(int(st.Ino))+"]")
	}
	var words []string
	for _, name := range names {
		words = append(words, "link", "/proc/self/ns/"+name)
	}
	c := n.bundle(append(words, "cat", "/proc/self/uid_map"), func(s *specs.Spec) {
		s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil
		s.Linux.Namespaces = []specs.LinuxNamespace{
			{Type: specs.UserNamespace, Path: filepath.Join(dir, "user")},
			{Type: specs.NetworkNamespace, Path: filepath.Join(dir, "net")},
			{Type: specs.IPCNamespace, Path: filepath.Join(dir, "ipc")},
			{Type: specs.UTSNamespace, Path: filepath.Join(dir, "uts")},
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
		}
	})
	if err := os.Chown(filepath.Join(c.bundle, "rootfs"), int(mapping[0].HostID), int(mapping[0].HostID)); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(c.create().output()), "\n")
	if got := lines[:len(lines)-1]; strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("namespaces %v, want %v", got, want)
	}
	if got := strings.Fields(lines[len(lines)-1]); strings.Join(got, " ") != "0 200000 65536" {
		t.Errorf("uid_map %v", got)
	}
}
