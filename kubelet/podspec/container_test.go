package podspec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestContainer(t *testing.T) {
	n := testNode(t)
	pod := podOf(t, `
terminationGracePeriodSeconds: 12
containers:
- name: main
  image: app:1
  command: [run, "$(WHO)", "$$(WHO)", "$(NOBODY)"]
  args: ["--as=$(WHO)"]
  workingDir: /srv
  stdin: true
  stdinOnce: true
  tty: true
  terminationMessagePath: dev/words
  terminationMessagePolicy: FallbackToLogsOnError
  env: [{name: WHO, value: me}]
  ports: [{name: http, containerPort: 80}]
  lifecycle: {preStop: {exec: {command: [bye]}}, stopSignal: SIGRTMIN+3}
  resources: {requests: {cpu: 250m, memory: 1Gi}, limits: {cpu: 500m, memory: 2Gi}}
  volumeMounts: [{name: data, mountPath: /data}]
`)
	got, err := n.Container(pod, &pod.Spec.Containers[0], ContainerInputs{
		RestartCount: 4, Image: Image{Ref: "sha256:abc", Username: "web"},
		Volumes: map[string]Volume{"data": {Path: "/v/data"}},
		Files:   Files{Hosts: "/pod/etc-hosts", TerminationLog: "/pod/containers/main/1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	security := got.Linux.SecurityContext
	if len(security.MaskedPaths) == 0 || len(security.ReadonlyPaths) == 0 {
		t.Error("proc is not masked")
	}
	security.MaskedPaths, security.ReadonlyPaths = nil, nil
	want := &cri.ContainerConfig{
		Metadata:   &cri.ContainerMetadata{Name: "main", Attempt: 4},
		Image:      &cri.ImageSpec{Image: "sha256:abc", UserSpecifiedImage: "app:1"},
		Command:    []string{"run", "me", "$(WHO)", "$(NOBODY)"},
		Args:       []string{"--as=me"},
		WorkingDir: "/srv",
		Envs:       []*cri.KeyValue{{Key: "WHO", Value: []byte("me")}},
		Stdin:      true, StdinOnce: true, Tty: true,
		LogPath:    "main/4.log",
		StopSignal: cri.Signal_SIGNAL_SIGRTMINPLUS3,
		Mounts: []*cri.Mount{
			{ContainerPath: "/data", HostPath: "/v/data"},
			{ContainerPath: "/etc/hosts", HostPath: "/pod/etc-hosts"},
			{ContainerPath: "/dev/words", HostPath: "/pod/containers/main/1"},
		},
		Labels: map[string]string{"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "shop",
			"io.kubernetes.pod.uid": string(pod.UID), "io.kubernetes.container.name": "main"},
		Annotations: map[string]string{
			"io.kubernetes.container.hash":                     "12214ab0",
			"io.kubernetes.container.restartCount":             "4",
			"io.kubernetes.container.terminationMessagePath":   "dev/words",
			"io.kubernetes.container.terminationMessagePolicy": "FallbackToLogsOnError",
			"io.kubernetes.container.preStopHandler":           `{"exec":{"command":["bye"]}}`,
			"io.kubernetes.container.ports":                    `[{"name":"http","containerPort":80,"protocol":"TCP"}]`,
			"io.kubernetes.pod.terminationGracePeriod":         "12",
		},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{CpuShares: 256, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 2 << 30, OomScoreAdj: 875},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}},
				RunAsUsername:    "web",
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined},
			},
		},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
}

// environ returns what the first container of the pod gets, as lines in their order.
func environ(t *testing.T, n *Node, pod *v1.Pod, in ContainerInputs) (string, error) {
	t.Helper()
	c, err := n.Container(pod, &pod.Spec.Containers[0], in)
	var lines []string
	for _, kv := range c.GetEnvs() {
		lines = append(lines, kv.Key+"="+string(kv.Value))
	}
	return strings.Join(lines, "\n"), err
}

func service(namespace, name, ip string) *v1.Service {
	s := &v1.Service{Spec: v1.ServiceSpec{ClusterIP: ip, Ports: []v1.ServicePort{{Port: 80, Protocol: "TCP"}}}}
	s.Namespace, s.Name = namespace, name
	return s
}

