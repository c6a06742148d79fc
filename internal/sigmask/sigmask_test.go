package sigmask

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// blocked returns the mask of a child, as /proc has it.
func blocked(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("grep", "SigBlk", "/proc/self/status").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(out), "SigBlk:"))
}

func TestChildrenGetTheMask(t *testing.T) {
	const none, hupAndTerm = "0000000000000000", "0000000000004001"
	before := blocked(t)
	restore := Block(unix.SIGHUP, unix.SIGTERM)
	if got := blocked(t); got != hupAndTerm {
		t.Errorf("blocked in a child: %s, want %s", got, hupAndTerm)
	}
	clear := Clear()
	if got := blocked(t); got != none {
		t.Errorf("blocked in a child: %s, want none", got)
	}
	clear()
	if got := blocked(t); got != hupAndTerm {
		t.Errorf("blocked in a child after it: %s, want %s", got, hupAndTerm)
	}
	restore()
	if got := blocked(t); got != before {
		t.Errorf("blocked in a child at the end: %s, was %s", got, before)
	}
}
