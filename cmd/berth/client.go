package main

import (
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/internal/admin"
	"github.com/berth-node/berth/internal/config"
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
		return admin.NewClient(adminSocket(*runDir)).Drain(cmd.Context(), grace, func(s string) { cmd.Println(s) })
	}
	return cmd
}