func TestEnvironment(t *testing.T) {
	for name, c := range map[string]struct{ spec, want, fault string }{
		"in the order of declaration": {spec: "env: [{name: B, value: '1'}, {name: A, value: '2'}]", want: "B=1\nA=2"},
		"references": {spec: "env: [{name: A, value: a}, {name: B, value: $(A)$$(A)$(C)$()$(A$}, {name: C, value: c}]",
			want: "A=a\nB=a$(A)$(C)$()$(A$\nC=c"},
		"said twice":        {spec: "env: [{name: A, value: a}, {name: B, value: $(A)}, {name: A, value: b}]", want: "A=b\nB=a"},
		"empty":             {spec: "env: [{name: A}]", want: "A="},
		"a whole ConfigMap": {spec: "envFrom: [{configMapRef: {name: settings}}]", want: "color=red\nsize=2"},
		"with a prefix":     {spec: "envFrom: [{prefix: P_, configMapRef: {name: settings}}]", want: "P_color=red\nP_size=2"},
		"the later one holds": {spec: "envFrom: [{configMapRef: {name: settings}}, {secretRef: {name: keys}}]\nenv: [{name: size, value: $(size)0}]",
			want: "color=blue\nsize=20\ntoken=\xff"},
		"missing ConfigMap":          {spec: "envFrom: [{configMapRef: {name: none}}]", fault: `configmap "none" not found`},
		"missing Secret":             {spec: "envFrom: [{secretRef: {name: none}}]", fault: `secret "none" not found`},
		"missing and optional":       {spec: "envFrom: [{configMapRef: {name: none, optional: true}}, {secretRef: {name: none, optional: true}}]"},
		"a key":                      {spec: "env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: color}}}]", want: "A=red"},
		"a secret's key":             {spec: "env: [{name: A, valueFrom: {secretKeyRef: {name: keys, key: token}}}]", want: "A=\xff"},
		"missing key":                {spec: "env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: x}}}]", fault: "couldn't find key x in ConfigMap shop/settings"},
		"missing secret's key":       {spec: "env: [{name: A, valueFrom: {secretKeyRef: {name: keys, key: x}}}]", fault: "couldn't find key x in Secret shop/keys"},
		"missing and optional key":   {spec: "env: [{name: A, valueFrom: {secretKeyRef: {name: keys, key: x, optional: true}}}, {name: B, valueFrom: {configMapKeyRef: {name: settings, key: x, optional: true}}}]"},
		"key of a missing one":       {spec: "env: [{name: A, valueFrom: {secretKeyRef: {name: none, key: x}}}]", fault: `secret "none" not found`},
		"optional key, missing one":  {spec: "env: [{name: A, valueFrom: {configMapKeyRef: {name: none, key: x, optional: true}}}]"},
		"metadata":                   {spec: "env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}, {name: B, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}, {name: C, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}]", want: "A=shop\nB=web\nC=11111111-2222-3333-4444-555555555555"},
		"addresses":                  {spec: "env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: B, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}]", want: "A=10.1.0.5\nB=10.1.0.5,fd00::5"},
		"the node's":                 {spec: "env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}, {name: B, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}, {name: C, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]", want: "A=192.0.2.7\nB=192.0.2.7,2001:db8::7\nC=node1"},
		"the account":                {spec: "env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}]", want: "A=robot"},
		"no such field":              {spec: "env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]", fault: "field label not supported: spec.x"},
		"own limits":                 {spec: "resources: {limits: {cpu: 1500m, memory: 1Gi}}\nenv: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}, {name: B, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}, {name: C, valueFrom: {resourceFieldRef: {resource: requests.memory, divisor: 1Mi}}}]", want: "A=2\nB=1500\nC=1024"},
		"the node's for own limits":  {spec: "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}, {name: B, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Gi}}}]", want: "A=4\nB=8"},
		"another container's limits": {spec: "env: [{name: A, valueFrom: {resourceFieldRef: {containerName: second, resource: limits.cpu}}}]", want: "A=3"},
		"of no container":            {spec: "env: [{name: A, valueFrom: {resourceFieldRef: {containerName: x, resource: limits.cpu}}}]", fault: "container x not found"},
		"NUL":                        {spec: "env: [{name: A, valueFrom: {secretKeyRef: {name: keys, key: nul}}}]", fault: "environment variable A: its value contains a NUL byte"},
		"no text for a command":      {spec: "args: [$(A)]\nenv: [{name: A, valueFrom: {secretKeyRef: {name: keys, key: token}}}]", fault: "args[0] contains a NUL byte or is not UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(t, "serviceAccountName: robot\nnodeName: node1\ncontainers:\n- {name: second, image: x, resources: {limits: {cpu: '3'}}}\n- name: main\n  image: app:1\n  "+
				strings.ReplaceAll(c.spec, "\n", "\n  "))
			slices.Reverse(pod.Spec.Containers)
			pod.Labels = map[string]string{"app": "web"}
			in := ContainerInputs{IPs: addrs("fd00::5", "10.1.0.5"), ConfigMap: func(name string) *v1.ConfigMap {
				if name != "settings" {
					return nil
				}
				return &v1.ConfigMap{Data: map[string]string{"size": "2", "color": "red"}}
			}, Secret: func(name string) *v1.Secret {
				if name != "keys" {
					return nil
				}
				secret := &v1.Secret{Data: map[string][]byte{"token": []byte("\xff"), "color": []byte("blue")}}
				if strings.Contains(c.spec, "key: nul") {
					secret.Data["nul"] = []byte("a\x00")
				}
				return secret
			}}
			got, err := environ(t, testNode(t), pod, in)
			if wantError(t, err, c.fault) && got != c.want {
				t.Errorf("environment is %q, want %q", got, c.want)
			}
		})
	}
}

