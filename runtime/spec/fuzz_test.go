package spec

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// An image says who runs its program, and what that name means. Nobody becomes root who was not called so: not by a number
// that is too large (CVE-2024-40635), nor by a line that cannot be read.
func FuzzUser(f *testing.F) {
	f.Add("app:staff", "root:x:0:0::/:\napp:x:1000:1000::/:\n", "staff:x:50:app,root\n")
	f.Add("4294967296", "", "")
	f.Add("2147483648:2147483648", "", "")
	f.Add("x:0", "x:x:-1:99999999999::/:\n", "g:x:4294967296:x\n")
	root := f.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		for name, text := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		u, err := ResolveUser(root, ocispec.ImageConfig{User: user}, nil)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) && !strings.Contains(err.Error(), "too long") {
				t.Errorf("%q: %v", user, err)
			}
			return
		}
		if u.UID > math.MaxInt32 || u.GID > math.MaxInt32 || !slices.Contains(u.AdditionalGids, u.GID) {
			t.Errorf("%q is %+v", user, u)
		}
		name, _, _ := strings.Cut(user, ":")
		if n, err := strconv.ParseInt(name, 10, 64); err == nil && int64(u.UID) != n {
			t.Errorf("%q is %+v", user, u)
		}
		if u.UID == 0 && name != "" && strings.Trim(name, "+-0") != "" && !slices.ContainsFunc(strings.Split(passwd, "\n"), func(line string) bool {
			fields := strings.Split(strings.TrimSpace(line), ":")
			return fields[0] == name
		}) {
			t.Errorf("%q is root", user)
		}
	})
}

// A sysctl that is accepted is a file of one of the pod's own namespaces (CVE-2022-0811), and no other.
func FuzzSysctl(f *testing.F) {
	for _, s := range []string{"net.ipv4.ip_forward", "kernel/shmmax", "net/../kernel/core_pattern", "kernel.core_pattern", "net.ipv4.conf.eth0/1.x", "fs.mqueue.x+kernel.core_pattern=|x"} {
		f.Add(s, "1")
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		found, err := SandboxSysctls(&cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{Sysctls: map[string]string{name: value}}}, nil)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Error(err)
			}
			return
		}
		for _, s := range found {
			at := filepath.Join("/proc/sys", s.File)
			inside := strings.HasPrefix(at, "/proc/sys/net/") || strings.HasPrefix(at, "/proc/sys/fs/mqueue/") ||
				slices.Contains([]string{"msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced", "domainname"}, strings.TrimPrefix(at, "/proc/sys/kernel/"))
			if !inside || s.Value != value {
				t.Errorf("%q is %+v", name, s)
			}
		}
	})
}

// An environment has each name once, and no NUL.
func FuzzEnv(f *testing.F) {
	f.Add("PATH=/x\nA=b\nA\n=c\nB=\n", "A", []byte("c"))
	f.Fuzz(func(t *testing.T, image, name string, value []byte) {
		env, _, err := Env(ocispec.ImageConfig{Env: strings.Split(image, "\n")}, &cri.ContainerConfig{Envs: []*cri.KeyValue{{Key: name, Value: value}}}, "host")
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Error(err)
			}
			return
		}
		seen := map[string]bool{}
		for _, kv := range env {
			name, _, ok := strings.Cut(kv, "=")
			if !ok || name == "" || seen[name] || strings.Contains(kv, "\x00") {
				t.Errorf("%q in %q", kv, env)
			}
			seen[name] = true
		}
	})
}

func FuzzSignal(f *testing.F) {
	for _, s := range []string{"SIGTERM", "9", "rtmin+3", "SIGRTMAX-2", "0", "65", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sig, err := ParseSignal(s)
		if err == nil && (sig < 1 || sig > 64) {
			t.Errorf("%q is %d", s, sig)
		}
	})
}

// A line of the host's mountinfo, in which others' mount points stand.
func FuzzMountinfo(f *testing.F) {
	f.Add("35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot")
	f.Add("35 24 0:30 / /mnt\\040- rw - cgroup2 - rw")
	f.Fuzz(func(t *testing.T, line string) {
		options, ok := cgroupMountOptions(line)
		for _, o := range options {
			if !ok || !slices.Contains(cgroupOptions, o) {
				t.Errorf("%q gives %q", line, o)
			}
		}
	})
}

// What is in a folder of CDI descriptions beside the one that is asked for does no harm; one that is asked for and cannot
// be read is an error that names it. One that the library cannot bear is in the way of all, and named.
func FuzzCDI(f *testing.F) {
	f.Add([]byte(`{"cdiVersion":"0.6.0","kind":"berth.test/dev","devices":[{"name":"one","containerEdits":{"env":["A=b"]}}]}`))
	f.Add([]byte("cdiVersion: 0.6.0\nkind: berth.test/dev\ndevices: &a [*a]\n"))
	f.Add([]byte(`{"cdiVersion":"0.6.0","kind":"berth.test/dev","devices":[{"name":"one","containerEdits":{"deviceNodes":[{"path":"/no/such"}],"mounts":[{}],"hooks":[null]}}]}`))
	dir := f.TempDir()
	const good = `{"cdiVersion":"0.6.0","kind":"berth.good/dev","devices":[{"name":"good","containerEdits":{"env":["GOOD=yes"]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "good.json"), []byte(good), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, ext := range []string{".json", ".yaml"} {
			if err := os.WriteFile(filepath.Join(dir, "noise"+ext), data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := ApplyCDI(&specs.Spec{}, []string{"berth.test/dev=one"}, []string{dir}); err != nil && !strings.Contains(err.Error(), "berth.test/dev=one") && !strings.Contains(err.Error(), "noise"+ext) {
				t.Errorf("the error names neither device nor file: %v", err)
			}
			s := &specs.Spec{}
			if err := ApplyCDI(s, []string{"berth.good/dev=good"}, []string{dir}); (err != nil || s.Process == nil) && !errors.Is(err, errCDIPanic) && !strings.Contains(string(data), "berth.good") {
				t.Errorf("beside it: %v", err)
			}
			if err := os.Remove(filepath.Join(dir, "noise"+ext)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
