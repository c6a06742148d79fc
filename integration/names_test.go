//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
)

// Who looks at the processes of a node by ps or top sees whose they are, though berth executes its programs by descriptors. So it is for
// the launchers of a keeper that was replaced in place, too.
func TestProcessesHaveNames(t *testing.T) {
	n := harness.StartNodeWithImages(t)
	named := func() error {
		keepers, launchers := 0, 0
		for _, dir := range processes(t) {
			args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
			comm, err := os.ReadFile(filepath.Join(dir, "comm"))
			if err != nil {
				continue // it has ended
			}
			switch program, rest, _ := strings.Cut(string(args), "\x00"); {
			case filepath.Base(program) == "berth-keeper" && strings.Contains(rest, n.RunDir):
				keepers++
				if string(comm) != "berth-keeper\n" {
					return fmt.Errorf("the keeper is called %s", comm)
				}
			case program == "berth-launch":
				launchers++
				if string(comm) != "berth-launch\n" {
					return fmt.Errorf("a launcher is called %s", comm)
				}
			}
		}
		if keepers != 1 || launchers == 0 {
			return fmt.Errorf("%d keepers, %d launchers", keepers, launchers)
		}
		return nil
	}
	harness.Eventually(t, 20*time.Second, "names", named)
	n.Berth(t, "upgrade")
	n.RunPod(t, "named").Sh(t, "app", "true").WaitExit(t)
	harness.Eventually(t, 20*time.Second, "names after an upgrade", named)
}

func processes(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	return all
}
