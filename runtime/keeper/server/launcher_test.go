package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-node/berth/runtime/keeper"
)

// Launchers that hang do not hold up other containers, however many they are.
func TestStuckLaunchersAreReplaced(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(n.ctx())
	defer cancel()
	hanging := make(chan error, DefaultLaunchers)
	for i := range DefaultLaunchers {
		req := n.prepare(fmt.Sprintf("hang%d", i), bundle{Do: "hang"})
		go func() {
			_, err := n.c.Create(ctx, req)
			hanging <- err
		}()
		state := filepath.Join(n.dir, keeper.LibcontainerDir, req.ID)
		eventually(t, "the launcher to begin", func() bool { _, err := os.Stat(state); return err == nil })
	}
	n.run("c", "exit 4")
	n.wantCode(n.exit("c", ""), 4)
	cancel()
	for range DefaultLaunchers {
		if err := <-hanging; !errors.Is(err, context.Canceled) {
			t.Errorf("Create: %v", err)
		}
	}
}
