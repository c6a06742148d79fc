package spec

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSandboxSysctls(t *testing.T) {
	host := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}
	tests := map[string]struct {
		opts     *cri.NamespaceOption
		sysctls  map[string]string
		defaults map[string]string
		want     string // JSON, or a word of the error
	}{
		"none": {nil, nil, nil, `null`},
		"sorted by file": {nil, map[string]string{"net.core.somaxconn": "9", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "8",
			"kernel.domainname": "d"}, nil,
			`[{"Namespace":"ipc","File":"fs/mqueue/msg_max","Value":"8"},{"Namespace":"uts","File":"kernel/domainname","Value":"d"},` +
				`{"Namespace":"ipc","File":"kernel/shm_rmid_forced","Value":"1"},{"Namespace":"network","File":"net/core/somaxconn","Value":"9"}]`},
		"dots in slashes": {nil, map[string]string{"net/ipv4/conf/eth0.1/forwarding": "1"}, nil,
			`[{"Namespace":"network","File":"net/ipv4/conf/eth0.1/forwarding","Value":"1"}]`},
		"slashes in dots": {nil, map[string]string{"net.ipv4.conf.eth0/1.forwarding": "1"}, nil,
			`[{"Namespace":"network","File":"net/ipv4/conf/eth0.1/forwarding","Value":"1"}]`},
		"defaults": {nil, map[string]string{"net/ipv4/ip_unprivileged_port_start": "80"},
			map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 1", "vm.swappiness": "1"},
			`[{"Namespace":"network","File":"net/ipv4/ip_unprivileged_port_start","Value":"80"},` +
				`{"Namespace":"network","File":"net/ipv4/ping_group_range","Value":"0 1"}]`},
		"defaults on the host": {host, nil, map[string]string{"net.ipv4.ping_group_range": "0 1"}, `null`},
		"not namespaced":       {nil, map[string]string{"vm.swappiness": "1"}, nil, "swappiness"},
		"kernel":               {nil, map[string]string{"kernel.panic": "1"}, nil, "kernel.panic"},
		"hostname":             {nil, map[string]string{"kernel.hostname": "x"}, nil, "kernel.hostname"},
		"path out":             {nil, map[string]string{"net/../vm/swappiness": "1"}, nil, "namespace"},
		"host network":         {host, map[string]string{"net.core.somaxconn": "9"}, nil, "host's"},
		"host ipc":             {host, map[string]string{"kernel.sem": "9"}, nil, "host's"},
		"host uts":             {host, map[string]string{"kernel.domainname": "d"}, nil, "host's"},
		"twice":                {nil, map[string]string{"net.core.somaxconn": "9", "net/core/somaxconn": "9"}, nil, "twice"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{Sysctls: tt.sysctls,
				SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: tt.opts}}}
			got, err := SandboxSysctls(cfg, tt.defaults)
			if tt.want[0] != '[' && tt.want != "null" {
				wantInvalid(t, err, tt.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantShow(t, "sysctls", got, tt.want)
		})
	}
}

func TestDefaultSysctls(t *testing.T) {
	r := newRequest()
	if got := DefaultSysctls(r.Sandbox); len(got) != 2 {
		t.Errorf("got %v", got)
	}
	r.userns()
	if _, ok := DefaultSysctls(r.Sandbox)["net.ipv4.ping_group_range"]; ok {
		t.Error("the kernel refuses groups that are not mapped")
	}
}

func TestStopSignal(t *testing.T) {
	tests := []struct {
		asked cri.Signal
		image string
		want  unix.Signal // 0: an error
	}{
		{0, "", unix.SIGTERM},
		{0, "SIGQUIT", unix.SIGQUIT},
		{0, "quit", unix.SIGQUIT},
		{0, "9", unix.SIGKILL},
		{0, "RTMIN+3", 37},
		{0, "SIGRTMAX-14", 50},
		{0, "SIGRTMIN", 34},
		{0, "nonsense", 0},
		{0, "0", 0},
		{0, "65", 0},
		{0, "RTMIN+31", 0},
		{0, "RTMIN+-1", 0},
		{0, "RTMAX-31", 0},
		{cri.Signal_SIGNAL_SIGUSR1, "SIGQUIT", unix.SIGUSR1},
		{cri.Signal_SIGNAL_SIGRTMINPLUS15, "", 49},
		{cri.Signal_SIGNAL_SIGRTMAXMINUS1, "", 63},
		{cri.Signal_SIGNAL_SIGCLD, "", unix.SIGCHLD},
		{cri.Signal(999), "", 0},
	}
	for _, tt := range tests {
		got, err := StopSignal(tt.asked, tt.image)
		if tt.want == 0 {
			wantInvalid(t, err, "signal")
		} else if got != tt.want || err != nil {
			t.Errorf("%s, %q: got %d, %v, want %d", tt.asked, tt.image, got, err, tt.want)
		}
	}
}

