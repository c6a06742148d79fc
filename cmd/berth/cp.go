package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func cpCommand() *cobra.Command {
	o := ctl.CopyOptions{}
	p := newPodCommand(&cobra.Command{
		Use:     "cp FROM TO",
		Short:   "Copy files and folders into a container, or out of it",
		Long:    "Copy files and folders into a container, or out of it. A path in a container is [NAMESPACE/]POD:PATH. The container must have tar.",
		Example: "  berth cp web:/var/log/app.log .\n  berth cp conf.d web:/etc/app -c main",
		Args:    operands(cobra.ExactArgs(2)),
	})
	p.Flags().StringVarP(&o.Container, "container", "c", "", "container")
	p.Flags().BoolVar(&o.NoPreserve, "no-preserve", false, "do not keep owners and permissions in the container")
	return p.does(func(ctx context.Context, args []string) error {
		p.session(&o.SessionOptions)
		return p.client().Copy(ctx, args[0], args[1], o)
	})
}
