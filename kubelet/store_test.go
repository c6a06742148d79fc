package kubelet

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A daemon that is killed while it writes a record leaves a file with a name that nobody knows. It must not keep the pod's folder, and
// with it the pod, for ever.
func TestPodsOfAKilledDaemonCanBeErased(t *testing.T) {
	dir := t.TempDir()
	open := func() (store, []*incarnation) {
		s, err := openStore(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		all, err := s.all()
		if err != nil {
			t.Fatal(err)
		}
		return s, all
	}
	s, _ := open()
	const whole, begun, erased types.UID = "whole", "begun", "erased"
	if err := s.save(&incarnation{pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: whole}}, saved: map[string][]byte{}}); err != nil {
		t.Fatal(err)
	}
	for _, uid := range []types.UID{begun, erased} {
		if err := os.Mkdir(s.podDir(uid), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{filepath.Join(s.podDir(whole), ".state.json.1x2y3z"), filepath.Join(s.podDir(begun), ".pod.json.1x2y3z")} {
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, all := open()
	if len(all) != 1 || all[0].pod.UID != whole {
		t.Errorf("read %d pods, want one", len(all))
	}
	if err := s.erase(whole); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
