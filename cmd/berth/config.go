package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/internal/config"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Print the default configuration, or check one"}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "default",
			Short: "Print the default configuration with a comment on every key",
			Args:  operands(cobra.NoArgs),
			RunE: func(cmd *cobra.Command, _ []string) error {
				return config.WriteDefault(cmd.OutOrStdout())
			},
		},
		&cobra.Command{
			Use:   "check FILE",
			Short: "Say what is wrong in a configuration file, by line and key",
			Args:  operands(cobra.ExactArgs(1)),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := config.Load(args[0])
				if err != nil {
					return err
				}
				_, err = evictionRules(&c.Kubelet)
				if _, bad := reservations(&c.Kubelet); err == nil {
					err = bad
				}
				if err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), args[0]+": ok")
				return err
			},
		},
	)
	return cmd
}