// Every signal that CRI can name is understood, and named again the same but for the aliases.
func TestSignalsOfCRI(t *testing.T) {
	aliases := map[cri.Signal]cri.Signal{
		cri.Signal_SIGNAL_SIGCLD: cri.Signal_SIGNAL_SIGCHLD, cri.Signal_SIGNAL_SIGIOT: cri.Signal_SIGNAL_SIGABRT,
		cri.Signal_SIGNAL_SIGPOLL: cri.Signal_SIGNAL_SIGIO,
	}
	for value := range cri.Signal_name {
		asked := cri.Signal(value)
		sig, err := StopSignal(asked, "")
		if err != nil {
			t.Errorf("%s: %v", asked, err)
			continue
		}
		want := asked
		if alias, ok := aliases[asked]; ok {
			want = alias
		}
		if asked == cri.Signal_SIGNAL_RUNTIME_DEFAULT {
			want = cri.Signal_SIGNAL_SIGTERM
		}
		if got := SignalToCRI(sig); got != want {
			t.Errorf("%s is %d, which is %s", asked, sig, got)
		}
	}
}

func TestCDIDevices(t *testing.T) {
	got, err := CDIDevices(&cri.ContainerConfig{
		CDIDevices: []*cri.CDIDevice{{Name: "v.com/gpu=1"}, {Name: "v.com/gpu=1"}},
		Annotations: map[string]string{"cdi.k8s.io/b": "v.com/nic=2", "cdi.k8s.io/a": "v.com/gpu=1,v.com/nic=1",
			"other": "x"},
	})
	if err != nil || !slices.Equal(got, []string{"v.com/gpu=1", "v.com/nic=1", "v.com/nic=2"}) {
		t.Errorf("got %q, %v", got, err)
	}
	_, err = CDIDevices(&cri.ContainerConfig{Annotations: map[string]string{"cdi.k8s.io/a": "junk"}})
	wantInvalid(t, err, "cdi.k8s.io/a")
}

func TestApplyCDI(t *testing.T) {
	dir := t.TempDir()
	const spec = `{"cdiVersion":"0.6.0","kind":"v.com/gpu","devices":[{"name":"1","containerEdits":{"env":["GPU=1"],
		"mounts":[{"hostPath":"/lib/v","containerPath":"/v","options":["ro","bind"]}]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "v.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newRequest().build(t)
	if err := ApplyCDI(s, []string{"v.com/gpu=1"}, []string{dir}); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Process.Env, "GPU=1") || mountAt(t, s, "/v") == "" {
		t.Errorf("edits are missing: %q", s.Process.Env)
	}
	wantInvalid(t, ApplyCDI(s, []string{"v.com/gpu=2"}, []string{dir}), "v.com/gpu=2")
	if err := ApplyCDI(s, nil, []string{dir}); err != nil {
		t.Error(err)
	}
}

func TestResolveDevices(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/dev/null", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ResolveDevices([]*cri.Device{{HostPath: filepath.Join(dir, "link"), ContainerPath: "/dev/hole", Permissions: "rw"}})
	if err != nil || len(got) != 1 || got[0].Path != "/dev/hole" || got[0].Type != "c" || got[0].Major != 1 || got[0].Minor != 3 ||
		got[0].Permissions != "rw" || got[0].Source != "/dev/null" {
		t.Errorf("got %s, %v", show(got), err)
	}
	_, err = ResolveDevices([]*cri.Device{{HostPath: filepath.Join(dir, "file")}})
	wantInvalid(t, err, "not a device")
	if _, err := ResolveDevices([]*cri.Device{{HostPath: filepath.Join(dir, "nowhere")}}); err == nil {
		t.Error("a device that is not there")
	}
	// A folder gives the devices in it, below the path in the container.
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = ResolveDevices([]*cri.Device{{HostPath: dir, ContainerPath: "/dev/d"}})
	if err != nil || len(got) != 0 {
		t.Errorf("neither links, files nor FIFOs in a folder are devices: %s, %v", show(got), err)
	}
}

func TestHostDevices(t *testing.T) {
	devices, err := HostDevices()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(devices, func(d specs.LinuxDevice) bool { return d.Path == "/dev/null" && d.Type == "c" }) {
		t.Errorf("no /dev/null in %s", show(devices))
	}
}

func TestHostCapabilities(t *testing.T) {
	caps, err := HostCapabilities()
	if err != nil {
		t.Fatal(err)
	}
	ceilings, err := HostRlimitCeilings(caps)
	if err != nil || (ceilings == nil) != slices.Contains(caps, "CAP_SYS_RESOURCE") {
		t.Errorf("capabilities %q, ceilings %v, %v", caps, ceilings, err)
	}
	if _, ok := ceilings["RLIMIT_NOFILE"]; !ok && ceilings != nil {
		t.Errorf("no RLIMIT_NOFILE in %v", ceilings)
	}
}

func TestCgroupMountOptions(t *testing.T) {
	tests := map[string]struct {
		line string
		ours bool
		want string
	}{
		"v2": {"35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot", true,
			`["nsdelegate","memory_recursiveprot"]`},
		"v1":      {"35 24 0:30 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755", true, `null`},
		"hybrid":  {"36 35 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate", false, `null`},
		"garbage": {"x", false, `null`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, ours := cgroupMountOptions(tt.line)
			if ours != tt.ours {
				t.Errorf("ours is %v", ours)
			}
			wantShow(t, "options", got, tt.want)
		})
	}
}
