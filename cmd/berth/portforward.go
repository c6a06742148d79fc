package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func portForwardCommand() *cobra.Command {
	o := ctl.SessionOptions{}
	var addresses []string
	p := newPodCommand(&cobra.Command{
		Use:     "port-forward POD [LOCAL:]REMOTE...",
		Short:   "Make ports of a pod ports of this machine, until interrupted",
		Example: "  berth port-forward web 8080:80\n  berth port-forward pod/web :http --address 0.0.0.0",
		Args:    operands(cobra.MinimumNArgs(2)),
	})
	p.Flags().StringSliceVar(&addresses, "address", []string{"localhost"}, "addresses to listen on")
	p.ValidArgsFunction = p.complete("pods", false)
	return p.does(func(ctx context.Context, args []string) error {
		name, err := ctl.PodName(args[0])
		if err != nil {
			return err
		}
		p.session(&o)
		return p.client().PortForward(ctx, name, args[1:], addresses, o)
	})
}
