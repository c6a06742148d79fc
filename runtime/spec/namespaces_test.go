package spec

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestNamespaces(t *testing.T) {
	const common = `"mount","network=/ns/net","uts=/ns/uts","ipc=/ns/ipc",`
	tests := map[string]struct {
		change func(*request)
		want   string
	}{
		"own pid":    {nil, `[` + common + `"pid","cgroup"]`},
		"shared pid": {func(r *request) { r.pidModes(cri.NamespaceMode_POD, cri.NamespaceMode_POD) }, `[` + common + `"pid=/ns/pid","cgroup"]`},
		"host pid":   {func(r *request) { r.pidModes(cri.NamespaceMode_NODE, cri.NamespaceMode_NODE) }, `[` + common + `"cgroup"]`},
		"default in a pod with host pid": {func(r *request) { r.pidModes(cri.NamespaceMode_NODE, cri.NamespaceMode_POD) },
			`[` + common + `"cgroup"]`},
		"default in a pod that shares none": {func(r *request) { r.pidModes(cri.NamespaceMode_CONTAINER, cri.NamespaceMode_POD) },
			`[` + common + `"pid","cgroup"]`},
		"target": {func(r *request) {
			r.pidModes(cri.NamespaceMode_CONTAINER, cri.NamespaceMode_TARGET)
			r.sc.NamespaceOptions.TargetId = "c0"
		}, `[` + common + `"pid=/ns/pid","cgroup"]`},
		"host network": {func(r *request) { r.pod.NamespaceOptions.Network = cri.NamespaceMode_NODE },
			`["mount","ipc=/ns/ipc","pid","cgroup"]`},
		"host ipc": {func(r *request) { r.pod.NamespaceOptions.Ipc = cri.NamespaceMode_NODE },
			`["mount","network=/ns/net","uts=/ns/uts","pid","cgroup"]`},
		"cgroup v1":  {func(r *request) { r.Node.Unified = false }, `[` + common + `"pid"]`},
		"privileged": {func(r *request) { r.privileged() }, `[` + common + `"pid"]`},
		"user":       {func(r *request) { r.userns() }, `[` + common + `"pid","cgroup","user=/ns/user"]`},
		"user of the pod": {func(r *request) { r.userns(); r.sc.NamespaceOptions.UsernsOptions = nil },
			`[` + common + `"pid","cgroup","user=/ns/user"]`},
		"nothing pinned": {func(r *request) { r.Namespaces = Namespaces{} }, `["mount","network","uts","ipc","pid","cgroup"]`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRequest()
			if tt.change != nil {
				tt.change(r)
			}
			var got []string
			for _, ns := range r.build(t).Linux.Namespaces {
				if ns.Path != "" {
					got = append(got, string(ns.Type)+"="+ns.Path)
				} else {
					got = append(got, string(ns.Type))
				}
			}
			wantShow(t, "namespaces", got, tt.want)
		})
	}
}

func (r *request) pidModes(pod, container cri.NamespaceMode) {
	r.pod.NamespaceOptions.Pid, r.sc.NamespaceOptions.Pid = pod, container
}

func TestHostnameOnlyInNewUTS(t *testing.T) {
	r := newRequest()
	if got := r.build(t).Hostname; got != "" {
		t.Errorf("hostname %q would be set in the pod's namespace", got)
	}
	r.Namespaces.UTS = ""
	if got := r.build(t).Hostname; got != "web" {
		t.Errorf("hostname is %q", got)
	}
}

func TestUserNamespaceMapping(t *testing.T) {
	r := newRequest()
	r.userns()
	r.User = User{UID: 65535, GID: 5}
	if s := r.build(t); s.Linux.UIDMappings != nil || s.Linux.GIDMappings != nil {
		t.Errorf("a namespace that is joined has mappings already, and gets %v, %v", s.Linux.UIDMappings, s.Linux.GIDMappings)
	}
	r.Namespaces.User = ""
	s := r.build(t)
	want := `[{"containerID":0,"hostID":100000,"size":65536}]`
	wantShow(t, "uids", s.Linux.UIDMappings, want)
	wantShow(t, "gids", s.Linux.GIDMappings, want)
	r.User.UID = 65536
	_, _, err := Build(r.Input)
	wantInvalid(t, err, "run_as_user")
}

func TestNeedsPause(t *testing.T) {
	for mode, want := range map[cri.NamespaceMode]bool{
		cri.NamespaceMode_POD: true, cri.NamespaceMode_CONTAINER: false, cri.NamespaceMode_NODE: false,
	} {
		r := newRequest()
		r.pod.NamespaceOptions.Pid = mode
		if NeedsPause(r.Sandbox) != want {
			t.Errorf("%s: want %v", mode, want)
		}
	}
	if !NeedsPause(&cri.PodSandboxConfig{}) {
		t.Error("CRI's default is a shared pid namespace")
	}
}

