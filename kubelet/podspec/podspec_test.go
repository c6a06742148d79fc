package podspec

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/yaml"
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"

	noderesource "github.com/berth-node/berth/kubelet/resource"
)

// podOf reads the spec of a pod, as a manifest has it, and sets the defaults.
func podOf(t *testing.T, spec string) *v1.Pod {
	t.Helper()
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "web", "shop", "11111111-2222-3333-4444-555555555555"
	if err := yaml.Unmarshal([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	if len(pod.Spec.Containers) == 0 {
		pod.Spec.Containers = []v1.Container{{Name: "main", Image: "app:1"}}
	}
	corev1.SetObjectDefaults_Pod(pod)
	return pod
}

func testNode(t *testing.T) *Node {
	t.Helper()
	return &Node{
		IPs:         addrs("192.0.2.7", "2001:db8::7"),
		Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi")},
		LogDir:      t.TempDir(),
		DNS:         DNS{Domain: "cluster.local"},
		SeccompRoot: "/var/lib/berth/seccomp",
		Resources:   &noderesource.Node{MemoryCapacity: 8 << 30},
		CgroupParent: func(pod *v1.Pod) string {
			return noderesource.Tree{}.Pod(pod.UID, noderesource.Class(pod))
		},
		Warn: func(_ *v1.Pod, reason, message string) { t.Errorf("unexpected warning %s: %s", reason, message) },
	}
}

func addrs(all ...string) (out []netip.Addr) {
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// wantError is for errors whose words users see.
func wantError(t *testing.T, err error, want string) bool {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("error %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("error is %v, want %q", err, want)
	}
	return err == nil
}

func TestPodIPs(t *testing.T) {
	for name, c := range map[string]struct {
		host, sandbox, want []string
		hostNetwork         bool
	}{
		"the node's family first":   {host: []string{"2001:db8::7", "192.0.2.7"}, sandbox: []string{"10.0.0.9", "fd00::9"}, want: []string{"fd00::9", "10.0.0.9"}},
		"already in order":          {host: []string{"192.0.2.7"}, sandbox: []string{"10.0.0.9", "fd00::9"}, want: []string{"10.0.0.9", "fd00::9"}},
		"one of each family":        {host: []string{"192.0.2.7"}, sandbox: []string{"10.0.0.9", "10.1.0.9", "fd00::9", "fd01::9"}, want: []string{"10.0.0.9", "fd00::9"}},
		"only the other family":     {host: []string{"192.0.2.7"}, sandbox: []string{"fd00::9"}, want: []string{"fd00::9"}},
		"mapped is IPv4":            {host: []string{"192.0.2.7"}, sandbox: []string{"fd00::9", "::ffff:10.0.0.9"}, want: []string{"10.0.0.9", "fd00::9"}},
		"node without an address":   {sandbox: []string{"fd00::9", "10.0.0.9"}, want: []string{"fd00::9", "10.0.0.9"}},
		"no sandbox yet":            {host: []string{"192.0.2.7"}},
		"the host's network":        {host: []string{"192.0.2.7", "2001:db8::7"}, hostNetwork: true, want: []string{"192.0.2.7", "2001:db8::7"}},
		"the host's, not a sandbox": {host: []string{"192.0.2.7"}, sandbox: []string{"10.0.0.9"}, hostNetwork: true, want: []string{"192.0.2.7"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := &Node{IPs: addrs(c.host...)}
			pod := &v1.Pod{Spec: v1.PodSpec{HostNetwork: c.hostNetwork}}
			if got := n.PodIPs(pod, addrs(c.sandbox...)); !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
