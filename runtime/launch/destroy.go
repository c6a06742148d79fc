package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/berth-node/berth/runtime/keeper"
)

// destroy removes what libcontainer holds of a stopped container: its cgroups, its Intel RDT groups, its state folder;
// and it runs its poststop hooks. A container that was never started is killed. One that is not there is no error.
func destroy(job *keeper.Job) error {
	container, err := libcontainer.Load(job.Root, job.ID)
	if errors.Is(err, libcontainer.ErrNotExist) {
		// A launcher that died before init was ready leaves a folder without a state, which would block the ID.
		if err := os.RemoveAll(filepath.Join(job.Root, job.ID)); err != nil {
			return fmt.Errorf("remove the state of container %s: %w", job.ID, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("load container %s: %w", job.ID, err)
	}
	if err := container.Destroy(); err != nil {
		return fmt.Errorf("destroy container %s: %w", job.ID, err)
	}
	return nil
}
