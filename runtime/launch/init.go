package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/system"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/enter"
	"github.com/berth-node/berth/internal/memfile"
	"github.com/berth-node/berth/internal/startfifo"
	"github.com/berth-node/berth/runtime/launch/filter"
)

// The init of a container as nearly all are is not libcontainer's, which is a Go program, but package enter's. All else is
// libcontainer's still: what the container is, its cgroups, its record. This is libcontainer's Start with another init:
//
//	launcher                                package enter
//	the FIFO, full; a plan              --> waits, if it was not born in its cgroup
//	cgroups: Apply, Set                 --> limits, namespaces, init, which makes its mounts
//	state.json meanwhile                --> users, capabilities, filter, command; waits at the FIFO
//
// What is unusual goes to libcontainer, and so does what fails here, which is undone before: nobody needs our words for it.

// untried says why libcontainer makes a container at once.
type untried struct{ error }

func (u untried) Unwrap() error { return u.error }

// outfit is what all inits that this launcher makes are made with: the program, sealed, and the node's /proc.
type outfit struct{ program, proc *os.File }

// programFD is the lowest descriptor of the program: those that it is started with come to lie below.
const programFD = 100

var newOutfit = sync.OnceValues(func() (*outfit, error) {
	program, err := memfile.Sealed("berth-enter", memfile.Program, bytes.NewReader(enter.Binary()))
	if err != nil {
		return nil, err
	}
	defer program.Close()
	fd, err := unix.FcntlInt(program.Fd(), unix.F_DUPFD_CLOEXEC, programFD)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	proc, err := os.Open("/proc")
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &outfit{os.NewFile(uintptr(fd), program.Name()), proc}, nil
})

// enter makes the init of the container by package enter. An error is an untried if nothing was done.
func (c *creation) enter(mounts *lean) (*process, error) {
	plan, seccomp, err := c.plan(mounts)
	if err != nil {
		return nil, untried{err}
	}
	c.config.Seccomp = seccomp
	state, err := c.container.State()
	if err != nil {
		return nil, err
	}
	groups, err := manager.NewWithPaths(c.config.Cgroups, state.CgroupPaths)
	if err != nil {
		return nil, err
	}
	files, err := c.initFiles(plan)
	if err != nil {
		return nil, err
	}
	defer files.Plan.Close()
	defer files.Fifo.Close()
	if files.Cgroup, err = c.birthplace(groups); err != nil {
		return nil, err
	}
	if files.Cgroup != nil {
		defer files.Cgroup.Close()
	}
	pid, pidfd, err := enter.Create(context.Background(), *files, enter.Steps{
		Place: func(pid int) error { return c.place(pid, groups, files.Cgroup != nil) },
		Made:  func(pid int) error { return c.record(pid, state) },
	})
	if err != nil {
		return nil, err
	}
	undo := func() error { return errors.Join(killInit(pidfd), c.container.Destroy()) }
	return &process{pid: pid, startTime: state.InitProcessStartTime, pidfd: pidfd, undo: undo}, nil
}

// plan returns what the program is to do, and what of the seccomp profile is to be on record; or why it is not asked.
func (c *creation) plan(mounts *lean) ([]byte, *configs.Seccomp, error) {
	switch {
	case c.job.Libcontainer:
		return nil, nil, errAskedFor
	case mounts == nil || !mounts.here():
		return nil, nil, errors.New("the launcher is among the host's mounts")
	}
	if why := unusual(c.config, c.process); why != "" {
		return nil, nil, errors.New(why)
	}
	plan := translate(c.job.ID, c.config, c.process)
	seccomp, err := c.addFilter(plan)
	if err != nil {
		return nil, nil, err
	}
	data, err := plan.Encode()
	return data, seccomp, err
}

// errAskedFor says that libcontainer is to make the container.
var errAskedFor = errors.New("so it was asked")

// addFilter has the program load what libcontainer would load, and returns what of the profile is to be on record.
func (c *creation) addFilter(plan *enter.Plan) (*configs.Seccomp, error) {
	profile := c.config.Seccomp
	if profile == nil {
		return nil, nil
	}
	if c.job.Filters == "" {
		return nil, errors.New("no seccomp filters are kept")
	}
	loaded, rest, err := filter.Cache{Dir: c.job.Filters}.Loaded(profile)
	if err != nil {
		whole := *profile // of which libcontainer's init gets a part
		c.unknown = &whole
		return nil, err
	}
	plan.Filter, plan.FilterFlags = loaded.Code, loaded.Flags
	return rest, nil
}

