package podspec

import (
	"testing"

	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// securityOf returns the context of the first container.
func securityOf(n *Node, pod *v1.Pod, in ContainerInputs) (*cri.LinuxContainerSecurityContext, error) {
	c, err := n.Container(pod, &pod.Spec.Containers[0], in)
	return c.GetLinux().GetSecurityContext(), err
}

func TestSecurity(t *testing.T) {
	base := func() *cri.LinuxContainerSecurityContext {
		return &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}},
			RunAsUser:        &cri.Int64Value{},
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined},
		}
	}
	for name, c := range map[string]struct {
		pod, container string
		change         func(*cri.LinuxContainerSecurityContext)
	}{
		"nothing": {change: func(*cri.LinuxContainerSecurityContext) {}},
		"the pod's": {pod: "{runAsUser: 1, runAsGroup: 2, fsGroup: 3, supplementalGroups: [4], supplementalGroupsPolicy: Strict, seLinuxOptions: {type: t}}",
			change: func(s *cri.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 1}, &cri.Int64Value{Value: 2}
				s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{3, 4}, cri.SupplementalGroupsPolicy_Strict
				s.SelinuxOptions = &cri.SELinuxOption{Type: "t"}
			}},
		"the container's before the pod's": {pod: "{runAsUser: 1, runAsGroup: 2, seLinuxOptions: {type: t}}",
			container: "{runAsUser: 5, runAsGroup: 6, seLinuxOptions: {user: u, role: r, level: l}}",
			change: func(s *cri.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 5}, &cri.Int64Value{Value: 6}
				s.SelinuxOptions = &cri.SELinuxOption{User: "u", Role: "r", Level: "l"}
			}},
		"rights": {container: "{privileged: true, readOnlyRootFilesystem: true, capabilities: {add: [NET_ADMIN], drop: [ALL]}}",
			change: func(s *cri.LinuxContainerSecurityContext) {
				s.Privileged, s.ReadonlyRootfs = true, true
				s.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}}
			}},
		"no new privileges": {container: "{allowPrivilegeEscalation: false}",
			change: func(s *cri.LinuxContainerSecurityContext) { s.NoNewPrivs = true }},
		"new privileges": {container: "{allowPrivilegeEscalation: true}", change: func(*cri.LinuxContainerSecurityContext) {}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(t, "{securityContext: "+orEmpty(c.pod)+", containers: [{name: main, securityContext: "+orEmpty(c.container)+"}]}")
			got, err := securityOf(testNode(t), pod, ContainerInputs{})
			if err != nil {
				t.Fatal(err)
			}
			got.MaskedPaths, got.ReadonlyPaths = nil, nil
			want := base()
			c.change(want)
			if !proto.Equal(got, want) {
				t.Errorf("got %v\nwant %v", got, want)
			}
		})
	}
}

func orEmpty(s string) string {
	if s == "" {
		return "{}"
	}
	return s
}

func TestProcMount(t *testing.T) {
	for kind, masked := range map[string]bool{"Default": true, "Unmasked": false} {
		pod := podOf(t, "{hostUsers: false, containers: [{name: main, securityContext: {procMount: "+kind+"}}]}")
		got, err := securityOf(testNode(t), pod, ContainerInputs{})
		if err != nil || len(got.MaskedPaths) > 0 != masked || len(got.ReadonlyPaths) > 0 != masked {
			t.Errorf("%s: %v %v, %v", kind, got.GetMaskedPaths(), got.GetReadonlyPaths(), err)
		}
	}
}

