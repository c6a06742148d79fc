//go:build integration

package chaos

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/internal/failpoint"
)

// What production runs has nothing of the points: no name, no variable, not even a call.
func TestProductionHasNoPoints(t *testing.T) {
	traces := [][]byte{[]byte(failpoint.SocketVariable), []byte("internal/failpoint")}
	for _, p := range failpoint.Points {
		traces = append(traces, []byte(p))
	}
	read := func(elem ...string) []byte {
		data, err := os.ReadFile(filepath.Join(append([]string{harness.Root(), "bin"}, elem...)...))
		if err != nil {
			t.Fatalf("%v (make build failpoints)", err)
		}
		return data
	}
	for _, program := range []string{"berth", "berth-keeper", "berth-launch"} {
		if !bytes.Contains(read("failpoints", program), traces[0]) {
			t.Errorf("bin/failpoints/%s has no points either: this test sees nothing", program)
		}
		production := read(program)
		for _, trace := range traces {
			if bytes.Contains(production, trace) {
				t.Errorf("bin/%s contains %q", program, trace)
			}
		}
	}
}
