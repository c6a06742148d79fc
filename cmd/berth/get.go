package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func getCommand() *cobra.Command {
	o := ctl.GetOptions{}
	p := newPodCommand(&cobra.Command{
		Use:     "get TYPE[,TYPE] [NAME...] | TYPE/NAME...",
		Short:   "Show pods, config maps, secrets, volume claims, events, the node",
		Example: "  berth get pods -o wide\n  berth get pod/web -o yaml\n  berth get pods -A -w",
		Args:    operands(cobra.ArbitraryArgs),
	})
	p.scopeFlags(&o.Scope)
	p.Flags().StringVarP(&o.Output, "output", "o", "", "form of the output: wide, yaml, json, name, jsonpath=…, go-template=…, custom-columns=…")
	p.Flags().BoolVarP(&o.Watch, "watch", "w", false, "go on with what changes")
	p.Flags().BoolVar(&o.WatchOnly, "watch-only", false, "show only what changes")
	p.Flags().BoolVar(&o.WatchEvents, "output-watch-events", false, "say what kind of change it is")
	p.Flags().BoolVar(&o.NoHeaders, "no-headers", false, "leave the names of the columns out")
	p.Flags().BoolVar(&o.ShowLabels, "show-labels", false, "show labels as the last column")
	p.Flags().StringSliceVarP(&o.LabelColumns, "label-columns", "L", nil, "labels to show as columns")
	p.Flags().StringVar(&o.SortBy, "sort-by", "", "sort by what is at this path, as .status.startTime")
	p.Flags().BoolVar(&o.IgnoreNotFound, "ignore-not-found", false, "what is not there is no error")
	p.ValidArgsFunction = p.completeResources
	return p.does(func(ctx context.Context, args []string) error {
		o.Namespace, o.Out, o.Err = *p.namespace, p.OutOrStdout(), p.ErrOrStderr()
		return p.client().Get(ctx, args, o)
	})
}
