package spec

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// A request is an Input with nothing nil, for tests to change.
type request struct {
	Input
	pod *cri.LinuxSandboxSecurityContext
	sc  *cri.LinuxContainerSecurityContext
	res *cri.LinuxContainerResources
}

// newRequest is an ordinary container on a node with cgroup v2 that can do everything.
func newRequest() *request {
	r := &request{
		pod: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		sc:  &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		res: &cri.LinuxContainerResources{},
	}
	r.Input = Input{
		SandboxID: "pod1",
		Sandbox: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "web", Namespace: "shop", Uid: "u1"},
			Hostname: "web",
			Linux:    &cri.LinuxPodSandboxConfig{SecurityContext: r.pod},
		},
		Container: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "app"},
			Linux:    &cri.LinuxContainerConfig{SecurityContext: r.sc, Resources: r.res},
		},
		Image:       ocispec.ImageConfig{Entrypoint: []string{"/serve"}, Cmd: []string{"-v"}},
		ImageName:   "example.com/app:1",
		Rootfs:      "/rootfs",
		Namespaces:  Namespaces{Net: "/ns/net", IPC: "/ns/ipc", UTS: "/ns/uts", PID: "/ns/pid", User: "/ns/user"},
		CgroupsPath: "/kubepods/pod1/c1",
		Hostname:    "web",
		Shm:         "/run/pod1/shm",
		Node:        Node{Unified: true, RecursiveReadOnly: true, Swap: true, HugePageSizes: []string{"1GB", "2MB"}, Seccomp: true},
	}
	return r
}

// userns puts the pod into a user namespace.
func (r *request) userns() {
	user := &cri.UserNamespace{
		Mode: cri.NamespaceMode_POD,
		Uids: []*cri.IDMapping{{HostId: 100000, Length: 65536}},
		Gids: []*cri.IDMapping{{HostId: 100000, Length: 65536}},
	}
	r.pod.NamespaceOptions.UsernsOptions, r.sc.NamespaceOptions.UsernsOptions = user, user
}

func (r *request) privileged() {
	r.pod.Privileged, r.sc.Privileged = true, true
}

// build fails the test on an error.
func (r *request) build(t *testing.T) *specs.Spec {
	t.Helper()
	s, _, err := Build(r.Input)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// show is a value as JSON, for comparison and for messages.
func show(v any) string {
	out, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

func wantShow(t *testing.T, what string, got any, want string) {
	t.Helper()
	if g := show(got); g != want {
		t.Errorf("%s is\n\t%s, want\n\t%s", what, g, want)
	}
}

func wantInvalid(t *testing.T, err error, word string) {
	t.Helper()
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), word) {
		t.Errorf("error is %v, want an invalid argument that names %q", err, word)
	}
}

