//go:build integration

package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
)

// rubbish are configurations of images that say what makes no sense, by the key of "config" that says it.
func rubbish() map[string]rubbishConfig {
	long := strings.Repeat("x", 3<<20)
	none := map[string]any{}
	many := map[string]any{}
	for i := range 5000 {
		many[fmt.Sprintf("/v/%d", i)] = none
	}
	run := []string{"true"}
	return map[string]rubbishConfig{
		"env-without-equals": {"Env", []string{"NOEQUALS", "=", "=x", "", "A=1"}, run, ""},
		"env-huge":           {"Env", []string{"HUGE=" + long}, run, ""},
		"env-nul":            {"Env", []string{"A=b\x00c"}, run, "NUL"},
		"env-many":           {"Env", strings.Split(strings.Repeat("A=1,", 50_000)+"B=2", ","), run, ""},
		"env-of-numbers":     {"Env", 7, run, "config"},
		"user-path":          {"User", "../../../etc/passwd", run, "is not in the image's /etc/passwd"},
		"user-negative":      {"User", "-1:-1", run, "out of range"},
		"user-overflow":      {"User", "4294967296", run, "out of range"},
		"user-of-digits":     {"User", strings.Repeat("9", 3<<20), run, "out of range"},
		"user-colons":        {"User", ":::0", run, "is not in the image's /etc/group"},
		"user-newline":       {"User", "0\nroot:x:0", run, "is not in the image's /etc/passwd"},
		"user-nul":           {"User", "root\x00", run, "is not in the image's /etc/passwd"},
		"user-huge":          {"User", long, run, "is not in the image's /etc/passwd"},
		"volume-root":        {"Volumes", map[string]any{"/": none}, run, ""},
		"volume-upwards":     {"Volumes", map[string]any{"../../..": none, "..": none, ".": none}, run, ""},
		"volume-empty":       {"Volumes", map[string]any{"": none}, run, ""},
		"volume-proc":        {"Volumes", map[string]any{"/proc": none, "/proc/self": none, "/sys/fs/cgroup": none}, run, "proc"},
		"volume-nul":         {"Volumes", map[string]any{"/a\x00b": none}, run, "is no path"},
		"volume-long":        {"Volumes", map[string]any{"/" + strings.Repeat("y", 5000): none}, run, "is no path"},
		"volume-many":        {"Volumes", many, run, "5000 volumes"},
		"volumes-of-text":    {"Volumes", "/v", run, "config"},
		"entrypoint-nul":     {"Entrypoint", []string{"true\x00"}, nil, "NUL"},
		"entrypoint-empty":   {"Entrypoint", []string{""}, nil, ""},
		"entrypoint-huge":    {"Entrypoint", []string{"/bin/true", long}, nil, ""},
		"entrypoint-many":    {"Entrypoint", strings.Split("/bin/true"+strings.Repeat(",x", 500_000), ","), nil, ""},
		"dir-upwards":        {"WorkingDir", "../../../..", run, ""},
		"dir-nul":            {"WorkingDir", "/a\x00b", run, "is no path"},
		"dir-long":           {"WorkingDir", "/" + strings.Repeat("y/", 5000), run, "is no path"},
		"dir-proc":           {"WorkingDir", "/proc/self/fd/7", run, "/proc/self/fd/7"},
		"dir-file":           {"WorkingDir", "/etc/passwd", run, "/etc/passwd"},
		"stop-signal":        {"StopSignal", "SIGRTMAX+9999999999999999999", run, "is not a signal"},
		"stop-signal-huge":   {"StopSignal", long, run, "is not a signal"},
		"labels-huge":        {"Labels", map[string]string{"a": long}, run, ""},
		"ports":              {"ExposedPorts", map[string]any{"-1/x": none, "99999999/tcp": none, "": none}, run, ""},
		"healthcheck":        {"Healthcheck", map[string]any{"Test": []string{"NONE"}, "Interval": -1}, run, ""},
	}
}

type rubbishConfig struct {
	key     string
	value   any
	command []string
	refused string // what the error says; "" if it runs
}

