package launch

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"

	_ "github.com/opencontainers/cgroups/devices" // without it libcontainer refuses every device rule

	"github.com/berth-node/berth/runtime/keeper"
)

// create makes the container of the job's bundle and leaves its init at the exec FIFO.
func create(job *keeper.Job, files []*os.File, mounts *lean) (*process, error) {
	spec, err := mounts.spec(job)
	if err != nil {
		return nil, err
	}
	lp, err := newProcess(spec.Process, job.Terminal, files)
	if err != nil {
		return nil, err
	}
	lp.Init = true
	config, err := newConfig(job, spec)
	if err != nil {
		return nil, err
	}
	container, err := libcontainer.Create(job.Root, job.ID, config)
	if err != nil {
		return nil, err
	}
	_ = mounts.mountCgroups(job.Places, container, config) // if not, libcontainer does
	_ = mounts.mountDev(job.Places, config)                // likewise
	defer handFilter(lp, job, config.Seccomp)()
	if err := container.Start(lp); err != nil {
		err = startError(err, lp.Args)
		return nil, errors.Join(err, container.Destroy())
	}
	undo := func() error { return errors.Join(kill(lp), container.Destroy()) }
	started, err := adopt(lp)
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	started.undo = undo
	return started, nil
}

func readSpec(bundle string) (*specs.Spec, error) {
	if !filepath.IsAbs(bundle) {
		return nil, argumentError("bundle %q is not an absolute path", bundle)
	}
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, argumentError("read the runtime spec: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, argumentError("decode the runtime spec of %s: %w", bundle, err)
	}
	return &spec, nil
}

// newConfig turns the runtime spec into libcontainer's own form.
func newConfig(job *keeper.Job, spec *specs.Spec) (*configs.Config, error) {
	// specconv takes the working directory for the bundle: relative paths and the label "bundle" come from it.
	if err := os.Chdir(job.Bundle); err != nil {
		return nil, argumentError("enter the bundle: %w", err)
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       job.ID,
		UseSystemdCgroup: job.SystemdCgroup,
		Spec:             spec,
	})
	if err != nil {
		return nil, argumentError("runtime spec of container %s: %w", job.ID, err)
	}
	if config.OomScoreAdj == nil {
		// The keeper is all but exempt from the OOM killer, and its descendants inherit that. A workload never may.
		config.OomScoreAdj = new(int)
	}
	if _, ok := spec.Annotations[criuConfigLabel]; !ok {
		config.Labels = append(config.Labels, criuConfigLabel+"="+criuConfigPath(job))
	}
	return config, nil
}
