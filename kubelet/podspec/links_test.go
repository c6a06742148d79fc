package podspec

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestLogLinks(t *testing.T) {
	dir := t.TempDir()
	n := &Node{LogDir: filepath.Join(dir, "pods"), LinkDir: filepath.Join(dir, "containers")}
	pod := func(name, uid string) *v1.Pod {
		return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(uid)}}
	}
	links := func() string {
		entries, _ := os.ReadDir(n.LinkDir)
		var all []string
		for _, e := range entries {
			to, err := os.Readlink(filepath.Join(n.LinkDir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, e.Name()+" → "+strings.TrimPrefix(to, dir+"/"))
		}
		return strings.Join(all, "\n")
	}
	if err := errors.Join(n.UnlinkLogs(pod("p", "1")), n.UnlinkLog(pod("p", "1"), "main", "abc")); err != nil {
		t.Errorf("without a folder: %v", err)
	}
	for _, err := range []error{
		n.LinkLog(pod("p", "1"), "main", "abc", 0), n.LinkLog(pod("p", "1"), "main", "abc", 0), n.LinkLog(pod("p", "1"), "main", "def", 1),
		n.LinkLog(pod("p", "2"), "main", "ghi", 0), n.LinkLog(pod("p-q", "3"), "main", "jkl", 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if want := "p-q_ns_main-jkl.log → pods/ns_p-q_3/main/0.log\np_ns_main-abc.log → pods/ns_p_1/main/0.log\n" +
		"p_ns_main-def.log → pods/ns_p_1/main/1.log\np_ns_main-ghi.log → pods/ns_p_2/main/0.log"; links() != want {
		t.Errorf("got\n%s\nwant\n%s", links(), want)
	}
	if err := errors.Join(n.UnlinkLog(pod("p", "1"), "main", "abc"), n.UnlinkLog(pod("p", "1"), "main", "abc")); err != nil || strings.Contains(links(), "abc") {
		t.Errorf("%v\n%s", err, links())
	}
	if err := n.UnlinkLogs(pod("p", "1")); err != nil {
		t.Fatal(err)
	}
	if want := "p-q_ns_main-jkl.log → pods/ns_p-q_3/main/0.log\np_ns_main-ghi.log → pods/ns_p_2/main/0.log"; links() != want {
		t.Errorf("after the end of a pod\n%s\nwant\n%s", links(), want)
	}
	long := pod(strings.Repeat("p", 253), "4")
	if err := errors.Join(n.LinkLog(long, "main", "abc", 0), n.UnlinkLogs(long)); err != nil {
		t.Errorf("with a long name: %v", err)
	}
	none := &Node{LogDir: n.LogDir}
	if err := errors.Join(none.LinkLog(pod("p", "9"), "main", "x", 0), none.UnlinkLogs(pod("p", "2")), none.UnlinkLog(pod("p", "2"), "main", "ghi")); err != nil || !strings.Contains(links(), "ghi") {
		t.Errorf("switched off: %v\n%s", err, links())
	}
}
