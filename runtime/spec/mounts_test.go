package spec

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// mountAt is the only mount at a place, in one line.
func mountAt(t *testing.T, s *specs.Spec, at string) string {
	t.Helper()
	var found []string
	for _, m := range s.Mounts {
		if m.Destination == at {
			line := m.Type + " " + m.Source + " " + strings.Join(m.Options, ",")
			if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 {
				line += " " + show(m.UIDMappings) + show(m.GIDMappings)
			}
			found = append(found, line)
		}
	}
	if len(found) > 1 {
		t.Errorf("several mounts at %s: %q", at, found)
	}
	return strings.Join(found, "\n")
}

func TestMounts(t *testing.T) {
	const mapped = ` [{"containerID":0,"hostID":100000,"size":65536}][{"containerID":0,"hostID":100000,"size":65536}]`
	bind := func(change func(*Mount)) func(*request) {
		return func(r *request) {
			m := Mount{Source: "/src", Destination: "/dst"}
			change(&m)
			r.Mounts = []Mount{m}
		}
	}
	tests := map[string]struct {
		change   func(*request)
		at, want string
	}{
		"proc":           {nil, "/proc", "proc proc nosuid,noexec,nodev"},
		"sys":            {nil, "/sys", "sysfs sysfs nosuid,noexec,nodev,ro"},
		"cgroup":         {nil, "/sys/fs/cgroup", "cgroup cgroup nosuid,noexec,nodev,relatime,ro"},
		"shm":            {nil, "/dev/shm", "bind /run/pod1/shm rbind,rprivate,rw"},
		"shm of host":    {func(r *request) { r.Shm, r.pod.NamespaceOptions.Ipc = "", cri.NamespaceMode_NODE }, "/dev/shm", "bind /dev/shm rbind,rprivate,rw"},
		"shm alone":      {func(r *request) { r.Shm = "" }, "/dev/shm", "tmpfs shm nosuid,noexec,nodev,mode=1777,size=65536k"},
		"mqueue":         {nil, "/dev/mqueue", "mqueue mqueue nosuid,noexec,nodev"},
		"privileged sys": {func(r *request) { r.privileged() }, "/sys", "sysfs sysfs nosuid,noexec,nodev,rw"},
		"privileged cgroup keeps the host's options": {func(r *request) { r.privileged(); r.Node.CgroupOptions = []string{"nsdelegate"} },
			"/sys/fs/cgroup", "cgroup cgroup nosuid,noexec,nodev,relatime,rw,nsdelegate"},
		"own cgroup namespace needs no options": {func(r *request) { r.Node.CgroupOptions = []string{"nsdelegate"} },
			"/sys/fs/cgroup", "cgroup cgroup nosuid,noexec,nodev,relatime,ro"},
		"writable cgroup": {func(r *request) { r.Handler.CgroupWritable = true }, "/sys/fs/cgroup",
			"cgroup cgroup nosuid,noexec,nodev,relatime,rw"},
		"sys in user namespace": {func(r *request) { r.userns() }, "/sys", "sysfs sysfs nosuid,noexec,nodev,ro"},
		"sys in user namespace with host network": {func(r *request) { r.userns(); r.pod.NamespaceOptions.Network = cri.NamespaceMode_NODE },
			"/sys", "bind /sys rbind,rro,nosuid,noexec,nodev"},
		"resolv.conf": {func(r *request) { r.ResolvConf = "/r" }, "/etc/resolv.conf", "bind /r rbind,rprivate,rw"},
		"hostname, read-only root": {func(r *request) { r.HostnameFile, r.sc.ReadonlyRootfs = "/h", true },
			"/etc/hostname", "bind /h rbind,rprivate,ro"},
		"hosts in user namespace": {func(r *request) { r.HostsFile = "/h"; r.userns() }, "/etc/hosts", "bind /h rbind,rprivate,rw" + mapped},
		"hosts by the kubelet": {func(r *request) {
			r.HostsFile, r.Mounts = "/h", []Mount{{Source: "/kubelet", Destination: "/etc/hosts"}}
		},
			"/etc/hosts", "bind /kubelet rbind,rprivate,rw"},
		"volume":        {func(r *request) { r.Volumes = []Volume{{"/v", "/data"}} }, "/data", "bind /v rbind,rprivate,rw"},
		"volume hidden": {func(r *request) { bind(func(*Mount) {})(r); r.Volumes = []Volume{{"/v", "/dst/"}} }, "/dst", "bind /src rbind,rprivate,rw"},
		"volume root":   {func(r *request) { r.Volumes = []Volume{{"/v", "/"}} }, "/", ""},
		"read-only":     {bind(func(m *Mount) { m.ReadOnly = true }), "/dst", "bind /src rbind,rprivate,ro"},
		"recursive":     {bind(func(m *Mount) { m.ReadOnly, m.RecursiveReadOnly = true, true }), "/dst", "bind /src rbind,rprivate,rro"},
		"slave":         {bind(func(m *Mount) { m.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER }), "/dst", "bind /src rbind,rslave,rw"},
		"shared":        {bind(func(m *Mount) { m.Propagation = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL }), "/dst", "bind /src rbind,rshared,rw"},
		"options":       {bind(func(m *Mount) { m.Options = []string{"noexec", "nodev"} }), "/dst", "bind /src rbind,rprivate,rw,noexec,nodev"},
		"idmap": {bind(func(m *Mount) {
			m.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			m.GIDMappings = m.UIDMappings
		}), "/dst", "bind /src rbind,rprivate,rw" + mapped},
		"own /dev": {func(r *request) { r.Mounts = []Mount{{Source: "/dev", Destination: "/dev"}} }, "/dev/mqueue", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRequest()
			if tt.change != nil {
				tt.change(r)
			}
			if got := mountAt(t, r.build(t), tt.at); got != tt.want {
				t.Errorf("at %s:\n\t%s\nwant\n\t%s", tt.at, got, tt.want)
			}
		})
	}
}

