package cri

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// A configuration that passes the checks has nothing in it that could be taken for something else further in.
func FuzzCheckConfig(f *testing.F) {
	add := func(pod *cri.PodSandboxConfig, container *cri.ContainerConfig) {
		p, err := proto.Marshal(pod)
		if err != nil {
			f.Fatal(err)
		}
		c, err := proto.Marshal(container)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p, c)
	}
	add(&cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "n", Namespace: "ns", Uid: "u"}, LogDirectory: "/var/log/x", DnsConfig: &cri.DNSConfig{Searches: []string{"a"}}},
		&cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: "i"}, LogPath: "c/0.log", Mounts: []*cri.Mount{{ContainerPath: "/a", HostPath: "/b"}}})
	f.Fuzz(func(t *testing.T, p, c []byte) {
		var pod cri.PodSandboxConfig
		var container cri.ContainerConfig
		if proto.Unmarshal(p, &pod) == nil {
			err := checkSandboxConfig("config", &pod)
			wantClass(t, err)
			if m := pod.GetMetadata(); err == nil && (strings.ContainsAny(m.GetName()+m.GetNamespace()+m.GetUid(), "/\x00\n") || strings.ContainsAny(pod.GetHostname(), "/\n\x00 ")) {
				t.Errorf("%v", &pod)
			}
		}
		if proto.Unmarshal(c, &container) == nil {
			err := checkContainerConfig("config", &container)
			wantClass(t, err)
			if err != nil {
				return
			}
			if log := container.GetLogPath(); log != "" && !strings.HasPrefix(filepath.Join("/logs", log), "/logs/") {
				t.Errorf("log path %q", log)
			}
			for _, m := range container.GetMounts() {
				if strings.Contains(m.GetContainerPath()+m.GetHostPath(), "\x00") {
					t.Errorf("%v", m)
				}
			}
		}
	})
}

func wantClass(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("an error without a class: %v", err)
	}
}

// A set of CPUs has no other characters than those that the kernel reads.
func FuzzCheckSet(f *testing.F) {
	for _, s := range []string{"0-3,7", "", "1-", " 1", "65536", "0,,1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkSet("f", s) == nil && strings.Trim(s, "0123456789-, \t\n\v\f\r\u0085\u00a0\u2000\u2028\u3000") != "" && !strings.ContainsFunc(s, func(r rune) bool { return r > 127 }) {
			t.Errorf("%q is taken for a set", s)
		}
	})
}
