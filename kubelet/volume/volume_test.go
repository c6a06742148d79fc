package volume

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/yaml"
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"

	"github.com/berth-node/berth/kubelet/podspec"
	noderesource "github.com/berth-node/berth/kubelet/resource"
)

const testUID = "11111111-2222-3333-4444-555555555555"

// podOf reads the spec of a pod and sets the defaults. Its containers use all volumes unless they say what they mount.
func podOf(t *testing.T, spec string) *v1.Pod {
	t.Helper()
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "web", "shop", testUID
	pod.Labels = map[string]string{"app": "web", "tier": "front"}
	if err := yaml.Unmarshal([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	if len(pod.Spec.Containers) == 0 {
		c := v1.Container{Name: "main", Image: "app:1"}
		for _, v := range pod.Spec.Volumes {
			c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: v.Name, MountPath: "/" + v.Name})
		}
		pod.Spec.Containers = []v1.Container{c}
	}
	corev1.SetObjectDefaults_Pod(pod)
	return pod
}

// newManager returns a manager of folders that are gone after the test, with all that is mounted there.
func newManager(t *testing.T) *Manager {
	t.Helper()
	dir := t.TempDir()
	m := New(Config{
		PodsDir: filepath.Join(dir, "pods"), MemoryDir: filepath.Join(dir, "memory"), ClaimsDir: filepath.Join(dir, "claims"),
		Node: &podspec.Node{
			Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("1Gi")},
			Resources:   &noderesource.Node{MemoryCapacity: 1 << 30},
		},
	})
	t.Cleanup(func() {
		if err := m.Teardown(testUID); err != nil {
			t.Error(err)
		}
		if there, err := mounted(m.MemoryDir); there || err != nil {
			t.Errorf("the tmpfs is still mounted: %v", err)
		}
	})
	return m
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
}

// objects are inputs that a test changes.
type objects struct {
	configMaps map[string]map[string]string
	secrets    map[string]map[string]string
	claims     []string
}

func (o objects) inputs() Inputs {
	return Inputs{
		ConfigMap: func(name string) *v1.ConfigMap {
			data, ok := o.configMaps[name]
			if !ok {
				return nil
			}
			return &v1.ConfigMap{Data: data, BinaryData: map[string][]byte{}}
		},
		Secret: func(name string) *v1.Secret {
			data, ok := o.secrets[name]
			if !ok {
				return nil
			}
			out := map[string][]byte{}
			for k, v := range data {
				out[k] = []byte(v)
			}
			return &v1.Secret{Data: out}
		},
		Claim: func(name string) *v1.PersistentVolumeClaim {
			if !slices.Contains(o.claims, name) {
				return nil
			}
			return &v1.PersistentVolumeClaim{}
		},
		Images: map[string]string{"image": "sha256:abc"},
	}
}