func TestMountOrder(t *testing.T) {
	r := newRequest()
	r.ResolvConf = "/r"
	r.Mounts = []Mount{{Source: "/1", Destination: "/a/b/c/"}, {Source: "/2", Destination: "/a"}, {Source: "/3", Destination: "/a/b"},
		{Source: "/4", Destination: "/etc"}}
	var got []string
	for _, m := range r.build(t).Mounts {
		if m.Type == "bind" {
			got = append(got, m.Destination)
		}
	}
	want := []string{"/a", "/etc", "/a/b", "/etc/resolv.conf", "/dev/shm", "/a/b/c/"}
	if !slices.Equal(got, want) {
		t.Errorf("order is %q, want %q", got, want)
	}
}

func TestRootfsPropagation(t *testing.T) {
	for _, tt := range []struct {
		modes []cri.MountPropagation
		want  string
	}{
		{[]cri.MountPropagation{cri.MountPropagation_PROPAGATION_PRIVATE}, ""},
		{[]cri.MountPropagation{cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, "rslave"},
		{[]cri.MountPropagation{cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, "rshared"},
		{[]cri.MountPropagation{cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}, "rshared"},
	} {
		r := newRequest()
		for i, p := range tt.modes {
			r.Mounts = append(r.Mounts, Mount{Source: "/s", Destination: "/d" + string(rune('0'+i)), Propagation: p})
		}
		if got := r.build(t).Linux.RootfsPropagation; got != tt.want {
			t.Errorf("%v: %q, want %q", tt.modes, got, tt.want)
		}
	}
}

func TestNewMount(t *testing.T) {
	m := NewMount(&cri.Mount{
		ContainerPath: "data/x", HostPath: "/link", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"},
		UidMappings: []*cri.IDMapping{{HostId: 5, Length: 2}}, GidMappings: []*cri.IDMapping{{HostId: 5, Length: 2}},
		Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL,
	}, "/real")
	wantShow(t, "mount", m, `{"Source":"/real","Destination":"/data/x","ReadOnly":true,"RecursiveReadOnly":true,"Propagation":2,`+
		`"UIDMappings":[{"containerID":0,"hostID":5,"size":2}],"GIDMappings":[{"containerID":0,"hostID":5,"size":2}],"Options":["noexec"]}`)
}

func TestValidateMount(t *testing.T) {
	image := &cri.ImageSpec{Image: "i"}
	tests := map[string]struct {
		mount *cri.Mount
		want  string
	}{
		"plain":                {&cri.Mount{ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"noexec", "nosuid", "nodev"}}, ""},
		"image":                {&cri.Mount{ContainerPath: "/a", Image: image, Readonly: true, ImageSubPath: "x"}, ""},
		"image writable":       {&cri.Mount{ContainerPath: "/a", Image: image}, "readonly"},
		"image and host":       {&cri.Mount{ContainerPath: "/a", Image: image, Readonly: true, HostPath: "/b"}, "image"},
		"sub path of no image": {&cri.Mount{ContainerPath: "/a", HostPath: "/b", ImageSubPath: "x"}, "image_sub_path"},
		"no source":            {&cri.Mount{ContainerPath: "/a"}, "host_path"},
		"root":                 {&cri.Mount{ContainerPath: "/..", HostPath: "/b"}, "container_path"},
		"rro":                  {&cri.Mount{ContainerPath: "/a", HostPath: "/b", Readonly: true, RecursiveReadOnly: true}, ""},
		"rro writable":         {&cri.Mount{ContainerPath: "/a", HostPath: "/b", RecursiveReadOnly: true}, "recursive_read_only"},
		"rro slave": {&cri.Mount{ContainerPath: "/a", HostPath: "/b", Readonly: true, RecursiveReadOnly: true,
			Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, "recursive_read_only"},
		"rro shared": {&cri.Mount{ContainerPath: "/a", HostPath: "/b", Readonly: true, RecursiveReadOnly: true,
			Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}, "recursive_read_only"},
		"propagation":   {&cri.Mount{ContainerPath: "/a", HostPath: "/b", Propagation: 9}, "propagation"},
		"half a map":    {&cri.Mount{ContainerPath: "/a", HostPath: "/b", UidMappings: []*cri.IDMapping{{Length: 1}}}, "mapped"},
		"option rw":     {&cri.Mount{ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"rw"}}, "mount_options"},
		"option shared": {&cri.Mount{ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"rshared"}}, "mount_options"},
		"option data":   {&cri.Mount{ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"size=1"}}, "mount_options"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := validateMount(tt.mount)
			if tt.want != "" {
				wantInvalid(t, err, tt.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNodeWithoutRecursiveReadOnly(t *testing.T) {
	r := newRequest()
	r.Node.RecursiveReadOnly = false
	r.Mounts = []Mount{{Source: "/s", Destination: "/d", ReadOnly: true, RecursiveReadOnly: true}}
	_, _, err := Build(r.Input)
	wantInvalid(t, err, "recursive_read_only")
	if !errors.Is(err, crierrors.ErrRROUnsupported) || !strings.HasPrefix(err.Error(), crierrors.ErrRROUnsupported.Error()) {
		t.Errorf("the kubelet would not know %q", err)
	}
}
