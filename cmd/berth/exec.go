package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

// sessionFlags are those of commands that connect to a container.
func (p podCommand) sessionFlags(o *ctl.SessionOptions) {
	p.Flags().StringVarP(&o.Container, "container", "c", "", "container")
	p.Flags().BoolVarP(&o.Stdin, "stdin", "i", false, "pass the standard input to the container")
	p.Flags().BoolVarP(&o.TTY, "tty", "t", false, "make the terminal the container's")
	p.Flags().BoolVarP(&o.Quiet, "quiet", "q", false, "print only what the container prints")
	p.ValidArgsFunction = p.complete("pods", false)
}

// session fills in where a command runs.
func (p podCommand) session(o *ctl.SessionOptions) {
	o.Namespace, o.In, o.Out, o.Err = *p.namespace, p.InOrStdin(), p.OutOrStdout(), p.ErrOrStderr()
}

func execCommand() *cobra.Command {
	o := ctl.SessionOptions{}
	p := newPodCommand(&cobra.Command{
		Use:     "exec POD [-it] [-c CONTAINER] -- COMMAND [ARG...]",
		Short:   "Run a command in a container, and end with its status",
		Example: "  berth exec web -- ls /\n  berth exec -it web -c main -- sh",
		Args:    operands(cobra.MinimumNArgs(1)),
	})
	p.sessionFlags(&o)
	return p.does(func(ctx context.Context, args []string) error {
		name, err := ctl.PodName(args[0])
		if err != nil {
			return err
		}
		switch at := p.ArgsLenAtDash(); {
		case at < 0 && len(args) > 1:
			return errors.New("exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead")
		case at > 1:
			return errors.New("exec takes one pod")
		case len(args) < 2:
			return errors.New("you must specify at least one command for the container")
		}
		p.session(&o)
		return p.client().Exec(ctx, name, args[1:], o)
	})
}
