package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func waitCommand() *cobra.Command {
	o := ctl.WaitOptions{}
	p := newPodCommand(&cobra.Command{
		Use:     "wait (TYPE/NAME... | TYPE NAME... | TYPE -l LABELS | TYPE --all) --for=CONDITION",
		Short:   "Return when something is so",
		Example: "  berth wait pod/web --for=condition=Ready\n  berth wait pods --all --for=delete --timeout=60s\n  berth wait pod/job --for=jsonpath='{.status.phase}'=Succeeded",
		Args:    operands(cobra.ArbitraryArgs),
	})
	p.scopeFlags(&o.Scope)
	p.Flags().StringVar(&o.For, "for", "", "condition=NAME[=VALUE], delete, create, or jsonpath='{PATH}'[=VALUE]")
	p.Flags().BoolVar(&o.All, "all", false, "all of the kind")
	p.Flags().DurationVar(&o.Timeout, "timeout", 30*time.Second, "how long to wait; 0: look once; negative: a week")
	p.ValidArgsFunction = p.completeResources
	return p.does(func(ctx context.Context, args []string) error {
		o.Namespace, o.Out, o.Err = *p.namespace, p.OutOrStdout(), p.ErrOrStderr()
		return p.client().Wait(ctx, args, o)
	})
}
