package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func topCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "top", Short: "Show what pods, or the node, use of CPU and memory"}
	cmd.AddCommand(topPodCommand(), topNodeCommand())
	return cmd
}

func topPodCommand() *cobra.Command {
	o := ctl.TopOptions{}
	p := newPodCommand(&cobra.Command{
		Use: "pod [NAME | -l LABELS]", Aliases: []string{"pods", "po"}, Short: "Show what pods use",
		Args: operands(cobra.MaximumNArgs(1)),
	})
	p.scopeFlags(&o.Scope)
	p.Flags().BoolVar(&o.Containers, "containers", false, "show each container")
	p.Flags().BoolVar(&o.NoHeaders, "no-headers", false, "leave the names of the columns out")
	p.Flags().BoolVar(&o.Sum, "sum", false, "show the sum")
	p.Flags().StringVar(&o.SortBy, "sort-by", "", "cpu or memory")
	p.ValidArgsFunction = p.complete("pods", false)
	return p.does(func(ctx context.Context, args []string) error {
		o.Namespace, o.Out, o.Err = *p.namespace, p.OutOrStdout(), p.ErrOrStderr()
		return p.client().TopPods(ctx, first(args), o)
	})
}

func topNodeCommand() *cobra.Command {
	o := ctl.TopOptions{}
	p := newPodCommand(&cobra.Command{
		Use: "node", Aliases: []string{"nodes", "no"}, Short: "Show what the node uses",
		Args: operands(cobra.MaximumNArgs(1)),
	})
	p.Flags().BoolVar(&o.NoHeaders, "no-headers", false, "leave the names of the columns out")
	return p.does(func(ctx context.Context, args []string) error {
		o.Out, o.Err = p.OutOrStdout(), p.ErrOrStderr()
		return p.client().TopNode(ctx, first(args), o)
	})
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
