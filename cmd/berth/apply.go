package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/kubelet/ctl"
)

func applyCommand() *cobra.Command {
	o := ctl.ApplyOptions{}
	dryRun := "none"
	p := newPodCommand(&cobra.Command{
		Use:   "apply -f FILE",
		Short: "Declare what is in files: pods, config maps, secrets, volume claims",
		Long: `Declare what is in files, folders, or with "-" in the standard input: YAML or JSON, any number of documents. All of it is checked
first; if something is wrong, nothing of it is declared. What is declared stays so over restarts and reboots, until "berth delete".`,
		Example: "  berth apply -f web.yaml\n  berth apply -f manifests/ --recursive\n  sed s/IMAGE/nginx/ template.yaml | berth apply -f -",
		Args:    operands(cobra.NoArgs),
	})
	p.Flags().StringSliceVarP(&o.Files, "filename", "f", nil, "file or folder with manifests, or - (may be repeated)")
	p.Flags().BoolVarP(&o.Recursive, "recursive", "R", false, "read folders with those below them")
	p.Flags().StringVar(&dryRun, "dry-run", dryRun, "none, or server: only check")
	p.Flags().Lookup("dry-run").NoOptDefVal = "server"
	p.Flags().StringVarP(&o.Output, "output", "o", "", "form of the output: name")
	return p.does(func(ctx context.Context, _ []string) error {
		switch dryRun {
		case "none":
		case "server", "client":
			o.DryRun = true
		default:
			return fmt.Errorf(`invalid dry-run value (%s). Must be "none", "server", or "client"`, dryRun)
		}
		if p.Flags().Changed("namespace") {
			o.Namespace = *p.namespace
		}
		o.In, o.Out, o.Err = p.InOrStdin(), p.OutOrStdout(), p.ErrOrStderr()
		return p.client().Apply(ctx, o)
	})
}
