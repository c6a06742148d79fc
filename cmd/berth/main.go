// berth runs pods on this machine. "berth serve" is the daemon: a Kubernetes container runtime behind a CRI socket, and a kubelet of
// its own for what files declare. The other commands are for its operator, and kubectl's for pods.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/hostpath"
	"github.com/berth-node/berth/kubelet/ctl"
)

// version is set by the linker.
var version = "unknown"

func main() {
	hostpath.Main() // where this process is the helper that looks up a path, it ends here
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		var exit *ctl.Exit
		var said *kubectlError
		switch {
		case errors.As(err, &exit):
			fmt.Fprintln(os.Stderr, exit.Text)
			os.Exit(exit.Code)
		case errors.Is(err, errNotWell): // that was said at length
		case ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))):
			fmt.Fprintln(os.Stderr, "berth: interrupted")
		case errors.As(err, &said):
			fmt.Fprintln(os.Stderr, ctl.Message(said.error))
		default:
			fmt.Fprintln(os.Stderr, "berth:", err)
		}
		os.Exit(1)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "berth",
		Short:         "Run pods on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return misused(cmd, err) })
	root.AddCommand(serveCommand(), configCommand(), versionCommand(), imageCommand(), checkCommand(), repairCommand(), upgradeCommand(), drainCommand())
	root.AddCommand(podCommands()...)
	return root
}

// operands is a check of a command's operands whose error says what they should be.
func operands(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return misused(cmd, err)
		}
		return nil
	}
}

func misused(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w\nusage: %s", err, cmd.UseLine())
}
