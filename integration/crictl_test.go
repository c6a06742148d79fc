//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// A walk through crictl as a person takes it, from pulling an image to removing the pod.
func TestCrictl(t *testing.T) {
	n := ownNode(t)
	run := func(args ...string) string { t.Helper(); return strings.TrimSpace(n.CrictlOutput(t, "", args...)) }
	want := func(output string, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if err := wantIn(output, part); err != nil {
				t.Error(err)
			}
		}
	}
	file := func(name, text string) string {
		path := filepath.Join(n.Dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	podFile := file("pod.json", `{"metadata":{"name":"walk","namespace":"default","uid":"u1"},"hostname":"walk","log_directory":"`+n.Dir+`/logs","linux":{}}`)
	containerFile := file("container.json", `{"metadata":{"name":"app"},"image":{"image":"`+images.Tools+`"},"command":["sh","-c","echo hello; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"],"log_path":"app.log","linux":{}}`)

	want(run("version"), "RuntimeName:  berth", "RuntimeApiVersion:  v1")
	var info struct {
		Status struct{ Conditions []struct{ Type string } }
	}
	if err := json.Unmarshal([]byte(run("info")), &info); err != nil || len(info.Status.Conditions) < 2 {
		t.Errorf("info: %+v, %v", info, err)
	}
	want(run("runtime-config"), "cgroup driver:")
	want(run("pull", images.Tools), "Image is up to date for")
	want(run("images"), images.Registry+"/tools", "1 ")
	want(run("inspecti", images.Tools), `"repoTags"`)
	want(run("imagefsinfo"), "usedBytes")

	pod := run("runp", podFile)
	id := run("create", pod, containerFile, podFile)
	want(run("ps", "-a"), "Created", "app")
	run("start", id)
	want(run("pods"), pod[:13], "Ready", "walk")
	want(run("ps"), id[:13], "Running", images.Tools)
	want(run("inspectp", pod), `"state": "SANDBOX_READY"`, `"ip":`)
	want(run("inspect", id), `"state": "CONTAINER_RUNNING"`, `"pid":`)
	harness.Eventually(t, 20*time.Second, "the log", func() error { return wantIn(run("logs", id), "hello") })
	want(run("exec", id, "hostname"), "walk")
	want(run("exec", "-s", id, "echo", "synchronous"), "synchronous")
	want(run("stats", id), id[:13], "app")
	want(run("statsp", pod), pod[:13])
	run("update", "--memory", "67108864", id)
	want(run("inspect", id), "67108864")
	run("stop", "-t", "10", id)
	want(run("ps", "-a"), "Exited")
	run("rm", id)
	run("stopp", pod)
	want(run("pods"), "NotReady")
	run("rmp", pod)
	if got := run("pods", "-q"); got != "" {
		t.Errorf("pods after rmp: %q", got)
	}
	run("rmi", images.Tools)
	if got := run("images", "-q"); got != "" {
		t.Errorf("images after rmi: %q", got)
	}
}

func TestCrictlFollowsLogs(t *testing.T) {
	n := sharedNode(t)
	app := n.RunPod(t, "follow").Sh(t, "app", "for i in 1 2 3; do echo line $i; sleep 0.3; done")
	got := n.CrictlOutput(t, "", "logs", "-f", app.ID) // ends when the container does
	if got != "line 1\nline 2\nline 3\n" {
		t.Errorf("got %q", got)
	}
}