// initFiles are the caller's to close, but for the outfit.
func (c *creation) initFiles(plan []byte) (*enter.InitFiles, error) {
	outfit, err := newOutfit()
	if err != nil {
		return nil, err
	}
	file, err := memfile.Sealed("plan", memfile.Data, bytes.NewReader(plan))
	if err != nil {
		return nil, err
	}
	fifo, err := makeFIFO(filepath.Join(c.job.Root, c.job.ID, "exec.fifo"))
	if err != nil {
		file.Close()
		return nil, err
	}
	return &enter.InitFiles{Program: outfit.program, Plan: file, Fifo: fifo, Proc: outfit.proc, Stdio: [3]*os.File(c.files)}, nil
}

// makeFIFO makes the exec FIFO, as libcontainer does, and opens it for init.
func makeFIFO(path string) (*os.File, error) {
	const mode = 0o622
	if err := unix.Mkfifo(path, mode); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	if err := os.Chmod(path, mode); err != nil { // past the umask
		return nil, err
	}
	return startfifo.Blocking(path)
}

// birthplace makes the cgroup (v2) in which init can be born, and opens it; nil where init has to be moved.
func (c *creation) birthplace(groups cgroups.Manager) (*os.File, error) {
	if !cgroups.IsCgroup2UnifiedMode() || c.config.Cgroups.Systemd { // systemd makes a cgroup for a process that there is
		return nil, nil
	}
	path := groups.Path("")
	if err := fs2.CreateCgroupPath(path, c.config.Cgroups); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// place puts the process that makes init into its cgroups, and limits them. libcontainer does that when the mounts are made: its init
// needs more than the container may have. This one does not, and must not be under way while on cgroup v1 the rules for devices are
// replaced, which for a moment allow nothing.
func (c *creation) place(pid int, groups cgroups.Manager, born bool) error {
	if !born {
		if err := groups.Apply(pid); err != nil {
			return err
		}
	}
	return groups.Set(c.config.Cgroups.Resources)
}

// record puts the container on record, while its init makes mounts.
func (c *creation) record(pid int, state *libcontainer.State) error {
	stat, err := system.Stat(pid)
	if err != nil {
		return fmt.Errorf("read the start time of process %d: %w", pid, err)
	}
	state.InitProcessPid, state.InitProcessStartTime, state.Created = pid, stat.StartTime, time.Now().UTC()
	state.NamespacePaths = namespacePaths(pid)
	for _, f := range c.files {
		target, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
		if err != nil {
			return err
		}
		state.ExternalDescriptors = append(state.ExternalDescriptors, target)
	}
	return saveState(filepath.Join(c.job.Root, c.job.ID), state)
}

func namespacePaths(pid int) map[configs.NamespaceType]string {
	paths := map[configs.NamespaceType]string{}
	for _, kind := range configs.NamespaceTypes() {
		if configs.IsNamespaceSupported(kind) {
			paths[kind] = (&configs.Namespace{Type: kind}).GetPath(pid)
		}
	}
	return paths
}

// saveState writes libcontainer's record of a container, as that does: whole or not at all.
func saveState(dir string, state *libcontainer.State) error {
	data, err := json.Marshal(state)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "state-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, "state.json"))
	}
	return err // what is left goes with the folder
}

// killInit ends an init that is no child of ours.
func killInit(pidfd *os.File) error {
	err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, killGrace)
	return err
}

// learn finds out what libcontainer loads for a profile, so that the next container with it need not wait for libcontainer.
func learn(dir string, profile *configs.Seccomp) {
	_ = filter.Cache{Dir: dir}.Learn(profile, func() (*filter.Loaded, error) { // if not, libcontainer makes that one too
		f, err := traceFilter(profile)
		if err != nil {
			return nil, err
		}
		return &filter.Loaded{Code: f.Code, Flags: f.Flags}, nil
	})
}
