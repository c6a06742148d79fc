package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/internal/admin"
)

func repairCommand() *cobra.Command {
	var giveUp string
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Read damaged records again whose pods run, or give one up",
		Long: `Where the record of a running pod or container cannot be read in either of its two places, it runs on and nobody sees it;
"berth check" names the file and what is wrong with it. Put the file right, then call this command: what can be read is known
again. With --give-up the pod or container of that ID is ended instead, and its record moved to the folder damaged.`,
		Args: operands(cobra.NoArgs),
	}
	runDir := daemonFlag(cmd)
	cmd.Flags().StringVar(&giveUp, "give-up", "", "ID of a pod or container to take down, as berth check shows it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client := admin.NewClient(adminSocket(*runDir))
		if giveUp != "" {
			return client.GiveUp(cmd.Context(), giveUp)
		}
		said, err := client.Repair(cmd.Context())
		for _, line := range said {
			fmt.Fprintln(cmd.OutOrStdout(), line)
		}
		if len(said) == 0 && err == nil {
			fmt.Fprintln(cmd.OutOrStdout(), "there is nothing to repair")
		}
		return err
	}
	return cmd
}
