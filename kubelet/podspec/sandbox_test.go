package podspec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestSandbox(t *testing.T) {
	n := testNode(t)
	pod := podOf(t, `
containers:
- {name: a, image: x, ports: [{containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1}], resources: {requests: {cpu: 500m}, limits: {cpu: "1", memory: 1Gi}}}
- {name: b, image: x}
securityContext: {runAsUser: 7, runAsGroup: 8, fsGroup: 9, supplementalGroups: [10, 11], supplementalGroupsPolicy: Strict, seLinuxOptions: {level: "s0:c1"}, sysctls: [{name: net.ipv4.tcp_syncookies, value: "0"}]}
overhead: {cpu: 250m, memory: 64Mi}
dnsPolicy: None
dnsConfig: {nameservers: [192.0.2.53]}
`)
	pod.Labels = map[string]string{"app": "web"}
	pod.Annotations = map[string]string{"note": "x"}
	got, err := n.Sandbox(pod, SandboxInputs{Attempt: 3})
	if err != nil {
		t.Fatal(err)
	}
	node := &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
	want := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "web", Namespace: "shop", Uid: string(pod.UID), Attempt: 3},
		Hostname:     "web",
		LogDirectory: filepath.Join(n.LogDir, "shop_web_"+string(pod.UID)),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"192.0.2.53"}},
		PortMappings: []*cri.PortMapping{{ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"}},
		Labels: map[string]string{"app": "web", "io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "shop",
			"io.kubernetes.pod.uid": string(pod.UID)},
		Annotations: map[string]string{"note": "x"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/burstable/pod" + string(pod.UID),
			Sysctls:      map[string]string{"net.ipv4.tcp_syncookies": "0"},
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions:         &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: node},
				SelinuxOptions:           &cri.SELinuxOption{Level: "s0:c1"},
				RunAsUser:                &cri.Int64Value{Value: 7},
				RunAsGroup:               &cri.Int64Value{Value: 8},
				SupplementalGroups:       []int64{9, 10, 11},
				SupplementalGroupsPolicy: cri.SupplementalGroupsPolicy_Strict,
				Seccomp:                  &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			},
			Resources: &cri.LinuxContainerResources{CpuShares: 512, CpuQuota: 100000, CpuPeriod: 100000, MemoryLimitInBytes: 1 << 30},
			Overhead:  &cri.LinuxContainerResources{CpuShares: 256, CpuQuota: 25000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20},
		},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
}

func TestNamespaces(t *testing.T) {
	const pod, node, own = cri.NamespaceMode_POD, cri.NamespaceMode_NODE, cri.NamespaceMode_CONTAINER
	for spec, want := range map[string][3]cri.NamespaceMode{ // network, ipc, pid
		"{}":                             {pod, pod, own},
		"{hostNetwork: true}":            {node, pod, own},
		"{hostIPC: true}":                {pod, node, own},
		"{hostPID: true}":                {pod, pod, node},
		"{shareProcessNamespace: true}":  {pod, pod, pod},
		"{shareProcessNamespace: false}": {pod, pod, own},
		"{hostNetwork: true, hostIPC: true, hostPID: true}": {node, node, node},
	} {
		got := namespaces(podOf(t, spec), nil)
		if got := [3]cri.NamespaceMode{got.Network, got.Ipc, got.Pid}; got != want {
			t.Errorf("%s: %v, want %v", spec, got, want)
		}
	}
}

func TestSandboxOfUserNamespace(t *testing.T) {
	user := &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: []*cri.IDMapping{{HostId: 65536, Length: 65536}}}
	got, err := testNode(t).Sandbox(podOf(t, "{dnsPolicy: None}"), SandboxInputs{UserNS: user})
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.Linux.SecurityContext.NamespaceOptions.UsernsOptions, user) {
		t.Errorf("user namespace %v", got.Linux.SecurityContext.NamespaceOptions.UsernsOptions)
	}
}

func TestPrivilegedSandbox(t *testing.T) {
	for spec, want := range map[string]bool{
		"{}": false,
		"{containers: [{name: a, securityContext: {privileged: false}}, {name: b, securityContext: {privileged: true}}]}": true,
		"{initContainers: [{name: i, securityContext: {privileged: true}}]}":                                              true,
		"{ephemeralContainers: [{name: e, securityContext: {privileged: true}}]}":                                         true,
	} {
		if got := privileged(podOf(t, spec)); got != want {
			t.Errorf("%s: %v", spec, got)
		}
	}
}

