package launch

import (
	"errors"
	"strings"
	"testing"
)

// What libcontainer logs stands with the error, but for what says nothing more.
func TestLogBuffer(t *testing.T) {
	failed := errors.New("failed")
	for lines, want := range map[string]string{
		"": "failed",
		"unable to terminate initProcess: waitid: no child processes":        "failed",
		"unable to terminate setnsProcess: waitid: no child processes\nmore": "failed (log: more)",
		"unable to terminate initProcess: timeout":                           "failed (log: unable to terminate initProcess: timeout)",
	} {
		b := new(logBuffer)
		for line := range strings.Lines(lines) {
			if _, err := b.Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
		}
		if got := b.explain(failed); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
