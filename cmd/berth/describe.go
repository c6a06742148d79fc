package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func describeCommand() *cobra.Command {
	o := ctl.DescribeOptions{}
	showEvents := true
	p := newPodCommand(&cobra.Command{
		Use:     "describe TYPE [NAME...] | TYPE/NAME...",
		Short:   "Show all that matters of objects, with their events",
		Example: "  berth describe pod web\n  berth describe node",
		Args:    operands(cobra.ArbitraryArgs),
	})
	p.scopeFlags(&o.Scope)
	p.Flags().BoolVar(&showEvents, "show-events", true, "show the events of each")
	p.ValidArgsFunction = p.completeResources
	return p.does(func(ctx context.Context, args []string) error {
		o.Namespace, o.NoEvents, o.Out, o.Err = *p.namespace, !showEvents, p.OutOrStdout(), p.ErrOrStderr()
		return p.client().Describe(ctx, args, o)
	})
}
