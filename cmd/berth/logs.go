package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func logsCommand() *cobra.Command {
	o := ctl.LogOptions{}
	p := newPodCommand(&cobra.Command{
		Use:     "logs (POD | pod/POD | -l LABELS) [CONTAINER]",
		Short:   "Print what containers wrote",
		Example: "  berth logs -f web\n  berth logs web -c sidecar --tail=20\n  berth logs -p web\n  berth logs -l app=web --prefix",
		Args:    operands(cobra.MaximumNArgs(2)),
	})
	p.Flags().StringVarP(&o.Container, "container", "c", "", "container")
	p.Flags().BoolVar(&o.AllContainers, "all-containers", false, "all containers of the pod")
	p.Flags().BoolVarP(&o.Follow, "follow", "f", false, "go on with what is written")
	p.Flags().BoolVarP(&o.Previous, "previous", "p", false, "the container before, if there was one")
	p.Flags().BoolVar(&o.Timestamps, "timestamps", false, "show when a line was written")
	p.Flags().BoolVar(&o.Prefix, "prefix", false, "show which container wrote a line")
	p.Flags().BoolVar(&o.IgnoreErrors, "ignore-errors", false, "go on with the next log after an error")
	p.Flags().DurationVar(&o.Since, "since", 0, "only what is younger, as 5s, 2m or 3h")
	p.Flags().StringVar(&o.SinceTime, "since-time", "", "only what is younger than a time (RFC 3339)")
	p.Flags().Int64Var(&o.Tail, "tail", -1, "last lines; -1: all, but 10 of each with a selector")
	p.Flags().Int64Var(&o.LimitBytes, "limit-bytes", 0, "at most so many bytes")
	p.Flags().StringVarP(&o.Labels, "selector", "l", "", "labels of the pods")
	p.Flags().IntVar(&o.MaxRequests, "max-log-requests", 5, "how many logs may be followed at once")
	p.ValidArgsFunction = p.complete("pods", false)
	return p.does(func(ctx context.Context, args []string) error {
		switch {
		case len(args) == 0 && o.Labels == "":
			return errors.New("expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]'.\nPOD or TYPE/NAME is a required argument for the logs command")
		case len(args) > 0 && o.Labels != "":
			return errors.New("only a selector (-l) or a POD name is allowed")
		case o.Since != 0 && o.SinceTime != "":
			return errors.New("at most one of `sinceTime` or `sinceSeconds` may be specified")
		case len(args) == 2 && o.Container != "":
			return errors.New("only one of -c or an inline [CONTAINER] arg is allowed")
		case len(args) == 2:
			o.Container = args[1]
		}
		name := ""
		if len(args) > 0 {
			var err error
			if name, err = ctl.PodName(args[0]); err != nil {
				return err
			}
		}
		if o.Labels != "" && !p.Flags().Changed("tail") && !o.Follow {
			o.Tail = 10
		}
		o.Namespace, o.Out, o.Err = *p.namespace, p.OutOrStdout(), p.ErrOrStderr()
		return p.client().Logs(ctx, name, o)
	})
}
