package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func deleteCommand() *cobra.Command {
	o := ctl.DeleteOptions{Grace: -1, Wait: true}
	dryRun := "none"
	p := newPodCommand(&cobra.Command{
		Use:   "delete (-f FILE | TYPE NAME... | TYPE -l LABELS | TYPE --all)",
		Short: "Take back what was applied; end a pod that a file declares, which then begins anew",
		Long: `Take back what was applied, and wait until it is gone. A pod that a file declares ends, and begins anew as long as the file
declares it. The folder of a PersistentVolumeClaim is kept, and so is what is in a PersistentVolume.`,
		Example: "  berth delete pod web\n  berth delete -f web.yaml\n  berth delete pods -l app=web --now",
		Args:    operands(cobra.ArbitraryArgs),
	})
	p.scopeFlags(&o.Scope)
	p.Flags().StringSliceVarP(&o.Files, "filename", "f", nil, "file or folder whose objects are meant, or - (may be repeated)")
	p.Flags().BoolVarP(&o.Recursive, "recursive", "R", false, "read folders with those below them")
	p.Flags().BoolVar(&o.All, "all", false, "all of the kind")
	p.Flags().Int64Var(&o.Grace, "grace-period", -1, "seconds that containers get to end; -1: what the pod says")
	p.Flags().BoolVar(&o.Now, "now", false, "the same as --grace-period=1")
	p.Flags().BoolVar(&o.Force, "force", false, "the same as --grace-period=0")
	p.Flags().BoolVar(&o.IgnoreNotFound, "ignore-not-found", false, "what is not there is no error")
	p.Flags().BoolVar(&o.Wait, "wait", true, "return when it is gone")
	p.Flags().DurationVar(&o.Timeout, "timeout", 0, "how long to wait; 0: without end")
	p.Flags().StringVar(&dryRun, "dry-run", dryRun, "none, or server: delete nothing")
	p.Flags().Lookup("dry-run").NoOptDefVal = "server"
	p.Flags().StringVarP(&o.Output, "output", "o", "", "form of the output: name")
	p.ValidArgsFunction = p.completeResources
	return p.does(func(ctx context.Context, args []string) error {
		o.Namespace, o.DryRun = *p.namespace, dryRun != "none"
		o.In, o.Out, o.Err = p.InOrStdin(), p.OutOrStdout(), p.ErrOrStderr()
		return p.client().Delete(ctx, args, o)
	})
}
