package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]int{
		"Version: 3.17.1\n":                           31701,
		"Version: 4.0\nGitID: v4.0\n":                 40000,
		"Version: 3.16\n":                             31600,
		"Warn (x.c:1): something\nVersion: 3.19.12\n": 31912,
		"Version: three\n":                            0,
		"Version: 3.1000\n":                           0,
		"criu: not found\n":                           0,
		"":                                            0,
	} {
		got, err := parseVersion(out)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("parseVersion(%q) = %d, %v; want %d", out, got, err, want)
		}
	}
}

// fakeCriu is the only criu of the test. It prints the text, and notes in a file that it ran.
func fakeCriu(t *testing.T, script string) (ran string) {
	t.Helper()
	known.version = 0
	t.Cleanup(func() { known.version = 0 })
	dir := t.TempDir()
	ran = filepath.Join(dir, "ran")
	script = "#!/bin/sh\necho x >>" + ran + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "criu"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	return ran
}

func TestProbeRunsCriuOnce(t *testing.T) {
	ran := fakeCriu(t, "echo Version: 3.17.1")
	for range 2 {
		if v, err := Probe(t.Context()); v != 31701 || err != nil {
			t.Errorf("Probe = %d, %v", v, err)
		}
	}
	if data, _ := os.ReadFile(ran); string(data) != "x\n" {
		t.Errorf("criu ran %d times, want once", len(data)/2)
	}
}

func TestProbeFailures(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		want   error
	}{
		"too old": {"echo Version: 3.15", errdefs.ErrUnimplemented},
		"broken":  {"echo no library; exit 127", errdefs.ErrUnavailable},
		"silent":  {"true", errdefs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			fakeCriu(t, test.script)
			if _, err := Probe(t.Context()); !errors.Is(err, test.want) {
				t.Errorf("Probe: %v, want class %v", err, test.want)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, err := Probe(t.Context()); !errors.Is(err, errdefs.ErrUnimplemented) {
			t.Errorf("Probe: %v, want class %v", err, errdefs.ErrUnimplemented)
		}
	})
}
