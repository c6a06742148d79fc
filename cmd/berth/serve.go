package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/handover"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the node: serve the CRI until a signal comes",
		Long: `Run the node: serve the CRI until SIGINT or SIGTERM comes. Pods run on without the daemon, and the next one finds them.
SIGHUP does what "berth upgrade" does: the program that is installed now takes over, with the configuration as it is then.

Several nodes run side by side on one machine if each has folders of its own: --root-dir, --run-dir.`,
		Args: operands(cobra.NoArgs),
	}
	serveFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return serve(cmd.Context(), cmd.Flags())
	}
	return cmd
}

// The flags of serve, by what they override. Those that are not given leave the file's value alone.
var (
	pathFlags = []flag[string]{
		{"root-dir", "folder of what survives a reboot", func(c *config.Config) *string { return &c.RootDir }},
		{"run-dir", "folder of what does not, on a tmpfs; sockets that are not named elsewhere are in it", func(c *config.Config) *string { return &c.RunDir }},
		{"cri-socket", "CRI socket", func(c *config.Config) *string { return &c.CRISocket }},
		{"cni-conf-dir", "folder of the CNI network configuration", func(c *config.Config) *string { return &c.Network.CNIConfDir }},
		{"launch", "path of berth-launch", func(c *config.Config) *string { return &c.Launch }},
		{"manifests", "folder of manifests of pods that the node runs by itself", func(c *config.Config) *string { return &c.Manifests }},
		{"nri-socket", "socket for NRI plugins", func(c *config.Config) *string { return &c.NRI.SocketPath }},
	}
	wordFlags = []flag[string]{
		{"keeper", `path of berth-keeper, or "external" if somebody else starts it`, func(c *config.Config) *string { return &c.Keeper }},
		{"network", "network of the pods: builtin or cni", func(c *config.Config) *string { return &c.Network.Mode }},
		{"cgroup-driver", "who makes cgroups: auto, cgroupfs or systemd", func(c *config.Config) *string { return &c.Cgroup.Driver }},
		{"log-level", "least level that is logged: debug, info, warn or error", func(c *config.Config) *string { return &c.Log.Level }},
		{"log-format", "form of the log: text or json", func(c *config.Config) *string { return &c.Log.Format }},
	}
	pathsFlags = []flag[[]string]{
		{"cni-bin-dir", "folder of CNI plugins (may be repeated)", func(c *config.Config) *[]string { return &c.Network.CNIBinDirs }},
		{"registry-hosts-dir", "folder in the form of certs.d (may be repeated)", func(c *config.Config) *[]string { return &c.Image.RegistryHostsDirs }},
	}
	switchFlags = []flag[bool]{
		{"pprof", "serve profiles beside the metrics", func(c *config.Config) *bool { return &c.Metrics.Pprof }},
	}
)

// flag is one flag and the place in the configuration that it sets.
type flag[T any] struct {
	name, usage string
	field       func(*config.Config) *T
}

func serveFlags(set *pflag.FlagSet) {
	set.String("config", config.DefaultPath, "configuration file; the default one need not exist")
	defaults := config.Default()
	for _, f := range append(pathFlags, wordFlags...) {
		set.String(f.name, "", f.usage+defaultNote(*f.field(&defaults)))
	}
	for _, f := range pathsFlags {
		set.StringArray(f.name, nil, f.usage)
	}
	for _, f := range switchFlags {
		set.Bool(f.name, false, f.usage)
	}
}

// defaultNote tells a default in words: the flag itself has none, so that it does not look as if it beat the file.
func defaultNote(value string) string {
	if value == "" {
		return ""
	}
	return fmt.Sprintf(" (%s if the file does not say)", value)
}

// configure returns the defaults, overridden by the file, overridden by the flags that were given, and resolved. Relative
// paths of flags start at the working directory. exe is the path of the berth that runs.
func configure(set *pflag.FlagSet, exe string) (config.Config, error) {
	path, err := set.GetString("config")
	if err != nil {
		return config.Config{}, err
	}
	c, err := loadConfig(path)
	if errors.Is(err, fs.ErrNotExist) && !set.Changed("config") {
		c, err = config.Default(), nil
	}
	if err != nil {
		return config.Config{}, err
	}
	if err := override(&c, set); err != nil {
		return config.Config{}, err
	}
	if err := c.Resolve(exe); err != nil {
		return config.Config{}, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

// override puts the values of the flags that were given into c.
func override(c *config.Config, set *pflag.FlagSet) error {
	var failed []error
	check := func(err error) { failed = append(failed, err) }
	absolute := func(path string) string {
		abs, err := filepath.Abs(path)
		check(err)
		return abs
	}
	for _, f := range pathFlags {
		if set.Changed(f.name) {
			value, err := set.GetString(f.name)
			check(err)
			*f.field(c) = absolute(value)
		}
	}
	for _, f := range wordFlags {
		if set.Changed(f.name) {
			value, err := set.GetString(f.name)
			check(err)
			*f.field(c) = value
		}
	}
	if set.Changed("keeper") && c.Keeper != config.KeeperExternal {
		c.Keeper = absolute(c.Keeper)
	}
	for _, f := range pathsFlags {
		if set.Changed(f.name) {
			values, err := set.GetStringArray(f.name)
			check(err)
			for i, value := range values {
				values[i] = absolute(value)
			}
			*f.field(c) = values
		}
	}
	for _, f := range switchFlags {
		if set.Changed(f.name) {
			value, err := set.GetBool(f.name)
			check(err)
			*f.field(c) = value
		}
	}
	return errors.Join(failed...)
}

// logger returns berth's log as the configuration, which is checked, wants it.
func logger(c config.Log, to io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(to, options)), nil
	}
	return slog.New(slog.NewTextHandler(to, options)), nil
}

func serve(ctx context.Context, set *pflag.FlagSet) error {
	if os.Geteuid() != 0 {
		return errors.New("serve: containers need root")
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own program: %w", err)
	}
	before, err := handover.Inherit()
	if err != nil {
		return err
	}
	d, err := newDaemon(ctx, set, exe, before)
	if err != nil {
		if before != nil {
			before.Unable(err)
		}
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)
	go d.reloadAt(ctx, hup)
	return d.run(ctx)
}