func TestBuildFields(t *testing.T) {
	cpus := []specs.LinuxDevice{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}, {Path: "/dev/sda", Type: "b", Major: 8}}
	floor := -500
	tests := map[string]struct {
		change func(*request)
		get    func(*specs.Spec) any
		want   string
	}{
		"root":           {nil, func(s *specs.Spec) any { return s.Root }, `{"path":"/rootfs"}`},
		"root read-only": {func(r *request) { r.sc.ReadonlyRootfs = true }, func(s *specs.Spec) any { return s.Root.Readonly }, `true`},
		"cgroup path":    {nil, func(s *specs.Spec) any { return s.Linux.CgroupsPath }, `"/kubepods/pod1/c1"`},
		"no new privs":   {func(r *request) { r.sc.NoNewPrivs = true }, func(s *specs.Spec) any { return s.Process.NoNewPrivileges }, `true`},
		"terminal": {func(r *request) { r.Container.Tty = true },
			func(s *specs.Spec) any { return []any{s.Process.Terminal, s.Process.Env[1]} }, `[true,"TERM=xterm"]`},
		"cwd of the image":       {func(r *request) { r.Image.WorkingDir = "srv" }, func(s *specs.Spec) any { return s.Process.Cwd }, `"/srv"`},
		"cwd of the request":     {func(r *request) { r.Image.WorkingDir, r.Container.WorkingDir = "/srv", "/data/" }, func(s *specs.Spec) any { return s.Process.Cwd }, `"/data"`},
		"oom score is never nil": {func(r *request) { r.Container.Linux.Resources = nil }, func(s *specs.Spec) any { return s.Process.OOMScoreAdj }, `0`},
		"oom score":              {func(r *request) { r.res.OomScoreAdj = 985 }, func(s *specs.Spec) any { return s.Process.OOMScoreAdj }, `985`},
		"oom score below floor": {func(r *request) { r.res.OomScoreAdj, r.Node.OOMScoreFloor = -998, &floor },
			func(s *specs.Spec) any { return s.Process.OOMScoreAdj }, `-500`},
		"masked": {func(r *request) {
			r.sc.MaskedPaths, r.sc.ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
		},
			func(s *specs.Spec) any { return [][]string{s.Linux.MaskedPaths, s.Linux.ReadonlyPaths} },
			`[["/proc/kcore"],["/proc/sys"]]`},
		"nothing masked": {nil, func(s *specs.Spec) any { return [][]string{s.Linux.MaskedPaths, s.Linux.ReadonlyPaths} }, `[null,null]`},
		"masked but privileged": {func(r *request) {
			r.privileged()
			r.sc.MaskedPaths, r.sc.ReadonlyPaths = []string{"/a"}, []string{"/b"}
		},
			func(s *specs.Spec) any { return [][]string{s.Linux.MaskedPaths, s.Linux.ReadonlyPaths} }, `[null,null]`},
		"SELinux": {func(r *request) { r.ProcessLabel, r.MountLabel = "p", "m" },
			func(s *specs.Spec) any { return []string{s.Process.SelinuxLabel, s.Linux.MountLabel} }, `["p","m"]`},
		"SELinux privileged": {func(r *request) { r.privileged(); r.ProcessLabel, r.MountLabel = "p", "m" },
			func(s *specs.Spec) any { return []string{s.Process.SelinuxLabel, s.Linux.MountLabel} }, `["","m"]`},
		"user": {func(r *request) { r.User = User{UID: 1, GID: 2, AdditionalGids: []uint32{2, 3}} },
			func(s *specs.Spec) any { return s.Process.User }, `{"uid":1,"gid":2,"additionalGids":[2,3]}`},
		"default rlimits": {nil, func(s *specs.Spec) any { return s.Process.Rlimits }, `[{"type":"RLIMIT_NOFILE","hard":524288,"soft":1024}]`},
		"rlimits above the ceiling": {func(r *request) {
			r.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Hard: 50, Soft: 40}, {Type: "RLIMIT_CORE", Hard: 9, Soft: 1}}
			r.Node.RlimitCeilings = map[string]uint64{"RLIMIT_NPROC": 30, "RLIMIT_CORE": 10}
		}, func(s *specs.Spec) any { return s.Process.Rlimits },
			`[{"type":"RLIMIT_NPROC","hard":30,"soft":30},{"type":"RLIMIT_CORE","hard":9,"soft":1}]`},
		"annotations": {func(r *request) {
			r.Container.Annotations = map[string]string{"io.kubernetes.container.hash": "h",
				"io.kubernetes.cri.sandbox-id": "forged", "org.systemd.property.Delegate": "true"}
			r.Sandbox.Annotations = map[string]string{"vendor.com/a": "1", "other": "2", "org.criu.config": "/x"}
			r.Handler.PodAnnotations = []string{"vendor.com/*", "org.*"}
		}, func(s *specs.Spec) any { return s.Annotations },
			`{"io.kubernetes.container.hash":"h","io.kubernetes.cri.container-name":"app","io.kubernetes.cri.container-type":"container",` +
				`"io.kubernetes.cri.image-name":"example.com/app:1","io.kubernetes.cri.sandbox-id":"pod1",` +
				`"io.kubernetes.cri.sandbox-name":"web","io.kubernetes.cri.sandbox-namespace":"shop",` +
				`"io.kubernetes.cri.sandbox-uid":"u1","vendor.com/a":"1"}`},
		"no devices": {nil, func(s *specs.Spec) any { return []any{s.Linux.Devices, s.Linux.Resources.Devices} },
			`[null,[{"allow":false,"access":"rwm"}]]`},
		"device": {func(r *request) { r.Devices = []Device{{LinuxDevice: cpus[0], Permissions: "r"}} },
			func(s *specs.Spec) any { return []any{s.Linux.Devices, s.Linux.Resources.Devices} },
			`[[{"path":"/dev/kvm","type":"c","major":10,"minor":232}],[{"allow":false,"access":"rwm"},` +
				`{"allow":true,"type":"c","major":10,"minor":232,"access":"r"}]]`},
		"devices in a user namespace": {func(r *request) {
			r.userns()
			r.Devices = []Device{{LinuxDevice: cpus[0], Source: "/dev/kvm"}, {LinuxDevice: cpus[1], Source: "/srv/disk", Permissions: "r"}}
		}, func(s *specs.Spec) any {
			return []any{s.Linux.Devices, s.Mounts[len(s.Mounts)-1], s.Linux.Resources.Devices}
		},
			`[[{"path":"/dev/kvm","type":"c","major":10,"minor":232}],` +
				`{"destination":"/dev/sda","type":"bind","source":"/srv/disk","options":["bind","rprivate","nosuid","noexec"]},` +
				`[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":232,"access":"rwm"},` +
				`{"allow":true,"type":"b","major":8,"minor":0,"access":"r"}]]`},
		"devices of a privileged container": {func(r *request) {
			r.privileged()
			r.Node.Devices = cpus
			r.Devices = []Device{{LinuxDevice: specs.LinuxDevice{Path: "/dev/kvm", Type: "c", Major: 1}}}
		}, func(s *specs.Spec) any { return []any{s.Linux.Devices, s.Linux.Resources.Devices} },
			`[[{"path":"/dev/kvm","type":"c","major":1,"minor":0},{"path":"/dev/sda","type":"b","major":8,"minor":0}],` +
				`[{"allow":true,"access":"rwm"}]]`},
		"privileged without host devices": {func(r *request) {
			r.privileged()
			r.Node.Devices, r.Handler.PrivilegedWithoutHostDevices = cpus, true
		}, func(s *specs.Spec) any { return []any{s.Linux.Devices, s.Linux.Resources.Devices} },
			`[null,[{"allow":false,"access":"rwm"}]]`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRequest()
			if tt.change != nil {
				tt.change(r)
			}
			wantShow(t, name, tt.get(r.build(t)), tt.want)
		})
	}
}

