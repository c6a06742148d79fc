package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/runtime/keeper"
)

// execute starts a further process in a running container.
func execute(job *keeper.Job, files []*os.File) (*process, error) {
	var p specs.Process
	if err := json.Unmarshal(job.Process, &p); err != nil {
		return nil, argumentError("decode the process: %w", err)
	}
	lp, err := newProcess(&p, job.Terminal, files)
	if err != nil {
		return nil, err
	}
	lp.SubCgroupPaths = job.SubCgroups

	container, err := load(job)
	if err != nil {
		return nil, err
	}
	// Created containers take an exec too: their namespaces are whole.
	if err := wantStatus(container, libcontainer.Running, libcontainer.Created); err != nil {
		return nil, err
	}
	config := container.Config()
	if err := wholeFilter(&config); err != nil {
		return nil, err
	}
	defer handFilter(lp, job, config.Seccomp)()
	if err := container.Start(lp); err != nil {
		err = startError(err, lp.Args)
		// The init may have ended since it was looked at; then that is the reason, whatever Start stumbled over.
		if gone := wantStatus(container, libcontainer.Running, libcontainer.Created); gone != nil {
			return nil, errors.Join(gone, err)
		}
		return nil, err
	}
	undo := func() error { return kill(lp) }
	started, err := adopt(lp)
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	started.undo = undo
	return started, nil
}

// load returns the container of a job that needs it running.
func load(job *keeper.Job) (*libcontainer.Container, error) {
	container, err := libcontainer.Load(job.Root, job.ID)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return nil, notRunningError("container %s: %w", job.ID, err)
	}
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", job.ID, err)
	}
	return container, nil
}

// wantStatus asks the kernel for the state of the container and returns an error unless it is one of those wanted.
func wantStatus(c *libcontainer.Container, wanted ...libcontainer.Status) error {
	status, err := c.Status()
	if err != nil {
		return fmt.Errorf("status of container %s: %w", c.ID(), err)
	}
	for _, w := range wanted {
		if status == w {
			return nil
		}
	}
	return notRunningError("container %s is %s", c.ID(), status)
}
