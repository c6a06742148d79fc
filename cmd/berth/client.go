package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/internal/admin"
	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/filelock"
)

// adminSocket is the operator's socket of the node with this run dir.
func adminSocket(runDir string) string { return filepath.Join(runDir, "admin.sock") }

// daemonFlag lets a command say which daemon of this machine it means.
func daemonFlag(cmd *cobra.Command) *string {
	return cmd.PersistentFlags().String("run-dir", config.Default().RunDir, "run dir of the daemon to talk to")
}

func drainCommand() *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Stop and remove all pods, then end the daemon and the keeper",
		Long: `Stop and remove all pods, those of the node itself in order, giving each container its grace to end, then end the
daemon and the keeper and take down the built-in network. Images stay, and what is declared: the next daemon starts its own
pods again. Nothing else of berth is left on the node.`,
		Args: operands(cobra.NoArgs),
	}
	runDir := daemonFlag(cmd)
	cmd.Flags().DurationVar(&grace, "grace", 0, `the longest that containers may take to end before they are killed; without it, pods of the node itself have
their own grace, and those that came through the CRI 10s`)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := admin.NewClient(adminSocket(*runDir)).Drain(cmd.Context(), grace, func(s string) { cmd.Println(s) }); err != nil {
			return err
		}
		return awaitEnd(cmd.Context(), *runDir)
	}
	return cmd
}

// endLimit is how long a drained daemon, which has nothing left to do, may take to end.
const endLimit = time.Minute

// awaitEnd returns when no daemon owns the run dir any more: the next one can start at once.
func awaitEnd(ctx context.Context, runDir string) error {
	ended := make(chan error, 1)
	go func() { ended <- filelock.Wait(lockPath(runDir)) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(endLimit):
		return fmt.Errorf("all pods are gone, but the daemon has not ended within %s", endLimit)
	case <-ctx.Done():
		return ctx.Err()
	}
}