// rubbishAround are images whose configurations make no sense outside of "config".
var rubbishAround = map[string]struct {
	change  func(image map[string]any) any
	refused string // what the error of the pull says; "" if it runs
}{
	"other-system":       {with("os", "windows"), "windows"},
	"other-architecture": {with("architecture", "\x00/../x"), "which this node is not"},
	"no-architecture":    {with("architecture", nil), ""},
	"numbers":            {with("os", 7), "config"},
	"config-is-a-list":   {with("config", []int{1}), "config"},
	"no-config":          {with("config", nil), ""},
	"history":            {with("history", []any{map[string]any{"empty_layer": true}, map[string]any{"created": "yesterday"}}), "config"},
	"history-many":       {with("history", make([]map[string]any, 200_000)), ""},
	"created":            {with("created", "9999999-99-99"), "config"},
	"layers-missing":     {with("rootfs", map[string]any{"type": "layers", "diff_ids": []string{}}), "layers"},
	"layers-of-nonsense": {with("rootfs", map[string]any{"type": "layers", "diff_ids": []string{"sha256:../../x", "", "a"}}), "digest"},
	"rootfs-none":        {with("rootfs", nil), "layers"},
	"a-list":             {func(map[string]any) any { return []int{1} }, "config"},
	"null":               {func(map[string]any) any { return nil }, "config"},
	"a-text":             {func(map[string]any) any { return "image" }, "config"},
	"deep": {func(map[string]any) any {
		return []byte(strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000))
	}, "config"},
	"layers-too-many": {func(image map[string]any) any {
		rootfs := image["rootfs"].(map[string]any)
		for range 50_000 {
			rootfs["diff_ids"] = append(rootfs["diff_ids"].([]any), rootfs["diff_ids"].([]any)[0])
		}
		return image
	}, "layers"},
}

func with(key string, value any) func(map[string]any) any {
	return func(image map[string]any) any {
		if image[key] = value; value == nil {
			delete(image, key)
		}
		return image
	}
}

// Images whose configurations make no sense are refused with a code and a text that say why, or run. The node, its other pods,
// and the room that texts take in its log do not notice.
func TestImageConfigOfRubbish(t *testing.T) {
	n := ownNode(t)
	pod := n.RunPod(t, "rubbish")
	beside := pod.Idle(t, "beside")
	outside := watchOutside(t)
	check := func(t *testing.T, ref string, command []string, refused string) {
		_, err := pull(t, n, ref, nil)
		if err == nil {
			_, err = attempt(t, pod, harness.ContainerConfig("app", ref, command...))
		}
		switch {
		case refused == "" && err != nil:
			t.Errorf("%.400v", err)
		case refused != "" && (err == nil || !strings.Contains(err.Error(), refused)):
			t.Errorf("want an error with %q, got %.400v", refused, err)
		case err != nil && len(err.Error()) > 4096:
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
		if bad := insane(err); bad != nil && !inContainer(err) {
			t.Error(bad)
		}
	}
	for name, c := range rubbish() {
		t.Run(name, func(t *testing.T) {
			check(t, madeImage(t, "rubbish-"+name, func(config map[string]any) { config[c.key] = c.value }), c.command, c.refused)
		})
	}
	for name, c := range rubbishAround {
		t.Run(name, func(t *testing.T) {
			check(t, remadeImage(t, "rubbish-"+name, c.change), []string{"true"}, c.refused)
		})
	}
	if got := beside.Exec(t, "echo", "well"); got != "well" {
		t.Errorf("the container beside: %q", got)
	}
	list, err := n.Runtime.ListContainers(harness.Ctx(t), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod.ID}})
	if err != nil || len(list.Containers) != 1 {
		t.Errorf("containers left: %v, %v", list.GetContainers(), err)
	}
	if size := sizeOf(t, filepath.Join(n.Dir, "berth.log")); size > 1<<20 {
		t.Errorf("the daemon's log has %d bytes", size)
	}
	outside(t)
}
