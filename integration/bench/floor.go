package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/berth-node/berth/integration/harness"
)

// A floor is the program that makes a pod by the bare system calls (floor/floor.c).
type floor struct{ program, rootfs string }

// openFloor returns nil where the program was not built.
func openFloor(dir string) (*floor, error) {
	program := filepath.Join(harness.Root(), "bin", "bench-floor")
	if _, err := os.Stat(program); err != nil {
		return nil, nil
	}
	wait, err := os.ReadFile(filepath.Join(harness.Root(), "internal", "pause", "pause_"+runtime.GOARCH))
	if err != nil {
		return nil, err
	}
	f := &floor{program, filepath.Join(dir, "floor")}
	if err := os.Mkdir(f.rootfs, 0o755); err != nil {
		return nil, err
	}
	return f, os.WriteFile(filepath.Join(f.rootfs, "wait"), wait, 0o755)
}

// start returns how many milliseconds one start took.
func (f *floor) start(ctx context.Context) (float64, error) {
	out, err := exec.CommandContext(ctx, f.program, "1", f.rootfs).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("floor: %w: %s", err, out)
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}