// The same port may be asked for at other addresses and in the other family (upstream's issue 82373).
func TestPortMappings(t *testing.T) {
	pod := podOf(t, `
initContainers:
- {name: sidecar, restartPolicy: Always, ports: [{containerPort: 9000, hostPort: 9000, protocol: UDP}]}
- {name: once, ports: [{containerPort: 9001, hostPort: 9001}]}
containers:
- name: a
  ports:
  - {containerPort: 80, hostPort: 80, hostIP: 127.0.0.1}
  - {containerPort: 80, hostPort: 80, hostIP: "::1"}
  - {containerPort: 80, hostPort: 80, hostIP: 127.0.0.2}
  - {containerPort: 80, hostPort: 80, hostIP: 127.0.0.1}
  - {name: x, containerPort: 81}
  - {name: x, containerPort: 82}
- {name: b, ports: [{containerPort: 80, hostPort: 80, hostIP: 127.0.0.1, protocol: SCTP}]}
`)
	var got []string
	for _, p := range portMappings(pod) {
		got = append(got, strings.Join(strings.Fields(p.String()), " "))
	}
	want := []*cri.PortMapping{
		{Protocol: cri.Protocol_UDP, ContainerPort: 9000, HostPort: 9000},
		{ContainerPort: 80, HostPort: 80, HostIp: "127.0.0.1"},
		{ContainerPort: 80, HostPort: 80, HostIp: "::1"},
		{ContainerPort: 80, HostPort: 80, HostIp: "127.0.0.2"},
		{ContainerPort: 81},
		{Protocol: cri.Protocol_SCTP, ContainerPort: 80, HostPort: 80, HostIp: "127.0.0.1"},
	}
	equal := func(a string, b *cri.PortMapping) bool { return a == strings.Join(strings.Fields(b.String()), " ") }
	if !slices.EqualFunc(got, want, equal) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestHostname(t *testing.T) {
	long := strings.Repeat("a", 60)
	for name, c := range map[string]struct {
		podName, spec, want, fault string
		noDomain                   bool
	}{
		"the pod's name":          {spec: "{}", want: "web"},
		"a long name":             {podName: long + "-bc", spec: "{}", want: long + "-bc"},
		"a name that is too long": {podName: long + "-b.c", spec: "{}", want: long + "-b"},
		"its own":                 {spec: "{hostname: shop1}", want: "shop1"},
		"a subdomain alone":       {spec: "{hostname: shop1, subdomain: front}", want: "shop1"},
		"the whole name":          {spec: "{hostname: shop1, subdomain: front, setHostnameAsFQDN: true}", want: "shop1.front.shop.svc.cluster.local"},
		"whole, no domain":        {noDomain: true, spec: "{subdomain: front, setHostnameAsFQDN: true}", want: "web.front.shop.svc"},
		"whole, no subdomain":     {spec: "{setHostnameAsFQDN: true}", want: "web"},
		"whole, too long": {podName: long, spec: "{subdomain: front, setHostnameAsFQDN: true}",
			fault: "is too long (64 characters is the max, 89 characters requested)"},
		"overridden":     {spec: "{hostnameOverride: any.name.example, hostname: no, subdomain: no}", want: "any.name.example"},
		"no name":        {spec: "{hostname: _}", fault: `pod Hostname "_" is not a valid DNS label`},
		"no domain":      {spec: "{subdomain: a.b}", fault: `pod Subdomain "a.b" is not a valid DNS label`},
		"no override":    {spec: "{hostnameOverride: _}", fault: `pod HostnameOverride "_" is not a valid DNS subdomain`},
		"host's network": {spec: "{hostNetwork: true, hostname: shop1}"},
	} {
		t.Run(name, func(t *testing.T) {
			n := testNode(t)
			if c.noDomain {
				n.DNS.Domain = ""
			}
			pod := podOf(t, c.spec)
			pod.Spec.DNSPolicy = v1.DNSNone
			if c.podName != "" {
				pod.Name = c.podName
			}
			config, err := n.Sandbox(pod, SandboxInputs{})
			if wantError(t, err, c.fault) && config.Hostname != c.want {
				t.Errorf("hostname %q, want %q", config.Hostname, c.want)
			}
		})
	}
}

func TestDNS(t *testing.T) {
	const file = "# comment\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch old.example\nsearch corp.example. . shop.svc.cluster.local\noptions ndots:2 edns0\noptions ndots:3\n"
	for name, c := range map[string]struct {
		spec                   string
		cluster                []string
		file                   string
		none                   bool // no resolv.conf at all
		server, search, option string
		warning                string
	}{
		"the node's": {spec: "{dnsPolicy: Default}", cluster: []string{"10.0.0.10"},
			server: "192.0.2.1 2001:db8::1", search: "corp.example shop.svc.cluster.local", option: "ndots:3 edns0"},
		"the cluster's": {spec: "{}", cluster: []string{"10.0.0.10", "fd00::10"},
			server: "10.0.0.10 fd00::10", search: "shop.svc.cluster.local svc.cluster.local cluster.local corp.example", option: "ndots:5"},
		"no cluster": {spec: "{}",
			server: "192.0.2.1 2001:db8::1", search: "corp.example shop.svc.cluster.local", option: "ndots:3 edns0"},
		"the host's network": {spec: "{hostNetwork: true}", cluster: []string{"10.0.0.10"},
			server: "192.0.2.1 2001:db8::1", search: "corp.example shop.svc.cluster.local", option: "ndots:3 edns0"},
		"the host's network, the cluster's names": {spec: "{hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet}", cluster: []string{"10.0.0.10"},
			server: "10.0.0.10", search: "shop.svc.cluster.local svc.cluster.local cluster.local corp.example", option: "ndots:5"},
		"its own alone": {spec: "{dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.9], searches: [a.example], options: [{name: ndots, value: '1'}, {name: edns0}]}}",
			server: "192.0.2.9", search: "a.example", option: "ndots:1 edns0"},
		"its own beside": {spec: "{dnsConfig: {nameservers: [10.0.0.10, 192.0.2.9], searches: [a.example, corp.example], options: [{name: ndots, value: '1'}, {name: rotate}]}}",
			cluster: []string{"10.0.0.10"}, server: "10.0.0.10 192.0.2.9",
			search: "shop.svc.cluster.local svc.cluster.local cluster.local corp.example a.example", option: "ndots:1 rotate"},
		"too many servers": {spec: "{dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4]}}",
			server:  "192.0.2.1 192.0.2.2 192.0.2.3",
			warning: "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 192.0.2.1 192.0.2.2 192.0.2.3"},
		"no file": {none: true, spec: "{dnsPolicy: Default}", server: "127.0.0.1 ::1", search: "."},
	} {
		t.Run(name, func(t *testing.T) {
			n := testNode(t)
			var warning string
			n.Warn = func(_ *v1.Pod, reason, message string) { warning += message }
			n.DNS.Servers = addrs(c.cluster...)
			if !c.none {
				n.DNS.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
				if err := os.WriteFile(n.DNS.ResolvConf, []byte(file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := n.dnsFor(podOf(t, c.spec))
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range []struct {
				what, want string
				got        []string
			}{
				{"servers", c.server, got.Servers}, {"searches", c.search, got.Searches}, {"options", c.option, got.Options},
			} {
				if got := strings.Join(x.got, " "); got != x.want {
					t.Errorf("%s %q, want %q", x.what, got, x.want)
				}
			}
			if warning != c.warning {
				t.Errorf("warning %q, want %q", warning, c.warning)
			}
		})
	}
}

func TestFittingSearches(t *testing.T) {
	many := func(n, length int) (out []string) {
		for i := range n {
			out = append(out, string(rune('a'+i%26))+strings.Repeat("x", length-1))
		}
		return out
	}
	for name, c := range map[string]struct {
		in   []string
		want int
	}{
		"as many as may be": {many(32, 60), 32},
		"too many":          {many(33, 10), 32},
		"too long a domain": {append(many(2, 10), strings.Repeat("x", 254)), 2},
		"just long enough":  {many(9, 227), 8}, // 8*227+7 = 1823; the ninth fits too: 2050 > 2048
		"too long in all":   {many(32, 100), 20},
	} {
		if got := fittingSearches(c.in); len(got) != c.want {
			t.Errorf("%s: %d of %d, want %d", name, len(got), len(c.in), c.want)
		}
	}
}

func TestResolvConfFaults(t *testing.T) {
	n := testNode(t)
	n.DNS.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	_, err := n.Sandbox(podOf(t, "{}"), SandboxInputs{})
	wantError(t, err, "no such file")
	if err := os.WriteFile(n.DNS.ResolvConf, []byte("nameserver\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = n.Sandbox(podOf(t, "{}"), SandboxInputs{})
	wantError(t, err, "nameserver list is empty")
	// What the pod does not need is not read.
	_, err = n.Sandbox(podOf(t, "{dnsPolicy: None}"), SandboxInputs{})
	wantError(t, err, "")
}
