//go:build integration

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
)

// waitForText waits until a line of the container's log is text.
func waitForText(t *testing.T, c *harness.Container, stream, text string) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, fmt.Sprintf("line %q on %s", text, stream), func() error {
		lines, err := harness.ReadLog(c.LogPath())
		if err != nil {
			return err
		}
		if texts := harness.Texts(lines, stream); !slices.Contains(texts, text) {
			return fmt.Errorf("the log has %d lines: %.500q", len(texts), texts)
		}
		return nil
	})
}

// wantNo is an error if text contains part.
func wantNo(text, part string) error {
	if strings.Contains(text, part) {
		return fmt.Errorf("%q is in %q", part, text)
	}
	return nil
}

// wantIn is an error unless text contains part.
func wantIn(text, part string) error {
	if !strings.Contains(text, part) {
		return fmt.Errorf("%q is not in %q", part, text)
	}
	return nil
}
