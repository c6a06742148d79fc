package launch

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"

	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/launch/filter"
)

// handFilter gives the process its seccomp filter compiled. Where that fails, init compiles it and says what is wrong with
// it. The function that it returns is to be called when the process has started, or could not be.
func handFilter(p *libcontainer.Process, job *keeper.Job, config *configs.Seccomp) (release func()) {
	if job.Filters == "" || !filter.Worthwhile(config) {
		return func() {}
	}
	program, err := filter.Cache{Dir: job.Filters}.Program(config)
	var file *os.File
	if err == nil {
		file, err = filter.Seal(program)
	}
	if err != nil {
		return func() {}
	}
	p.ExtraFiles = []*os.File{file} // the first, and the only one: see filter.Receive
	return func() { file.Close() }
}