// The image's user counts, on a restart as on the first start (CVE-2019-11245).
func TestRunAsNonRoot(t *testing.T) {
	const must = "{securityContext: {runAsNonRoot: true}}"
	uid := func(n int64) Image { return Image{UID: &n} }
	for name, c := range map[string]struct {
		spec  string
		image Image
		fault string
	}{
		"root may":              {spec: "{}", image: uid(0)},
		"user of the image":     {spec: must, image: uid(1000)},
		"root of the image":     {spec: must, image: uid(0), fault: "container has runAsNonRoot and image will run as root (pod: \"web_shop(11111111-2222-3333-4444-555555555555)\", container: main)"},
		"image that names none": {spec: must, fault: "container has runAsNonRoot and image will run as root"},
		"a word":                {spec: must, image: Image{Username: "web"}, fault: "container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root"},
		"no user at all":        {spec: must, image: uid(-5), fault: "image has an invalid user id (-5)"},
		"user of the pod":       {spec: "{securityContext: {runAsNonRoot: true, runAsUser: 1}}", image: uid(0)},
		"root of the pod":       {spec: "{securityContext: {runAsNonRoot: true, runAsUser: 0}}", image: uid(1000), fault: "container's runAsUser breaks non-root policy"},
		"the container may":     {spec: "{securityContext: {runAsNonRoot: true}, containers: [{name: main, securityContext: {runAsNonRoot: false}}]}", image: uid(0)},
		"the container may not": {spec: "{containers: [{name: main, securityContext: {runAsNonRoot: true}}]}", image: uid(0), fault: "image will run as root"},
		"the container's user":  {spec: "{securityContext: {runAsNonRoot: true, runAsUser: 0}, containers: [{name: main, securityContext: {runAsUser: 3}}]}", image: uid(0)},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(t, c.spec)
			for _, restarts := range []int{0, 3} {
				_, err := securityOf(testNode(t), pod, ContainerInputs{Image: c.image, RestartCount: restarts})
				wantError(t, err, c.fault)
			}
		})
	}
}

func TestUserOfImage(t *testing.T) {
	five := int64(5)
	for name, c := range map[string]struct {
		image Image
		uid   int64
		word  string
	}{
		"a number": {image: Image{UID: &five}, uid: 5},
		"a word":   {image: Image{Username: "web"}, uid: -1, word: "web"},
		"nothing":  {},
	} {
		got, err := securityOf(testNode(t), podOf(t, "{}"), ContainerInputs{Image: c.image})
		if err != nil {
			t.Fatal(err)
		}
		uid := int64(-1)
		if got.RunAsUser != nil {
			uid = got.RunAsUser.Value
		}
		if uid != c.uid || got.RunAsUsername != c.word {
			t.Errorf("%s: user %d, %q", name, uid, got.RunAsUsername)
		}
	}
}

func TestSeccomp(t *testing.T) {
	unconfined := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	runtimeDefault := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	file := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/var/lib/berth/seccomp/dir/own.json"}
	for name, c := range map[string]struct {
		pod, container string
		byDefault      bool
		want           *cri.SecurityProfile
		fault          string
	}{
		"none":                      {want: unconfined},
		"none, but by default":      {byDefault: true, want: runtimeDefault},
		"unconfined after all":      {byDefault: true, pod: "{type: Unconfined}", want: unconfined},
		"the pod's":                 {pod: "{type: RuntimeDefault}", want: runtimeDefault},
		"the container's":           {pod: "{type: RuntimeDefault}", container: "{type: Unconfined}", want: unconfined},
		"a file":                    {container: "{type: Localhost, localhostProfile: dir/own.json}", want: file},
		"a file of the pod":         {pod: "{type: Localhost, localhostProfile: dir/own.json}", want: file},
		"a file without a name":     {container: "{type: Localhost}", fault: "localhostProfile must be set if seccompProfile type is Localhost."},
		"a file with an empty name": {container: "{type: Localhost, localhostProfile: ''}", fault: "localhostProfile must be set if seccompProfile type is Localhost."},
	} {
		t.Run(name, func(t *testing.T) {
			n := testNode(t)
			n.SeccompDefault = c.byDefault
			pod := podOf(t, "{securityContext: {seccompProfile: "+orNull(c.pod)+"}, containers: [{name: main, securityContext: {seccompProfile: "+orNull(c.container)+"}}]}")
			got, err := securityOf(n, pod, ContainerInputs{})
			if wantError(t, err, c.fault) && !proto.Equal(got.Seccomp, c.want) {
				t.Errorf("%v, want %v", got.Seccomp, c.want)
			}
		})
	}
}

func orNull(s string) string {
	if s == "" {
		return "null"
	}
	return s
}

