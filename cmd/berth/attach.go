package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func attachCommand() *cobra.Command {
	o := ctl.SessionOptions{}
	p := newPodCommand(&cobra.Command{
		Use:     "attach POD [-it] [-c CONTAINER]",
		Short:   "Connect to the command that a container runs",
		Example: "  berth attach web\n  berth attach -it shell",
		Args:    operands(cobra.ExactArgs(1)),
	})
	p.sessionFlags(&o)
	return p.does(func(ctx context.Context, args []string) error {
		name, err := ctl.PodName(args[0])
		if err != nil {
			return err
		}
		p.session(&o)
		return p.client().Attach(ctx, name, o)
	})
}