func TestArgs(t *testing.T) {
	tests := map[string]struct {
		entrypoint, cmd, command, args, want []string
	}{
		"image":              {[]string{"e"}, []string{"c"}, nil, nil, []string{"e", "c"}},
		"args":               {[]string{"e"}, []string{"c"}, nil, []string{"a"}, []string{"e", "a"}},
		"command":            {[]string{"e"}, []string{"c"}, []string{"r"}, nil, []string{"r"}},
		"command and args":   {[]string{"e"}, []string{"c"}, []string{"r"}, []string{"a"}, []string{"r", "a"}},
		"only the image cmd": {nil, []string{"c"}, nil, nil, []string{"c"}},
		"empty entrypoint":   {[]string{""}, []string{"c"}, nil, nil, []string{"c"}},
		"nothing":            {[]string{""}, nil, nil, nil, nil},
		"NUL":                {nil, nil, []string{"a\x00b"}, nil, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Args(ocispec.ImageConfig{Entrypoint: tt.entrypoint, Cmd: tt.cmd},
				&cri.ContainerConfig{Command: tt.command, Args: tt.args})
			if tt.want == nil {
				wantInvalid(t, err, "command")
			} else if !slices.Equal(got, tt.want) || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestEnv(t *testing.T) {
	env := func(kv ...string) (out []*cri.KeyValue) {
		for i := 0; i < len(kv); i += 2 {
			out = append(out, &cri.KeyValue{Key: kv[i], Value: []byte(kv[i+1])})
		}
		return out
	}
	image := ocispec.ImageConfig{Env: []string{"PATH=/bin", "LANG=C", "broken", "=x", "EMPTY="}}
	got, limits, err := Env(image, &cri.ContainerConfig{Tty: true, Envs: env("LANG", "de", "TERM", "vt100", "A", "1=2", "A", "3")}, "web")
	if err != nil || len(limits) != 0 {
		t.Fatal(limits, err)
	}
	wantShow(t, "env", got, `["PATH=/bin","TERM=vt100","HOSTNAME=web","LANG=de","EMPTY=","A=3"]`)

	got, limits, err = Env(ocispec.ImageConfig{}, &cri.ContainerConfig{Envs: env("BIN", "\xff\xfe")}, "h")
	if err != nil || len(limits) != 1 || !slices.Contains(got, "BIN=\xff\xfe") {
		t.Errorf("bytes: %q, limitations %q, %v", got, limits, err)
	}
	for _, kv := range [][]string{{"", "x"}, {"A=B", "x"}, {"A\x00", "x"}, {"A", "x\x00"}} {
		_, _, err := Env(image, &cri.ContainerConfig{Envs: env(kv...)}, "h")
		wantInvalid(t, err, "envs")
	}
}

func TestExecProcess(t *testing.T) {
	r := newRequest()
	r.Image.Env = []string{"A=1"}
	s := r.build(t)
	s.Process.ApparmorProfile, s.Process.NoNewPrivileges = "p", true
	p := ExecProcess(s, []string{"ls", "-l"}, true)
	wantShow(t, "args", []any{p.Args, p.Terminal, p.ApparmorProfile, p.NoNewPrivileges}, `[["ls","-l"],true,"p",true]`)
	wantShow(t, "env", p.Env, `["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","HOSTNAME=web","A=1","TERM=xterm"]`)
	if s.Process.Terminal || len(s.Process.Env) != 3 || s.Process.Args[0] != "/serve" {
		t.Errorf("the container's own process changed: %s", show(s.Process))
	}
	s.Process.Env = append(s.Process.Env, "TERM=vt100")
	if p := ExecProcess(s, []string{"ls"}, true); slices.Contains(p.Env, defaultTerm) {
		t.Errorf("TERM of the container is overridden: %q", p.Env)
	}
}

func TestCapabilities(t *testing.T) {
	without := func(all []string, drop ...string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(c string) bool { return slices.Contains(drop, c) })
	}
	all := knownCapabilities()
	tests := map[string]struct {
		node, add, drop, ambient []string
		privileged               bool
		want, wantAmbient        []string
		limits                   int
	}{
		"default":          {want: defaultCapabilities},
		"add":              {add: []string{"net_admin", "CAP_CHOWN"}, want: append(slices.Clone(defaultCapabilities), "CAP_NET_ADMIN")},
		"drop":             {drop: []string{"CHOWN"}, want: without(defaultCapabilities, "CAP_CHOWN")},
		"add ALL":          {add: []string{"ALL"}, want: all},
		"drop all":         {drop: []string{"all"}},
		"add ALL, drop":    {add: []string{"ALL"}, drop: []string{"SYS_TIME"}, want: without(all, "CAP_SYS_TIME")},
		"drop ALL, add":    {add: []string{"KILL"}, drop: []string{"ALL"}, want: []string{"CAP_KILL"}},
		"add and drop":     {add: []string{"SYS_TIME"}, drop: []string{"SYS_TIME"}, want: defaultCapabilities},
		"privileged":       {privileged: true, drop: []string{"ALL"}, want: all},
		"privileged, node": {privileged: true, node: []string{"CAP_KILL"}, want: []string{"CAP_KILL"}},
		"ambient": {drop: []string{"ALL"}, ambient: []string{"NET_BIND_SERVICE"},
			want: []string{"CAP_NET_BIND_SERVICE"}, wantAmbient: []string{"CAP_NET_BIND_SERVICE"}},
		"ambient ALL": {drop: []string{"ALL"}, add: []string{"KILL", "CHOWN"}, ambient: []string{"ALL"},
			want: []string{"CAP_KILL", "CAP_CHOWN"}, wantAmbient: []string{"CAP_KILL", "CAP_CHOWN"}},
		"ambient dropped": {drop: []string{"ALL", "KILL"}, ambient: []string{"KILL"}},
		"not on the node": {node: []string{"CAP_KILL"}, drop: []string{"ALL"}, add: []string{"KILL", "SYS_RESOURCE"},
			want: []string{"CAP_KILL"}, limits: 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRequest()
			if tt.privileged {
				r.privileged()
			}
			r.Node.Capabilities = tt.node
			r.sc.Capabilities = &cri.Capability{AddCapabilities: tt.add, DropCapabilities: tt.drop, AddAmbientCapabilities: tt.ambient}
			s, limits, err := Build(r.Input)
			if err != nil {
				t.Fatal(err)
			}
			if len(limits) != tt.limits {
				t.Errorf("limitations %q, want %d", limits, tt.limits)
			}
			c := s.Process.Capabilities
			for _, set := range [][]string{c.Bounding, c.Effective, c.Permitted} {
				if !slices.Equal(set, tt.want) {
					t.Errorf("got %s\nwant %q", show(c), tt.want)
				}
			}
			if !slices.Equal(c.Ambient, tt.wantAmbient) || !slices.Equal(c.Inheritable, tt.wantAmbient) {
				t.Errorf("ambient %q, inheritable %q, want %q", c.Ambient, c.Inheritable, tt.wantAmbient)
			}
		})
	}
	r := newRequest()
	r.sc.Capabilities = &cri.Capability{AddCapabilities: []string{"FLY"}}
	_, _, err := Build(r.Input)
	wantInvalid(t, err, "add_capabilities")
}

func TestResources(t *testing.T) {
	full := Node{Unified: true, Swap: true, HugePageSizes: []string{"1GB", "2MB"}}
	tests := map[string]struct {
		asked  *cri.LinuxContainerResources
		node   Node
		want   string
		limits int
	}{
		"nothing": {nil, full, `{"memory":{},"cpu":{}}`, 0},
		"cpu": {&cri.LinuxContainerResources{CpuPeriod: 1000, CpuQuota: 500, CpuShares: 20, CpusetCpus: "0-1", CpusetMems: "0"}, full,
			`{"memory":{},"cpu":{"shares":20,"quota":500,"period":1000,"cpus":"0-1","mems":"0"}}`, 0},
		"no cpu limit": {&cri.LinuxContainerResources{CpuQuota: -1}, full, `{"memory":{},"cpu":{"quota":-1}}`, 0},
		"memory":       {&cri.LinuxContainerResources{MemoryLimitInBytes: 100}, full, `{"memory":{"limit":100,"swap":100},"cpu":{}}`, 0},
		"swap": {&cri.LinuxContainerResources{MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 150}, full,
			`{"memory":{"limit":100,"swap":150},"cpu":{}}`, 0},
		"no swap accounting": {&cri.LinuxContainerResources{MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 150}, Node{},
			`{"memory":{"limit":100},"cpu":{}}`, 1},
		"no swap accounting, none asked": {&cri.LinuxContainerResources{MemoryLimitInBytes: 100}, Node{}, `{"memory":{"limit":100},"cpu":{}}`, 0},
		"huge pages": {&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 7}}}, full,
			`{"memory":{},"cpu":{},"hugepageLimits":[{"pageSize":"2MB","limit":7}]}`, 0},
		"huge pages of no size": {&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{Limit: 7}}}, full, "page_size", 0},
		"huge pages by a path": {&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "/../../other/memory"}}},
			full, "page_size", 0},
		"huge pages without controller": {&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 7},
			{PageSize: "1GB"}}}, Node{}, `{"memory":{},"cpu":{}}`, 1},
		"unified": {&cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "1", "pids.max": "2"}}, full,
			`{"memory":{},"cpu":{},"unified":{"memory.high":"1","pids.max":"2"}}`, 0},
		"unified on v1":    {&cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "1"}}, Node{}, "unified", 0},
		"unified path":     {&cri.LinuxContainerResources{Unified: map[string]string{"../x.y": "1"}}, full, "unified", 0},
		"unified folder":   {&cri.LinuxContainerResources{Unified: map[string]string{"..": "1"}}, full, "unified", 0},
		"unified half":     {&cri.LinuxContainerResources{Unified: map[string]string{"memory.": "1"}}, full, "unified", 0},
		"unified procs":    {&cri.LinuxContainerResources{Unified: map[string]string{"": "1"}}, full, "unified", 0},
		"swap below limit": {&cri.LinuxContainerResources{MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 50}, full, "memory_swap_limit", 0},
		"negative":         {&cri.LinuxContainerResources{CpuShares: -1}, full, "cpu_shares", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, limits, err := LinuxResources(tt.asked, tt.node)
			if !strings.HasPrefix(tt.want, "{") {
				wantInvalid(t, err, tt.want)
				return
			}
			if err != nil || len(limits) != tt.limits {
				t.Errorf("limitations %q, want %d; %v", limits, tt.limits, err)
			}
			wantShow(t, "resources", got, tt.want)
		})
	}
}

