package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/berth-node/berth/internal/admin"
)

func imageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "List, pull, remove, load and save the node's images"}
	runDir := daemonFlag(cmd)
	client := func() *admin.Client { return admin.NewClient(adminSocket(*runDir)) }
	cmd.AddCommand(imageList(client), imagePull(client), imageRemove(client), imageLoad(client), imageSave(client))
	return cmd
}

func imageList(client func() *admin.Client) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the images", Args: operands(cobra.NoArgs)}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		images, err := client().Images(cmd.Context())
		if err != nil {
			return err
		}
		if asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(images)
		}
		return printImages(cmd.OutOrStdout(), images)
	}
	return cmd
}

func printImages(to io.Writer, images []admin.Image) error {
	w := tabwriter.NewWriter(to, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tID\tSIZE\tPINNED")
	for _, image := range images {
		names := image.RepoTags
		if len(names) == 0 {
			names = image.RepoDigests
		}
		if len(names) == 0 {
			names = []string{"<none>"}
		}
		for _, name := range names {
			fmt.Fprintf(w, "%s\t%s\t%s\t%t\n", name, shortID(image.ID), humanSize(image.Size), image.Pinned)
		}
	}
	return w.Flush()
}

// shortID is what people copy: the first 13 digits, as crictl prints them.
func shortID(id string) string {
	_, digits, found := strings.Cut(id, ":")
	if !found {
		digits = id
	}
	return digits[:min(13, len(digits))]
}

func humanSize(n uint64) string {
	const unit = 1000
	if n < unit {
		return fmt.Sprintf("%dB", n)
	}
	value, prefixes := float64(n), "kMGTPE"
	i := -1
	for value >= unit && i < len(prefixes)-1 {
		value /= unit
		i++
	}
	return fmt.Sprintf("%.1f%cB", value, prefixes[i])
}

func imagePull(client func() *admin.Client) *cobra.Command {
	var creds string
	var passwordStdin bool
	cmd := &cobra.Command{
		Use: "pull REFERENCE", Short: "Pull an image and print its ID",
		Example: "  berth image pull docker.io/library/busybox:1.36\n  berth image pull --user me --password-stdin registry.example.org/team/app:2 <token",
		Args:    operands(cobra.ExactArgs(1)),
	}
	cmd.Flags().StringVar(&creds, "user", "", "`USER` of the registry, or USER:PASSWORD, which others can see in the list of processes")
	cmd.Flags().BoolVar(&passwordStdin, "password-stdin", false, "read the password from standard input")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var c admin.Credentials
		c.Username, c.Password, _ = strings.Cut(creds, ":")
		if passwordStdin {
			if c.Username == "" {
				return misused(cmd, errors.New("--password-stdin needs --user"))
			}
			line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			c.Password = strings.TrimRight(line, "\r\n")
		}
		image, err := client().Pull(cmd.Context(), args[0], c, func(s string) { cmd.PrintErrln(s) })
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), image.ID)
		return nil
	}
	return cmd
}

func imageRemove(client func() *admin.Client) *cobra.Command {
	return &cobra.Command{
		Use: "remove REFERENCE…", Aliases: []string{"rm"}, Args: operands(cobra.MinimumNArgs(1)),
		Short: "Remove images, each with all its names",
		RunE: func(cmd *cobra.Command, args []string) error {
			var failed error
			for _, ref := range args {
				failed = errors.Join(failed, client().Remove(cmd.Context(), ref))
			}
			return failed
		},
	}
}

func imageLoad(client func() *admin.Client) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "load FILE",
		Short: "Load the images of an archive (- for standard input)",
		Long:  "Load the images of an OCI layout archive, or of one made by docker save; tar, tar.gz or tar.zst.",
		Args:  operands(cobra.ExactArgs(1)),
	}
	cmd.Flags().StringVar(&name, "name", "", "repository for images that the archive names by a tag alone or not at all")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in := cmd.InOrStdin()
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		}
		images, err := client().Load(cmd.Context(), in, name)
		if err != nil {
			return err
		}
		return printImages(cmd.OutOrStdout(), images)
	}
	return cmd
}

func imageSave(client func() *admin.Client) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "save REFERENCE…",
		Short: "Write images to an OCI archive",
		Long:  "Write images to an OCI layout archive, which docker load reads too. The images keep their IDs.",
		Args:  operands(cobra.MinimumNArgs(1)),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "-", "file to write, - for standard output")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if output == "-" {
			return client().Save(cmd.Context(), cmd.OutOrStdout(), args)
		}
		// Not under its name until it is whole.
		f, err := os.CreateTemp(filepath.Dir(output), ".berth-save-*")
		if err != nil {
			return err
		}
		err = errors.Join(client().Save(cmd.Context(), f, args), f.Chmod(0o644), f.Close())
		if err == nil {
			err = os.Rename(f.Name(), output)
		}
		if err != nil {
			_ = os.Remove(f.Name())
		}
		return err
	}
	return cmd
}
