package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/admin"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/handover"
)

func upgradeCommand() *cobra.Command {
	var program string
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Replace the running daemon by the installed program, without a pause",
		Long: `Have the daemon replaced by the program that is installed now, or by another one, with the configuration as it is now.

First the new program says whether it can read the configuration and the records and speak with the keeper; if not, or if it
does not start, nothing changes and the exit status is 1. Then it takes over the sockets: who connects meanwhile waits, calls
that would take long (stops, pulls, streams of events) are cut off as Unavailable and go on when they are repeated. Pods do not
notice. Exec, attach and port-forward sessions go on in the old daemon, which ends with the last of them; "berth check" shows it.
Then the keeper is replaced in place, if another one, or another launcher, is installed.

To go back, install the former program and run this again. A program that does not know the form of the records refuses.`,
		Args: operands(cobra.NoArgs),
	}
	runDir := daemonFlag(cmd)
	cmd.Flags().StringVar(&program, "program", "", "path of the new berth (the one that the service started with)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if program != "" {
			var err error
			if program, err = filepath.Abs(program); err != nil {
				return err
			}
		}
		return admin.NewClient(adminSocket(*runDir)).Upgrade(cmd.Context(), program, func(s string) { cmd.Println(s) })
	}
	return cmd
}

// errBusy is for who wants to upgrade or drain while somebody else does.
var errBusy = fmt.Errorf("an upgrade or a drain is under way: %w", errdefs.ErrUnavailable)

// errEnded is for who comes too late.
var errEnded = fmt.Errorf("this daemon is stopping: %w", errdefs.ErrUnavailable)

// upgrade replaces this daemon by program, "" for the service's own. After an error this daemon goes on.
func (b *berth) upgrade(ctx context.Context, program string, tell func(string)) error {
	if !b.exclusive.TryLock() {
		return errBusy
	}
	defer b.exclusive.Unlock()
	if program == "" {
		program = b.program
	}
	if !filepath.IsAbs(program) {
		return fmt.Errorf("program %q: want an absolute path: %w", program, errdefs.ErrInvalidArgument)
	}
	b.log.Info("upgrading", "program", program)
	folders := handover.Folders{Root: b.cfg.RootDir, Run: b.cfg.RunDir}
	// systemd sees the end of its own children only.
	sibling := followed() && os.Getppid() == 1
	s, err := handover.Start(ctx, program, os.Args[1:], version, folders, sibling)
	if err != nil {
		return err
	}
	r := &request{successor: s, done: make(chan error, 1)}
	if r.lingering, err = handover.Linger(b.cfg.RunDir, version); err != nil {
		s.Kill()
		return err
	}
	select {
	case b.requests <- r:
	case <-b.ended:
		s.Kill()
		return errors.Join(errEnded, r.lingering.Close())
	}
	if err := <-r.done; err != nil {
		return err
	}
	tell(fmt.Sprintf("berth %s, process %d, has taken over from berth %s, process %d", s.Version, s.Pid(), version, os.Getpid()))
	return b.upgradeKeeper(ctx, tell)
}

// upgradeKeeper has the new daemon replace the keeper, if another one is installed.
func (b *berth) upgradeKeeper(ctx context.Context, tell func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, keeperLimit)
	defer cancel()
	build, err := admin.NewClient(adminSocket(b.cfg.RunDir)).ReplaceKeeper(ctx)
	if err != nil {
		return fmt.Errorf("the daemon is replaced, and the keeper goes on as it was: %w", err)
	}
	if build != "" {
		tell("the keeper is berth-keeper " + build + " now")
	}
	return nil
}

// keeperLimit is how long the replacement of the keeper may take, with attempts.
const keeperLimit = 2 * time.Minute

// followed reports whether somebody is told which process the node's daemon is.
func followed() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

// handOver gives the node to the successor of r. After an error this daemon has it, but not n, which at most serves its
// sessions to their end.
func (b *berth) handOver(ctx context.Context, n *node, r *request) error {
	if err := b.giveAway(ctx, n, r); err != nil {
		r.successor.Kill()
		return errors.Join(err, b.sign())
	}
	b.unlock()
	b.sockets.Leave()
	return nil
}

