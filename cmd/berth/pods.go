package main

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/kubelet/ctl"
)

// apiSocket is the socket of the pods' API of the node with this run dir.
func apiSocket(runDir string) string { return filepath.Join(runDir, "api.sock") }

// podCommands are kubectl's, for the pods of this node.
func podCommands() []*cobra.Command {
	return []*cobra.Command{
		applyCommand(), deleteCommand(), getCommand(), describeCommand(), logsCommand(), execCommand(), attachCommand(), cpCommand(),
		portForwardCommand(), topCommand(), eventsCommand(), waitCommand(), restartCommand(),
	}
}

// A podCommand is a command that speaks to the daemon about pods.
type podCommand struct {
	*cobra.Command
	runDir    *string
	namespace *string
}

func newPodCommand(c *cobra.Command) podCommand {
	p := podCommand{Command: c}
	p.runDir = p.PersistentFlags().String("run-dir", config.Default().RunDir, "run dir of the daemon to talk to")
	p.namespace = p.PersistentFlags().StringP("namespace", "n", "default", "namespace of what is meant")
	_ = p.RegisterFlagCompletionFunc("namespace", p.complete("namespaces", true))
	return p
}

func (p podCommand) client() *ctl.Client { return ctl.NewClient(apiSocket(*p.runDir)) }

// does is what the command does; its errors are in kubectl's words.
func (p podCommand) does(do func(ctx context.Context, args []string) error) *cobra.Command {
	p.RunE = func(cmd *cobra.Command, args []string) error {
		if err := do(cmd.Context(), args); err != nil {
			return &kubectlError{err}
		}
		return nil
	}
	return p.Command
}

// A kubectlError is printed as kubectl prints it.
type kubectlError struct{ error }

func (e *kubectlError) Unwrap() error { return e.error }

// scopeFlags are those of commands that look for objects.
func (p podCommand) scopeFlags(s *ctl.Scope) {
	p.Flags().BoolVarP(&s.AllNamespaces, "all-namespaces", "A", false, "look in all namespaces")
	p.Flags().StringVarP(&s.Labels, "selector", "l", "", "labels to select by: 'key1=value1,key2 in (a, b)'")
	p.Flags().StringVar(&s.Fields, "field-selector", "", "fields to select by: status.phase=Running")
}

// resourceWords are the names of kinds that completion offers.
var resourceWords = []string{"pods", "configmaps", "secrets", "persistentvolumeclaims", "events", "nodes", "namespaces"}

// completeResources offers kinds, and then the names of the kind.
func (p podCommand) completeResources(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if kind, name, ok := strings.Cut(begun, "/"); ok {
		var out []string
		for _, n := range p.names(kind) {
			if strings.HasPrefix(n, name) {
				out = append(out, kind+"/"+n)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	if len(args) == 0 {
		return resourceWords, cobra.ShellCompDirectiveNoFileComp
	}
	return p.names(args[0]), cobra.ShellCompDirectiveNoFileComp
}

// complete offers the names of one kind: for the first operand, or for any.
func (p podCommand) complete(kind string, any bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && !any {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return p.names(kind), cobra.ShellCompDirectiveNoFileComp
	}
}

// names asks the daemon; without one there is nothing to offer.
func (p podCommand) names(kind string) []string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var out strings.Builder
	err := p.client().Get(ctx, []string{kind}, ctl.GetOptions{
		Scope: ctl.Scope{Namespace: *p.namespace}, Output: "name", Out: &out, Err: &strings.Builder{},
	})
	if err != nil {
		return nil
	}
	var names []string
	for line := range strings.Lines(out.String()) {
		_, name, _ := strings.Cut(strings.TrimSpace(line), "/")
		names = append(names, name)
	}
	return names
}
