package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func eventsCommand() *cobra.Command {
	o := ctl.EventOptions{}
	p := newPodCommand(&cobra.Command{
		Use:     "events [--for TYPE/NAME] [-w]",
		Short:   "Show what happened, the latest last",
		Example: "  berth events\n  berth events --for pod/web -w\n  berth events -A --types Warning",
		Args:    operands(cobra.NoArgs),
	})
	p.Flags().BoolVarP(&o.AllNamespaces, "all-namespaces", "A", false, "look in all namespaces")
	p.Flags().StringVar(&o.For, "for", "", "only about one object: pod/web")
	p.Flags().StringSliceVar(&o.Types, "types", nil, "only of these types: Normal, Warning")
	p.Flags().BoolVarP(&o.Watch, "watch", "w", false, "go on with what happens")
	p.Flags().BoolVar(&o.NoHeaders, "no-headers", false, "leave the names of the columns out")
	p.Flags().StringVarP(&o.Output, "output", "o", "", "form of the output: json or yaml")
	return p.does(func(ctx context.Context, _ []string) error {
		o.Namespace, o.Out, o.Err = *p.namespace, p.OutOrStdout(), p.ErrOrStderr()
		return p.client().Events(ctx, o)
	})
}
