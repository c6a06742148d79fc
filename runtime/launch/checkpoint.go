package launch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
)

// minCriu is the oldest criu that dumps containers as Kubernetes needs it, in criu's counting: 3.16.0.
const minCriu = 31600

// checkpoint dumps a running container with criu.
func checkpoint(job *keeper.Job) error {
	opts := job.Checkpoint
	if opts == nil {
		return argumentError("a checkpoint job without options")
	}
	container, err := load(job)
	if err != nil {
		return err
	}
	if err := wantStatus(container, libcontainer.Running, libcontainer.Paused); err != nil {
		return err
	}
	config := container.Config()
	namedCgroups(&config, job.Places) // its mounts are the container's own
	if err := checkCriu(); err != nil {
		return err
	}
	if err := writeCriuConfig(job, container); err != nil {
		return err
	}
	err = container.Checkpoint(&libcontainer.CriuOpts{
		ImagesDirectory:         opts.ImagesDir,
		WorkDirectory:           opts.WorkDir,
		LeaveRunning:            opts.LeaveRunning,
		TcpEstablished:          opts.TCPEstablished,
		FileLocks:               opts.FileLocks,
		ExternalUnixConnections: opts.ExternalUnixConnections,
		// The network namespace is the sandbox's: whoever restores has to bring one.
		EmptyNs: unix.CLONE_NEWNET,
	})
	if err != nil {
		return checkpointError(job, err)
	}
	return nil
}

// checkpointError tells a criu that does not work with this kernel at all from one that could not dump this container.
func checkpointError(job *keeper.Job, err error) error {
	dir := job.Checkpoint.WorkDir
	if dir == "" {
		dir = job.Checkpoint.ImagesDir
	}
	// What criu knows of the kernel it calls kerndat, and collects before it looks at any process.
	log, _ := os.ReadFile(filepath.Join(dir, "dump.log"))
	if bytes.Contains(log, []byte("when initializing kerndat")) {
		return unsupportedError("the criu of this node does not work with its kernel; a newer criu may: %w", err)
	}
	return err
}

// checkCriu tells whether this node can checkpoint at all.
func checkCriu() error {
	if _, err := exec.LookPath("criu"); err != nil {
		return unsupportedError("checkpoint needs the program criu: %w", errors.Unwrap(err))
	}
	version, err := criu.MakeCriu().GetCriuVersion()
	if err != nil {
		return unsupportedError("ask criu for its version: %w", err)
	}
	if version < minCriu {
		return unsupportedError("checkpoint needs criu %s or newer, and this node has %s", criuVersion(minCriu), criuVersion(version))
	}
	return nil
}

// criuVersion writes criu's number as people know it.
func criuVersion(v int) string {
	return fmt.Sprintf("%d.%d.%d", v/10000, v/100%100, v%100)
}
