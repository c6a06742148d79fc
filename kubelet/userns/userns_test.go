package userns

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

func podOf(uid string) *v1.Pod {
	pod := &v1.Pod{Spec: v1.PodSpec{HostUsers: new(false)}}
	pod.UID = types.UID(uid)
	return pod
}

func firstID(t *testing.T, a *Allocator, uid string) uint32 {
	t.Helper()
	got, err := a.Get(podOf(uid))
	if err != nil {
		t.Fatal(err)
	}
	if got.Mode != cri.NamespaceMode_POD || len(got.Uids) != 1 || len(got.Gids) != 1 || got.Uids[0].Length != PerPod ||
		got.Uids[0].ContainerId != 0 || got.Uids[0].HostId != got.Gids[0].HostId {
		t.Fatalf("%v", got)
	}
	return got.Uids[0].HostId
}

func three(t *testing.T) *Allocator {
	t.Helper()
	a, err := of(ids{PerPod, 3 * PerPod})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestRanges(t *testing.T) {
	a := three(t)
	one, two := firstID(t, a, "one"), firstID(t, a, "two")
	if one != PerPod || two != 2*PerPod || firstID(t, a, "one") != one {
		t.Errorf("%d, %d", one, two)
	}
	a.Release("one")
	if third := firstID(t, a, "three"); third != 3*PerPod {
		t.Errorf("a range is used again (%d) while there are others", third)
	}
	if again := firstID(t, a, "four"); again != one {
		t.Errorf("%d, want what was given back", again)
	}
	if _, err := a.Get(podOf("five")); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("error %v", err)
	}
	a.Release("none")
}

func TestPodsOfTheNode(t *testing.T) {
	for _, host := range []*bool{nil, new(true)} {
		got, err := three(t).Get(&v1.Pod{Spec: v1.PodSpec{HostUsers: host}})
		if err != nil || got.Mode != cri.NamespaceMode_NODE || len(got.Uids) > 0 {
			t.Errorf("%v, %v", got, err)
		}
	}
}

func sandbox(first, length uint32) *cri.PodSandboxConfig {
	m := []*cri.IDMapping{{HostId: first, Length: length}}
	return &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: &cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: m, Gids: m}}}}}
}

func TestAdopt(t *testing.T) {
	a := three(t)
	a.Adopt("old", sandbox(2*PerPod, PerPod))
	a.Adopt("none", &cri.PodSandboxConfig{})
	if got := firstID(t, a, "old"); got != 2*PerPod {
		t.Errorf("the pod's range became %d", got)
	}
	if one, two := firstID(t, a, "one"), firstID(t, a, "two"); one != PerPod || two != 3*PerPod {
		t.Errorf("%d, %d", one, two)
	}
}

// A pod that somebody else made may have any IDs. Nobody else gets them.
func TestAdoptOddRanges(t *testing.T) {
	a := three(t)
	a.Adopt("odd", sandbox(PerPod+5, PerPod))
	if got := firstID(t, a, "one"); got != 3*PerPod {
		t.Errorf("%d is in the range of another pod", got)
	}
	a.Release("odd")
	if got := firstID(t, a, "two"); got != PerPod {
		t.Errorf("%d", got)
	}
}

func TestSetAside(t *testing.T) {
	all := ids{PerPod, 1<<32 - PerPod}
	for text, c := range map[string]struct {
		want  ids
		fault bool
	}{
		"":                                   {want: all},
		"other:1:2\n":                        {want: all},
		"other:1:2\nkubelet:131072:655360\n": {want: ids{131072, 655360}},
		"kubelet:131072:655360\nkubelet:1:2": {fault: true},
		"kubelet:x:1":                        {fault: true},
		"kubelet":                            {fault: true},
	} {
		path := filepath.Join(t.TempDir(), "subuid")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := setAside(path)
		if (err != nil) != c.fault || !c.fault && got != c.want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if got, err := setAside("/nonexistent"); err != nil || got != all {
		t.Errorf("%v, %v", got, err)
	}
}

func TestOf(t *testing.T) {
	for i, ok := range map[ids]bool{
		{PerPod, PerPod}: true, {PerPod, 1<<32 - PerPod}: true, {0, PerPod}: false, {PerPod, 0}: false, {PerPod + 1, PerPod}: false,
		{PerPod, PerPod + 1}: false, {PerPod, 1 << 32}: false,
	} {
		if _, err := of(i); (err == nil) != ok {
			t.Errorf("%v: %v", i, err)
		}
	}
}
