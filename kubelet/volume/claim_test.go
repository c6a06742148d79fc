package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-node/berth/kubelet/podspec"
)

// A claim that is bound has what the PersistentVolume names, and no folder of its own.
func TestBoundClaim(t *testing.T) {
	needRoot(t)
	m := newManager(t)
	top := t.TempDir()
	dir := filepath.Join(top, "data")
	var bound *v1.PersistentVolume
	var failed error
	m.Bound = func(namespace, name string) (*v1.PersistentVolume, error) {
		if namespace != "shop" || name != "disk" {
			t.Errorf("asked for %s/%s", namespace, name)
		}
		return bound, failed
	}
	pod := podOf(t, "securityContext: {fsGroup: 4321}\nvolumes: [{name: data, persistentVolumeClaim: {claimName: disk}}]")
	in := objects{claims: []string{"disk"}}.inputs()
	setUp := func() (podspec.Volume, string) {
		t.Helper()
		all, err := m.Setup(t.Context(), pod, in)
		if err != nil {
			return podspec.Volume{}, err.Error()
		}
		return all["data"], ""
	}
	local := func(path string) {
		bound = &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}}
		bound.Spec.Local = &v1.LocalVolumeSource{Path: path}
	}

	local(dir)
	if _, got := setUp(); got != `MountVolume.SetUp failed for volume "data" : path "`+dir+`" does not exist` {
		t.Error(got)
	}
	if err := os.WriteFile(dir, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, got := setUp(); !strings.Contains(got, "spec.local.path of PersistentVolume \"v\": "+dir+" is not a directory") {
		t.Error(got)
	}
	device := filepath.Join(top, "device")
	if err := unix.Mknod(device, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))); err != nil {
		t.Fatal(err)
	}
	local(device)
	if _, got := setUp(); !strings.Contains(got, device+" is a block device: mount it") {
		t.Error(got)
	}
	if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o755), os.Symlink(dir, filepath.Join(top, "link"))); err != nil {
		t.Fatal(err)
	}
	local(filepath.Join(top, "link"))
	if v, got := setUp(); got != "" || v.Path != dir || v.ReadOnly || !v.Relabel {
		t.Errorf("%+v, %s", v, got)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || st.Gid != 4321 || st.Mode&0o7777 != 0o2775 {
		t.Errorf("it has group %d and mode %o, %v", st.Gid, st.Mode, err)
	}
	if used, err := m.Measure(pod); err != nil || len(used) != 1 || used[0].Name != "data" || used[0].On.Capacity == 0 {
		t.Errorf("%+v, %v", used, err)
	}

	pod.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	bound.Spec.Local, bound.Spec.HostPath = nil, &v1.HostPathVolumeSource{Path: dir}
	if v, got := setUp(); got != "" || v != (podspec.Volume{Path: dir, ReadOnly: true}) {
		t.Errorf("%+v, %s", v, got)
	}
	if used, err := m.Measure(pod); err != nil || len(used) != 0 {
		t.Errorf("%+v, %v", used, err)
	}
	failed = errors.New("PVC is not bound")
	if _, got := setUp(); !strings.HasSuffix(got, `"data" : PVC is not bound`) {
		t.Error(got)
	}
	if _, err := os.Lstat(m.ClaimDir("shop", "disk")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it has a folder: %v", err)
	}
}

func TestClaim(t *testing.T) {
	needRoot(t)
	o := objects{claims: []string{"disk"}}
	m := newManager(t)
	spec := "volumes: [{name: data, persistentVolumeClaim: {claimName: disk}}]"
	pod := podOf(t, spec)
	v := setUp(t, m, pod, o)["data"]
	if v.Path != filepath.Join(m.ClaimsDir, "shop/disk") || v.ReadOnly {
		t.Errorf("%+v", v)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	for _, err := range []error{
		os.WriteFile(v.Path+"/file", []byte("x"), 0o600), os.WriteFile(secret, []byte("x"), 0o600), os.Symlink(secret, v.Path+"/link"),
		os.Mkdir(v.Path+"/dir", 0o700), os.WriteFile(v.Path+"/dir/file", nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// A group gets all that is there; what a link leads to is not there.
	group := podOf(t, "securityContext: {fsGroup: 4321}\n"+spec)
	setUp(t, m, group, o)
	for path, want := range map[string]fs.FileMode{"": fs.ModeDir | fs.ModeSetgid | 0o777, "file": 0o660, "dir": fs.ModeDir | fs.ModeSetgid | 0o770, "dir/file": 0o660} {
		if mode, gid := stat(t, filepath.Join(v.Path, path)); mode != want || gid != 4321 {
			t.Errorf("%q has mode %v and group %d", path, mode, gid)
		}
	}
	if mode, gid := stat(t, secret); mode != 0o600 || gid != 0 {
		t.Errorf("the file behind the link has mode %v and group %d", mode, gid)
	}
	// As long as the top shows the group, OnRootMismatch looks no further.
	if err := os.Chown(v.Path+"/dir/file", 0, 0); err != nil {
		t.Fatal(err)
	}
	lazy := podOf(t, "securityContext: {fsGroup: 4321, fsGroupChangePolicy: OnRootMismatch}\n"+spec)
	setUp(t, m, lazy, o)
	if _, gid := stat(t, v.Path+"/dir/file"); gid != 0 {
		t.Error("all was changed though the top had the group")
	}
	other := podOf(t, "securityContext: {fsGroup: 99, fsGroupChangePolicy: OnRootMismatch}\n"+spec)
	setUp(t, m, other, o)
	if _, gid := stat(t, v.Path+"/dir/file"); gid != 99 {
		t.Errorf("group %d", gid)
	}
	if err := m.Teardown(testUID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(v.Path + "/dir/file"); err != nil {
		t.Errorf("the data is gone with the pod: %v", err)
	}
	if err := m.RemoveClaim("shop", "disk"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.ClaimsDir + "/shop"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := m.RemoveClaim("shop", "disk"); err != nil {
		t.Error(err)
	}
	readOnly := podOf(t, "volumes: [{name: data, persistentVolumeClaim: {claimName: disk, readOnly: true}}]")
	if v := setUp(t, m, readOnly, o)["data"]; !v.ReadOnly {
		t.Errorf("%+v", v)
	}
	_, err := m.Setup(context.Background(), podOf(t, "volumes: [{name: data, persistentVolumeClaim: {claimName: none}}]"), o.inputs())
	if err == nil || !strings.Contains(err.Error(), `persistentvolumeclaim "none" not found`) {
		t.Errorf("%v", err)
	}
}
