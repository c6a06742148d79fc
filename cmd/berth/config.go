package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/podspec"
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
				if _, err := loadConfig(args[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), args[0]+": ok")
				return err
			},
		},
	)
	return cmd
}

// loadConfig reads a configuration file. What package config knows nothing of is checked here, before anything begins by it.
func loadConfig(path string) (config.Config, error) {
	c, err := config.Load(path)
	if err != nil {
		return c, err
	}
	_, badEviction := evictionRules(&c.Kubelet)
	_, badReservation := reservations(&c.Kubelet)
	_, badLogs := logSize(&c.Kubelet)
	var faults []error
	for _, fault := range []error{badEviction, badReservation, badLogs, checkSysctls(&c.Kubelet)} {
		if fault != nil {
			faults = append(faults, fmt.Errorf("%s: %w", path, fault))
		}
	}
	return c, errors.Join(faults...)
}

func checkSysctls(k *config.Kubelet) error {
	for _, pattern := range k.UnsafeSysctls {
		if err := podspec.CheckSysctlPattern(pattern); err != nil {
			return fmt.Errorf("kubelet.allowedUnsafeSysctls: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
