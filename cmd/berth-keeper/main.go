// berth-keeper is parent of every container of a node: it holds their stdio, writes their logs and keeps their exit codes
// while the daemon comes and goes. Package runtime/keeper/server is all of it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/berth-node/berth/internal/sysmon"
	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/keeper/server"
	"golang.org/x/sys/unix"
)

// version is set by the build.
var version = "unknown"

func main() {
	sysmon.Calm()
	cfg := server.Config{Build: version}
	var level slog.Level
	flag.StringVar(&cfg.RunDir, "run-dir", "/run/berth", "folder of the node's run state, on a tmpfs; one keeper runs in it")
	flag.StringVar(&cfg.Launch, "launch", "/usr/libexec/berth/berth-launch", "path of berth-launch")
	flag.IntVar(&cfg.Launchers, "launchers", server.DefaultLaunchers, "launchers that wait for a container to make")
	flag.TextVar(&level, "log-level", slog.LevelInfo, "least level that is logged: debug, info, warn or error")
	logFile := flag.String("log-file", "", "log to this file, which is bounded, instead of stderr")
	ready := flag.Bool("ready", false, fmt.Sprintf("write a byte to descriptor %d when the socket listens", keeper.ReadyFD))
	flag.IntVar(&cfg.TakeOver, server.TakeOverFlag, 0, "descriptor with the state of the keeper that this one replaces in place; for the keeper itself")
	describe := flag.Bool(server.DescribeFlag, false, "print version and protocols of this program as JSON, and end")
	flag.Parse()
	if *describe {
		if err := json.NewEncoder(os.Stdout).Encode(server.Describe(version)); err != nil {
			os.Exit(1)
		}
		return
	}
	cfg.Args = []string{"--log-level", level.String(), "--log-file", *logFile}
	if err := run(cfg, level, *logFile, *ready); err != nil {
		fmt.Fprintln(os.Stderr, "berth-keeper:", err)
		os.Exit(1)
	}
}

func run(cfg server.Config, level slog.Level, logFile string, ready bool) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if ready {
		f := os.NewFile(keeper.ReadyFD, "ready")
		unix.CloseOnExec(keeper.ReadyFD)
		cfg.Ready = func() {
			f.Write([]byte{0}) // who does not read it does not care
			f.Close()
		}
	}
	var out io.Writer = os.Stderr
	if logFile != "" {
		f, err := server.OpenLogFile(logFile)
		if err != nil {
			return err
		}
		out = f
	}
	cfg.Log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
	// Neither the end of a terminal nor that of a log's reader ends the keeper. Not signal.Ignore: containers would inherit
	// that, while a handler is reset by execve.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	return server.Run(context.Background(), cfg)
}
