//go:build integration

package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
)

// TestLogLinks finds logs as collectors do: by links that say in their names whose they are.
func TestLogLinks(t *testing.T) {
	links := filepath.Join(t.TempDir(), "containers")
	n := start(t, "  containerLogsDir: "+links+"\n")
	n.write("p.yaml", podText("p", "echo hello; "+sleeper))
	n.awaitReady("p")
	found := func() []string {
		all, err := filepath.Glob(filepath.Join(links, "*.log"))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	id := n.containers("p")[0].Id
	link := filepath.Join(links, "p_default_main-"+id+".log")
	harness.Eventually(t, 20*time.Second, "the log to be found", func() error {
		text, err := os.ReadFile(link)
		if err == nil && !strings.HasSuffix(string(text), " stdout F hello\n") {
			err = fmt.Errorf("it is %q", text)
		}
		return err
	})
	if to, err := os.Readlink(link); err != nil || !regexp.MustCompile(`/default_p_[0-9a-f-]+/main/0\.log$`).MatchString(to) {
		t.Errorf("it leads to %s, %v", to, err)
	}
	n.berth().ok(t, "restart", "p", "-c", "main")
	harness.Eventually(t, 20*time.Second, "the next one's", func() error {
		if all := found(); len(all) != 2 {
			return fmt.Errorf("there are %q", all)
		}
		return nil
	})
	n.remove("p.yaml")
	n.awaitGone("p")
	harness.Eventually(t, 20*time.Second, "no link to be left", func() error {
		if all := found(); len(all) != 0 {
			return fmt.Errorf("there are %q", all)
		}
		return nil
	})
}