func TestPauseSpec(t *testing.T) {
	r := newRequest()
	r.pod.NamespaceOptions.Pid = cri.NamespaceMode_POD
	r.userns()
	r.pod.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	r.pod.RunAsUser, r.pod.RunAsGroup = &cri.Int64Value{Value: 7}, &cri.Int64Value{Value: 8}
	floor := 0
	r.Node.OOMScoreFloor = &floor
	in := PauseInput{ID: "pod1", Sandbox: r.Sandbox, Rootfs: "/pause-root", Namespaces: r.Namespaces, CgroupsPath: "/p", Node: r.Node}
	s, limits, err := PauseSpec(in)
	if err != nil || len(limits) != 0 {
		t.Fatal(limits, err)
	}
	wantShow(t, "namespaces", s.Linux.Namespaces, `[{"type":"mount"},{"type":"network","path":"/ns/net"},{"type":"uts","path":"/ns/uts"},`+
		`{"type":"ipc","path":"/ns/ipc"},{"type":"pid"},{"type":"cgroup"},{"type":"user","path":"/ns/user"}]`)
	wantShow(t, "process", []any{s.Process.Args, s.Process.User, s.Process.Capabilities, s.Process.NoNewPrivileges, s.Process.OOMScoreAdj},
		`[["/pause"],{"uid":7,"gid":8},{},true,0]`)
	if s.Linux.Seccomp == nil || !s.Root.Readonly {
		t.Errorf("seccomp %v, root %v", s.Linux.Seccomp, s.Root)
	}
	r.pod.RunAsUser = nil
	_, _, err = PauseSpec(in)
	wantInvalid(t, err, "run_as_group")
}