func TestValidateSandbox(t *testing.T) {
	mapping := func(host, inside, length uint32) *cri.IDMapping {
		return &cri.IDMapping{HostId: host, ContainerId: inside, Length: length}
	}
	user := func(r *request) *cri.UserNamespace { r.userns(); return r.pod.NamespaceOptions.UsernsOptions }
	tests := map[string]struct {
		change func(*request)
		want   string // "" for valid
	}{
		"ordinary":       {func(r *request) {}, ""},
		"user namespace": {func(r *request) { user(r) }, ""},
		"user NODE": {func(r *request) {
			r.pod.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
		}, ""},
		"user NODE mapped":  {func(r *request) { user(r).Mode = cri.NamespaceMode_NODE }, "userns_options"},
		"user CONTAINER":    {func(r *request) { user(r).Mode = cri.NamespaceMode_CONTAINER }, "userns_options.mode"},
		"user TARGET":       {func(r *request) { user(r).Mode = cri.NamespaceMode_TARGET }, "userns_options.mode"},
		"no mapping":        {func(r *request) { user(r).Uids = nil }, "exactly one"},
		"two mappings":      {func(r *request) { u := user(r); u.Uids = append(u.Uids, mapping(1, 70000, 1)) }, "exactly one"},
		"uids are not gids": {func(r *request) { user(r).Gids[0] = mapping(200000, 0, 65536) }, "alike"},
		"no root": {func(r *request) {
			u := user(r)
			u.Uids[0], u.Gids[0] = mapping(100000, 1, 10), mapping(100000, 1, 10)
		}, "root"},
		"no length": {func(r *request) { u := user(r); u.Uids[0].Length, u.Gids[0].Length = 0, 0 }, "length"},
		"overflow": {func(r *request) {
			u := user(r)
			u.Uids[0].HostId, u.Gids[0].HostId = 1<<32-10, 1<<32-10
		}, "highest"},
		"user and host pid":     {func(r *request) { user(r); r.pod.NamespaceOptions.Pid = cri.NamespaceMode_NODE }, ".pid"},
		"user and host ipc":     {func(r *request) { user(r); r.pod.NamespaceOptions.Ipc = cri.NamespaceMode_NODE }, ".ipc"},
		"user and host network": {func(r *request) { user(r); r.pod.NamespaceOptions.Network = cri.NamespaceMode_NODE }, ".network"},
		"network TARGET":        {func(r *request) { r.pod.NamespaceOptions.Network = cri.NamespaceMode_TARGET }, ".network"},
		"ipc CONTAINER":         {func(r *request) { r.pod.NamespaceOptions.Ipc = cri.NamespaceMode_CONTAINER }, ".ipc"},
		"pid TARGET":            {func(r *request) { r.pod.NamespaceOptions.Pid = cri.NamespaceMode_TARGET }, ".pid"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRequest()
			tt.change(r)
			err := ValidateSandbox(r.Sandbox, false)
			if tt.want != "" {
				wantInvalid(t, err, tt.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	r := newRequest()
	user(r)
	r.pod.NamespaceOptions.Network = cri.NamespaceMode_NODE
	if err := ValidateSandbox(r.Sandbox, true); err != nil {
		t.Errorf("host network on a node that can do it: %v", err)
	}
}

func TestValidateContainer(t *testing.T) {
	tests := map[string]struct {
		change func(*request)
		want   string
	}{
		"target without id":         {func(r *request) { r.sc.NamespaceOptions.Pid = cri.NamespaceMode_TARGET }, "target_id"},
		"privileged in another pod": {func(r *request) { r.sc.Privileged = true }, "privileged"},
		"user namespace of its own": {func(r *request) { r.userns(); r.pod.NamespaceOptions.UsernsOptions = nil }, "differs"},
		"host user in a mapped pod": {func(r *request) {
			r.userns()
			r.sc.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
		}, "differs"},
		"host pid in a mapped pod": {func(r *request) { r.userns(); r.sc.NamespaceOptions.Pid = cri.NamespaceMode_NODE }, ".pid"},
		"device permissions":       {func(r *request) { r.Container.Devices = []*cri.Device{{HostPath: "/dev/null", Permissions: "rx"}} }, "permissions"},
		"CDI name":                 {func(r *request) { r.Container.CDIDevices = []*cri.CDIDevice{{Name: "gpu0"}} }, "CDI_devices"},
		"target without pid to join": {func(r *request) {
			r.sc.NamespaceOptions.Pid, r.sc.NamespaceOptions.TargetId, r.Namespaces.PID = cri.NamespaceMode_TARGET, "c0", ""
		}, "target_id"},
		"AppArmor where there is none": {func(r *request) { r.sc.Apparmor = &cri.SecurityProfile{} }, "apparmor"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRequest()
			tt.change(r)
			_, _, err := Build(r.Input)
			wantInvalid(t, err, tt.want)
		})
	}
}

func TestHasNamespace(t *testing.T) {
	s := newRequest().build(t)
	if !hasNamespace(s, specs.CgroupNamespace) || hasNamespace(s, specs.UserNamespace) {
		t.Error(show(s.Linux.Namespaces))
	}
}