func setUp(t *testing.T, m *Manager, pod *v1.Pod, o objects) map[string]podspec.Volume {
	t.Helper()
	got, err := m.Setup(context.Background(), pod, o.inputs())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// list returns what is visible in a volume: path and content, links followed.
func list(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		real, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			rest, _ := filepath.Rel(real, path)
			out[filepath.Join(e.Name(), rest)] = string(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func wantFiles(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	if got := list(t, dir); !maps.Equal(got, want) {
		t.Errorf("files are %q, want %q", got, want)
	}
}

func stat(t *testing.T, path string) (mode fs.FileMode, gid uint32) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode(), st.Sys().(*syscall.Stat_t).Gid
}

func TestEmptyDir(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	m := newManager(t)
	pod := podOf(t, "volumes: [{name: data, emptyDir: {}}]")
	dir := setUp(t, m, pod, objects{})["data"].Path
	if want := filepath.Join(m.PodsDir, testUID, "volumes/kubernetes.io~empty-dir/data"); dir != want {
		t.Errorf("it is at %s, want %s", dir, want)
	}
	if mode, _ := stat(t, dir); mode != fs.ModeDir|0o777 {
		t.Errorf("mode %v", mode)
	}
	// What its users made of it stays.
	if err := errors.Join(os.Chmod(dir, 0o700), os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	setUp(t, m, pod, objects{})
	if mode, _ := stat(t, dir); mode != fs.ModeDir|0o700 {
		t.Errorf("after the second time mode %v", mode)
	}
	wantFiles(t, dir, map[string]string{"f": "x"})
	if err := m.Teardown(testUID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it is still there")
	}
}

func TestEmptyDirInMemory(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		spec string
		size uint64
	}{
		"its own limit":        {"volumes: [{name: data, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]", 8 << 20},
		"the node's memory":    {"volumes: [{name: data, emptyDir: {medium: Memory}}]", 1 << 30},
		"more than the memory": {"volumes: [{name: data, emptyDir: {medium: Memory, sizeLimit: 2Gi}}]", 1 << 30},
		"the pod's memory": {"volumes: [{name: data, emptyDir: {medium: Memory, sizeLimit: 64Mi}}]\n" +
			"containers: [{name: a, resources: {limits: {memory: 16Mi}}, volumeMounts: [{name: data, mountPath: /d}]}]", 16 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t)
			pod := podOf(t, c.spec)
			dir := setUp(t, m, pod, objects{})["data"].Path
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil {
				t.Fatal(err)
			}
			if st.Type != unix.TMPFS_MAGIC || st.Blocks*uint64(st.Bsize) != c.size {
				t.Errorf("file system %x of %d bytes, want %d", st.Type, st.Blocks*uint64(st.Bsize), c.size)
			}
			if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			setUp(t, m, pod, objects{})
			wantFiles(t, dir, map[string]string{"f": "x"})
			if err := errors.Join(m.Teardown(testUID), m.Teardown(testUID)); err != nil {
				t.Error(err)
			}
			if there, err := mounted(dir); there || err != nil {
				t.Errorf("still mounted: %v", err)
			}
		})
	}
}

