package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/failpoint"
	"golang.org/x/sys/unix"
)

// ReadyFD is the descriptor on which a keeper that was told so (--ready) writes one byte when it listens.
const ReadyFD = 3

// Start starts the keeper of runDir unless one answers already. binary is berth-keeper, launch the path of
// berth-launch. The keeper gets a session of its own, the root folder as working directory, no descriptor of this
// process and its own bounded log, so that it outlives the caller. Start returns when the keeper listens.
//
// Of several callers at once one starts it and the others find it answering.
func Start(ctx context.Context, binary, launch, runDir string, log *slog.Logger) error {
	if err := os.MkdirAll(runDir, 0o711); err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	unlock, err := lockStart(ctx, filepath.Join(runDir, "keeper.start"))
	if err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	defer unlock()

	c, err := dial(ctx, filepath.Join(runDir, SocketName), newSpares())
	if err == nil {
		return c.Close()
	}
	if !errors.Is(err, errdefs.ErrUnavailable) {
		return err // it runs, and cannot be spoken with
	}
	pid, err := spawn(ctx, binary, launch, runDir)
	if err != nil {
		return fmt.Errorf("start keeper %s: %w", binary, err)
	}
	log.Info("keeper started", "pid", pid, "runDir", runDir)
	return nil
}

// lockStart waits for the lock on path. It is another file than the keeper's own lock, which is held for life.
func lockStart(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if err != unix.EINTR {
				locked <- err
				return
			}
		}
	}()
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() { // the holder is bounded by its own context; then the lock goes back at once
			<-locked
			f.Close()
		}()
		return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
	}
}

// spawn starts the program and waits for its word that it listens.
func spawn(ctx context.Context, binary, launch, runDir string) (pid int, err error) {
	logPath := filepath.Join(runDir, LogName)
	out, err := os.OpenFile(logPath, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()

	// Not CommandContext: the keeper must not die with the context of the one who started it.
	cmd := exec.Command(binary, "--run-dir", runDir, "--launch", launch, "--log-file", logPath, "--ready")
	cmd.Dir = "/"
	cmd.Env = append(failpoint.Environment(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Stdout, cmd.Stderr = out, out // a Go panic goes there; everything else the keeper writes itself
	cmd.ExtraFiles = []*os.File{w}    // becomes ReadyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // it is this process's child until this process ends, and must not stay a zombie

	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(defaultTimeout)
	}
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	r.SetReadDeadline(deadline)
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		if errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("it ended (%w), see %s: %w", <-ended, logPath, errdefs.ErrUnavailable)
		}
		cmd.Process.Kill()
		return 0, fmt.Errorf("it does not answer: %w", err)
	}
	return cmd.Process.Pid, nil
}
