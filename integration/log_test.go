//go:build integration

package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

func TestLongLinesAndLastLine(t *testing.T) {
	c := sharedNode(t).RunPod(t, "lines").Sh(t, "app", `head -c 50000 /dev/zero | tr "\0" a; echo; printf "no newline"`)
	c.WaitExit(t)
	texts := harness.Texts(c.Log(t), "stdout")
	if len(texts) == 0 || texts[0] != strings.Repeat("a", 50000) {
		t.Errorf("the long line did not come whole: %d lines", len(texts))
	}
	data, err := os.ReadFile(c.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		if len(line) > 17<<10 {
			t.Errorf("a line of the file is %d bytes long", len(line))
		}
	}
	if !strings.HasSuffix(strings.TrimSpace(string(data)), "no newline") {
		t.Error("the last line, which has no end, is missing")
	}
}

// Rotation as the kubelet does it: rename, then ask for a new file. No line is lost or written twice.
func TestLogRotation(t *testing.T) {
	n := sharedNode(t)
	c := n.RunPod(t, "rotate").Sh(t, "app", `i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; echo done; sleep 1000`)
	var texts []string
	for i := range 5 {
		rotated := c.LogPath() + "." + string(rune('a'+i))
		if err := os.Rename(c.LogPath(), rotated); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Runtime.ReopenContainerLog(harness.Ctx(t), &cri.ReopenContainerLogRequest{ContainerId: c.ID}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(c.LogPath()); err != nil {
			t.Fatalf("after the answer: %v", err)
		}
		lines, err := harness.ReadLog(rotated)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, harness.Texts(lines, "stdout")...)
		time.Sleep(10 * time.Millisecond)
	}
	if len(texts) == 0 || texts[len(texts)-1] != "done" {
		waitForText(t, c, "stdout", "done")
	}
	texts = append(texts, harness.Texts(c.Log(t), "stdout")...)
	if len(texts) != 3001 || texts[0] != "line 1" || texts[2999] != "line 3000" {
		t.Errorf("%d lines over all files", len(texts))
	}
}

func TestReopenOfAStoppedContainerMakesNoFile(t *testing.T) {
	n := sharedNode(t)
	c := n.RunPod(t, "reopen").Sh(t, "app", "true")
	c.WaitExit(t)
	if err := os.Remove(c.LogPath()); err != nil {
		t.Fatal(err)
	}
	_, err := n.Runtime.ReopenContainerLog(harness.Ctx(t), &cri.ReopenContainerLogRequest{ContainerId: c.ID})
	if _, statErr := os.Stat(c.LogPath()); err != nil && statErr == nil {
		t.Errorf("an error (%v), and a file all the same", err)
	}
}
