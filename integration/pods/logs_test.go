//go:build integration

package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
)

// A log that grows is rotated: who follows it misses no line, a bounded number of files is kept, and all go with the pod.
func TestLogsAreRotated(t *testing.T) {
	const bursts, lines, size = 4, 200, 16 << 10
	n, d := start(t, "  containerLogMaxSize: 16Ki\n  containerLogMaxFiles: 3\n  containerLogMonitorInterval: 1s\n"), newDiary(t)
	n.write("p.yaml", podText("p", fmt.Sprintf(`for i in $(seq %d); do
until [ -e /diary/$i ]; do sleep 0.1; done
for j in $(seq %d); do echo "$i $j of many lines that fill the log up to its limit"; done
done
until [ -e /diary/last ]; do sleep 0.1; done
echo last; `, bursts, lines)+sleeper, diaryMount)+d.volume())
	p := n.awaitReady("p")
	folder := filepath.Join(filepath.Dir(n.manifests), "logs", "default_p_"+string(p.UID), "main")
	begin := func(burst string) {
		if err := os.WriteFile(filepath.Join(d.dir, burst), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	follow := n.berth().lines(t, "logs", "-f", "p")
	for i := range bursts {
		begin(fmt.Sprint(i + 1))
		for j := range lines {
			if got, want := follow(""), fmt.Sprintf("%d %d of many lines that fill the log up to its limit", i+1, j+1); got != want {
				t.Fatalf("the next line is %q, want %q", got, want)
			}
		}
		harness.Eventually(t, 20*time.Second, "the log is rotated", func() error {
			if st, err := os.Stat(filepath.Join(folder, "0.log")); err != nil || st.Size() >= size {
				return fmt.Errorf("%v, %v", st, err)
			}
			return nil
		})
	}
	begin("last")
	if got := follow(""); got != "last" {
		t.Errorf("the last line is %q", got)
	}
	if got := n.berth().ok(t, "logs", "p"); !strings.HasSuffix(got, "last\n") || strings.HasPrefix(got, "1 1 ") {
		t.Errorf("the newest file is shown as:\n%s", got)
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); !regexp.MustCompile(`^0\.log 0\.log\.\d{8}-\d{6}\.gz 0\.log\.\d{8}-\d{6}$`).MatchString(got) {
		t.Errorf("there are %s", got)
	}
	n.remove("p.yaml")
	n.awaitGone("p")
	harness.Eventually(t, 20*time.Second, "the logs are gone", func() error {
		if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("they are there: %v", err)
		}
		return nil
	})
}
