package main

import (
	"context"

	"github.com/spf13/cobra"
)

func restartCommand() *cobra.Command {
	var container string
	grace := int64(-1)
	p := newPodCommand(&cobra.Command{
		Use:     "restart POD... [-c CONTAINER]",
		Short:   "End pods in order and begin them anew, or one container of them",
		Example: "  berth restart web\n  berth restart web -c sidecar",
		Args:    operands(cobra.MinimumNArgs(1)),
	})
	p.Flags().StringVarP(&container, "container", "c", "", "this container alone")
	p.Flags().Int64Var(&grace, "grace-period", -1, "seconds that containers get to end; -1: what the pod says")
	p.ValidArgsFunction = p.complete("pods", true)
	return p.does(func(ctx context.Context, args []string) error {
		return p.client().Restart(ctx, args, *p.namespace, container, grace, p.OutOrStdout(), p.ErrOrStderr())
	})
}
