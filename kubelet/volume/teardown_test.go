package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/kubelet/podspec"
)

func bind(t *testing.T, from, to string) {
	t.Helper()
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(to, unix.MNT_DETACH) })
}

// Trap 27: whatever a pod has mounted, linked or nested in its volumes, nothing outside of them goes with it.
func TestTeardownStaysInTheFolder(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	for _, path := range []string{"data", "dir/below"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(outside, path)), 0o755), os.WriteFile(filepath.Join(outside, path), []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	m := newManager(t)
	dir := setUp(t, m, podOf(t, "volumes: [{name: data, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}]"), objects{})["data"].Path
	for _, err := range []error{
		os.Symlink(outside, dir+"/link"), os.MkdirAll(dir+"/a/b/bound", 0o755), os.WriteFile(dir+"/file", nil, 0o600),
		os.Mkdir(dir+"/a/twice", 0o000), os.MkdirAll(dir+"/..data/..", 0o755), os.WriteFile(dir+"/a/"+strings.Repeat("n", 255), nil, 0o000),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	bind(t, outside, dir+"/a/b/bound")
	bind(t, outside+"/data", dir+"/file")
	bind(t, outside, dir+"/a/twice")
	bind(t, outside+"/dir", dir+"/a/twice")
	if err := m.Teardown(testUID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
	wantFiles(t, outside, map[string]string{"data": "x", "dir/below": "x"})
}

// What cannot be removed is told, and the next call goes on.
func TestTeardownThatFails(t *testing.T) {
	needRoot(t)
	m := newManager(t)
	dir := setUp(t, m, podOf(t, "volumes: [{name: data, emptyDir: {}}]"), objects{})["data"].Path
	f, err := os.Create(dir + "/stuck")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const immutable = 0x10 // FS_IMMUTABLE_FL
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable); err != nil {
		t.Skip(err)
	}
	if err := m.Teardown(testUID); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("%v", err)
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.Teardown(testUID); err != nil {
		t.Error(err)
	}
}

func TestTeardownOfManyFiles(t *testing.T) {
	m := newManager(t)
	dir := setUp(t, m, podOf(t, "volumes: [{name: data, emptyDir: {}}]"), objects{})["data"].Path
	for i := range 2500 {
		if err := os.WriteFile(filepath.Join(dir, "f"+strings.Repeat("x", i%100)+string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676))), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Teardown(testUID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

func TestTwoPodsInMemory(t *testing.T) {
	needRoot(t)
	o := objects{secrets: map[string]map[string]string{"keys": {"k": "1"}}}
	m := newManager(t)
	first := podOf(t, "volumes: [{name: s, secret: {secretName: keys}}]")
	second := first.DeepCopy()
	second.UID = "other"
	setUp(t, m, first, o)
	kept := setUp(t, m, second, o)["s"].Path
	if err := m.Teardown(first.UID); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, kept, map[string]string{"k": "1"})
	if err := m.Teardown(second.UID); err != nil {
		t.Fatal(err)
	}
	if there, _ := mounted(m.MemoryDir); there {
		t.Error("the tmpfs stays without pods")
	}
}

// subPath is what the first container's first mount gets.
func subPath(m *Manager, pod *v1.Pod, volume, sub string) (string, error) {
	c := &v1.Container{Name: "main", VolumeMounts: []v1.VolumeMount{{Name: "data"}}}
	return m.SubPath(pod, map[string]podspec.Volume{"data": {Path: volume}}, c, 0, sub)
}

func TestSubPath(t *testing.T) {
	needRoot(t)
	m := newManager(t)
	pod := podOf(t, "volumes: [{name: data, emptyDir: {}}]")
	volume := setUp(t, m, pod, objects{})["data"].Path
	outside := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(volume+"/dir/sub", 0o755), os.WriteFile(volume+"/dir/file", []byte("in"), 0o600), os.Symlink("dir", volume+"/link"),
		os.Symlink(outside, volume+"/out"), os.Symlink("../../../../..", volume+"/up"), os.Symlink("/", volume+"/root"), os.Symlink("nowhere", volume+"/dangling"),
		os.Symlink("/proc/self/root", volume+"/magic"), os.WriteFile(outside+"/file", []byte("out"), 0o600), unix.Mkfifo(volume+"/pipe", 0o600),
		os.Chmod(volume, 0o770|fs.ModeSetgid),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for sub, c := range map[string]struct{ same, fault string }{
		"dir": {same: "dir"}, "dir/": {same: "dir"}, "./dir//sub": {same: "dir/sub"}, "dir/file": {same: "dir/file"}, "link/sub": {same: "dir/sub"},
		"pipe": {same: "pipe"}, "new/deep/er": {same: "new/deep/er"}, "link/made": {same: "dir/made"},
		"out/file": {fault: "failed to prepare subPath"}, "up/etc": {fault: "failed to prepare subPath"}, "root": {fault: "failed to prepare subPath"},
		"magic": {fault: "failed to prepare subPath"}, "dir/file/x": {fault: "failed to prepare subPath"},
		"dangling": {fault: "failed to create subPath directory"}, "dangling/x": {fault: "failed to create subPath directory"},
	} {
		place, err := subPath(m, pod, volume, sub)
		if c.fault != "" {
			if err == nil || err.Error() != c.fault+` for volumeMount "data" of container "main"` && c.fault != "failed to create subPath directory" {
				t.Errorf("%s: %v", sub, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", sub, err)
			continue
		}
		if want := filepath.Join(m.podDir(testUID), "volume-subpaths/data/main/0"); place != want {
			t.Errorf("%s is at %s", sub, place)
		}
		got, err1 := os.Lstat(place)
		want, err2 := os.Lstat(filepath.Join(volume, c.same))
		if err1 != nil || err2 != nil || !os.SameFile(got, want) {
			t.Errorf("%s is another file: %v, %v", sub, err1, err2)
		}
	}
	for _, path := range []string{"new", "new/deep/er"} {
		if mode, _ := stat(t, filepath.Join(volume, path)); mode != fs.ModeDir|fs.ModeSetgid|0o770 {
			t.Errorf("%s was made with mode %v", path, mode)
		}
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("outside there is %v", entries)
	}
}

// A restarted container gets what was there before, whatever is at the path by now, as long as that is the same.
func TestSubPathAgain(t *testing.T) {
	needRoot(t)
	m := newManager(t)
	pod := podOf(t, "volumes: [{name: data, emptyDir: {}}]")
	volume := setUp(t, m, pod, objects{})["data"].Path
	place, err := subPath(m, pod, volume, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(volume+"/a/file", []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := subPath(m, pod, volume, "a"); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, place, map[string]string{"file": "1"})
	if err := detach(place); err != nil {
		t.Fatal(err)
	}
	if there, _ := mounted(place); there {
		t.Error("it was mounted twice")
	}
	if err := errors.Join(os.Rename(volume+"/a", volume+"/old"), os.WriteFile(volume+"/a", []byte("2"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if place, err = subPath(m, pod, volume, "a"); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(place); err != nil || string(data) != "2" {
		t.Errorf("%q, %v", data, err)
	}
}

// Trap 25: a pod that swaps a folder for a link to the host's at any moment never gets at the host's.
func TestSubPathRace(t *testing.T) {
	needRoot(t)
	m := newManager(t)
	pod := podOf(t, "volumes: [{name: data, emptyDir: {}}]")
	volume := setUp(t, m, pod, objects{})["data"].Path
	outside := t.TempDir()
	for _, err := range []error{os.MkdirAll(volume+"/dir/sub", 0o755), os.MkdirAll(outside+"/sub", 0o755), os.WriteFile(outside+"/sub/secret", nil, 0o600), os.Symlink(outside, volume+"/evil")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			_ = unix.Renameat2(unix.AT_FDCWD, volume+"/dir", unix.AT_FDCWD, volume+"/evil", unix.RENAME_EXCHANGE)
		}
	}()
	got := 0
	for i := range 500 {
		place, err := subPath(m, pod, volume, []string{"dir/sub", "dir/new/sub"}[i%2])
		if err != nil {
			continue
		}
		got++
		if _, err := os.Lstat(place + "/secret"); err == nil {
			t.Fatal("the host's folder is mounted")
		}
	}
	stop.Store(true)
	<-done
	if got == 0 {
		t.Error("it never went well")
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("folders were made outside: %v", entries)
	}
}

func TestUsage(t *testing.T) {
	needRoot(t)
	o := objects{configMaps: map[string]map[string]string{"settings": {"a": "1"}}}
	m := newManager(t)
	pod := podOf(t, "volumes: [{name: disk, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}, {name: config, configMap: {name: settings}}]")
	got := setUp(t, m, pod, o)
	chunk := make([]byte, 1<<20)
	for _, err := range []error{
		os.WriteFile(got["disk"].Path+"/one", chunk, 0o600), os.Link(got["disk"].Path+"/one", got["disk"].Path+"/again"),
		os.Mkdir(got["disk"].Path+"/dir", 0o700), os.WriteFile(got["memory"].Path+"/one", chunk, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	usage, err := m.Usage(testUID)
	if err != nil || len(usage) != 3 {
		t.Fatalf("%v, %v", usage, err)
	}
	for _, u := range usage {
		switch u.Name {
		case "disk":
			if u.Kind != "empty-dir" || u.Mounted || u.Inodes != 3 || u.Bytes < 1<<20 || u.Bytes > 1<<20+64<<10 {
				t.Errorf("%+v", u)
			}
		case "memory":
			if u.Kind != "empty-dir" || !u.Mounted || u.Inodes != 2 || u.Bytes != 1<<20 {
				t.Errorf("%+v", u)
			}
		case "config":
			if u.Kind != "configmap" || u.Mounted || u.Inodes < 4 {
				t.Errorf("%+v", u)
			}
		}
	}
	if usage, err := m.Usage("none"); err != nil || len(usage) > 0 {
		t.Errorf("%v, %v", usage, err)
	}
}

// A server that is away is told, and nothing is left mounted. (What a server gives is for the tests in the VM.)
func TestNFSWithoutAServer(t *testing.T) {
	needRoot(t)
	m := newManager(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := m.Setup(ctx, podOf(t, "volumes: [{name: data, nfs: {server: '::1', path: /none}}]"), Inputs{})
	if err == nil || !strings.Contains(err.Error(), `MountVolume.SetUp failed for volume "data" : mount [::1]:/none: no answer`) {
		t.Errorf("%v", err)
	}
}

// When the time is up for mount(8), it is for the helper that it has started, too.
func TestNFSHelperEndsWithTheMount(t *testing.T) {
	needRoot(t)
	m, bin := newManager(t), t.TempDir()
	pidFile := filepath.Join(bin, "pid")
	if err := os.WriteFile(bin+"/mount", []byte("#!/bin/sh\nsleep 1000 & echo $! > "+pidFile+".new; mv "+pidFile+".new "+pidFile+"; wait\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := m.Setup(ctx, podOf(t, "volumes: [{name: data, nfs: {server: '::1', path: /none}}]"), Inputs{})
		failed <- err
	}()
	var pid int
	eventually(t, "the helper runs", func() bool {
		data, err := os.ReadFile(pidFile)
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
		}
		return err == nil
	})
	cancel()
	if err := <-failed; err == nil {
		t.Error("it is mounted")
	}
	eventually(t, "the helper is gone", func() bool { return !runs(pid) })
}

// runs says whether a process is there and no zombie.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