func TestEmptyDirFaults(t *testing.T) {
	for spec, want := range map[string]string{
		"volumes: [{name: data, emptyDir: {medium: Odd}}]":       `MountVolume.SetUp failed for volume "data" : unknown storage medium "Odd"`,
		"volumes: [{name: data, emptyDir: {medium: HugePages}}]": "medium HugePages: hugePages storage requested, but there is no resource request for huge pages",
		"volumes: [{name: data, emptyDir: {medium: HugePages-1Gi}}]\ncontainers: [{name: a, resources: {limits: {hugepages-2Mi: 4Mi}}, volumeMounts: [{name: data, mountPath: /d}]}]":                 "no resource request for huge pages",
		"volumes: [{name: data, emptyDir: {medium: HugePages}}]\ncontainers: [{name: a, resources: {limits: {hugepages-2Mi: 4Mi, hugepages-1Gi: 1Gi}}, volumeMounts: [{name: data, mountPath: /d}]}]": "can't be used if container requests multiple huge page sizes",
	} {
		m := newManager(t)
		_, err := m.Setup(context.Background(), podOf(t, spec), Inputs{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

func TestConfigMap(t *testing.T) {
	o := objects{configMaps: map[string]map[string]string{"settings": {"color": "red", "size": "2"}}}
	for name, c := range map[string]struct {
		source string
		want   map[string]string
		modes  map[string]fs.FileMode
		fault  string
	}{
		"all keys":     {source: "{name: settings}", want: map[string]string{"color": "red", "size": "2"}, modes: map[string]fs.FileMode{"color": 0o644}},
		"modes":        {source: "{name: settings, defaultMode: 256, items: [{key: color, path: a/b/c, mode: 511}, {key: size, path: a/size}]}", want: map[string]string{"a/b/c": "red", "a/size": "2"}, modes: map[string]fs.FileMode{"a/b/c": 0o777, "a/size": 0o400}},
		"none":         {source: "{name: none}", fault: `MountVolume.SetUp failed for volume "data" : configmap "none" not found`},
		"optional":     {source: "{name: none, optional: true}", want: map[string]string{}},
		"no key":       {source: "{name: settings, items: [{key: x, path: x}]}", fault: "configmap references non-existent config key: x"},
		"optional key": {source: "{name: settings, optional: true, items: [{key: x, path: x}, {key: size, path: z}]}", want: map[string]string{"z": "2"}},
		"out of it":    {source: "{name: settings, items: [{key: size, path: ../y}]}", fault: "invalid path: must not start with '..': ../y"},
		"absolute":     {source: "{name: settings, items: [{key: size, path: /y}]}", fault: "invalid path: must be relative path: /y"},
		"ours":         {source: "{name: settings, items: [{key: size, path: ..data}]}", fault: "invalid path: must not start with '..': ..data"},
	} {
		t.Run(name, func(t *testing.T) {
			defer syscall.Umask(syscall.Umask(0o077))
			m := newManager(t)
			got, err := m.Setup(context.Background(), podOf(t, "volumes: [{name: data, configMap: "+c.source+"}]"), o.inputs())
			if c.fault != "" {
				if err == nil || !strings.Contains(err.Error(), c.fault) || len(Errors(err)) != 1 || Errors(err)[0].Volume != "data" {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			v := got["data"]
			if !v.ReadOnly || !v.Relabel {
				t.Errorf("%+v", v)
			}
			wantFiles(t, v.Path, c.want)
			for path, want := range c.modes {
				if mode, _ := stat(t, filepath.Join(v.Path, path)); mode != want {
					t.Errorf("%s has mode %v", path, mode)
				}
			}
			if mode, _ := stat(t, v.Path); mode.Perm() != 0o777 {
				t.Errorf("folder has mode %v", mode)
			}
		})
	}
}

// Trap: Secrets never touch a disk, and neither does what the pod tells of itself.
func TestSecretsAreInMemory(t *testing.T) {
	needRoot(t)
	o := objects{
		configMaps: map[string]map[string]string{"settings": {"color": "red"}},
		secrets:    map[string]map[string]string{"keys": {"token": "\xff\x00", "color": "blue"}},
	}
	m := newManager(t)
	pod := podOf(t, `
volumes:
- {name: secret, secret: {secretName: keys, defaultMode: 256}}
- {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu}}]}}
- name: all
  projected:
    defaultMode: 416
    sources:
    - {secret: {name: keys}}
    - {configMap: {name: settings, items: [{key: color, path: color}]}}
    - {downwardAPI: {items: [{path: pod/name, fieldRef: {fieldPath: metadata.name}}]}}
    - {secret: {name: none, optional: true}}
    - {configMap: {name: none, optional: true}}
`)
	got := setUp(t, m, pod, o)
	for name, want := range map[string]map[string]string{
		"secret": {"token": "\xff\x00", "color": "blue"},
		"down":   {"labels": "app=\"web\"\ntier=\"front\"", "cpu": "4"},
		"all":    {"token": "\xff\x00", "color": "red", "pod/name": "web"},
	} {
		wantFiles(t, got[name].Path, want)
		var st unix.Statfs_t
		if err := unix.Statfs(got[name].Path, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
			t.Errorf("%s is on %x, %v", name, st.Type, err)
		}
	}
	if mode, _ := stat(t, got["secret"].Path+"/token"); mode != 0o400 {
		t.Errorf("mode %v", mode)
	}
	if mode, _ := stat(t, got["all"].Path+"/pod/name"); mode != 0o640 {
		t.Errorf("mode %v", mode)
	}
	if _, err := os.Stat(filepath.Join(m.podDir(testUID), "volumes")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("something of it is on the disk")
	}
	// Nobody but the pods can walk to them.
	if mode, _ := stat(t, m.MemoryDir); mode.Perm() != 0o700 {
		t.Errorf("mode of all: %v", mode)
	}
}

func TestProjectedFaults(t *testing.T) {
	needRoot(t)
	m := newManager(t)
	pod := podOf(t, "volumes: [{name: all, projected: {sources: [{secret: {name: s}}, {configMap: {name: c}}, {serviceAccountToken: {path: token}}]}}]")
	_, err := m.Setup(context.Background(), pod, Inputs{})
	for _, want := range []string{`secret "s" not found`, `configmap "c" not found`, "source 2 of the projection is of a kind that is not known here"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// A change is seen at one stroke, and what is gone from the object is gone from the volume.
func TestRefresh(t *testing.T) {
	o := objects{configMaps: map[string]map[string]string{"settings": {"a": "1", "b": "1"}}}
	m := newManager(t)
	pod := podOf(t, "volumes: [{name: data, configMap: {name: settings}}, {name: scratch, emptyDir: {}}]")
	dir := setUp(t, m, pod, o)["data"].Path
	first, err := os.Readlink(dir + "/..data")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Refresh(pod, o.inputs()); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.Readlink(dir + "/..data"); again != first {
		t.Error("nothing has changed, but the content was replaced")
	}
	o.configMaps["settings"] = map[string]string{"b": "2", "c": "2"}
	if err := m.Refresh(pod, o.inputs()); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, map[string]string{"b": "2", "c": "2"})
	if _, err := os.Lstat(filepath.Join(dir, first)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the old content is still there")
	}
	// What is gone altogether leaves the pod what it had.
	delete(o.configMaps, "settings")
	err = m.Refresh(pod, o.inputs())
	if err == nil || !strings.Contains(err.Error(), `configmap "settings" not found`) {
		t.Errorf("%v", err)
	}
	wantFiles(t, dir, map[string]string{"b": "2", "c": "2"})
}

// Trap 26: what an interrupted change has left is mended and cleared away, also when nothing has changed since.
func TestInterruptedChange(t *testing.T) {
	o := objects{configMaps: map[string]map[string]string{"settings": {"a": "1", "b": "1"}}}
	m := newManager(t)
	pod := podOf(t, "volumes: [{name: data, configMap: {name: settings}}]")
	dir := setUp(t, m, pod, o)["data"].Path
	for _, err := range []error{
		os.Remove(dir + "/a"), os.Mkdir(dir+"/..2020_01_01_00_00_00.1", 0o755), os.Symlink("nowhere", dir+"/..data_tmp"),
		os.Symlink("..data/gone", dir+"/gone"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	setUp(t, m, pod, o)
	wantFiles(t, dir, map[string]string{"a": "1", "b": "1"})
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("%v, %v", entries, err)
	}
	o.configMaps["settings"]["a"] = "2" // with another ..data_tmp in the way
	if err := os.Symlink("nowhere", dir+"/..data_tmp"); err != nil {
		t.Fatal(err)
	}
	setUp(t, m, pod, o)
	wantFiles(t, dir, map[string]string{"a": "2", "b": "1"})
}

func TestFSGroup(t *testing.T) {
	needRoot(t)
	o := objects{configMaps: map[string]map[string]string{"settings": {"a": "1"}}, secrets: map[string]map[string]string{"keys": {"k": "1"}}, claims: []string{"disk"}}
	m := newManager(t)
	pod := podOf(t, `
securityContext: {fsGroup: 4321}
volumes:
- {name: scratch, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory}}
- {name: config, configMap: {name: settings, defaultMode: 256}}
- {name: secret, secret: {secretName: keys, defaultMode: 256}}
- {name: disk, persistentVolumeClaim: {claimName: disk}}
`)
	got := setUp(t, m, pod, o)
	for path, want := range map[string]fs.FileMode{
		"scratch": fs.ModeDir | fs.ModeSetgid | 0o777, "memory": fs.ModeDir | fs.ModeSetgid | fs.ModeSticky | 0o777,
		"disk": fs.ModeDir | fs.ModeSetgid | 0o777, "config/a": 0o440, "secret/k": 0o440,
	} {
		volume, rest, _ := strings.Cut(path, "/")
		mode, gid := stat(t, filepath.Join(got[volume].Path, rest))
		if mode != want || gid != 4321 {
			t.Errorf("%s has mode %v and group %d, want %v", path, mode, gid, want)
		}
	}
	o.configMaps["settings"]["a"] = "2"
	if err := m.Refresh(pod, o.inputs()); err != nil {
		t.Fatal(err)
	}
	if mode, gid := stat(t, got["config"].Path+"/a"); mode != 0o440 || gid != 4321 {
		t.Errorf("after a change: mode %v, group %d", mode, gid)
	}
}

func TestMeasure(t *testing.T) {
	needRoot(t)
	m := newManager(t)
	pod := podOf(t, "volumes: [{name: disk, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}, {name: conf, configMap: {name: c}}, "+
		"{name: hidden, secret: {secretName: s}}, {name: kept, persistentVolumeClaim: {claimName: p}}, {name: host, hostPath: {path: /}}]")
	if before, err := m.Measure(pod); err != nil || len(before) != 0 {
		t.Errorf("of a pod without volumes yet: %v, %v", before, err)
	}
	made := setUp(t, m, pod, objects{
		configMaps: map[string]map[string]string{"c": {"k": "v"}}, secrets: map[string]map[string]string{"s": {"k": "v"}}, claims: []string{"p"},
	})
	for _, name := range []string{"disk", "memory", "kept"} {
		if err := os.WriteFile(filepath.Join(made[name].Path, "f"), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := m.Measure(pod)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, u := range all {
		names = append(names, u.Name)
		if big := u.Bytes >= 1<<20; big != slices.Contains([]string{"disk", "memory", "kept"}, u.Name) {
			t.Errorf("%s takes %d bytes", u.Name, u.Bytes)
		}
		if u.On.Capacity == 0 || u.On.Available > u.On.Capacity || u.Name == "memory" && u.On.Capacity != 8<<20 || u.Inodes < 2 {
			t.Errorf("%s: %+v", u.Name, u)
		}
	}
	if want := []string{"disk", "memory", "conf", "hidden", "kept"}; !slices.Equal(names, want) {
		t.Errorf("measured are %v, want %v", names, want)
	}
	if none, err := MeasureFolder(filepath.Join(m.PodsDir, "none")); err != nil || none.Bytes != 0 {
		t.Errorf("of no folder: %v, %v", none, err)
	}
}

func TestHostPath(t *testing.T) {
	top := t.TempDir()
	if err := os.WriteFile(top+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	if err := unix.Bind(socket, &unix.SockaddrUnix{Name: top + "/socket"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, kind, fault string }{
		{path: top + "/nowhere", kind: ""},
		{path: top, kind: "Directory"}, {path: top + "/file", kind: "File"}, {path: top + "/socket", kind: "Socket"}, {path: "/dev/null", kind: "CharDevice"},
		{path: top + "/new/dir", kind: "DirectoryOrCreate"}, {path: top + "/newfile", kind: "FileOrCreate"},
		{path: top, kind: "DirectoryOrCreate"}, {path: top + "/file", kind: "FileOrCreate"},
		{path: top + "/none", kind: "Directory", fault: "hostPath type check failed: " + top + "/none is not a directory"},
		{path: top + "/none", kind: "File", fault: "is not a file"}, {path: top + "/none", kind: "Socket", fault: "is not a socket file"},
		{path: top, kind: "File", fault: "is not a file"}, {path: top + "/file", kind: "Directory", fault: "is not a directory"},
		{path: top + "/file", kind: "DirectoryOrCreate", fault: "is not a directory"}, {path: top, kind: "FileOrCreate", fault: "is not a file"},
		{path: top + "/file", kind: "CharDevice", fault: "is not a character device"}, {path: "/dev/null", kind: "BlockDevice", fault: "is not a block device"},
		{path: top + "/no/file", kind: "FileOrCreate", fault: "no such file or directory"}, {path: top, kind: "Odd", fault: "Odd is an invalid volume type"},
	} {
		pod := podOf(t, "volumes: [{name: data, hostPath: {path: "+c.path+", type: '"+c.kind+"'}}]")
		got, err := newManager(t).Setup(context.Background(), pod, Inputs{})
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%s as %s: %v", c.path, c.kind, err)
			}
			continue
		}
		if v := got["data"]; err != nil || v.Path != c.path || v.ReadOnly || v.Relabel {
			t.Errorf("%s as %s: %+v, %v", c.path, c.kind, v, err)
		}
	}
	for path, want := range map[string]fs.FileMode{"/new": fs.ModeDir | 0o755, "/new/dir": fs.ModeDir | 0o755, "/newfile": 0o644} {
		if mode, _ := stat(t, top+path); mode != want {
			t.Errorf("%s has mode %v", path, mode)
		}
	}
	if _, err := os.Stat(top + "/nowhere"); err == nil {
		t.Error("a path without a type was made")
	}
}

func TestUnusedVolumes(t *testing.T) {
	pod := podOf(t, `
volumes: [{name: unused, secret: {secretName: none}}, {name: used, emptyDir: {}}, {name: vars, emptyDir: {}}]
containers: [{name: a, volumeMounts: [{name: used, mountPath: /u}], env: [{name: A, valueFrom: {fileKeyRef: {volumeName: vars, path: p, key: k}}}]}]
`)
	got := setUp(t, newManager(t), pod, objects{})
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, []string{"used", "vars"}) {
		t.Errorf("%v", names)
	}
}

func TestImage(t *testing.T) {
	got := setUp(t, newManager(t), podOf(t, "volumes: [{name: image, image: {reference: 'data:1'}}]"), objects{})
	if v := got["image"]; v.Image.GetImage() != "sha256:abc" || v.Image.GetUserSpecifiedImage() != "data:1" || !v.ReadOnly || v.Path != "" {
		t.Errorf("%+v", v)
	}
	_, err := newManager(t).Setup(context.Background(), podOf(t, "volumes: [{name: other, image: {reference: 'data:1'}}]"), Inputs{})
	if err == nil {
		t.Error("an image that is not there")
	}
}

// One volume that fails keeps none of the others.
func TestSetupGoesOn(t *testing.T) {
	m := newManager(t)
	got, err := m.Setup(context.Background(), podOf(t, "volumes: [{name: a, configMap: {name: none}}, {name: b, emptyDir: {}}, {name: c, configMap: {name: other}}]"), Inputs{})
	if len(got) != 1 || len(Errors(err)) != 2 || Errors(nil) != nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestNested(t *testing.T) {
	o := objects{configMaps: map[string]map[string]string{"settings": {"a": "1"}}}
	m := newManager(t)
	pod := podOf(t, `
volumes: [{name: config, configMap: {name: settings, items: [{key: a, path: dir/a}]}}, {name: x, emptyDir: {}}]
containers:
- name: a
  volumeMounts:
  - {name: config, mountPath: /etc/app/}
  - {name: x, mountPath: /etc/app/sub/deep}
  - {name: x, mountPath: /etc/app/sub/deep/er}
  - {name: x, mountPath: /etc/app/dir/more}
  - {name: x, mountPath: /etc/application}
- name: b
  volumeMounts: [{name: config, mountPath: /b, subPath: dir}, {name: x, mountPath: /b/no}]
`)
	dir := setUp(t, m, pod, o)["config"].Path
	check := func() {
		t.Helper()
		for path, want := range map[string]bool{"sub/deep": true, "dir/more": true, "sub/deep/er": false, "lication": false, "no": false} {
			if _, err := os.Stat(filepath.Join(dir, path)); (err == nil) != want {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	check()
	o.configMaps["settings"]["a"] = "2"
	if err := m.Refresh(pod, o.inputs()); err != nil {
		t.Fatal(err)
	}
	check()
}

func TestUIDs(t *testing.T) {
	m := newManager(t)
	if got, err := m.UIDs(); err != nil || len(got) > 0 {
		t.Errorf("%v, %v", got, err)
	}
	setUp(t, m, podOf(t, "volumes: [{name: b, emptyDir: {}}]"), objects{})
	if got, err := m.UIDs(); err != nil || len(got) != 1 || got[0] != testUID {
		t.Errorf("%v, %v", got, err)
	}
}
