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
	"golang.org/x/sys/unix"

	_ "github.com/opencontainers/cgroups/devices" // without it libcontainer refuses every device rule

	"github.com/berth-node/berth/runtime/keeper"
)

// create makes the container of the job's bundle and leaves its init at the exec FIFO.
func create(job *keeper.Job, files []*os.File, mounts *lean) (*process, error) {
	c, err := newCreation(job, files, mounts)
	if err != nil {
		return nil, err
	}
	started, fallback := c.enter(mounts)
	if fallback == nil {
		return started, nil
	}
	reason := mounts.say(fallback.Error()) // while it is known what is where
	tried := !errors.As(fallback, new(untried))
	if tried {
		if err := c.retract(mounts); err != nil {
			return nil, errors.Join(fallback, err)
		}
		if c, err = newCreation(job, files, mounts); err != nil {
			return nil, err
		}
	}
	if started, err = c.start(); err != nil {
		return nil, err
	}
	started.unknown = c.unknown
	if !errors.Is(fallback, errAskedFor) {
		started.fallback, started.tried = reason, tried
	}
	return started, nil
}

// A creation is a container that libcontainer knows of, as yet without a process.
type creation struct {
	job       *keeper.Job
	files     []*os.File
	process   *libcontainer.Process
	config    *configs.Config
	container *libcontainer.Container
	memory    unix.Rlimit // of locked memory: see retract
	// unknown is the seccomp profile whose filter package enter would need, if nobody knows it yet.
	unknown *configs.Seccomp
}

func newCreation(job *keeper.Job, files []*os.File, mounts *lean) (*creation, error) {
	c := &creation{job: job, files: files}
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &c.memory); err != nil {
		return nil, os.NewSyscallError("getrlimit", err)
	}
	spec, err := mounts.spec(job)
	if err != nil {
		return nil, err
	}
	if c.process, err = newProcess(spec.Process, job.Terminal, files); err != nil {
		return nil, err
	}
	c.process.Init = true
	if c.config, err = newConfig(job, spec); err != nil {
		return nil, err
	}
	if c.container, err = libcontainer.Create(job.Root, job.ID, c.config); err != nil {
		return nil, err
	}
	_ = mounts.mountCgroups(job.Places, c.container, c.config) // if not, libcontainer does
	_ = mounts.mountDev(job.Places, c.config)                  // likewise
	return c, nil
}

// retract undoes a creation that has failed, and all that it has changed in this process.
func (c *creation) retract(mounts *lean) error {
	err := errors.Join(c.container.Destroy(), mounts.drop())
	// Where cgroups decide on devices by eBPF, the limit was taken off for that.
	return errors.Join(err, os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_MEMLOCK, &c.memory)))
}

// start has libcontainer make the init.
func (c *creation) start() (*process, error) {
	defer handFilter(c.process, c.job, c.config.Seccomp)()
	if err := c.container.Start(c.process); err != nil {
		err = startError(err, c.process.Args)
		return nil, errors.Join(err, c.container.Destroy())
	}
	undo := func() error { return errors.Join(kill(c.process), c.container.Destroy()) }
	started, err := adopt(c.process)
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
