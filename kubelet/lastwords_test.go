package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/kubelet/podspec"
	"github.com/berth-node/berth/runtime"
)

// What a container leaves as its last words, by policy and by how it ended.
func TestLastWords(t *testing.T) {
	const path = "/dev/termination-log"
	fallback := string(v1.TerminationMessageFallbackToLogsOnError)
	for name, c := range map[string]struct {
		policy, words, log, own, reason string
		code                            int32
		prepare                         func(t *testing.T, file string)
		containers                      int
		want                            string
	}{
		"nothing":                           {code: 1, log: "log"},
		"words":                             {words: "bye", want: "bye"},
		"the runtime's first":               {words: "bye", own: "killed", want: "killed: bye"},
		"the runtime's alone":               {own: "killed", want: "killed"},
		"the log of a failure":              {policy: fallback, code: 1, log: "one\ntwo", want: "one\ntwo\n"},
		"words before the log":              {policy: fallback, code: 1, log: "one", words: "bye", want: "bye"},
		"no log of a success":               {policy: fallback, log: "one"},
		"no log of what never ran":          {policy: fallback, code: 128, reason: "StartError", log: "one", own: "no such file", want: "no such file"},
		"the end of many words":             {words: strings.Repeat("a", 5000) + "b", want: strings.Repeat("a", maxWords-1) + "b"},
		"the end of a long log":             {policy: fallback, code: 1, log: strings.Repeat("a", 3000) + "b", want: strings.Repeat("a", maxLogWords-2) + "b\n"},
		"the last lines of a log":           {policy: fallback, code: 1, log: strings.Repeat("x\n", 200) + "y", want: strings.Repeat("x\n", maxLogLines-1) + "y\n"},
		"less where there are many":         {words: strings.Repeat("a", 4000), containers: 12, want: strings.Repeat("a", 1024)},
		"what leads elsewhere is not read":  {prepare: func(t *testing.T, file string) { must(t, os.Symlink("/etc/passwd", file)) }, want: "Error on reading termination log FILE: open FILE: too many levels of symbolic links"},
		"what would wait is not waited for": {prepare: func(t *testing.T, file string) { must(t, syscall.Mkfifo(file, 0o600)) }},
		"it is gone":                        {prepare: func(*testing.T, string) {}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file, log := filepath.Join(dir, "words"), filepath.Join(dir, "0.log")
			if c.prepare == nil {
				c.prepare = func(t *testing.T, file string) { must(t, os.WriteFile(file, []byte(c.words), 0o600)) }
			}
			c.prepare(t, file)
			var lines strings.Builder
			for line := range strings.Lines(c.log) {
				fmt.Fprintf(&lines, "2030-01-01T00:00:00.000000000Z stdout F %s\n", strings.TrimSuffix(line, "\n"))
			}
			must(t, os.WriteFile(log, []byte(lines.String()), 0o600))
			w := &worker{pod: &incarnation{pod: &v1.Pod{Spec: v1.PodSpec{Containers: make([]v1.Container, max(1, c.containers))}}}}
			ended := &runtime.Container{
				ID: "c", ExitCode: c.code, Reason: c.reason, Message: c.own, LogPath: log, FinishedAt: time.Now(),
				Config: &cri.ContainerConfig{
					Mounts:      []*cri.Mount{{ContainerPath: "/elsewhere", HostPath: "/none"}, {ContainerPath: path, HostPath: file}},
					Annotations: map[string]string{podspec.TerminationMessagePathAnnotation: path, podspec.TerminationMessagePolicyAnnotation: c.policy},
				},
			}
			want := strings.ReplaceAll(c.want, "FILE", file)
			if got := w.lastWords(ended); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			// They are read once: the container may be removed now.
			must(t, os.RemoveAll(dir))
			if got := w.lastWords(ended); got != want {
				t.Errorf("when the files are gone: %q, want %q", got, want)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