func TestResourceFieldOfPodLevel(t *testing.T) {
	pod := podOf(t, "{resources: {limits: {cpu: '2'}}, containers: [{name: main, env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}, {name: B, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Gi}}}]}]}")
	got, err := environ(t, testNode(t), pod, ContainerInputs{})
	if want := "A=2\nB=8"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

func TestServiceVariables(t *testing.T) {
	services := []*v1.Service{
		service("default", "kubernetes", "10.0.0.1"), service("shop", "db", "10.0.0.2"), service("other", "mq", "10.0.0.3"),
		service("shop", "headless", "None"), service("shop", "kubernetes", "10.0.0.4"),
	}
	for spec, want := range map[string][]string{ // host variables
		"{}":                          {"DB_SERVICE_HOST=10.0.0.2", "KUBERNETES_SERVICE_HOST=10.0.0.4"},
		"{enableServiceLinks: false}": {"KUBERNETES_SERVICE_HOST=10.0.0.1"},
		"{containers: [{name: a, env: [{name: DB_SERVICE_HOST, value: mine}, {name: X, value: $(DB_SERVICE_PORT)}]}]}": {
			"DB_SERVICE_HOST=mine", "KUBERNETES_SERVICE_HOST=10.0.0.4"},
	} {
		got, err := environ(t, testNode(t), podOf(t, spec), ContainerInputs{Services: services})
		if err != nil {
			t.Fatal(err)
		}
		var hosts []string
		for line := range strings.SplitSeq(got, "\n") {
			if strings.Contains(line, "_SERVICE_HOST=") {
				hosts = append(hosts, line)
			}
			if strings.HasPrefix(line, "X=") && line != "X=80" {
				t.Errorf("%s: %s", spec, line)
			}
		}
		if !slices.Equal(hosts, want) {
			t.Errorf("%s: %q, want %q", spec, hosts, want)
		}
	}
}

func TestEnvFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "env"), []byte("# all\nA='1'\n  B='two\nlines' # end\nC= '3'\nD=''\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken"), []byte("A=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("A='host'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "escape")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("env", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ ref, want, fault string }{
		"a value":           {ref: "path: env, key: A", want: "V=1"},
		"by a link":         {ref: "path: link, key: A", want: "V=1"},
		"of many lines":     {ref: "path: env, key: B", want: "V=two\nlines"},
		"blank before it":   {ref: "path: env, key: C", fault: `environment variable key "C" not found in file`},
		"none":              {ref: "path: env, key: X", fault: `environment variable key "X" not found in file`},
		"none, optional":    {ref: "path: env, key: X, optional: true"},
		"not in quotes":     {ref: "path: broken, key: A", fault: "couldn't parse env file"},
		"out of the volume": {ref: "path: escape, key: A", fault: "couldn't parse env file"},
		"out of it by dots": {ref: "path: ../env, key: A", fault: "couldn't parse env file"},
		"no file":           {ref: "path: none, key: A", fault: "couldn't parse env file"},
		"a folder":          {ref: "path: ., key: A", fault: "couldn't parse env file"},
		"no volume":         {ref: "path: env, key: A, volumeName: other", fault: `cannot find the volume "other" referenced by FileKeyRef`},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(c.ref, "volumeName") {
				c.ref += ", volumeName: data"
			}
			pod := podOf(t, "{containers: [{name: a, env: [{name: V, valueFrom: {fileKeyRef: {"+c.ref+"}}}]}]}")
			got, err := environ(t, testNode(t), pod, ContainerInputs{Volumes: map[string]Volume{"data": {Path: dir}}})
			if wantError(t, err, c.fault) && got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestParseEnvFileFaults(t *testing.T) {
	for text, fault := range map[string]string{
		"A":                 "line 1 is not of the form",
		"='a'":              "line 1 is not of the form",
		"\nA ='a'":          "line 2 is not of the form",
		"A='a":              "line 1: unclosed single quote",
		"A='a' b":           "line 1: unexpected content after closing quote",
		"A='\n\n'\nB=\"b\"": "line 4: value must be enclosed in single quotes",
	} {
		_, err := parseEnvFile(strings.NewReader(text), "Z")
		wantError(t, err, fault)
	}
}

func TestMounts(t *testing.T) {
	volumes := map[string]Volume{
		"data":   {Path: "/v/data", Relabel: true},
		"secret": {Path: "/v/secret", ReadOnly: true, Relabel: true},
		"host":   {Path: "/srv"},
		"image":  {ReadOnly: true, Image: &cri.ImageSpec{Image: "sha256:def"}},
	}
	private := cri.MountPropagation_PROPAGATION_PRIVATE
	for mount, c := range map[string]struct {
		want  *cri.Mount
		fault string
		rro   bool
	}{
		"{name: data, mountPath: /d}":                         {want: &cri.Mount{HostPath: "/v/data", ContainerPath: "/d", SelinuxRelabel: true}},
		"{name: data, mountPath: d/./e}":                      {want: &cri.Mount{HostPath: "/v/data", ContainerPath: "/d/e", SelinuxRelabel: true}},
		"{name: data, mountPath: /d, readOnly: true}":         {want: &cri.Mount{HostPath: "/v/data", ContainerPath: "/d", Readonly: true, SelinuxRelabel: true}},
		"{name: secret, mountPath: /d}":                       {want: &cri.Mount{HostPath: "/v/secret", ContainerPath: "/d", Readonly: true, SelinuxRelabel: true}},
		"{name: host, mountPath: /d}":                         {want: &cri.Mount{HostPath: "/srv", ContainerPath: "/d"}},
		"{name: image, mountPath: /d, subPath: a/b}":          {want: &cri.Mount{Image: volumes["image"].Image, ImageSubPath: "a/b", ContainerPath: "/d", Readonly: true}},
		"{name: host, mountPath: /d, subPath: a}":             {want: &cri.Mount{HostPath: "/held/main/0/a", ContainerPath: "/d"}},
		"{name: host, mountPath: /d, subPathExpr: $(A)/x}":    {want: &cri.Mount{HostPath: "/held/main/0/one/x", ContainerPath: "/d"}},
		"{name: host, mountPath: /d, subPathExpr: $(X)$(Y)}":  {fault: "missing value for X, Y"},
		"{name: host, mountPath: /d, subPathExpr: $(E)}":      {fault: "missing value for E"},
		"{name: host, mountPath: /d, subPathExpr: $(UP)}":     {fault: "unable to provision SubPath `../x`: must not contain '..'"},
		"{name: host, mountPath: /d, subPathExpr: $(ABS)}":    {fault: "error SubPath `/etc` must not be an absolute path"},
		"{name: host, mountPath: /d, subPath: broken}":        {fault: `failed to prepare subPath`},
		"{name: none, mountPath: /d}":                         {fault: `cannot find volume "none" to mount into container "main"`},
		"{name: host, mountPath: /d, mountPropagation: None}": {want: &cri.Mount{HostPath: "/srv", ContainerPath: "/d", Propagation: private}},
		"{name: host, mountPath: /d, mountPropagation: HostToContainer}": {want: &cri.Mount{HostPath: "/srv", ContainerPath: "/d",
			Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}},
		"{name: host, mountPath: /d, mountPropagation: Bidirectional}": {want: &cri.Mount{HostPath: "/srv", ContainerPath: "/d",
			Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}},
		"{name: host, mountPath: /d, mountPropagation: Odd}":                         {fault: `invalid MountPropagation mode: "Odd"`},
		"{name: host, mountPath: /d, readOnly: true, recursiveReadOnly: Enabled}":    {rro: true, want: &cri.Mount{HostPath: "/srv", ContainerPath: "/d", Readonly: true, RecursiveReadOnly: true}},
		"{name: host, mountPath: /e, readOnly: true, recursiveReadOnly: Enabled}":    {fault: `volume "host" requested recursive read-only mode, but it is not supported by the runtime`},
		"{name: host, mountPath: /d, readOnly: true, recursiveReadOnly: IfPossible}": {want: &cri.Mount{HostPath: "/srv", ContainerPath: "/d", Readonly: true}},
		"{name: host, mountPath: /e, readOnly: true, recursiveReadOnly: IfPossible}": {rro: true, want: &cri.Mount{HostPath: "/srv", ContainerPath: "/e", Readonly: true, RecursiveReadOnly: true}},
		"{name: host, mountPath: /d, recursiveReadOnly: Enabled}":                    {rro: true, fault: "but it is not read-only"},
		"{name: host, mountPath: /d, readOnly: true, recursiveReadOnly: Disabled}":   {rro: true, want: &cri.Mount{HostPath: "/srv", ContainerPath: "/d", Readonly: true}},
		"{name: host, mountPath: /d, readOnly: true, recursiveReadOnly: Enabled, mountPropagation: Bidirectional}": {rro: true,
			fault: `it is not compatible with propagation "Bidirectional"`},
	} {
		t.Run(mount, func(t *testing.T) {
			n := testNode(t)
			n.SELinux, n.RecursiveReadOnly = true, c.rro
			pod := podOf(t, "{containers: [{name: main, env: [{name: A, value: one}, {name: E}, {name: UP, value: ../x}, {name: ABS, value: /etc}], volumeMounts: ["+mount+"]}]}")
			got, err := n.Container(pod, &pod.Spec.Containers[0], ContainerInputs{Volumes: volumes,
				SubPath: func(c *v1.Container, mount int, path string) (string, error) {
					if path == "broken" {
						return "", errors.New("failed to prepare subPath")
					}
					return fmt.Sprintf("/held/%s/%d/%s", c.Name, mount, path), nil
				}})
			if wantError(t, err, c.fault) && !proto.Equal(got.Mounts[0], c.want) {
				t.Errorf("got %v\nwant %v", got.Mounts[0], c.want)
			}
		})
	}
}

func TestOwnHostsFile(t *testing.T) {
	pod := podOf(t, "{containers: [{name: main, volumeMounts: [{name: data, mountPath: /etc/hosts, subPath: hosts}]}]}")
	got, err := testNode(t).Container(pod, &pod.Spec.Containers[0], ContainerInputs{
		Volumes: map[string]Volume{"data": {Path: "/v"}}, Files: Files{Hosts: "/pod/etc-hosts"},
		SubPath: func(*v1.Container, int, string) (string, error) { return "/v/hosts", nil },
	})
	if err != nil || len(got.Mounts) != 1 || got.Mounts[0].HostPath != "/v/hosts" {
		t.Errorf("%v, %v", got.GetMounts(), err)
	}
}

func TestMountsOfUserNamespace(t *testing.T) {
	user := &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: []*cri.IDMapping{{HostId: 65536, Length: 65536}},
		Gids: []*cri.IDMapping{{HostId: 65536, Length: 65536}}}
	pod := podOf(t, "{containers: [{name: main, volumeMounts: [{name: data, mountPath: /d}]}]}")
	got, err := testNode(t).Container(pod, &pod.Spec.Containers[0], ContainerInputs{UserNS: user,
		Volumes: map[string]Volume{"data": {Path: "/v"}}, Files: Files{Hosts: "/pod/etc-hosts", TerminationLog: "/pod/t"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range got.Mounts {
		if len(m.UidMappings) != 1 || !proto.Equal(m.UidMappings[0], user.Uids[0]) || len(m.GidMappings) != 1 {
			t.Errorf("%s is not mapped: %v", m.ContainerPath, m)
		}
	}
	if !proto.Equal(got.Linux.SecurityContext.NamespaceOptions.UsernsOptions, user) {
		t.Error("the container is not told of the user namespace")
	}
}