func TestAppArmor(t *testing.T) {
	for name, c := range map[string]struct {
		pod, container, annotation string
		kind                       cri.SecurityProfile_ProfileType
		ref, old, fault            string
		none                       bool
	}{
		"none":                     {none: true},
		"the pod's":                {pod: "{type: RuntimeDefault}", kind: cri.SecurityProfile_RuntimeDefault, old: "runtime/default"},
		"the container's":          {pod: "{type: RuntimeDefault}", container: "{type: Unconfined}", kind: cri.SecurityProfile_Unconfined, old: "unconfined"},
		"a loaded one":             {container: "{type: Localhost, localhostProfile: own}", kind: cri.SecurityProfile_Localhost, ref: "own", old: "localhost/own"},
		"the annotation":           {pod: "{type: RuntimeDefault}", annotation: "localhost/own", kind: cri.SecurityProfile_Localhost, ref: "own", old: "localhost/own"},
		"the annotation: default":  {annotation: "runtime/default", kind: cri.SecurityProfile_RuntimeDefault, old: "runtime/default"},
		"the annotation: none":     {annotation: "unconfined", kind: cri.SecurityProfile_Unconfined, old: "unconfined"},
		"the annotation: nonsense": {annotation: "x", none: true},
		"the annotation: empty":    {annotation: "localhost/", fault: "missing localhost apparmor profile name"},
		"without a name":           {container: "{type: Localhost}", fault: "missing localhost apparmor profile name"},
		"of no type":               {container: "{type: Odd}", fault: `unknown apparmor profile type: "Odd"`},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(t, "{securityContext: {appArmorProfile: "+orNull(c.pod)+"}, containers: [{name: main, securityContext: {appArmorProfile: "+orNull(c.container)+"}}]}")
			if c.annotation != "" {
				pod.Annotations = map[string]string{"container.apparmor.security.beta.kubernetes.io/main": c.annotation}
			}
			got, err := securityOf(testNode(t), pod, ContainerInputs{})
			if !wantError(t, err, c.fault) {
				return
			}
			if c.none {
				if got.Apparmor != nil {
					t.Errorf("%v", got.Apparmor)
				}
				return
			}
			want := &cri.SecurityProfile{ProfileType: c.kind, LocalhostRef: c.ref}
			//lint:ignore SA1019 older runtimes read it
			if !proto.Equal(got.Apparmor, want) || got.ApparmorProfile != c.old {
				//lint:ignore SA1019 as above
				t.Errorf("%v %q, want %v %q", got.Apparmor, got.ApparmorProfile, want, c.old)
			}
		})
	}
}

func TestEphemeralContainer(t *testing.T) {
	pod := podOf(t, "{ephemeralContainers: [{name: debug, image: tools, targetContainerName: main}]}")
	debug := (*v1.Container)(&pod.Spec.EphemeralContainers[0].EphemeralContainerCommon)
	got, err := testNode(t).Container(pod, debug, ContainerInputs{TargetID: "abc"})
	if err != nil {
		t.Fatal(err)
	}
	if ns := got.Linux.SecurityContext.NamespaceOptions; ns.Pid != cri.NamespaceMode_TARGET || ns.TargetId != "abc" {
		t.Errorf("namespaces %v", ns)
	}
	shared := podOf(t, "{shareProcessNamespace: true}")
	got, err = testNode(t).Container(shared, debug, ContainerInputs{TargetID: "abc"})
	if err != nil || got.Linux.SecurityContext.NamespaceOptions.Pid != cri.NamespaceMode_POD {
		t.Errorf("in a pod that shares its processes: %v, %v", got, err)
	}
}

func TestStopSignal(t *testing.T) {
	for name, want := range map[string]cri.Signal{
		"SIGTERM": cri.Signal_SIGNAL_SIGTERM, "SIGUSR1": cri.Signal_SIGNAL_SIGUSR1, "SIGRTMIN": cri.Signal_SIGNAL_SIGRTMIN,
		"SIGRTMIN+15": cri.Signal_SIGNAL_SIGRTMINPLUS15, "SIGRTMAX-14": cri.Signal_SIGNAL_SIGRTMAXMINUS14, "": cri.Signal_SIGNAL_RUNTIME_DEFAULT,
	} {
		c := &v1.Container{}
		if name != "" {
			signal := v1.Signal(name)
			c.Lifecycle = &v1.Lifecycle{StopSignal: &signal}
		}
		if got := stopSignal(c); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
