package launch

import (
	"fmt"
	"os"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runc/libcontainer/utils"

	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/launch/filter"
)

// handFilter gives the process its seccomp filter compiled, and leaves of config what it needs beside. Where that fails, init
// compiles it and says what is wrong with it. The function that it returns is to be called when the process has started, or could
// not be.
func handFilter(p *libcontainer.Process, job *keeper.Job, config *configs.Seccomp) (release func()) {
	if job.Filters == "" || !filter.Worthwhile(config) {
		return func() {}
	}
	program, rest, err := filter.Cache{Dir: job.Filters}.Program(config)
	var file *os.File
	if err == nil {
		file, err = filter.Seal(program)
	}
	if err != nil {
		return func() {}
	}
	p.ExtraFiles = []*os.File{file} // the first, and the only one: see filter.Receive
	*config = *rest
	return func() { file.Close() }
}

// wholeFilter puts back the profile of a container that libcontainer has on record: what handFilter has left of it is for the
// init that was handed its filter.
func wholeFilter(config *configs.Config) error {
	if config.Seccomp == nil {
		return nil
	}
	bundle, _ := utils.Annotations(config.Labels)
	spec, err := readSpec(bundle)
	if err != nil {
		return err
	}
	if spec.Linux == nil || spec.Linux.Seccomp == nil {
		return fmt.Errorf("the runtime spec of %s has no seccomp profile, and its container has", bundle)
	}
	whole, err := specconv.SetupSeccomp(spec.Linux.Seccomp)
	if err != nil {
		return argumentError("seccomp profile of %s: %w", bundle, err)
	}
	*config.Seccomp = *whole
	return nil
}
