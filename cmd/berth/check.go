package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/internal/admin"
)

// errNotWell makes the exit status say what the text has said already.
var errNotWell = errors.New("the node is not well")

func checkCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say whether the node is well, and what it lacks",
		Long: `Ask the daemon whether pods can run, what the node lacks (a cgroup controller, a capability, AppArmor…), which records
were damaged and set aside, and what is wrong in manifests. The exit status is 0 if pods can run, no record is damaged and no manifest
has a fault.`,
		Args: operands(cobra.NoArgs),
	}
	runDir := daemonFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := admin.NewClient(adminSocket(*runDir)).Status(cmd.Context())
		if err != nil {
			return err
		}
		if asJSON {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			err = enc.Encode(s)
		} else {
			_, err = fmt.Fprint(cmd.OutOrStdout(), describe(s))
		}
		if err == nil && !well(s) {
			err = errNotWell
		}
		return err
	}
	return cmd
}

func well(s admin.Status) bool {
	return s.RuntimeError == "" && s.NetworkError == "" && len(s.Damaged) == 0 && len(s.Manifests) == 0
}

// describe says it to a person.
func describe(s admin.Status) string {
	var b strings.Builder
	line := func(topic, text string) { fmt.Fprintf(&b, "%-14s %s\n", topic, text) }
	ready := func(problem string) string {
		if problem == "" {
			return "ready"
		}
		return "NOT ready: " + problem
	}
	line("version", s.Version)
	line("runtime", ready(s.RuntimeError))
	line("network", ready(s.NetworkError))
	line("cgroup driver", s.CgroupDriver)
	line("handlers", strings.Join(s.Handlers, ", "))
	line("pods", fmt.Sprintf("%d with %d containers", s.Sandboxes, s.Containers))
	for _, l := range s.Lingering {
		line("lingering", fmt.Sprintf("berth %s, process %d, stays for %d sessions", l.Version, l.Pid, l.Sessions))
	}
	list := func(topic string, items []string) {
		for _, item := range items {
			line(topic, item)
			topic = ""
		}
	}
	list("lacks", s.Limitations)
	list("damaged", s.Damaged)
	list("manifests", s.Manifests)
	return b.String()
}
