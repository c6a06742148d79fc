package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// MinVersion is the oldest criu that dumps containers as Kubernetes needs it (3.16), in criu's counting.
const MinVersion = 31600

// probeLimit bounds one run of criu.
const probeLimit = 5 * time.Second

// known is the version of criu, once it told it. That it is missing is looked up each time: it costs little, and an
// operator who installs it need not restart anything.
var known struct {
	sync.Mutex
	version int
}

// Probe returns the version of the node's criu, for instance 31701 for 3.17.1. Its error is of class ErrUnimplemented
// where criu is missing or older than MinVersion, and of class ErrUnavailable where criu could not be asked.
// The first call runs criu, the later ones do not.
func Probe(ctx context.Context) (version int, err error) {
	path, err := exec.LookPath("criu")
	if err != nil {
		return 0, fmt.Errorf("checkpoints need criu, which is not installed: %w", errdefs.ErrUnimplemented)
	}
	known.Lock()
	defer known.Unlock()
	if known.version == 0 {
		ctx, cancel := context.WithTimeout(ctx, probeLimit)
		defer cancel()
		out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("%s --version: %w (%s): %w", path, err, bytes.TrimSpace(out), errdefs.ErrUnavailable)
		}
		if known.version, err = parseVersion(string(out)); err != nil {
			return 0, fmt.Errorf("%s --version: %w", path, err)
		}
	}
	if known.version < MinVersion {
		return known.version, fmt.Errorf("checkpoints need criu %s, and this node has %s: %w",
			versionText(MinVersion), versionText(known.version), errdefs.ErrUnimplemented)
	}
	return known.version, nil
}

// parseVersion reads what criu --version prints: "Version: 3.17.1", and more lines if it was built from git.
func parseVersion(out string) (int, error) {
	for line := range strings.Lines(out) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "Version:")
		if !ok {
			continue
		}
		version, parts := 0, strings.Split(strings.TrimSpace(text), ".")
		for i := range 3 {
			number := 0
			if i < len(parts) {
				var err error
				if number, err = strconv.Atoi(parts[i]); err != nil || number < 0 || number > 99 {
					return 0, fmt.Errorf("version %q is not understood: %w", text, errdefs.ErrUnavailable)
				}
			}
			version = version*100 + number
		}
		return version, nil
	}
	return 0, fmt.Errorf("no version in %q: %w", out, errdefs.ErrUnavailable)
}

func versionText(v int) string {
	return fmt.Sprintf("%d.%d.%d", v/10000, v/100%100, v%100)
}