func TestClamp(t *testing.T) {
	r := newRequest()
	r.res.MemoryLimitInBytes, r.res.OomScoreAdj = 100, -900
	s := r.build(t)
	floor := -500
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Hard: 9, Soft: 9}}
	s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}, {Pagesize: "1GB"}}
	s.Linux.Resources.Unified = map[string]string{"memory.high": "1"}
	limits := Clamp(s, Node{OOMScoreFloor: &floor, RlimitCeilings: map[string]uint64{"RLIMIT_NPROC": 5}})
	if len(limits) != 4 {
		t.Errorf("limitations: %q", limits)
	}
	s.Linux.Resources.Devices = nil
	wantShow(t, "clamped", []any{s.Process.OOMScoreAdj, s.Process.Rlimits, s.Linux.Resources},
		`[-500,[{"type":"RLIMIT_NPROC","hard":5,"soft":5}],{"memory":{"limit":100},"cpu":{}}]`)
	if limits := Clamp(s, Node{}); len(limits) != 0 {
		t.Errorf("clamped again: %q", limits)
	}
	s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}, {Pagesize: "/../../other/memory", Limit: 2}}
	limits = Clamp(s, Node{HugePageSizes: []string{"2MB"}})
	if got := s.Linux.Resources.HugepageLimits; len(limits) != 1 || len(got) != 1 || got[0].Pagesize != "2MB" {
		t.Errorf("huge pages %v, limitations %q", got, limits)
	}
}

func TestResourcesToCRI(t *testing.T) {
	r := newRequest()
	asked := &cri.LinuxContainerResources{CpuPeriod: 1000, CpuQuota: -1, CpuShares: 20, CpusetCpus: "0-1", CpusetMems: "0",
		MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 150, OomScoreAdj: 5, Unified: map[string]string{"memory.high": "1"},
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 7}}}
	r.Container.Linux.Resources = asked
	wantShow(t, "resources", ResourcesToCRI(r.build(t)).GetLinux(), show(asked))
	wantShow(t, "of nothing", ResourcesToCRI(&specs.Spec{}).GetLinux(), "{}")
}
