package config

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

var faultLine = regexp.MustCompile(`^/node\.yaml(:[0-9]+)?: `)

// Any text is a configuration, or an error of which each line names the file, and the line where there is one.
func FuzzConfig(f *testing.F) {
	f.Add("log: {level: debug}\nrootDir: /x\n")
	f.Add("runtimeHandlers: &h {x: *h}\n")
	f.Add("log: [\n")
	f.Add("exec:\n  drainTimeout: -1s\nstreaming: {port: 70000}\n---\n{}\n")
	f.Add("a: &a [*a, *a]\n? [x]\n: 1\n")
	f.Add("<<: {log: {level: info}}\n")
	f.Fuzz(func(t *testing.T, text string) {
		c := Default()
		err := decode("/node.yaml", []byte(text), &c)
		if err == nil {
			return
		}
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("the class of %v", err)
		}
		if lines := strings.Split(err.Error(), "\n"); !faultLine.MatchString(lines[0]) {
			t.Errorf("%q does not say where", lines[0])
		}
	})
}