func (b *berth) giveAway(ctx context.Context, n *node, r *request) error {
	s := r.successor
	pending, err := n.handOver(ctx, r.lingering)
	b.pending = pending // for this process's next node, if it comes to that
	if err != nil {
		return err
	}
	e := handover.Estate{Program: b.program, Watched: b.watched || !followed(), Pending: pending, Files: map[string]*os.File{}}
	b.sockets.Estate(&e)
	for name, l := range b.locks {
		e.Files[name] = l.File()
	}
	if err := s.Take(ctx, e); err != nil {
		return err
	}
	b.notify(fmt.Sprintf("MAINPID=%d\n%s", s.Pid(), daemon.SdNotifyReady))
	if err := s.Commit(); err != nil {
		b.notify(fmt.Sprintf("MAINPID=%d\n%s", os.Getpid(), daemon.SdNotifyReady))
		return err
	}
	return nil
}

// sign puts this process's name back into its locks.
func (b *berth) sign() error {
	var failed error
	for _, l := range b.locks {
		failed = errors.Join(failed, l.Sign())
	}
	return failed
}

// linger serves the sessions of n to their end, when another daemon has the node. If somebody watches this process, it stays
// until that daemon and all after it have ended.
func (b *berth) linger(ctx context.Context, n *node, l *handover.Lingering) error {
	if sessions := n.sessions(); sessions > 0 {
		b.log.Info("another daemon has taken over; this one stays for its sessions", "sessions", sessions)
	}
	n.linger(ctx, l)
	err := errors.Join(n.end(), l.Close())
	b.lingering.Wait()
	b.exclusive.Lock() // the upgrade has something to do yet, after a signal too
	b.log.Info("another daemon has taken over, and no session is left here")
	if b.watched || followed() {
		return err
	}
	if err != nil {
		b.log.Warn("not everything could be closed, ignoring", "err", err)
	}
	return guard(ctx, b.cfg.RootDir, b.cfg.RunDir)
}

// lingerHere serves the sessions of n to their end in the background: this process goes on with another node.
func (b *berth) lingerHere(ctx context.Context, n *node, l *handover.Lingering) {
	b.lingering.Go(func() {
		n.linger(ctx, l)
		if err := errors.Join(n.end(), l.Close()); err != nil {
			b.log.Warn("not everything of an earlier hand-over could be closed, ignoring", "err", err)
		}
	})
}

// servedByLingerers are the executions that earlier daemons still serve.
func servedByLingerers(runDir string) []string {
	var execs []string
	for _, l := range handover.Lingerers(runDir) {
		if !l.Dead {
			execs = append(execs, l.Execs...)
		}
	}
	return execs
}

// awaitLingerers ends what earlier daemons served if these die before it has ended.
func (b *berth) awaitLingerers(n *node) {
	handover.Tidy(b.cfg.RunDir)
	for _, l := range handover.Lingerers(b.cfg.RunDir) {
		go func() { // ends with l, at the latest
			execs, err := l.Await()
			if n.over.Err() != nil {
				return // another daemon waits for it too
			}
			if err == nil && len(execs) > 0 {
				ctx, cancel := context.WithTimeout(n.over, workLimit)
				defer cancel()
				err = n.runtime.EndExecs(ctx, execs)
			}
			if err == nil {
				err = l.Forget()
			}
			if err != nil {
				b.log.Warn("sessions of an earlier daemon could not be cleared up after, ignoring", "pid", l.Pid, "err", err)
			}
		}()
	}
}

// reloadAt upgrades at every signal, or passes it on to the daemon that has the node. It returns when ctx ends.
func (b *berth) reloadAt(ctx context.Context, hup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		if b.gone.Load() {
			passOn(b.cfg.RunDir, unix.SIGHUP, 0)
			continue
		}
		b.notify(reloading()) // systemd expects "ready" again, which the next daemon says
		if err := b.upgrade(ctx, "", func(s string) { b.log.Info(s) }); err != nil {
			b.log.Error("not reloading", "error", err)
			b.notify(daemon.SdNotifyReady)
		}
	}
}

// reloading is what systemd wants to hear: with the time, since 253.
func reloading() string {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail for this clock
	return fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, time.Duration(now.Nano()).Microseconds())
}

func lingeringStatus(runDir string) []admin.Lingering {
	var out []admin.Lingering
	for _, l := range handover.Lingerers(runDir) {
		if !l.Dead && l.Sessions > 0 {
			out = append(out, admin.Lingering{Pid: l.Pid, Version: l.Version, Sessions: l.Sessions})
		}
	}
	slices.SortFunc(out, func(a, b admin.Lingering) int { return a.Pid - b.Pid })
	return out
}
